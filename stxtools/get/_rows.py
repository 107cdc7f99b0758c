"""Rows of a table of results, by the names in its columns."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from stxtools._checks import check_names
from stxtools._validate import check_number, listing


def rows_of(
    table: pd.DataFrame, where: str, fdr: float | None = None, **wanted: str | Sequence[str] | None
) -> pd.DataFrame:
    """Return the rows with the ``wanted`` names in their columns and ``pvals_adj`` of at most ``fdr``, as a copy."""
    for column, value in wanted.items():
        if value is None:
            continue
        names = check_names(column, value, f"a {column}")
        present = pd.unique(table[column].astype(str))
        unknown = [name for name in names if name not in present]
        if unknown:
            raise ValueError(f"`{column}` names {listing(unknown)}; `{where}` has {listing(present)}.")
        table = table[table[column].astype(str).isin(names)]
    if fdr is not None:
        table = table[table["pvals_adj"] <= check_number("fdr", fdr, minimum=0.0, maximum=1.0)]
    return table.reset_index(drop=True).copy()
