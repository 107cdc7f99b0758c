"""Attention of the graph network over the tissue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from stxtools import _keys
from stxtools._checks import check_names
from stxtools._validate import check_choice, check_in, check_number

from . import _base, _legend
from ._legend import category_codes, colors_of, mappable, rgba
from ._region_graph import GraphView, weights_of
from ._sections import Panel, draw_sections, draw_spots, spots_drawn

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

    from ._sections import Draw

_EMBED = "Run `st.tl.embed(adata)` (or `st.tl.multitask`) first."


@_base.plot
def attention(
    adata: AnnData,
    key: str | Sequence[str] = _keys.ATTENTION,
    *,
    regions_key: str = _keys.REGIONS,
    color: Literal["segment", "attention"] | None = "segment",
    library: str | Sequence[str] | None = None, library_key: str | bool | None = None,
    spatial_key: str = _keys.SPATIAL,
    img: bool | str | None = False,
    cmap: str = "magma_r",
    vmax: float | None = None,
    title: str | Sequence[str] | None = None,
    scale_bar: float | bool | None = None,
    legend: bool = True,
    ax: Axes | None = None, show: bool | None = None, save: bool | str | PathLike[str] | None = None,
) -> Axes | list[Axes] | None:  # fmt: skip
    """Draw the attention between regions over the tissue, on the edges of the region graph.

    The width and colour of an edge are the mean attention of its two directions, on one scale for all sections; a
    region's attention to itself is not drawn.

    The colours of the segments are stored in ``adata.uns`` and in the region AnnData.

    Parameters
    ----------
    key
        Key of the attention in the regions' ``obsp`` and in ``obs``. Several keys are drawn side by side, each on its
        own scale. A key that only ``obs`` has colours the observations: by class, or by value up to the 99th
        percentile.
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
    _legend.color_map(cmap)
    top = None if vmax is None else check_number("vmax", vmax, minimum=0)
    keys, several = check_names("key", key, "a key of the attention"), not isinstance(key, str)
    if ax is not None and several:
        raise ValueError("`ax` takes one key; several are drawn side by side in a figure of their own.")
    view = GraphView(adata, regions_key, spatial_key=spatial_key, library_key=library_key, library=library)
    for name in keys:
        if not several or (name not in adata.obs and name not in view.regions.obsp):
            check_in(view.regions, "obsp", name, "key", _EMBED)
        if color == "attention" and name in view.regions.obsp:
            check_in(adata, "obs", name, "key", _EMBED)
    titles = _titles(view, keys, title, several)
    layers = [_layer(adata, view, name, color=color, cmap=cmap, top=top) for name in keys]
    axes = draw_sections(
        adata, view.panels, [layer.draw for layer in layers], ax=ax, spatial_key=view.spatial_key, title=titles,
        img=img, scale_bar=scale_bar, bottom=0.7 * max(len(layer.bars) for layer in layers) if legend else 0.0,
    )  # fmt: skip
    if legend:
        drawn = [view.colors if layer.key in view.regions.obsp else layer.colors for layer in layers]
        segments = [("segment", view.colors)] if view.colors in drawn else []
        classes = [(layer.key, layer.colors) for layer in layers if layer.colors and layer.colors != view.colors]
        handles: list[Any] = []
        for name, colors in (*segments, *classes):
            handles += [_legend.heading(name)] if classes else []
            handles += _legend.class_handles(list(colors), colors, missing=False)
        bars = [] if several else layers[0].bars
        _legend.add_legend(axes, handles, own=ax is None, title=None if several else "segment", bars=bars)
        for i, layer in enumerate(layers if several else []):
            for bar, label in layer.bars:
                _legend.color_bar(axes[i :: len(keys)], bar, label)
    stores = [*view.stores, *((adata, layer.key, layer.colors) for layer in layers if layer.colors)]
    return _base.done("attention", axes, ax=ax, show=show, save=save, colors=stores)


@dataclass(frozen=True)
class _Layer:
    """What is drawn of one key: its painter, its colour bars and the colours of its classes."""

    key: str
    draw: Draw
    bars: list[tuple[Any, str]] = field(default_factory=list)
    colors: dict[str, str] = field(default_factory=dict)


def _titles(view: GraphView, keys: list[str], title: Any, several: bool) -> list[str]:
    """Return the title of each panel, section by section."""
    names: list[Any] = [_legend.plain(key.replace("_", " ")) if several else None for key in keys]
    if title is not None:
        names = check_names("title", title, "a title")
    if len(names) != len(keys):
        raise ValueError(f"`title` takes one title for each of {len(keys)} keys, and several only for several keys.")
    sections = [panel.library for panel in view.panels] if len(view.panels) > 1 else [""]
    rows = zip(*(_base.titles_of(sections, name) for name in names), strict=True)
    return [text for row in rows for text in row]


def _layer(adata: AnnData, view: GraphView, key: str, *, color: str | None, cmap: str, top: float | None) -> _Layer:
    """Edges where the regions hold the key, else observations coloured by class or value."""
    if key in view.regions.obsp:
        return _edges(adata, view, key, color=color, cmap=cmap, top=top)
    column = adata.obs[key]
    if is_numeric_dtype(column.dtype) and not is_bool_dtype(column.dtype):
        drawn = np.concatenate([panel.rows for panel in view.panels])
        return _values(adata, key, drawn, _legend.color_map(cmap), percentile=99)
    colors = colors_of(adata, key)
    return _Layer(key, spots_drawn(rgba(*category_codes(adata, key), colors), key), colors=colors)


def _values(adata: AnnData, key: str, rows: Any, cmap: Any, *, percentile: float, label: str | None = None) -> _Layer:
    """Observations coloured by a number; what is above a percentile has the colour of it."""
    _base.check_columns(adata.obs, [key], "adata.obs", "st.tl.embed(adata)")
    values = adata.obs[key].to_numpy(dtype=np.float64, na_value=np.nan)
    bar = _legend.value_scale(values[rows], cmap, percentile=percentile)
    draw = spots_drawn(values, "observations", cmap=cmap, norm=bar.norm)
    return _Layer(key, draw, [(bar, label or _legend.plain(key.replace("_", " ")))])


def _edges(adata: AnnData, view: GraphView, key: str, *, color: str | None, cmap: str, top: float | None) -> _Layer:
    given = weights_of(view.regions, key)
    weights = ((given + given.T) / 2).tocsr()
    edges = {panel.library: view.edges(weights, panel) for panel in view.panels}
    strongest = max((float(weight[-1]) for _, _, weight in edges.values() if len(weight)), default=0.0)
    widest = strongest if top is None else top
    bar = mappable(0.0, widest or 1.0, _legend.color_map(cmap))
    ground: _Layer | None = None
    if color == "attention":
        ground = _values(adata, key, slice(None), _legend.color_map("Blues", 0.05, 0.8), percentile=100,
                         label="attention from other regions")  # fmt: skip

    def draw(axis: Axes, panel: Panel, over: bool) -> None:
        if ground is not None:
            ground.draw(axis, panel, False)
        else:
            draw_spots(axis, panel, view.faint if color == "segment" else "#e6e6e6")
        here = edges[panel.library]
        view.draw_edges(axis, here, widest, array=here[2], cmap=bar.cmap, norm=bar.norm, label="attention")
        view.draw_nodes(axis, panel, scale=0.4)

    bars = [(bar, "attention between regions")] if strongest else []
    return _Layer(key, draw, bars + (ground.bars if ground is not None else []))
