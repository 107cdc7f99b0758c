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
from scipy import sparse

from stxtools import _keys
from stxtools._checks import check_key
from stxtools._types import Floats, Ints
from stxtools._validate import check_choice, check_in, check_number, coordinates
from stxtools.get._segments import regions_of

from . import _base, _legend
from ._legend import MISSING, category_codes, colors_of, rgba
from ._sections import Panel, draw_sections, panels_of, spatial_key_of, spots_drawn, units_of

_SIZE_MIN, _SIZE_MAX = 0.001, 100.0
NODE_MIN, NODE_MAX = 12.0, 320.0  # area of a node, points^2
NODE_BUDGET = 6400.0  # of all nodes of a panel together, points^2: about a twentieth of the panel
WIDTH_MIN, WIDTH_MAX = 0.4, 5.0  # points
_AGAIN = "Run `st.tl.region_graph(adata)` again."
_EMBED = "Run `st.tl.embed(adata)` (or `st.tl.multitask`) first."

Edges = tuple[Ints, Ints, Floats]


@_base.plot
def segment(
    adata: AnnData, key: str = _keys.SEGMENT, *, library: str | Sequence[str] | None = None,
    library_key: str | bool | None = None, spatial_key: str | None = None, img: bool | str | None = None,
    size: float = 1.0, palette: str | Sequence[str] | Mapping[str, str] | None = None, title: str | None = None,
    scale_bar: float | bool | None = None, legend: bool = True, ax: Axes | None = None, show: bool | None = None,
    save: bool | str | PathLike[str] | None = None,
) -> Axes | list[Axes] | None:  # fmt: skip
    """Draw the segments of every section over the tissue.

    Any categorical column can be drawn, for instance a pathologist's annotation or the prediction of
    :func:`stxtools.tl.multitask`; a column ``"{name}_pred"`` takes the colours of ``name``. Colours are stored in
    ``adata.uns["{key}_colors"]`` in the order of all categories.

    Parameters
    ----------
    key
        Categorical ``obs`` column, by default the one that :func:`stxtools.tl.segment` writes.
    size
        Diameter of an observation relative to the spacing of the observations; 1 makes neighbours touch.
    palette
        Colours: the name of a colour map, a sequence in the order of the categories, or a mapping from category to
        colour. By default those in ``uns["{key}_colors"]``, else scanpy's.
    %(parameters)s

    Examples
    --------
    >>> adata = st.datasets.synthetic_tissue(n_obs=400)
    >>> ax = st.pl.segment(adata, "compartment", library_key="section")
    """
    call = "multitask(adata, ...)" if str(key).endswith("_pred") else "segment(adata)"
    check_in(adata, "obs", key, "key", f"Run `st.tl.{call}` first, or name another column.")
    size = check_number("size", size, minimum=_SIZE_MIN, maximum=_SIZE_MAX)
    params = _base.params_of(adata.uns.get(key))
    spatial_key = spatial_key_of(adata, spatial_key, params)
    panels = panels_of(adata, spatial_key=spatial_key, library_key=library_key, library=library, params=params)
    codes, names = category_codes(adata, key)
    colors = colors_of(adata, key, palette)
    draw = spots_drawn(rgba(codes, colors), key, size)
    axes = draw_sections(adata, panels, draw, ax=ax, spatial_key=spatial_key, title=title, img=img, scale_bar=scale_bar)
    if legend:
        drawn = np.concatenate([codes[p.rows] for p in panels])
        present = [n for i, n in enumerate(names) if (drawn == i).any()]
        handles = _legend.class_handles(present, colors, missing=bool((drawn < 0).any()))
        _legend.add_legend(axes, handles, own=ax is None, title=key)
    return _base.done("segment", axes, ax=ax, show=show, save=save, colors=[(adata, key, colors)])


@_base.plot
def region_graph(
    adata: AnnData, key: str = _keys.REGIONS, *, library: str | Sequence[str] | None = None,
    library_key: str | bool | None = None, spatial_key: str | None = None, img: bool | str | None = False,
    palette: str | Sequence[str] | Mapping[str, str] | None = None, title: str | None = None,
    scale_bar: float | bool | None = None, legend: bool = True, ax: Axes | None = None, show: bool | None = None,
    save: bool | str | PathLike[str] | None = None,
) -> Axes | list[Axes] | None:  # fmt: skip
    """Draw the region graph over the tissue: a node per region, an edge per shared border.

    Nodes lie at the centroids, coloured by segment, with an area that grows with the number of observations. Edges grow
    wider with the length of the shared border; the observations are faint. The colours are stored in ``adata.uns`` and
    in the region AnnData.

    Parameters
    ----------
    %(parameters)s

    Examples
    --------
    >>> adata = st.datasets.synthetic_tissue(n_obs=400)
    >>> st.tl.region_graph(adata, segment_key="compartment", library_key="section")
    >>> ax = st.pl.region_graph(adata)
    """
    view = GraphView(adata, key, spatial_key=spatial_key, library_key=library_key, library=library, palette=palette)
    regions = view.regions
    check_in(regions, "obsp", _keys.CONNECTIVITIES, "edges", _AGAIN)
    ink = rcParams["text.color"]
    weights = weights_of(regions, _keys.CONTACT if _keys.CONTACT in regions.obsp else _keys.CONNECTIVITIES)
    top = float(weights.data.max()) if weights.nnz else 1.0

    def draw(axis: Axes, panel: Panel, over: bool) -> None:
        spots_drawn(view.faint, "observations")(axis, panel, False)
        view.draw_edges(axis, view.edges(weights, panel), top, colors=ink, label="edges")
        view.draw_nodes(axis, panel)

    axes = draw_sections(
        adata, view.panels, draw, ax=ax, spatial_key=view.spatial_key, title=title, img=img, scale_bar=scale_bar
    )
    if legend:
        units = set(units_of(adata, view.panels, view.spatial_key, scale_bar).values())
        unit = units.pop() if len(units) == 1 and _keys.CONTACT in regions.obsp else None
        handles = [_legend.heading("segment"), *_legend.class_handles(view.names, view.colors, missing=False)]
        sizes = _steps(float(view.sizes.min()), float(view.sizes.max()))
        handles += [_legend.heading("observations")]
        handles += [_legend.dot(f"{s:g}", MISSING, size=float(np.sqrt(view.node_area(s)))) for s in sizes]
        if weights.nnz:
            scale = unit or 1.0  # in microns where they are known
            handles += [_legend.heading("contact length" if unit is None else "contact length (µm)")]
            handles += [Line2D([], [], color=ink, linewidth=float(view.widths(s / scale, top)), label=f"{s:g}")
                        for s in _steps(scale * float(weights.data.min()), scale * top)]  # fmt: skip
        _legend.add_legend(axes, handles, own=ax is None)
    return _base.done("region_graph", axes, ax=ax, show=show, save=save, colors=view.stores)


@_base.plot
def attention(
    adata: AnnData, key: str = _keys.ATTENTION, *, regions_key: str = _keys.REGIONS,
    color: Literal["segment", "attention"] | None = "segment", library: str | Sequence[str] | None = None,
    library_key: str | bool | None = None, spatial_key: str | None = None, img: bool | str | None = False,
    cmap: str | None = None, vmax: float | None = None, title: str | None = None, scale_bar: float | bool | None = None,
    legend: bool = True, ax: Axes | None = None, show: bool | None = None,
    save: bool | str | PathLike[str] | None = None,
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
        Colour map of the edges; by default ``"magma_r"``, on a dark ground ``"magma"``.
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
    colors = _legend.color_map(("magma_r" if _ground().mean() > 0.6 else "magma") if cmap is None else cmap)
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
        known = values[np.isfinite(values)] if np.isfinite(values).any() else np.arange(2.0)
        ground = _legend.mappable(known.min(), known.max(), _legend.color_map("Blues", 0.05, 0.8))
        spots = spots_drawn(values, "observations", cmap=ground.cmap, norm=ground.norm)
        bars.append((ground, "attention from other regions"))

    def draw(axis: Axes, panel: Panel, over: bool) -> None:
        spots(axis, panel, False)
        here = edges[panel.library]
        view.draw_edges(axis, here, widest, array=here[2], cmap=bar.cmap, norm=bar.norm, label="attention")
        view.draw_nodes(axis, panel, scale=0.4)

    axes = draw_sections(
        adata, view.panels, draw, ax=ax, spatial_key=view.spatial_key, title=title, img=img, scale_bar=scale_bar,
        bottom=0.7 * len(bars) * legend,
    )  # fmt: skip
    if legend:
        handles = _legend.class_handles(view.names, view.colors, missing=False)
        _legend.add_legend(axes, handles, own=ax is None, title="segment", bars=bars)
    return _base.done("attention", axes, ax=ax, show=show, save=save, colors=view.stores)


class GraphView:
    """What the plots of the region graph share: sections, regions, and their colours.

    - ``panels``: The sections that are drawn.
    - ``centroids``, ``library``, ``sizes``, ``nodes``: Of each region, its place, section, observations and RGBA.
    - ``names``, ``colors``, ``spots``: Segments, their colours, and the RGBA of each observation.
    - ``most``: Regions in the fullest panel; many nodes are drawn smaller, and their edges thinner.
    - ``stores``: Colours to keep once the plot is done.
    """

    def __init__(
        self, adata: AnnData, key: str, *, spatial_key: str | None, library_key: str | bool | None,
        library: str | Sequence[str] | None, palette: str | Sequence[str] | Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.regions = regions = regions_of(adata, key)
        _base.check_columns(regions.obs, ["n_obs"], f"adata.uns[{key!r}].obs", "st.tl.region_graph(adata)")
        check_in(regions, "obs", _keys.SEGMENT, "segment of the regions", _AGAIN)
        check_in(regions, "obsm", _keys.SPATIAL, "centroids of the regions", _AGAIN)
        self.sizes, self.centroids = regions.obs["n_obs"].to_numpy(dtype=float), coordinates(regions)
        params = _base.params_of(regions)
        asked = _keys.SPATIAL if spatial_key is None else check_key("spatial_key", spatial_key)
        self.spatial_key = str(params.get("spatial_key", asked))
        if spatial_key not in (None, self.spatial_key):
            raise ValueError(f"The centroids of the regions lie in `obsm[{self.spatial_key!r}]`, not in "
                             f"{spatial_key!r}; run `st.tl.region_graph(adata, spatial_key={spatial_key!r})` "
                             "first.")  # fmt: skip
        where: dict[str, Any] = {"spatial_key": self.spatial_key, "library_key": library_key, "library": library}
        self.panels = panels_of(adata, **where, params=params)
        home = regions.obs.get("library", pd.Series("", index=regions.obs_names)).to_numpy(dtype=object).astype(str)
        one = len(self.panels) == 1 and len(set(home)) <= 1  # one section needs no name to be known
        self.library = np.full(regions.n_obs, self.panels[0].library, dtype=object) if one else home
        self.most = max(int((self.library == panel.library).sum()) for panel in self.panels)
        segment_key = str(params.get("segment_key", _keys.SEGMENT))
        check_in(adata, "obs", segment_key, "segment_key of the regions", _AGAIN)
        known = colors_of(adata, segment_key, palette)
        codes, self.names = category_codes(regions, _keys.SEGMENT)
        own = colors_of(regions, _keys.SEGMENT)  # of segments that a subset of the observations lacks
        self.colors = {name: known.get(name, own[name]) for name in self.names}
        self.spots, self.nodes = rgba(category_codes(adata, segment_key)[0], known), rgba(codes, self.colors)
        self.stores = [(adata, segment_key, known), (regions, _keys.SEGMENT, self.colors)]

    def widths(self, weight: Any, top: float) -> Floats:
        """Line width in points: linear in the weight."""
        widest = float(np.clip(WIDTH_MAX * np.sqrt(25 / max(self.most, 1)), WIDTH_MAX / 3, WIDTH_MAX))
        return WIDTH_MIN + (widest - WIDTH_MIN) * np.clip(np.asarray(weight, dtype=float) / (top or 1.0), 0, 1)

    def node_area(self, n_obs: Any) -> Floats:
        """Area of a node in square points: linear in the number of observations, small ones still seen."""
        largest = min(NODE_MAX, max(NODE_BUDGET / max(self.most, 1), 2 * NODE_MIN))
        return np.maximum(largest * np.asarray(n_obs, dtype=float) / (self.sizes.max() or 1.0), NODE_MIN)

    @property
    def faint(self) -> Floats:
        """Colours of the observations, mixed with the ground rather than transparent: overlaps stay even."""
        return _ground() - 0.3 * (_ground() - self.spots)

    def edges(self, weights: sparse.csr_matrix, panel: Panel) -> Edges:
        """Undirected edges of a section, weakest first, so that the strong ones lie on top."""
        upper = sparse.triu(weights, k=1).tocoo()
        keep = (self.library[upper.row] == panel.library) & (self.library[upper.col] == panel.library)
        order = np.argsort(upper.data[keep], kind="stable")
        return upper.row[keep][order], upper.col[keep][order], upper.data[keep][order].astype(float)

    def draw_edges(self, ax: Axes, edges: Edges, top: float, **kwargs: Any) -> None:
        """Draw straight edges between centroids, ``top`` being the weight of the widest."""
        rows, columns, weight = edges
        segments = np.stack([self.centroids[rows], self.centroids[columns]], axis=1)
        width = self.widths(weight, top)
        lines = LineCollection(list(segments), linewidths=width, capstyle="round", zorder=2, **kwargs)
        ax.add_collection(lines, autolim=False)

    def draw_nodes(self, ax: Axes, panel: Panel, *, scale: float = 1.0) -> None:
        """Draw the regions of a section, the largest first, so that small ones lie on top."""
        here = np.flatnonzero(self.library == panel.library)
        here = here[np.argsort(-self.sizes[here], kind="stable")]
        area = scale * self.node_area(self.sizes[here])
        x, y = self.centroids[here].T
        ax.scatter(x, y, s=area, c=self.nodes[here], edgecolors="black", linewidths=0.8, zorder=3,
                   label="regions")  # fmt: skip


def _ground() -> Floats:
    """Return the colour that new Axes have, over white paper."""
    color = np.array(to_rgba(rcParams["axes.facecolor"]))
    return 1 - color[3] * (1 - color)


def _steps(low: float, high: float) -> list[float]:
    """Up to three round numbers (1, 2 or 5 times a power of ten) between ``low`` and ``high``."""
    if not high > 0:
        return []
    powers = 10.0 ** (np.floor(np.log10(high)) - np.arange(3))
    within = [float(s) for s in np.outer(powers, [5, 2, 1]).ravel() if low <= s <= high] or [high]
    return sorted({within[0], within[len(within) // 2], within[-1]})


def weights_of(regions: AnnData, key: str) -> sparse.csr_matrix:
    """Return the weights of all edges, finite and real."""
    weights = sparse.csr_matrix(regions.obsp[key])
    if weights.dtype.kind not in "buif" or not np.isfinite(weights.data).all():
        raise ValueError(f"`obsp[{key!r}]` of the regions holds {weights.dtype} that is not finite and real; run the "
                         "call that wrote it again.")  # fmt: skip
    return weights
