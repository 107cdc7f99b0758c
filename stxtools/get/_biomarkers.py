"""The biomarker table, filtered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import pandas as pd

from stxtools import _keys
from stxtools._checks import check_key, check_names
from stxtools._docs import documented
from stxtools._validate import check_adata, check_choice, check_int, check_number

if TYPE_CHECKING:
    from anndata import AnnData


@documented
def biomarkers(
    adata: AnnData,
    group: str | Sequence[str] | None = None,
    *,
    fdr: float | None = None,
    sign: Literal["both", "up", "down"] = "both",
    min_libraries: int = 0,
    n_top: int | None = None,
    key: str = _keys.BIOMARKERS,
) -> pd.DataFrame:
    """Return the table of :func:`stxtools.tl.biomarkers`, filtered.

    Parameters
    ----------
    sign
        ``"up"`` keeps genes that are higher in the group, ``"down"`` those that are lower.
    min_libraries
        Keep genes whose effect was estimated in at least as many libraries.
    n_top
        Keep as many genes per group, the first of the table (for ``sign="down"`` the last), after the other filters.
    %(parameters)s

    Returns
    -------
    A new table in the order of the slot, with the columns of :func:`stxtools.tl.biomarkers` and
    :func:`stxtools.tl.targets`.

    Raises
    ------
    KeyError
        There is no such table.
    ValueError
        An unknown group.

    Examples
    --------
    >>> import stxtools as st
    >>> adata = st.datasets.synthetic_tissue()
    >>> st.tl.biomarkers(adata, groupby="compartment", n_null=100)
    >>> table = st.get.biomarkers(adata, fdr=0.05, sign="up")
    """
    check_adata(adata, unique_vars=False)
    table = adata.uns.get(check_key("key", key))
    if not isinstance(table, pd.DataFrame) or not {"group", "names", "scores", "pvals_adj"} <= set(table.columns):
        found = [str(k) for k, v in adata.uns.items() if isinstance(v, pd.DataFrame)]
        raise KeyError(
            f"`adata.uns[{key!r}]` holds no biomarker table (tables in `uns`: {found or 'none'}). "
            "Run `st.tl.biomarkers(adata, groupby=...)` first, or name the table with `key`."
        )
    check_choice("sign", sign, ("both", "up", "down"))
    min_libraries = check_int("min_libraries", min_libraries, minimum=0)
    keep = pd.Series(True, index=table.index)
    if group is not None:
        wanted = check_names("group", group, "a group")
        present = [str(g) for g in pd.unique(table["group"])]
        unknown = [g for g in wanted if g not in present]
        if unknown:
            raise ValueError(
                f"`group` names {unknown}; `adata.uns[{key!r}]` has the groups {present}. Of two groups only the "
                "second is tested by default: name others in `st.tl.biomarkers(adata, groupby, groups=[...])`."
            )
        keep &= table["group"].isin(wanted)
    if fdr is not None:
        keep &= table["pvals_adj"] <= check_number("fdr", fdr, minimum=0.0, maximum=1.0)
    if sign == "up":
        keep &= table["scores"] > 0
    elif sign == "down":
        keep &= table["scores"] < 0
    if min_libraries > 0:
        keep &= table["n_libraries"] >= min_libraries
    out = table.loc[keep]
    if n_top is not None:
        n_top = check_int("n_top", n_top, minimum=1)
        by_group = out.groupby("group", sort=False, observed=True)
        out = by_group.tail(n_top) if sign == "down" else by_group.head(n_top)
    return out.reset_index(drop=True).copy()
