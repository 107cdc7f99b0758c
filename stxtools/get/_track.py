"""Tracked compartments, as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import pandas as pd

from stxtools import _keys
from stxtools._checks import check_choice, check_key
from stxtools._docs import documented
from stxtools._validate import check_adata

from ._rows import rows_of

if TYPE_CHECKING:
    from anndata import AnnData

TABLES = ("links", "compartments", "regions")


@documented
def track(
    adata: AnnData,
    table: Literal["links", "compartments", "regions"] = "links",
    *,
    event: str | Sequence[str] | None = None,
    fdr: float | None = None,
    key: str = _keys.TRACK,
) -> pd.DataFrame:
    """Return a table of :func:`stxtools.tl.track`.

    Parameters
    ----------
    table
        ``"links"``: compartments of one time against those of the next. ``"compartments"``: each at each time, with its
        lineage. ``"regions"``: the best counterparts of every region.
    event
        Keep links of these kinds: ``"continues"``, ``"splits"``, ``"merges"``, ``"appears"``, ``"disappears"``. All by
        default, those between which there is no link (``"none"``) included.
    %(parameters)s

    %(returns)s

    Raises
    ------
    KeyError, ValueError
        There is no such table or event, or events of another table than ``"links"`` are asked for.

    Examples
    --------
    >>> import stxtools as st
    >>> adata = st.datasets.synthetic_series(3, 2, obs_per_section=200)
    >>> st.tl.region_graph(adata, "compartment", library_key="section", max_size=20)
    >>> st.tl.track(adata, "time")
    >>> found = st.get.track(adata, "compartments")
    """
    check_adata(adata, unique_vars=False)
    check_choice("table", table, TABLES)
    slot = adata.uns.get(check_key("key", key))
    if not isinstance(slot, Mapping) or not isinstance(slot.get(table), pd.DataFrame):
        raise KeyError(
            f"`adata.uns[{key!r}]` holds no tracked compartments. Run `st.tl.track(adata, time_key)` first, or name "
            "the slot with `key`."
        )
    if table != "links" and (event is not None or fdr is not None):
        raise ValueError(f"`event` and `fdr` choose links; `table={table!r}` has neither.")
    return rows_of(slot[table], f"adata.uns[{key!r}][{table!r}]", fdr, event=event)
