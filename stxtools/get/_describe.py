"""What compartments are: the summary, or the evidence of one kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from stxtools import _keys
from stxtools._checks import check_key, check_names
from stxtools._docs import documented
from stxtools._validate import check_adata, check_number, listing

from ._rows import rows_of

if TYPE_CHECKING:
    from anndata import AnnData


@documented
def describe(
    adata: AnnData,
    kind: str | None = None,
    *,
    group: str | Sequence[str] | None = None,
    fdr: float | None = None,
    key: str = _keys.DESCRIBE,
) -> pd.DataFrame:
    """Return what :func:`stxtools.tl.describe` found: the summary of the compartments, or the evidence of one kind.

    Parameters
    ----------
    kind
        ``"activity"`` (or a name that ``net`` was given) or ``"contact"`` for the evidence; by default the summary.
    %(parameters)s

    %(returns)s

    Raises
    ------
    KeyError, ValueError
        There is no description, or it has no such kind or group.

    Examples
    --------
    >>> import stxtools as st
    >>> adata = st.datasets.synthetic_tissue()
    >>> st.tl.biomarkers(adata, groupby="compartment", n_null=100)
    >>> st.tl.describe(adata, "compartment")
    >>> summary = st.get.describe(adata, group="layer_1")
    """
    check_adata(adata, unique_vars=False)
    summary, evidence = (adata.uns.get(name) for name in (check_key("key", key), f"{key}_evidence"))
    if not isinstance(summary, pd.DataFrame) or not {"proposed_name", "markers"} <= set(summary.columns):
        raise KeyError(f"`adata.uns[{key!r}]` holds no description; run `st.tl.describe(adata, groupby)` first, or "
                       "name it with `key`.")  # fmt: skip
    groups = summary.index.astype(str)
    wanted = list(groups) if group is None else check_names("group", group, "a group")
    unknown = [name for name in wanted if name not in groups]
    if unknown:
        raise ValueError(f"`group` names {listing(unknown)}; `adata.uns[{key!r}]` has {listing(groups)}.")
    if fdr is not None:
        fdr = check_number("fdr", fdr, minimum=0.0, maximum=1.0)
    if kind is None:
        return summary[groups.isin(wanted)].copy()
    kinds = [] if not isinstance(evidence, pd.DataFrame) else list(pd.unique(evidence["kind"].astype(str)))
    if check_key("kind", kind) not in kinds:
        raise ValueError(f"`kind={kind!r}` was not described, {listing(kinds) if kinds else 'nor any other'}: call "
                         "`st.tl.describe` with `net=` for activities and with `resource=` for contacts.")  # fmt: skip
    keep = (evidence["kind"].astype(str) == kind) & evidence["group"].astype(str).isin(wanted)
    return rows_of(evidence[keep], f"adata.uns[{f'{key}_evidence'!r}]", fdr)
