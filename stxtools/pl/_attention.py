"""Attention of the graph network over the tissue."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, Literal

import numpy as np

from stxtools import _keys
from stxtools._validate import check_choice, check_in, check_number

from . import _base, _legend
from ._region_graph import GraphView, weights_of
from ._sections import Panel, draw_sections, spots_drawn

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

_EMBED = "Run `st.tl.embed(adata)` (or `st.tl.multitask`) first."


@_base.plot
def attention(
    adata: AnnData,
    key: str = _keys.ATTENTION,
    *,
    regions_key: str = _keys.REGIONS,
    color: Literal["segment", "attention"] | None = "segment",
    library: str | Sequence[str] | None = None, library_key: str | bool | None = None,
    spatial_key: str = _keys.SPATIAL,
    img: bool | str | None = False,
    cmap: str = "magma_r",
    vmax: float | None = None,
    title: str | None = None, scale_bar: float | bool | None = None, legend: bool = True,
    ax: Axes | None = None, show: bool | None = None, save: bool | str | PathLike[str] | None = None,
) -> Axes | list[Axes] | None:  # fmt: skip
    """Draw the attention between regions over the tissue, on the edges of the region graph.

    The width and colour of an edge are the mean attention of its two directions, on one scale for all sections; a
    region's attention to itself is not drawn. The colours of the segments are stored in ``adata.uns`` and in the
    region AnnData.

    Parameters
    ----------
    key
        Key of the attention in the regions' ``obsp``, such as ``"attention_corrected"``, and in ``obs``.
    color
        Colour of the observations beneath: their ``"segment"``, the ``"attention"`` that their region gets, or None.
    cmap
        Colour map of the edges; on a light ground a map that ends dark.
    vmax
        Attention at the end of the scale; the largest one by default.
    %(parameters)s

    Examples
    --------
    >>> adata = st.datasets.synthetic_tissue(n_obs=400)
    >>> st.tl.segment(adata)
    >>> st.tl.region_graph(adata)
    >>> st.tl.embed(adata)
    >>> ax = st.pl.attention(adata)
    """
    check_choice("color", color, ("segment", "attention", None))
    colors = _legend.color_map(cmap)
    top = None if vmax is None else check_number("vmax", vmax, minimum=0)
    view = GraphView(adata, regions_key, spatial_key=spatial_key, library_key=library_key, library=library)
    check_in(view.regions, "obsp", key, "key", _EMBED)
    given = weights_of(view.regions, key)
    edges = {panel.library: view.edges(((given + given.T) / 2).tocsr(), panel) for panel in view.panels}
    strongest = max((float(weight[-1]) for _, _, weight in edges.values() if len(weight)), default=0.0)
    widest = strongest if top is None else top
    bar = _legend.mappable(0.0, widest or 1.0, colors)
    bars = [(bar, "attention between regions")] if strongest else []
    spots = spots_drawn(view.faint if color == "segment" else "#e6e6e6", "observations")
    if color == "attention":
        check_in(adata, "obs", key, "key", _EMBED)
        _base.check_columns(adata.obs, [key], "adata.obs", "st.tl.embed(adata)")
        values = adata.obs[key].to_numpy(dtype=np.float64, na_value=np.nan)
        ground = _legend.value_scale(values, _legend.color_map("Blues", 0.05, 0.8), percentile=100)
        spots = spots_drawn(values, "observations", cmap=ground.cmap, norm=ground.norm)
        bars.append((ground, "attention from other regions"))

    def draw(axis: Axes, panel: Panel, over: bool) -> None:
        spots(axis, panel, False)
        here = edges[panel.library]
        view.draw_edges(axis, here, widest, array=here[2], cmap=bar.cmap, norm=bar.norm, label="attention")
        view.draw_nodes(axis, panel, scale=0.4)

    axes = draw_sections(
        adata, view.panels, [draw], ax=ax, spatial_key=view.spatial_key, title=title, img=img, scale_bar=scale_bar,
        bottom=0.7 * len(bars) * legend,
    )  # fmt: skip
    if legend:
        handles = _legend.class_handles(view.names, view.colors, missing=False)
        _legend.add_legend(axes, handles, own=ax is None, title="segment", bars=bars)
    return _base.done("attention", axes, ax=ax, show=show, save=save, colors=view.stores)
