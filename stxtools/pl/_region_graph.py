"""Regions and their neighbours over the tissue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

from stxtools import _keys
from stxtools._validate import check_bool, check_in

from . import _graph, _legend, _output
from ._tissue import draw_sections, draw_spots

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from scipy import sparse


@_output.plot
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
    wider with the length of the shared border.

    The colours of the segments are stored in ``adata.uns`` and in the region AnnData.

    Parameters
    ----------
    adata
        Annotated data with the regions in ``uns[key]``.
    key
        Key of the region AnnData in ``uns``.
    spots
        Whether the observations are drawn faintly beneath.
    labels
        Whether the regions' names are written beside the nodes.
    palette
        Colours of the segments, as in :func:`stxtools.pl.segment`.
    %(parameters)s

    Examples
    --------
    >>> adata = st.datasets.synthetic_tissue(n_obs=400)
    >>> st.tl.region_graph(adata, segment_key="compartment", library_key="section")
    >>> ax = st.pl.region_graph(adata)
    """
    view = _graph.view_of(
        adata, key, spatial_key=spatial_key, library_key=library_key, library=library, palette=palette
    )
    regions = view.regions
    check_in(regions, "obsp", _keys.CONNECTIVITIES, "edges", "Run `st.tl.region_graph(adata)` again.")
    weights = _graph.weights_of(regions, _keys.CONTACT if _keys.CONTACT in regions.obsp else _keys.CONNECTIVITIES)
    labels, spots = check_bool("labels", labels), check_bool("spots", spots)
    top = float(weights.data.max()) if weights.nnz else 1.0

    def draw(axis: Axes, i: int, over: bool) -> None:
        panel = view.panels[i]
        if spots:
            draw_spots(axis, panel.xy, view.faint(panel))
        view.draw_edges(axis, view.edges(weights, panel), top, colors="#333333", label="edges")
        view.draw_nodes(axis, panel, labels=labels)

    axes = draw_sections(
        adata, view.panels, draw, ax=ax, spatial_key=view.spatial_key, title=title, img=img, scale_bar=scale_bar
    )
    if legend:
        _legend.add_legend(axes, [*view.handles(), *_contact_handles(view, weights, top)], own=ax is None)
    return _output.done("region_graph", axes, ax=ax, show=show, save=save, colors=view.stores)


def _contact_handles(view: _graph.GraphView, weights: sparse.csr_matrix, top: float) -> list[Any]:
    from matplotlib.lines import Line2D

    if weights.nnz == 0:
        return []
    steps = _graph.nice_steps(float(weights.data.min()), top)
    lines = [Line2D([], [], color="#333333", linewidth=float(view.widths(s, top)), label=f"{s:g}") for s in steps]
    return [_legend.heading("contact length"), *lines]
