"""Regions and their neighbours over the tissue, and what the plots of the region graph share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy import sparse

from stxtools import _keys
from stxtools._checks import check_key
from stxtools._validate import check_in, coordinates
from stxtools.get._segments import regions_of

from . import _base, _legend
from ._legend import MISSING, category_codes, colors_of, rgba
from ._sections import draw_sections, draw_spots, panels_of, units_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ._sections import Panel

NODE_MIN, NODE_MAX = 12.0, 320.0  # area of a node, points^2
NODE_BUDGET = 6400.0  # of all nodes of a panel together, points^2: about a twentieth of the panel
WIDTH_MIN, WIDTH_MAX = 0.4, 5.0  # points
_AGAIN = "Run `st.tl.region_graph(adata)` again."

Edges = tuple["NDArray[np.int64]", "NDArray[np.int64]", "NDArray[np.float64]"]


@_base.plot
def region_graph(
    adata: AnnData,
    key: str = _keys.REGIONS,
    *,
    library: str | Sequence[str] | None = None, library_key: str | bool | None = None,
    spatial_key: str = _keys.SPATIAL,
    spots: bool = True, labels: bool = False,
    img: bool | str | None = False,
    palette: str | Sequence[str] | Mapping[str, str] | None = None,
    title: str | None = None, scale_bar: float | bool | None = None, legend: bool = True,
    ax: Axes | None = None, show: bool | None = None, save: bool | str | PathLike[str] | None = None,
) -> Axes | list[Axes] | None:  # fmt: skip
    """Draw the region graph over the tissue: a node per region, an edge per shared border.

    Nodes lie at the centroids, coloured by segment, with an area that grows with the number of observations. Edges grow
    wider with the length of the shared border. The colours are stored in ``adata.uns`` and in the region AnnData.

    Parameters
    ----------
    spots
        Whether the observations are drawn faintly beneath.
    labels
        Whether the regions' names are written beside the nodes.
    %(parameters)s

    Examples
    --------
    >>> adata = st.datasets.synthetic_tissue(n_obs=400)
    >>> st.tl.region_graph(adata, segment_key="compartment", library_key="section")
    >>> ax = st.pl.region_graph(adata)
    """
    from matplotlib.lines import Line2D

    view = GraphView(adata, key, spatial_key=spatial_key, library_key=library_key, library=library, palette=palette)
    regions = view.regions
    check_in(regions, "obsp", _keys.CONNECTIVITIES, "edges", _AGAIN)
    weights = weights_of(regions, _keys.CONTACT if _keys.CONTACT in regions.obsp else _keys.CONNECTIVITIES)
    top = float(weights.data.max()) if weights.nnz else 1.0

    def draw(axis: Axes, panel: Panel, over: bool) -> None:
        if spots:
            draw_spots(axis, panel, view.faint)
        view.draw_edges(axis, view.edges(weights, panel), top, colors="#333333", label="edges")
        view.draw_nodes(axis, panel, labels=labels)

    axes = draw_sections(
        adata, view.panels, [draw], ax=ax, spatial_key=view.spatial_key, title=title, img=img, scale_bar=scale_bar
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
            handles += [Line2D([], [], color="#333333", linewidth=float(view.widths(s / scale, top)), label=f"{s:g}")
                        for s in _steps(scale * float(weights.data.min()), scale * top)]  # fmt: skip
        _legend.add_legend(axes, handles, own=ax is None)
    return _base.done("region_graph", axes, ax=ax, show=show, save=save, colors=view.stores)


class GraphView:
    """What the plots of the region graph share: sections, regions, and their colours.

    - ``regions``, ``panels``: The AnnData of the regions, and the sections that are drawn.
    - ``centroids``, ``library``, ``sizes``: Of each region, its place, section and number of observations.
    - ``names``, ``colors``: Segments and their colours.
    - ``nodes``, ``spots``: RGBA of each region and each observation.
    - ``most``: Regions in the fullest panel; many nodes are drawn smaller, and their edges thinner.
    - ``stores``: Colours to keep once the plot is done.
    """

    def __init__(
        self, adata: AnnData, key: str, *, spatial_key: str, library_key: str | bool | None,
        library: str | Sequence[str] | None, palette: str | Sequence[str] | Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.regions = regions = regions_of(adata, key)
        _base.check_columns(regions.obs, ["n_obs"], f"adata.uns[{key!r}].obs", "st.tl.region_graph(adata)")
        check_in(regions, "obs", _keys.SEGMENT, "segment of the regions", _AGAIN)
        check_in(regions, "obsm", _keys.SPATIAL, "centroids of the regions", _AGAIN)
        self.sizes, self.centroids = regions.obs["n_obs"].to_numpy(dtype=float), coordinates(regions)
        params = _base.params_of(regions)
        self.spatial_key = str(params.get("spatial_key", check_key("spatial_key", spatial_key)))
        if spatial_key not in (_keys.SPATIAL, self.spatial_key):
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

    def widths(self, weight: Any, top: float) -> NDArray[np.float64]:
        """Line width in points: linear in the weight."""
        widest = float(np.clip(WIDTH_MAX * np.sqrt(25 / max(self.most, 1)), WIDTH_MAX / 3, WIDTH_MAX))
        return WIDTH_MIN + (widest - WIDTH_MIN) * np.clip(np.asarray(weight, dtype=float) / (top or 1.0), 0, 1)

    def node_area(self, n_obs: Any) -> NDArray[np.float64]:
        """Area of a node in square points: linear in the number of observations, small ones still seen."""
        largest = min(NODE_MAX, max(NODE_BUDGET / max(self.most, 1), 2 * NODE_MIN))
        return np.maximum(largest * np.asarray(n_obs, dtype=float) / (self.sizes.max() or 1.0), NODE_MIN)

    @property
    def faint(self) -> NDArray[np.float64]:
        """Colours of the observations, mixed with white rather than transparent: overlaps stay even."""
        return 1 - 0.3 * (1 - self.spots)

    def edges(self, weights: sparse.csr_matrix, panel: Panel) -> Edges:
        """Undirected edges of a section, weakest first, so that the strong ones lie on top."""
        upper = sparse.triu(weights, k=1).tocoo()
        keep = (self.library[upper.row] == panel.library) & (self.library[upper.col] == panel.library)
        order = np.argsort(upper.data[keep], kind="stable")
        return upper.row[keep][order], upper.col[keep][order], upper.data[keep][order].astype(float)

    def draw_edges(self, ax: Axes, edges: Edges, top: float, **kwargs: Any) -> None:
        """Draw straight edges between centroids, ``top`` being the weight of the widest."""
        from matplotlib.collections import LineCollection

        rows, columns, weight = edges
        segments = np.stack([self.centroids[rows], self.centroids[columns]], axis=1)
        width = self.widths(weight, top)
        lines = LineCollection(list(segments), linewidths=width, capstyle="round", zorder=2, **kwargs)
        ax.add_collection(lines, autolim=False)

    def draw_nodes(self, ax: Axes, panel: Panel, *, scale: float = 1.0, labels: bool = False) -> None:
        """Draw the regions of a section, the largest first, so that small ones lie on top."""
        here = np.flatnonzero(self.library == panel.library)
        here = here[np.argsort(-self.sizes[here], kind="stable")]
        area = scale * self.node_area(self.sizes[here])
        x, y = self.centroids[here].T
        ax.scatter(x, y, s=area, c=self.nodes[here], edgecolors="black", linewidths=0.8, zorder=3,
                   label="regions")  # fmt: skip
        for i, size in zip(here, area, strict=True) if labels else ():
            name = _legend.plain(str(self.regions.obs_names[i]))
            ax.annotate(
                name, self.centroids[i], xytext=(float(np.sqrt(size)) / 2 + 2, 0), textcoords="offset points",
                fontsize="x-small", va="center", zorder=4, path_effects=[_base.halo()],
            )  # fmt: skip


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
