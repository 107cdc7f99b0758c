"""Tables of results, and their rows by the names in the columns."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING

import pandas as pd

from stxtools._checks import check_key, check_names
from stxtools._validate import check_adata, check_number, listing

if TYPE_CHECKING:
    from anndata import AnnData


def stored_table(adata: AnnData, key: str, columns: AbstractSet[str], what: str, call: str) -> pd.DataFrame:
    """Return the table ``uns[key]``, which has ``columns``, or say which call makes it."""
    check_adata(adata, unique_vars=False)
    table = adata.uns.get(check_key("key", key))
    if not isinstance(table, pd.DataFrame) or not columns <= set(table.columns):
        raise KeyError(f"`adata.uns[{key!r}]` holds no {what}. Run `{call}` first, or name the table with `key`.")
    return table


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
