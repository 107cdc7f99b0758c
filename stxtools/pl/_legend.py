"""Colours of categories; legends and colour bars beside the panels of a new figure or within a caller's Axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from anndata import AnnData
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize, is_color_like, to_hex, to_rgba_array
from matplotlib.lines import Line2D
from matplotlib.offsetbox import HPacker
from mpl_toolkits.axes_grid1 import make_axes_locatable
from seaborn import color_palette

from stxtools import _keys
from stxtools._checks import listing
from stxtools._colors import colors_for, stored_colors
from stxtools._slots import column_names
from stxtools._types import Floats, Ints
from stxtools._validate import class_column
from stxtools._warn import warn

MISSING = "#d3d3d3"  # scanpy's "lightgray"
UP, DOWN, NEITHER = "#d55e00", "#0072b2", "#9a9a9a"  # Okabe and Ito: distinguishable for colour-blind readers
LEGEND_MAX = LABEL_MAX = 40  # entries; characters
_LETTER = 0.08  # width of a letter in the medium font, inches
_ROW = 0.18  # height of a legend entry in the small font, inches
_HEADING = "heading"


def category_codes(adata: AnnData, key: str) -> tuple[Ints, list[str]]:
    """Return the codes (-1 where missing) and the names of all categories, unused ones included."""
    column = class_column(adata, key, "key")
    return np.asarray(column.cat.codes, dtype=np.int64), [str(c) for c in column.cat.categories]


def colors_of(
    adata: AnnData, key: str, palette: str | Sequence[str] | Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the colour of each category of ``obs[key]``: from ``palette``, else the stored one, else scanpy's."""
    _, names = category_codes(adata, key)
    if palette is not None:
        return _from_palette(palette, names)
    stored = stored_colors(adata, key)
    if stored and all(map(is_color_like, stored.values())):
        return stored
    truth = key.removesuffix("_pred")  # `layer_pred` takes the colours of `layer`, for a comparison
    classes = (column_names(adata, _keys.proba(name)) or [] for name in (key, truth))
    order = next((known for known in classes if set(names) <= set(known)), names)  # a subset may lack some of them
    colors = colors_for(order, {} if truth == key else stored_colors(adata, truth))
    return {name: colors[name] for name in names}


def rgba(codes: Ints, colors: Mapping[str, str]) -> Floats:
    """Return the RGBA of each code, an index into ``colors``; a missing one (-1) is light grey."""
    return np.asarray(to_rgba_array([*colors.values(), MISSING])[codes])  # code -1 is the last row


def _from_palette(palette: Any, names: list[str]) -> dict[str, str]:
    try:
        chosen = color_palette(palette, len(names)) if isinstance(palette, str) else palette
    except ValueError as err:
        raise ValueError(f"`palette={palette!r}` is not a colour map; give a name such as 'tab20'.") from err
    if not isinstance(chosen, Mapping) and not np.ndim(np.asarray(chosen, dtype=object)):
        raise TypeError(f"`palette` must be the name of a colour map, a list of colours or a mapping from category "
                        f"to colour, not {palette!r}.")  # fmt: skip
    chosen = chosen if isinstance(chosen, Mapping) else dict(zip(names, chosen, strict=False))
    if absent := [name for name in names if name not in chosen]:
        raise ValueError(f"`palette` has {len(palette)} colours, and none for {listing(absent)}.")
    try:
        return {name: to_hex(chosen[name]) for name in names}
    except ValueError as err:
        raise ValueError(f"`palette` has a colour that matplotlib does not know: {err}") from err


def label_text(label: str) -> str:
    """Shorten a long name in its middle, as names may differ at their end, and escape what would be a formula."""
    label = label if len(label) <= LABEL_MAX else f"{label[: LABEL_MAX // 2]}...{label[3 - LABEL_MAX // 2 :]}"
    return label.replace("$", r"\$") if label.count("$") > 1 else label


def point_handle(label: str, color: Any, *, size: float = 7.0, edge: float = 0.0) -> Line2D:
    """Return a legend entry that is a disc, or with an ``edge`` of some width a ring."""
    return Line2D([], [], marker="o", linestyle="", markersize=size, color=color, markeredgewidth=edge,
                  markerfacecolor="none" if edge else color, label=label_text(label))  # fmt: skip


def heading_handle(label: str) -> Line2D:
    """Return a legend entry that is the heading of those that follow."""
    return Line2D([], [], linestyle="", label=label_text(label), gid=_HEADING)


def class_handles(names: Sequence[str], colors: Mapping[str, str], missing: bool) -> list[Any]:
    """Return the legend entries of categories, at most :data:`LEGEND_MAX`."""
    handles = [point_handle(n, colors[n]) for n in names[:LEGEND_MAX]]
    if len(names) > LEGEND_MAX:
        handles.append(heading_handle(f"... and {len(names) - LEGEND_MAX} more"))
    return [*handles, point_handle("NA", MISSING)] if missing else handles


def add_legend(
    axes: Sequence[Axes], handles: Sequence[Any], *, ax: Axes | None, title: str | None = None,
    bars: Sequence[tuple[Any, str]] = (),
) -> None:  # fmt: skip
    """Add one legend and the colour bars ``(mappable, label)`` beside the panels, or within the caller's ``ax``."""
    if ax is not None:
        _add_within(ax, handles, title, bars)
        return
    figure: Any = axes[0].figure
    if handles:
        ncols = max(1, -(-len(handles) // max(4, int(figure.get_size_inches()[1] / _ROW) - 2)))
        handles = _with_breaks(handles, ncols)
        legend = _new_legend(figure, handles, title, loc="outside right center", ncols=ncols)
        figure.set_figwidth(figure.get_figwidth() + legend.get_window_extent().width / figure.dpi)
    wide, tall = figure.get_size_inches()
    for bar, label in bars:  # slim, under the panels, clear of the legend to the right
        drawn = figure.colorbar(bar, ax=list(axes), location="bottom", aspect=30, fraction=0.05,
                                shrink=min(0.7, 3.5 / wide), pad=0.02 + 0.1 / tall)  # fmt: skip
        _label_colorbar(drawn, label)


def _with_breaks(handles: Sequence[Any], ncols: int) -> list[Any]:
    """Insert blank entries so that no heading ends a column, apart from its entries."""
    handles = list(handles)
    while True:
        ends = [int(rows[-1]) for rows in np.array_split(np.arange(len(handles)), ncols)[:-1]]  # as in matplotlib
        stray = [i for i in ends if handles[i].get_gid() == _HEADING and handles[i].get_label()[:3] not in ("", "...")]
        if not stray:
            return handles
        handles.insert(stray[0], heading_handle(""))


def color_map(name: str, low: float = 0.0, high: float = 1.0) -> Any:
    """Return a part of a colour map in which missing values are light grey."""
    if not isinstance(name, str) or name not in colormaps:
        raise ValueError(f"`cmap={name!r}` is not a colour map of matplotlib; give a name such as 'magma_r'.")
    return ListedColormap(colormaps[name](np.linspace(low, high, 256))).with_extremes(bad=MISSING)


def mappable(low: float, high: float, cmap: Any) -> Any:
    """Return the colours from ``low`` to ``high`` for a colour bar."""
    return ScalarMappable(Normalize(low, high), cmap)


def _new_legend(
    parent: Any, handles: Sequence[Any], title: str | None, size: float | str = "small", **kwargs: Any
) -> Any:
    """Draw a legend into a figure or Axes, its title and headings in bold, flush with the marks."""
    bold = {"size": size, "weight": "bold"}
    legend = parent.legend(
        handles=list(handles), title=None if title is None else label_text(title), frameon=False, fontsize=size,
        title_fontproperties=bold, alignment="left", handletextpad=0.5, labelspacing=0.5, **kwargs,
    )  # fmt: skip
    headings = [t for t, h in zip(legend.get_texts(), handles, strict=True) if h.get_gid() == _HEADING]
    for row in legend.findobj(HPacker):
        mark, *words = row.get_children()
        for text in (text for word in words for text in word.get_children() if text in headings):
            mark.set_visible(False)  # takes no room
            text.set_fontproperties(bold)
    return legend


def _label_colorbar(bar: Any, label: str, size: float | str = "small") -> None:
    bar.set_label(label, fontsize=size)
    bar.ax.tick_params(labelsize=size)
    bar.ax.locator_params(nbins=3)
    bar.outline.set_visible(False)


def _add_within(ax: Axes, handles: Sequence[Any], title: str | None, bars: Sequence[tuple[Any, str]]) -> None:
    """Divide the space of the Axes between the drawing, a legend in the largest font that fits, and colour bars."""
    divider = make_axes_locatable(ax)
    width, height = axes_size(ax)
    drawn: Any = ax.get_tightbbox()
    below = (ax.bbox.y0 - drawn.y0) / ax.figure.dpi  # ticks and label of the x axis
    for size in (8.0, 7.0, 6.0, 5.0, 4.0) if handles else ():
        legend = _new_legend(ax, handles, title, size, loc="center left", bbox_to_anchor=(1.0, 0.5), borderpad=0.2)
        needed, tall = legend.get_window_extent().size / ax.figure.dpi
        if needed + 0.1 <= 0.6 * width and tall <= height:
            divider.append_axes("right", needed + 0.1, pad=0).set_axis_off()
            break
        legend.remove()
    else:
        if handles:
            warn("The legend does not fit into `ax` and is not drawn; pass a larger `ax`, or `legend=False`.")
    for bar, label in bars:
        room = 0.45 + 0.13 * label.count("\n")  # inches
        strip = divider.append_axes("bottom", room, pad=below + 0.1)
        strip.set_axis_off()
        cax = strip.inset_axes((0.1, 1 - 0.09 / room, 0.8, 0.09 / room))
        drawn = ax.figure.colorbar(bar, cax=cax, orientation="horizontal")
        _label_colorbar(drawn, label, 7.0)
        below = 0.0


def axes_size(ax: Any, *, shared: bool = False) -> Floats:
    """Return the width and height of an Axes in inches, less what its legend takes or, if ``shared``, may take."""
    if (locate := ax.get_axes_locator()) is not None:
        ax.apply_aspect(locate(ax, None))
    return np.asarray(ax.bbox.size / ax.figure.dpi) * (0.6 if shared else 1.0)


def text_width(labels: Sequence[str]) -> float:
    """Return the approximate width of the longest label in inches."""
    return _LETTER * max(map(len, labels), default=0)
