"""The comparison of conditions, filtered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import pandas as pd

from stxtools import _keys
from stxtools._checks import check_key
from stxtools._docs import documented
from stxtools._validate import check_adata

from ._rows import rows_of

if TYPE_CHECKING:
    from anndata import AnnData

COLUMNS = {"group", "kind", "compartment", "names", "logfoldchanges", "ci_low", "ci_high", "pvals", "pvals_adj"}


@documented
def compare(
    adata: AnnData,
    kind: Literal["share", "contact", "expression"] | None = None,
    *,
    group: str | Sequence[str] | None = None,
    compartment: str | Sequence[str] | None = None,
    fdr: float | None = None,
    key: str = _keys.COMPARE,
) -> pd.DataFrame:
    """Return the table of :func:`stxtools.tl.compare`, filtered.

    Parameters
    ----------
    kind
        ``"share"``, ``"contact"`` or ``"expression"``; all by default.
    fdr
        Keep rows with ``pvals_adj`` of at most this.
    %(parameters)s

    Returns
    -------
    A new table in the order of the slot.

    Raises
    ------
    KeyError
        There is no such table.
    ValueError
        It has no such kind, group or compartment.

    Examples
    --------
    >>> import stxtools as st
    >>> adata = st.datasets.synthetic_tissue(n_obs=300, n_patients=6, disease="patient")
    >>> st.tl.compare(adata, "disease", "patient", groupby="compartment", library_key="section")
    >>> shares = st.get.compare(adata, "share")
    """
    check_adata(adata, unique_vars=False)
    table = adata.uns.get(check_key("key", key))
    if not isinstance(table, pd.DataFrame) or not set(table.columns) >= COLUMNS:
        raise KeyError(
            f"`adata.uns[{key!r}]` holds no comparison of conditions. Run `st.tl.compare(adata, condition_key, "
            "subject_key)` first, or name the table with `key`."
        )
    return rows_of(table, f"adata.uns[{key!r}]", fdr, kind=kind, group=group, compartment=compartment)
