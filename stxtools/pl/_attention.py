"""Attention of the graph network over the tissue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pandas.api.types import is_bool_dtype, is_numeric_dtype
from scipy import sparse

from stxtools import _keys
from stxtools._validate import check_adata, check_choice, check_in, check_number

from . import _base, _graph
from ._palette import category_codes, colors_of, rgba

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

_EMBED = "Run `st.tl.embed(adata)` (or `st.tl.multitask`) first."


def attention(
    adata: AnnData,
    *,
    key: str | Sequence[str] = _keys.ATTENTION,
    regions_key: str = _keys.REGIONS,
    color: Literal["segment", "attention"] | None = "segment",
    library: str | Sequence[str] | None = None,
    library_key: str | None = None,
    spatial_key: str = _keys.SPATIAL,
    img: bool | str | None = False,
    cmap: str = "magma_r",
    vmax: float | None = None,
    title: str | Sequence[str] | None = None,
    legend: bool = True,
    ax: Axes | None = None,
) -> Axes | list[Axes]:
    """Draw the attention between regions over the tissue, on the edges of the region graph.

    The weight of an edge is the mean of the attention in its two directions (what region *i* gives to *j* and what
    *j* gives to *i*), drawn as both its width and its colour, on one scale for all sections. What a region gives to
    itself is left out. ``uns["regions"].obsp["attention"]`` holds the directions: row = receiving region, column =
    the region that it attends to.

    Parameters
    ----------
    adata
        Annotated data after :func:`stxtools.tl.embed` or :func:`stxtools.tl.multitask`.
    key
        Key of the attention in the regions' ``obsp`` and in ``obs``. Several keys are drawn side by side, for one
        section, each on its own scale: ``["layer", "attention", "attention_corrected", "attention_saliency"]``, say,
        or those under which other models' attention was put. A key that only ``obs`` has colours the observations:
        by class where it holds classes (the truth), else by value, up to the 99th percentile.
    regions_key
        Key of the region AnnData in ``uns``.
    color
        What the observations beneath are coloured by: their ``"segment"``, faintly; the ``"attention"`` that other
        regions give to theirs (``obs[key]``); or ``None`` for grey.
    library
        Section or sections to draw; all by default, one panel each.
    library_key
        ``obs`` column that names the section of each observation; by default the one the regions were made with.
    spatial_key
        Key of the coordinates in ``obsm``; ``"spatial"`` stands for those that the regions were made with.
    img
        Whether the picture of the tissue is drawn beneath, or its name; ``None`` draws it where there is one.
    cmap
        Colour map of the edges; on a light ground a map that ends dark.
    vmax
        Attention at the end of the scale; the largest one by default.
    title
        Title; sections carry their names where there are several. For several keys a title each, their names by
        default.
    legend
        Whether the legend and the colour bar are drawn.
    ax
        Axes to draw into; only for one section.

    Returns
    -------
    The Axes, or a list of one Axes per section. The colours of the segments are stored in ``adata.uns`` and in the
    region AnnData; nothing else changes.

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
    from matplotlib.colors import Normalize

    check_adata(adata, unique_vars=False)
    check_choice("color", color, ("segment", "attention", None))
    regions = _base.regions_of(adata, regions_key)
    if not isinstance(key, str):
        if ax is not None:
            raise ValueError("`ax` takes one key; several are drawn side by side in a figure of their own.")
        how = {"library_key": library_key, "spatial_key": spatial_key, "img": img, "cmap": cmap, "vmax": vmax}
        titles = _titles(list(key), title)
        return _side_by_side(adata, list(key), titles, regions, regions_key, color, library, how, legend=legend)
    if title is not None and not isinstance(title, str):
        raise ValueError("`title` takes several titles only for several keys; pass one string.")
    check_in(regions, "obsp", key, "key", _EMBED)
    if color == "attention":
        check_in(adata, "obs", key, "key", _EMBED)
    view = _graph.view_of(adata, regions, spatial_key=spatial_key, library_key=library_key, library=library)
    given = sparse.csr_matrix(regions.obsp[key])
    weights = ((given + given.T) / 2).tocsr()
    edges = [_graph.edges_of(weights, view, panel) for panel in view.panels]
    strongest = max((float(weight[-1]) for _, _, weight in edges if len(weight)), default=0.0)
    top = check_number("vmax", vmax, minimum=0) if vmax is not None else strongest
    norm, edge_map = Normalize(0.0, top or 1.0), _base.color_map(cmap)
    n_max = float(regions.obs["n_obs"].max())
    received = adata.obs[key].to_numpy(dtype=float) if color == "attention" else None
    shades = None if received is None else Normalize(float(np.nanmin(received)), float(np.nanmax(received)))

    bars = int(strongest > 0) + int(color == "attention")
    axes = _base.axes_for(view.panels, ax, bottom=0.7 * bars if legend else 0.0)
    lines: Any = None
    spots: Any = None
    for axis, panel, text, (rows, columns, weight) in zip(
        axes, view.panels, _base.titles_for(view.panels, title), edges, strict=True
    ):
        _base.draw_image(axis, adata, panel.library, img, fits=view.fits)
        if received is not None:
            spots = _base.draw_spots(
                axis,
                panel.xy,
                received[panel.rows],
                cmap=_base.color_map("Blues", 0.05, 0.8),
                norm=shades,
                label="observations",
            )
        else:
            ground = _graph.faint(view, panel) if color == "segment" else "#e6e6e6"
            _base.draw_spots(axis, panel.xy, ground, label="observations")
        lines = _graph.draw_edges(
            axis,
            view,
            rows,
            columns,
            view.widths(weight, top),
            array=weight,
            cmap=edge_map,
            norm=norm,
            label="attention",
        )
        _graph.draw_nodes(axis, regions, view, panel, n_max=n_max, scale=0.4)
        _base.frame(axis, panel, text)
    if legend:
        _base.add_legend(
            axes, _base.class_handles(view.names, view.colors, missing=False), own=ax is None, title="segment"
        )
        if strongest:
            _base.color_bar(axes, lines, "attention between regions")
        if spots is not None:
            _base.color_bar(axes, spots, "attention from other regions")
    return _base.one_or_all(axes)


def _titles(keys: list[str], title: str | Sequence[str] | None) -> list[str]:
    if title is None:
        return [key.replace("_", " ") for key in keys]
    if isinstance(title, str) or len(title) != len(keys):
        raise ValueError(f"`title` takes one title for each of the {len(keys)} keys.")
    return [str(text) for text in title]


def _side_by_side(
    adata: AnnData,
    keys: list[str],
    titles: list[str],
    regions: AnnData,
    regions_key: str,
    color: Literal["segment", "attention"] | None,
    library: str | Sequence[str] | None,
    how: dict[str, Any],
    *,
    legend: bool,
) -> list[Axes]:
    """One panel a key: edges where the regions hold it, else observations coloured by ``obs[key]``."""
    view = _graph.view_of(
        adata, regions, spatial_key=how["spatial_key"], library_key=how["library_key"], library=library
    )
    panel = view.panels[0]
    if len(view.panels) > 1:
        raise ValueError(
            f"Several keys are drawn for one section, but there are {len(view.panels)}; "
            f"choose one with `library={panel.library!r}`."
        )
    for key in keys:
        if key not in regions.obsp:
            check_in(adata, "obs", key, "key", "Run `st.tl.attention_fidelity(adata, model)` first.")
    axes = _base.axes_for([panel] * len(keys), None, bottom=0.0)
    colors = dict(view.colors)
    for axis, key, text in zip(axes, keys, titles, strict=True):
        if key in regions.obsp:
            attention(
                adata, key=key, regions_key=regions_key, color=color, library=library, title=text, legend=False,
                ax=axis, **how,
            )  # fmt: skip
            continue
        _base.draw_image(axis, adata, panel.library, how["img"], fits=view.fits)
        column = adata.obs[key]
        if is_numeric_dtype(column.dtype) and not is_bool_dtype(column.dtype):
            values = column.to_numpy(dtype=float)[panel.rows]
            top = np.nanpercentile(values, 99) if np.isfinite(values).any() else 1.0
            shown = np.minimum(values, top)  # single high values would leave all others pale
            _base.draw_spots(axis, panel.xy, shown, cmap=_base.color_map(how["cmap"]), label="observations")
        else:
            codes, names = category_codes(adata, key)
            own = colors_of(adata, key)
            colors = own | colors
            _base.draw_spots(axis, panel.xy, rgba(codes, names, own)[panel.rows], label="observations")
        _base.frame(axis, panel, text)
    if legend:
        names = [*view.names, *(name for name in colors if name not in view.names)]
        _base.add_legend(axes, _base.class_handles(names, colors, missing=False), own=True)
    return axes
