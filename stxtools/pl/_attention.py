"""Attention of the graph network over the tissue."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pandas.api.types import is_bool_dtype, is_complex_dtype, is_numeric_dtype

from stxtools import _keys
from stxtools._docs import documented
from stxtools._validate import check_adata, check_bool, check_choice, check_in, check_number

from . import _base, _graph, _legend, _output, _scale_bar
from ._palette import category_codes, colors_of, rgba

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

_EMBED = "Run `st.tl.embed(adata)` (or `st.tl.multitask`) first."


@documented
@_output.plot
def attention(
    adata: AnnData,
    key: str | Sequence[str] = _keys.ATTENTION,
    *,
    regions_key: str = _keys.REGIONS,
    color: Literal["segment", "attention"] | None = "segment",
    library: str | Sequence[str] | None = None,
    library_key: str | bool | None = None,
    spatial_key: str = _keys.SPATIAL,
    img: bool | str | None = False,
    cmap: str = "magma_r",
    vmax: float | None = None,
    title: str | Sequence[str] | None = None,
    scale_bar: float | bool | None = None,
    legend: bool = True,
    ax: Axes | None = None,
    show: bool | None = None,
    save: bool | str | PathLike[str] | None = None,
) -> Axes | list[Axes] | None:
    """Draw the attention between regions over the tissue, on the edges of the region graph.

    The width and colour of an edge are the mean attention of its two directions, on one scale for all sections; a
    region's attention to itself is not drawn.

    Parameters
    ----------
    adata
        Annotated data after :func:`stxtools.tl.embed` or :func:`stxtools.tl.multitask`.
    key
        Key of the attention in the regions' ``obsp`` and in ``obs``. Several keys are drawn side by side, each on its
        own scale. A key that only ``obs`` has colours the observations: by class, or by value up to the 99th
        percentile.
    regions_key
        Key of the region AnnData in ``uns``.
    color
        Colour of the observations beneath: their ``"segment"``, the ``"attention"`` that their region gets, or None.
    cmap
        Colour map of the edges; on a light ground a map that ends dark.
    vmax
        Attention at the end of the scale; the largest one by default.
    %(parameters)s

    Returns
    -------
    None where the figure was shown, else the Axes, or a list of one Axes per section and key. The colours of the
    segments are stored in ``adata.uns`` and in the region AnnData.

    Raises
    ------
    KeyError
        The regions or the attention are missing.
    ValueError
        ``ax`` is given and there are several sections, or ``library`` does not fit the data.

    Examples
    --------
    >>> import stxtools as st
    >>> adata = st.datasets.synthetic_tissue(n_obs=400)
    >>> st.tl.segment(adata)
    >>> st.tl.region_graph(adata)
    >>> st.tl.embed(adata)
    >>> ax = st.pl.attention(adata)
    """
    check_adata(adata, unique_vars=False)
    check_choice("color", color, ("segment", "attention", None))
    _base.check_img(img)
    _scale_bar.check(scale_bar)
    legend = check_bool("legend", legend)
    _legend.color_map(cmap)
    top = None if vmax is None else check_number("vmax", vmax, minimum=0)
    regions = _base.regions_of(adata, regions_key)
    keys = _base.names_of(key, "key", "a key of the attention")
    several = not isinstance(key, str)
    if ax is not None and several:
        raise ValueError("`ax` takes one key; several are drawn side by side in a figure of their own.")
    for name in keys:
        if not several or (name not in adata.obs and name not in regions.obsp):
            check_in(regions, "obsp", name, "key", _EMBED)
        if color == "attention" and name in regions.obsp:
            check_in(adata, "obs", name, "key", _EMBED)
    view = _graph.view_of(adata, regions, spatial_key=spatial_key, library_key=library_key, library=library)
    titles = _titles(view.panels, keys, title, several=several)
    rulers = _scale_bar.bars_of(adata, view.panels, view.spatial_key, scale_bar)
    layers = [_layer(adata, regions, view, name, color=color, cmap=cmap, top=top) for name in keys]

    bottom = 0.7 * max(len(layer.bars) for layer in layers) if legend else 0.0
    cells = [panel for panel in view.panels for _ in keys]
    axes = _base.axes_for(cells, ax, bottom=bottom, ncols=len(keys) if several and len(view.panels) > 1 else 4)
    for i, (axis, panel, text) in enumerate(zip(axes, cells, titles, strict=True)):
        _base.draw_image(axis, adata, panel, img, fits=view.fits)
        layers[i % len(keys)].draw(axis, panel)
        _base.frame(axis, panel, text)
        _scale_bar.draw(axis, panel, rulers[panel.library])
    if legend:
        handles = _legend.class_handles(view.names, view.colors, missing=False)
        classes = [layer for layer in layers if layer.colors and layer.colors != view.colors]
        if classes:
            handles = [_legend.heading("segment"), *handles]
        for layer in classes:
            names = list(layer.colors)
            handles += [_legend.heading(layer.key), *_legend.class_handles(names, layer.colors, missing=False)]
        bars = layers[0].bars if not several else []
        _legend.add_legend(axes, handles, own=ax is None, title=None if several else "segment", bars=bars)
        for i, layer in enumerate(layers if several else []):
            for mappable, label in layer.bars:
                _legend.color_bar(axes[i :: len(keys)], mappable, label)
    stores = [*view.stores, *((adata, layer.key, layer.colors) for layer in layers if layer.colors)]
    return _output.done("attention", axes, ax=ax, show=show, save=save, colors=stores)


@dataclass(frozen=True)
class _Layer:
    """What is drawn of one key: its painter, its colour bars and the colours of its classes."""

    key: str
    draw: Callable[[Axes, _base.Panel], None]
    bars: list[tuple[Any, str]]
    colors: dict[str, str]


def _titles(
    panels: list[_base.Panel], keys: list[str], title: str | Sequence[str] | None, *, several: bool
) -> list[str | None]:
    """Return the title of each panel, section by section."""
    if not several:
        if title is not None and not isinstance(title, str):
            raise ValueError("`title` takes several titles only for several keys; pass one string.")
        return _base.titles_for(panels, title)
    if title is None:
        names = [_legend.plain(key.replace("_", " ")) for key in keys]
    elif isinstance(title, str) or len(_base.names_of(title, "title", "a title")) != len(keys):
        raise ValueError(f"`title` takes one title for each of the {len(keys)} keys.")
    else:
        names = [str(text) for text in title]
    return [text for j in range(len(panels)) for text in (_base.titles_for(panels, name)[j] for name in names)]


def _layer(
    adata: AnnData,
    regions: AnnData,
    view: _graph.GraphView,
    key: str,
    *,
    color: Literal["segment", "attention"] | None,
    cmap: str,
    top: float | None,
) -> _Layer:
    """Edges where the regions hold the key, else observations coloured by class or value."""
    if key in regions.obsp:
        return _edges(adata, regions, view, key, color=color, cmap=cmap, top=top)
    column = adata.obs[key]
    if is_numeric_dtype(column.dtype) and not is_bool_dtype(column.dtype):
        values = _numbers(adata, key)
        drawn = np.concatenate([values[panel.rows] for panel in view.panels])
        return _values(adata, key, top=_percentile(drawn, 99), low=_percentile(drawn, 0), cmap=_legend.color_map(cmap))
    codes, names = category_codes(adata, key)
    colors = colors_of(adata, key)
    face = rgba(codes, names, colors)

    def draw(axis: Axes, panel: _base.Panel) -> None:
        _base.draw_spots(axis, panel.xy, face[panel.rows], label="observations")

    return _Layer(key, draw, [], colors)


def _values(adata: AnnData, key: str, *, low: float, top: float, cmap: Any, label: str | None = None) -> _Layer:
    """Observations coloured by a number; what is above ``top`` has the colour of ``top``."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    values, norm = _numbers(adata, key), Normalize(low, top if top > low else low + 1.0)

    def draw(axis: Axes, panel: _base.Panel) -> None:
        shown = np.minimum(values[panel.rows], top)  # single high values would leave all others pale
        _base.draw_spots(axis, panel.xy, shown, cmap=cmap, norm=norm, label="observations")

    bar = ScalarMappable(norm, cmap)
    return _Layer(key, draw, [(bar, label or _legend.plain(key.replace("_", " ")))], {})


def _edges(
    adata: AnnData,
    regions: AnnData,
    view: _graph.GraphView,
    key: str,
    *,
    color: Literal["segment", "attention"] | None,
    cmap: str,
    top: float | None,
) -> _Layer:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    given = _graph.weights_of(regions, key)
    weights = ((given + given.T) / 2).tocsr()
    edges = {panel.library: _graph.edges_of(weights, view, panel) for panel in view.panels}
    strongest = max((float(weight[-1]) for _, _, weight in edges.values() if len(weight)), default=0.0)
    top = strongest if top is None else top
    norm, edge_map = Normalize(0.0, top or 1.0), _legend.color_map(cmap)
    n_max = float(regions.obs["n_obs"].max())
    ground: _Layer | None = None
    if color == "attention":
        values = _numbers(adata, key)
        ground = _values(
            adata, key, low=_percentile(values, 0), top=_percentile(values, 100),
            cmap=_legend.color_map("Blues", 0.05, 0.8), label="attention from other regions",
        )  # fmt: skip

    def draw(axis: Axes, panel: _base.Panel) -> None:
        if ground is not None:
            ground.draw(axis, panel)
        else:
            faint = _graph.faint(view, panel) if color == "segment" else "#e6e6e6"
            _base.draw_spots(axis, panel.xy, faint, label="observations")
        rows, columns, weight = edges[panel.library]
        _graph.draw_edges(
            axis, view, rows, columns, view.widths(weight, top),
            array=weight, cmap=edge_map, norm=norm, label="attention",
        )  # fmt: skip
        _graph.draw_nodes(axis, regions, view, panel, n_max=n_max, scale=0.4)

    bars = [(ScalarMappable(norm, edge_map), "attention between regions")] if strongest else []
    return _Layer(key, draw, bars + (ground.bars if ground is not None else []), {})


def _numbers(adata: AnnData, key: str) -> NDArray[np.float64]:
    column = adata.obs[key]
    if not is_numeric_dtype(column.dtype) or is_complex_dtype(column.dtype):
        raise TypeError(f"`adata.obs[{key!r}]` holds {column.dtype}, not numbers; run `st.tl.embed(adata)` again, or "
                        "name another key.")  # fmt: skip
    return column.to_numpy(dtype=np.float64, na_value=np.nan)


def _percentile(values: NDArray[np.float64], percent: float) -> float:
    finite = values[np.isfinite(values)]
    return float(np.percentile(finite, percent)) if len(finite) else float(percent > 0)
