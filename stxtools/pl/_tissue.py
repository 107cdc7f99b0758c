"""Segments, the region graph and its attention over the tissue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from scipy import sparse

from stxtools import _keys
from stxtools._checks import check_choice, check_number
from stxtools._types import Floats, Ints
from stxtools._validate import check_in, coordinates, params_of
from stxtools.get._segments import regions_of

from . import _base, _legend
from ._legend import MISSING, category_codes, colors_of, rgba
from ._sections import Panel, draw_spots, microns_per_unit, panels_of, section_axes

_NODE_MIN, _NODE_MAX = 12.0, 320.0  # area of a node, points^2
_NODE_SHARE = 0.12  # of the panel's area, that of all nodes if all were the largest
_WIDTH_MIN, _WIDTH_MAX = 0.4, 5.0  # width of an edge, points
_RERUN = "Run `st.tl.region_graph(adata)` again."
_EMBED = "Run `st.tl.embed(adata)` (or `st.tl.multitask`) first."

Edges = tuple[Ints, Ints, Floats]  # rows, columns, weights


@_base.plot
def segment(
    adata: AnnData, key: str = _keys.SEGMENT, *, library: str | Sequence[str] | None = None,
    library_key: str | bool | None = None, spatial_key: str | None = None, img: bool | str | None = None,
    size: float = 1.0, palette: str | Sequence[str] | Mapping[str, str] | None = None, title: str | None = None,
    scale_bar: float | bool | None = None, legend: bool = True, figsize: tuple[float, float] | None = None,
    ax: Axes | None = None, show: bool | None = None, save: bool | str | PathLike[str] | None = None,
) -> Axes | list[Axes] | None:  # fmt: skip
    """Plot segments, or any categorical column, in spatial coordinates.

    A column ``"{name}_pred"`` of :func:`stxtools.tl.multitask` has the colours of ``name``. Colours are stored in
    ``uns["{key}_colors"]``.

    Parameters
    ----------
    key
        Categorical column of ``obs``, by default the one that :func:`stxtools.tl.segment` writes.
    size
        Diameter of an observation relative to the spacing of observations; with 1, neighbours touch.
    palette
        Colours: name of a colour map, a sequence in the order of the categories, or a mapping from categories to
        colours; by default ``uns["{key}_colors"]``, else scanpy's palette.

    Examples
    --------
    >>> adata = st.datasets.synthetic_tissue(n_obs=400)
    >>> ax = st.pl.segment(adata, "compartment", library_key="section")
    """
    call = "multitask(adata, ...)" if str(key).endswith("_pred") else "segment(adata)"
    draw_gene = f"`sc.pl.embedding(adata, {spatial_key or _keys.SPATIAL!r}, color={key!r})` draws this gene."
    run = f"Run `st.tl.{call}` first, or name another column."
    check_in(adata, "obs", key, "key", draw_gene if isinstance(key, str) and key in adata.var_names else run)
    size = check_number("size", size, minimum=0.001, maximum=100.0)
    params = params_of(adata.uns.get(key))
    panels = panels_of(adata, params, spatial_key=spatial_key, library_key=library_key, library=library)
    codes, names = category_codes(adata, key)
    colors = colors_of(adata, key, palette)
    axes = section_axes(adata, panels, ax=ax, title=title, img=img, scale_bar=scale_bar, figsize=figsize)
    for axis, panel in zip(axes, panels, strict=True):
        draw_spots(axis, panel, rgba(codes, colors), key, size * (0.8 if axis.images else 1))
    if legend:
        drawn = np.concatenate([codes[p.rows] for p in panels])
        present = [n for i, n in enumerate(names) if (drawn == i).any()]
        handles = _legend.class_handles(present, colors, missing=bool((drawn < 0).any()))
        _legend.add_legend(axes, handles, ax=ax, title=key)
    return _base.save_or_show("segment", axes, figsize, ax=ax, show=show, save=save, colors=[(adata, key, colors)])


@_base.plot
def region_graph(
    adata: AnnData, key: str = _keys.REGIONS, *, library: str | Sequence[str] | None = None,
    library_key: str | bool | None = None, spatial_key: str | None = None, img: bool | str | None = False,
    palette: str | Sequence[str] | Mapping[str, str] | None = None, title: str | None = None,
    scale_bar: float | bool | None = None, legend: bool = True, figsize: tuple[float, float] | None = None,
    ax: Axes | None = None, show: bool | None = None, save: bool | str | PathLike[str] | None = None,
) -> Axes | list[Axes] | None:  # fmt: skip
    """Plot the region graph in spatial coordinates: nodes are regions, edges are shared borders.

    Nodes are at the centroids, coloured by segment, with an area that increases with the number of observations. The
    width of edges increases with the length of the shared border. Observations are drawn in pale colours underneath.
    Colours are stored in ``adata.uns`` and in the AnnData of the regions.

    Examples
    --------
    >>> adata = st.datasets.synthetic_tissue(n_obs=400)
    >>> st.tl.region_graph(adata, segment_key="compartment", library_key="section")
    >>> ax = st.pl.region_graph(adata)
    """
    graph = RegionGraph(adata, key, spatial_key=spatial_key, library_key=library_key, library=library, palette=palette)
    check_in(graph.regions, "obsp", _keys.CONNECTIVITIES, "edges", _RERUN)
    color = rcParams["text.color"]
    has_contact = _keys.CONTACT in graph.regions.obsp
    weights = graph.weights(_keys.CONTACT if has_contact else _keys.CONNECTIVITIES)
    largest = float(weights.data.max()) if weights.nnz else 1.0
    axes = section_axes(adata, graph.panels, ax=ax, title=title, img=img, scale_bar=scale_bar, figsize=figsize)
    graph.fit(axes[0], shared=ax is not None)
    for axis, panel in zip(axes, graph.panels, strict=True):
        draw_spots(axis, panel, graph.pale_spots, "observations")
        graph.draw_edges(axis, graph.edges(weights, panel), largest, colors=color, label="edges")
        graph.draw_nodes(axis, panel)
    if legend:
        units = set(microns_per_unit(adata, graph.panels, scale_bar))
        unit = units.pop() if len(units) == 1 and has_contact else None
        handles = [
            _legend.heading_handle(graph.segment_key),
            *_legend.class_handles(graph.names, graph.colors, missing=False),
        ]
        sizes = _round_numbers(float(max(graph.sizes.min(), graph.smallest)), float(graph.sizes.max()))
        handles += [_legend.heading_handle("observations")]
        handles += [_legend.point_handle(f"{s:g}", MISSING, size=float(np.sqrt(graph.node_area(s)))) for s in sizes]
        if weights.nnz:
            scale = unit or 1.0  # in microns where they are known
            handles += [_legend.heading_handle("contact length" if unit is None else "contact length (µm)")]
            handles += [Line2D([], [], color=color, linewidth=float(graph.widths(s / scale, largest)), label=f"{s:g}")
                        for s in _round_numbers(scale * float(weights.data.min()), scale * largest)]  # fmt: skip
        _legend.add_legend(axes, handles, ax=ax)
    return _base.save_or_show("region_graph", axes, figsize, ax=ax, show=show, save=save, colors=graph.stored_colors)


@_base.plot
def attention(
    adata: AnnData, key: str = _keys.ATTENTION, *, regions_key: str = _keys.REGIONS,
    color: Literal["segment", "attention"] | None = "segment", library: str | Sequence[str] | None = None,
    library_key: str | bool | None = None, spatial_key: str | None = None, img: bool | str | None = False,
    palette: str | Sequence[str] | Mapping[str, str] | None = None, cmap: str | None = None, vmax: float | None = None,
    title: str | None = None, scale_bar: float | bool | None = None, legend: bool = True,
    figsize: tuple[float, float] | None = None, ax: Axes | None = None, show: bool | None = None,
    save: bool | str | PathLike[str] | None = None,
) -> Axes | list[Axes] | None:  # fmt: skip
    """Plot the attention between regions on the edges of the region graph, in spatial coordinates.

    Width and colour of an edge show the mean attention of its two directions, on the same scale in all sections. The
    attention of regions to themselves is not shown. Colours of segments are stored in ``adata.uns`` and in the AnnData
    of the regions.

    Parameters
    ----------
    key
        Key of the attention in ``uns[regions_key].obsp``, such as ``"attention_corrected"``, and in ``obs``.
    color
        Colour of the observations underneath: ``"segment"``, ``"attention"`` (that their region receives) or None.
    cmap
        Colour map of the edges; by default ``"magma_r"``, or ``"magma"`` on a dark background.
    vmax
        Upper limit of the colour scale; by default the largest attention.

    Examples
    --------
    >>> adata = st.datasets.synthetic_tissue(n_obs=400)
    >>> st.tl.segment(adata)
    >>> st.tl.region_graph(adata)
    >>> st.tl.embed(adata)
    >>> ax = st.pl.attention(adata)
    """
    check_choice("color", color, ("segment", "attention", None))
    cmap = ("magma_r" if _background().mean() > 0.6 else "magma") if cmap is None else cmap
    colors = _legend.color_map(cmap)
    vmax = None if vmax is None else check_number("vmax", vmax, minimum=0)
    graph = RegionGraph(
        adata, regions_key, spatial_key=spatial_key, library_key=library_key, library=library, palette=palette
    )
    check_in(graph.regions, "obsp", key, "key", _EMBED)
    weights = graph.weights(key)
    edges = [graph.edges(((weights + weights.T) / 2).tocsr(), panel) for panel in graph.panels]
    strongest = max((float(weight[-1]) for _, _, weight in edges if len(weight)), default=0.0)
    largest = strongest if vmax is None else vmax
    bar = _legend.mappable(0.0, largest or 1.0, colors)
    bars = [(bar, "attention between regions")] if strongest else []
    spots: Any = graph.pale_spots if color == "segment" else "#e6e6e6"
    scale: dict[str, Any] = {}
    if color == "attention":
        check_in(adata, "obs", key, "key", _EMBED)
        _base.check_numeric(adata.obs, [key], "adata.obs", "st.tl.embed(adata)")
        spots = adata.obs[key].to_numpy(dtype=np.float64, na_value=np.nan)
        known = spots[np.isfinite(spots)] if np.isfinite(spots).any() else np.arange(2.0)
        spots_bar = _legend.mappable(known.min(), known.max(), _legend.color_map("Blues", 0.05, 0.8))
        scale = {"cmap": spots_bar.cmap, "norm": spots_bar.norm}
        bars.append((spots_bar, "attention from other regions"))
    bottom = 0.7 * len(bars) * legend
    axes = section_axes(adata, graph.panels, ax=ax, title=title, img=img, scale_bar=scale_bar, bottom=bottom,
                        figsize=figsize)  # fmt: skip
    graph.fit(axes[0], shared=ax is not None)
    for axis, panel, drawn in zip(axes, graph.panels, edges, strict=True):
        draw_spots(axis, panel, spots, "observations", **scale)
        graph.draw_edges(axis, drawn, largest, array=drawn[2], cmap=bar.cmap, norm=bar.norm, label="attention")
        graph.draw_nodes(axis, panel, scale=0.4)
    if legend:
        handles = _legend.class_handles(graph.names, graph.colors, missing=False)
        _legend.add_legend(axes, handles, ax=ax, title=graph.segment_key, bars=bars)
    return _base.save_or_show("attention", axes, figsize, ax=ax, show=show, save=save, colors=graph.stored_colors)


class RegionGraph:
    """The region graph with its colours, as both of its plots draw it.

    - ``panels``: The sections that are drawn.
    - ``centroids``, ``library``, ``sizes``, ``nodes``: Position, section, number of observations and RGBA per region.
    - ``segment_key``, ``names``, ``colors``: The column of the segments, their names and colours.
    - ``pale_spots``: RGB per observation.
    - ``stored_colors``: Colours to store once the plot is done.
    """

    def __init__(
        self, adata: AnnData, key: str, *, spatial_key: str | None, library_key: str | bool | None,
        library: str | Sequence[str] | None, palette: str | Sequence[str] | Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.regions = regions = regions_of(adata, key)
        _base.check_numeric(regions.obs, ["n_obs"], f"adata.uns[{key!r}].obs", "st.tl.region_graph(adata)")
        check_in(regions, "obs", _keys.SEGMENT, "segment of the regions", _RERUN)
        check_in(regions, "obsm", _keys.SPATIAL, "centroids of the regions", _RERUN)
        self.sizes, self.centroids = regions.obs["n_obs"].to_numpy(dtype=float), coordinates(regions)
        params = params_of(regions)
        stored_key = str(params.get("spatial_key", spatial_key or _keys.SPATIAL))
        if spatial_key not in (None, stored_key):
            raise ValueError(f"The centroids of the regions lie in `obsm[{stored_key!r}]`, not in {spatial_key!r}; "
                             f"run `st.tl.region_graph(adata, spatial_key={spatial_key!r})` first.")  # fmt: skip
        self.panels = panels_of(adata, params, spatial_key=stored_key, library_key=library_key, library=library)
        self.library = regions.obs.get("library", pd.Series("", index=regions.obs_names)).astype(str).to_numpy()
        if len(self.panels) == 1 and len(set(self.library)) <= 1:  # the only section may have another name there
            self.library = np.full(regions.n_obs, self.panels[0].library, dtype=object)
        self.segment_key = segment_key = str(params.get("segment_key", _keys.SEGMENT))
        check_in(adata, "obs", segment_key, "segment_key of the regions", _RERUN)
        known = colors_of(adata, segment_key, palette)
        codes, self.names = category_codes(regions, _keys.SEGMENT)
        current = category_codes(adata, segment_key)[0]
        if (region_key := _keys.region_id(key)) in adata.obs:
            region = regions.obs_names.get_indexer(adata.obs[region_key].astype(str))
            inside = region >= 0
            pairs = np.unique(np.stack([codes[region[inside]], current[inside]]), axis=1)
            if len(np.unique(pairs[0])) < pairs.shape[1]:  # classes may be renamed or merged since
                raise ValueError(f"`adata.obs[{segment_key!r}]` has changed since the region graph was made. {_RERUN}")
        default = colors_of(regions, _keys.SEGMENT)  # of segments that a subset of the observations lacks
        self.colors = {name: known.get(name, default[name]) for name in self.names}
        self.nodes = rgba(codes, self.colors)
        # mixed with the background rather than transparent: overlaps stay even
        self.pale_spots = _background() - 0.3 * (_background() - rgba(current, known))
        self.stored_colors = [(adata, segment_key, known), (regions, _keys.SEGMENT, self.colors)]

    def fit(self, ax: Axes, *, shared: bool) -> None:
        """Size nodes and edges by the room that a panel has for each region."""
        crowd = max(1, *(int((self.library == panel.library).sum()) for panel in self.panels))
        room = float(np.prod(72 * _legend.axes_size(ax, shared=shared))) / crowd  # points^2
        self._node_max = min(_NODE_MAX, _NODE_SHARE * room)
        self._node_min = min(_NODE_MIN, self._node_max / 4)
        self._widest = min(_WIDTH_MAX, 0.09 * np.sqrt(room))
        self.smallest = self.sizes.max() * self._node_min / self._node_max  # smaller regions are drawn alike

    def weights(self, key: str) -> sparse.csr_matrix:
        """Return the weights of all edges, checked to be finite and real."""
        weights = sparse.csr_matrix(self.regions.obsp[key])
        if weights.dtype.kind not in "buif" or not np.isfinite(weights.data).all():
            raise ValueError(f"`obsp[{key!r}]` of the regions must hold finite real numbers, not {weights.dtype}; "
                             "run the call that wrote it again.")  # fmt: skip
        return weights

    def edges(self, weights: sparse.csr_matrix, panel: Panel) -> Edges:
        """Return the undirected edges of a section, weakest first, so that the strong ones lie on top."""
        upper = sparse.triu(weights, k=1).tocoo()
        keep = (self.library[upper.row] == panel.library) & (self.library[upper.col] == panel.library)
        order = np.argsort(upper.data[keep], kind="stable")
        return upper.row[keep][order], upper.col[keep][order], upper.data[keep][order].astype(float)

    def widths(self, weight: Any, largest: float) -> Floats:
        """Return line widths in points, linear in the weight."""
        thinnest = min(_WIDTH_MIN, self._widest / 4)
        share = np.clip(np.asarray(weight, dtype=float) / (largest or 1.0), 0, 1)
        return thinnest + (self._widest - thinnest) * share

    def node_area(self, n_obs: Any) -> Floats:
        """Return areas of nodes in square points, linear in the number of observations, small ones still seen."""
        share = np.asarray(n_obs, dtype=float) / (self.sizes.max() or 1.0)
        return np.maximum(self._node_max * share, self._node_min)

    def draw_edges(self, ax: Axes, edges: Edges, largest: float, **kwargs: Any) -> None:
        """Draw straight edges between centroids; one of the ``largest`` weight is the widest."""
        rows, columns, weight = edges
        lines = np.stack([self.centroids[rows], self.centroids[columns]], axis=1)
        width = self.widths(weight, largest)
        ax.add_collection(LineCollection(list(lines), linewidths=width, capstyle="round", zorder=2, **kwargs),
                          autolim=False)  # fmt: skip

    def draw_nodes(self, ax: Axes, panel: Panel, *, scale: float = 1.0) -> None:
        """Draw the regions of a section, the largest first, so that small ones lie on top."""
        nodes = np.flatnonzero(self.library == panel.library)
        nodes = nodes[np.argsort(-self.sizes[nodes], kind="stable")]
        x, y = self.centroids[nodes].T
        ax.scatter(x, y, s=scale * self.node_area(self.sizes[nodes]), c=self.nodes[nodes], edgecolors="black",
                   linewidths=min(0.8, 0.15 * np.sqrt(self._node_max)), zorder=3, label="regions")  # fmt: skip


def _background() -> Floats:
    """Return the colour that new Axes have, over white paper."""
    color = np.array(to_rgba(rcParams["axes.facecolor"]))
    return 1 - color[3] * (1 - color)


def _round_numbers(low: float, high: float) -> list[float]:
    """Return a few round numbers between ``low`` and ``high``."""
    return [float(x) for x in MaxNLocator(3).tick_values(low, high) if low <= x <= high and x > 0] or [high]
