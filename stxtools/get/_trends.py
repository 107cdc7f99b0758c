"""Trends over time, filtered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import pandas as pd

from stxtools import _keys
from stxtools._docs import documented

from ._rows import rows_of, stored_table

if TYPE_CHECKING:
    from anndata import AnnData

COLUMNS = {"kind", "compartment", "feature", "slope", "ci_low", "ci_high", "pvals", "pvals_adj", "pvals_order"}


@documented
def trends(
    adata: AnnData,
    kind: Literal["share", "area", "contact", "expression"] | None = None,
    *,
    compartment: str | Sequence[str] | None = None,
    feature: str | Sequence[str] | None = None,
    fdr: float | None = None,
    values: bool = False,
    key: str = _keys.TRENDS,
) -> pd.DataFrame:
    """Return the table of :func:`stxtools.tl.trends`, filtered.

    Parameters
    ----------
    kind
        ``"share"``, ``"area"``, ``"contact"`` or ``"expression"``; all by default.
    feature
        Gene or genes, or the other compartment of a contact; all by default.
    values
        Whether to add the log2 value of every subject, in columns named by the subjects.
    %(parameters)s

    %(returns)s

    Raises
    ------
    KeyError, ValueError
        There is no such table, or it has no such kind, compartment or feature.

    Examples
    --------
    >>> import stxtools as st
    >>> adata = st.datasets.synthetic_series(3, 3, obs_per_section=200)
    >>> st.tl.trends(adata, "time", subject_key="subject", groupby="compartment", library_key="section")
    >>> shares = st.get.trends(adata, "share")
    """
    table = stored_table(adata, key, COLUMNS, "trends", "st.tl.trends(adata, time_key, subject_key=...)")
    if values:
        subjects = [str(name) for name in adata.uns[f"{key}_params"]["subjects"]]
        table = pd.concat([table, adata.uns[f"{key}_values"].set_axis(subjects, axis=1)], axis=1)
    return rows_of(table, f"adata.uns[{key!r}]", fdr, kind=kind, compartment=compartment, feature=feature)
