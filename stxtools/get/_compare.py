"""The comparison of conditions, filtered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from stxtools import _keys
from stxtools._docs import documented

from ._rows import rows_of, stored_table

if TYPE_CHECKING:
    import pandas as pd
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
    %(parameters)s

    %(returns)s

    Raises
    ------
    KeyError, ValueError
        There is no such table, or it has no such kind, group or compartment.

    Examples
    --------
    >>> import stxtools as st
    >>> adata = st.datasets.synthetic_tissue(n_obs=300, n_patients=6, disease="patient")
    >>> st.tl.compare(adata, "disease", "patient", groupby="compartment", library_key="section")
    >>> shares = st.get.compare(adata, "share")
    """
    call = "st.tl.compare(adata, condition_key, subject_key)"
    table = stored_table(adata, key, COLUMNS, "comparison of conditions", call)
    return rows_of(table, f"adata.uns[{key!r}]", fdr, kind=kind, group=group, compartment=compartment)
