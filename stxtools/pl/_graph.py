"""What the plots of the region graph share: nodes, edges and their legends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from stxtools import _keys
from stxtools._checks import check_key
from stxtools._validate import check_in, coordinates

from . import _base, _legend
from ._palette import MISSING, category_codes, colors_of, rgba, share_colors

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.collections import LineCollection, PathCollection
    from numpy.typing import NDArray

NODE_MAX = 320.0  # area of the largest node, points^2
NODE_MIN = 12.0
NODE_BUDGET = 6400.0  # of all nodes of a panel together, points^2: about a twentieth of the panel
WIDTH_MAX = 5.0  # points
WIDTH_MIN = 0.4


@dataclass(frozen=True)
class GraphView:
    """Sections, regions and colours of one plot."""

    panels: list[_base.Panel]
    spatial_key: str
    centroids: NDArray[np.float64]
    library: NDArray[Any]  # section of each region
    colors: dict[str, str]
    names: list[str]  # segments
    nodes: NDArray[np.float64]  # RGBA of each region
    spots: NDArray[np.float64]  # RGBA of each observation
    stores: list[tuple[AnnData, str, dict[str, str]]]  # colours to keep once the plot is done

    @property
    def fits(self) -> bool:
        """Whether the coordinates are those of the tissue's picture."""
        return self.spatial_key == _keys.SPATIAL

    @property
    def crowd(self) -> int:
        """Regions in the fullest panel: many nodes are drawn smaller and their edges thinner."""
        return max((int((self.library == panel.library).sum()) for panel in self.panels), default=0)

    def widths(self, weight: Any, top: float) -> NDArray[np.float64]:
        """Line width in points: linear in the weight."""
        widest = float(np.clip(WIDTH_MAX * np.sqrt(25 / max(self.crowd, 1)), WIDTH_MAX / 3, WIDTH_MAX))
        return WIDTH_MIN + (widest - WIDTH_MIN) * np.clip(np.asarray(weight, dtype=float) / (top or 1.0), 0, 1)

    def node_area(self, n_obs: Any, n_max: float) -> NDArray[np.float64]:
        """Area of a node in square points: linear in the number of observations, small ones still seen."""
        largest = min(NODE_MAX, max(NODE_BUDGET / max(self.crowd, 1), 2 * NODE_MIN))
        return np.maximum(largest * np.asarray(n_obs, dtype=float) / (n_max or 1.0), NODE_MIN)


def view_of(
    adata: AnnData,
    regions: AnnData,
    *,
    spatial_key: str,
    library_key: str | bool | None,
    library: str | Sequence[str] | None,
    palette: str | Sequence[str] | Mapping[str, str] | None = None,
) -> GraphView:
    """Read what both graph plots need."""
    check_in(regions, "obs", _keys.SEGMENT, "segment of the regions", "Run `st.tl.region_graph(adata)` again.")
    check_in(regions, "obsm", _keys.SPATIAL, "centroids of the regions", "Run `st.tl.region_graph(adata)` again.")
    centroids = coordinates(regions)
    params = _base.params_of(regions)
    made_with = str(params.get("spatial_key", check_key("spatial_key", spatial_key)))
    if spatial_key not in (_keys.SPATIAL, made_with):
        raise ValueError(f"The centroids of the regions lie in `obsm[{made_with!r}]`, not in {spatial_key!r}; run "
                         f"`st.tl.region_graph(adata, spatial_key={spatial_key!r})` first.")  # fmt: skip
    spatial_key = made_with
    panels = _base.panels_of(adata, spatial_key=spatial_key, library_key=library_key, library=library, params=params)
    segment_key = str(params.get("segment_key", _keys.SEGMENT))
    if segment_key in adata.obs:
        known = colors_of(adata, segment_key, palette)
        codes, classes = category_codes(adata, segment_key)
        spots = rgba(codes, classes, known)
        colors = share_colors(regions, known)
        stores = [(adata, segment_key, known), (regions, _keys.SEGMENT, colors)]
    else:
        colors = colors_of(regions, _keys.SEGMENT, palette)
        spots = np.tile(rgba(np.array([-1]), [], {}), (adata.n_obs, 1))
        stores = [(regions, _keys.SEGMENT, colors)]
    region_codes, names = category_codes(regions, _keys.SEGMENT)
    return GraphView(
        panels=panels,
        spatial_key=spatial_key,
        centroids=centroids,
        library=_library_of(regions, panels),
        colors=colors,
        names=names,
        nodes=rgba(region_codes, names, colors),
        spots=spots,
        stores=stores,
    )


def _library_of(regions: AnnData, panels: list[_base.Panel]) -> NDArray[Any]:
    home = regions.obs["library"].astype(str).to_numpy() if "library" in regions.obs else np.array([""] * regions.n_obs)
    if len(panels) == 1 and len(set(home)) <= 1:  # one section needs no name to be known
        return np.full(regions.n_obs, panels[0].library, dtype=object)
    return np.asarray(home, dtype=object)


def faint(view: GraphView, panel: _base.Panel, alpha: float = 0.3) -> NDArray[np.float64]:
    """Colours of a section's observations, mixed with white rather than transparent: overlaps stay even."""
    color = view.spots[panel.rows].copy()
    color[:, :3] = 1 - alpha * (1 - color[:, :3])
    return color


def weights_of(regions: AnnData, key: str) -> sparse.csr_matrix:
    """Return the weights of all edges, finite and real."""
    weights = sparse.csr_matrix(regions.obsp[key])
    if weights.dtype.kind not in "buif" or not np.isfinite(weights.data).all():
        raise ValueError(f"`obsp[{key!r}]` of the regions holds {weights.dtype} that is not finite and real; run the "
                         "call that wrote it again.")  # fmt: skip
    return weights


def edges_of(
    weights: sparse.csr_matrix, view: GraphView, panel: _base.Panel
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Undirected edges of a section, weakest first, so that the strong ones lie on top."""
    upper = sparse.triu(weights, k=1).tocoo()
    keep = (view.library[upper.row] == panel.library) & (view.library[upper.col] == panel.library)
    order = np.argsort(upper.data[keep], kind="stable")
    return upper.row[keep][order], upper.col[keep][order], upper.data[keep][order].astype(float)


def draw_edges(
    ax: Axes,
    view: GraphView,
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    width: NDArray[np.float64],
    **kwargs: Any,
) -> LineCollection:
    """Draw straight edges between centroids."""
    from matplotlib.collections import LineCollection

    segments = np.stack([view.centroids[rows], view.centroids[columns]], axis=1)
    lines = LineCollection(list(segments), linewidths=width, capstyle="round", zorder=2, **kwargs)
    ax.add_collection(lines, autolim=False)
    return lines


def draw_nodes(
    ax: Axes,
    regions: AnnData,
    view: GraphView,
    panel: _base.Panel,
    *,
    n_max: float,
    scale: float = 1.0,
    labels: bool = False,
) -> PathCollection:
    """Draw the regions of a section, the largest first, so that small ones lie on top."""
    from matplotlib.patheffects import withStroke

    here = np.flatnonzero(view.library == panel.library)
    size = regions.obs["n_obs"].to_numpy(dtype=float)
    here = here[np.argsort(-size[here], kind="stable")]
    nodes = ax.scatter(
        view.centroids[here, 0],
        view.centroids[here, 1],
        s=scale * view.node_area(size[here], n_max),
        c=view.nodes[here],
        edgecolors="black",
        linewidths=0.8,
        zorder=3,
        label="regions",
    )
    if labels:
        for i, area in zip(here, view.node_area(size[here], n_max), strict=True):
            text = ax.annotate(
                _legend.plain(str(regions.obs_names[i])),
                view.centroids[i],
                xytext=(float(np.sqrt(scale * area)) / 2 + 2, 0),
                textcoords="offset points",
                fontsize="x-small",
                va="center",
                zorder=4,
            )
            text.set_path_effects([withStroke(linewidth=2, foreground="white")])
    return nodes


def class_and_size_handles(view: GraphView, regions: AnnData, n_max: float) -> list[Any]:
    """Legend entries: the segments, and what the areas of the nodes mean."""
    sizes = nice_steps(float(regions.obs["n_obs"].min()), n_max)
    return [
        _legend.heading("segment"),
        *_legend.class_handles(view.names, view.colors, missing=False),
        _legend.heading("observations"),
        *[_legend.dot(f"{s:g}", MISSING, size=float(np.sqrt(view.node_area(s, n_max)))) for s in sizes],
    ]


def nice_steps(low: float, high: float) -> list[float]:
    """Up to three round numbers (1, 2 or 5 times a power of ten) between ``low`` and ``high``."""
    if not high > 0:
        return []
    powers = np.floor(np.log10(high))
    steps = [m * 10.0**p for p in np.arange(powers, powers - 3, -1) for m in (5, 2, 1)]
    within = [s for s in steps if low <= s <= high] or [high]
    return sorted({within[0], within[len(within) // 2], within[-1]})
