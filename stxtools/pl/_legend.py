"""Colours of categories, legends and colour bars: beside the panels of our own figures, inside the Axes of a caller."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stxtools import _keys
from stxtools._checks import listing
from stxtools._colors import colors_for, stored_colors
from stxtools._slots import column_names
from stxtools._warn import warn

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

MISSING = "#d3d3d3"  # scanpy's "lightgray"
MISSING_LABEL = "NA"
UP, DOWN, NEITHER = "#d55e00", "#0072b2", "#9a9a9a"  # Okabe and Ito: distinguishable for colour-blind readers
LEGEND_MAX = 40
LABEL_MAX = 40  # characters
_ROW_INCHES = 0.18  # height of a legend entry in small print
_BAR_INCHES = 0.5  # height of a colour bar with its ticks and label, inside an Axes
_BAR_WIDTH = 1.5  # inches
_BAR_LONGEST = 3.5  # of one beside the panels
_HEADING = "heading"


def category_codes(adata: AnnData, key: str) -> tuple[NDArray[np.int64], list[str]]:
    """Codes (-1 where missing) and the names of *all* categories, present in the data or not."""
    column = adata.obs[key]
    if pd.api.types.is_float_dtype(column.dtype):
        raise TypeError(
            f"`adata.obs[{key!r}]` holds floating-point numbers, not categories; for numbers use "
            f"`sc.pl.spatial` or `sq.pl.spatial_scatter(adata, color={key!r})`."
        )
    if not isinstance(column.dtype, pd.CategoricalDtype):
        try:
            column = column.astype("category")
        except TypeError as err:
            raise TypeError(
                f"`adata.obs[{key!r}]` holds no classes: {err}; store strings, one an observation."
            ) from err
    return np.asarray(column.cat.codes, dtype=np.int64), [str(c) for c in column.cat.categories]


def colors_of(
    adata: AnnData, key: str, palette: str | Sequence[str] | Mapping[str, str] | None = None
) -> dict[str, str]:
    """Colour of every category of ``obs[key]``: of ``palette``, else as stored, else scanpy's; nothing is written."""
    from matplotlib.colors import is_color_like

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


def rgba(codes: NDArray[np.int64], names: Sequence[str], colors: Mapping[str, str]) -> NDArray[np.float64]:
    """RGBA of every code; a missing one is light grey."""
    from matplotlib.colors import to_rgba_array

    table = to_rgba_array([*(colors[n] for n in names), MISSING])
    return np.asarray(table[codes])  # code -1 is the last row


def _from_palette(palette: Any, names: list[str]) -> dict[str, str]:
    from matplotlib import colormaps
    from matplotlib.colors import is_color_like, to_hex

    if isinstance(palette, str):
        if palette not in colormaps:
            raise ValueError(f"`palette={palette!r}` is no colour map of matplotlib; give a name such as 'tab20'.")
        cmap = colormaps[palette]
        cmap = cmap if cmap.N <= 64 else cmap.resampled(max(len(names), 2))
        palette = [cmap(i % cmap.N) for i in range(len(names))]
    if not isinstance(palette, (Mapping, Sequence, np.ndarray)):
        raise TypeError(f"`palette` must be the name of a colour map, a list of colours or a mapping from category "
                        f"to colour, not {palette!r}.")  # fmt: skip
    chosen = dict(palette) if isinstance(palette, Mapping) else dict(zip(names, palette, strict=False))
    absent = [name for name in names if name not in chosen]
    if absent:
        raise ValueError(f"`palette` has {len(palette)} colours, and none for {listing(absent)}.")
    wrong = [chosen[name] for name in names if not is_color_like(chosen[name])]
    if wrong:
        raise ValueError(f"`palette` has {wrong[0]!r}, which matplotlib does not know as a colour.")
    return {name: to_hex(chosen[name]) for name in names}


def plain(label: str) -> str:
    """Return a name as it is written, no formula in it, of a length that leaves room; names may differ at their end."""
    label = label if len(label) <= LABEL_MAX else f"{label[: LABEL_MAX // 2]}...{label[3 - LABEL_MAX // 2 :]}"
    return label.replace("$", r"\$") if label.count("$") > 1 else label


def dot(label: str, color: Any, *, size: float = 7.0, **kwargs: Any) -> Any:
    """Legend entry: a disc."""
    from matplotlib.lines import Line2D

    how = {"marker": "o", "linestyle": "", "markersize": size, "color": color, "markeredgewidth": 0} | kwargs
    return Line2D([], [], label=plain(label), **how)


def ring(label: str, color: Any) -> Any:
    """Legend entry: a hollow disc."""
    return dot(label, color, markerfacecolor="white", markeredgewidth=1.0)


def heading(label: str) -> Any:
    """Legend entry: a heading above the entries that follow."""
    return dot(label, "none", marker="", gid=_HEADING)


def class_handles(names: Sequence[str], colors: Mapping[str, str], missing: bool) -> list[Any]:
    """Legend entries of categories, at most :data:`LEGEND_MAX`."""
    handles = [dot(n, colors[n]) for n in names[:LEGEND_MAX]]
    if len(names) > LEGEND_MAX:
        handles.append(heading(f"... and {len(names) - LEGEND_MAX} more"))
    return [*handles, dot(MISSING_LABEL, MISSING)] if missing else handles


def add_legend(
    axes: Sequence[Axes],
    handles: Sequence[Any],
    *,
    own: bool,
    title: str | None = None,
    bars: Sequence[tuple[Any, str]] = (),
) -> None:
    """Put one legend and the colour bars ``(mappable, label)`` beside the panels, or inside the caller's Axes."""
    if not own:
        _inside(axes[0], handles, title, bars)
        return
    figure: Any = axes[0].figure
    if handles:
        ncols = max(1, -(-len(handles) // max(4, int(figure.get_size_inches()[1] / _ROW_INCHES) - 2)))
        _draw(figure, handles, title, loc="outside right center", ncols=ncols)
        longest = text_inches([title or "", *(str(h.get_label()) for h in handles)])
        figure.set_figwidth(figure.get_figwidth() + ncols * (longest + 0.55) + 0.1)
    for bar, label in bars:
        color_bar(axes, bar, label)


def color_bar(axes: Sequence[Axes], bar: Any, label: str) -> None:
    """Put a slim horizontal colour bar under panels of our own figure, clear of the legend to the right."""
    figure: Any = axes[0].figure
    places: list[Any] = [axis.get_subplotspec() for axis in axes]
    wide, tall = figure.get_size_inches() / [places[0].get_gridspec().ncols, 1]
    wide *= len({place.colspan.start for place in places})
    how: dict[str, Any] = {"location": "bottom", "aspect": 30, "fraction": 0.05}
    drawn = figure.colorbar(bar, ax=list(axes), shrink=min(0.7, _BAR_LONGEST / wide), pad=0.02 + 0.1 / tall, **how)
    _label(drawn, label)
    drawn.ax.locator_params(nbins=5 if wide > 4 else 3)  # inches


def color_map(name: str, low: float = 0.0, high: float = 1.0) -> Any:
    """Return a part of a colour map in which missing values are light grey."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    if not isinstance(name, str) or name not in colormaps:
        raise ValueError(f"`cmap={name!r}` is no colour map of matplotlib; give a name such as 'magma_r'.")
    return ListedColormap(colormaps[name](np.linspace(low, high, 256))).with_extremes(bad=MISSING)


def mappable(low: float, high: float, cmap: Any) -> Any:
    """Return what a colour bar shows: colours from ``low`` to ``high``."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    return ScalarMappable(Normalize(low, high), cmap)


def value_scale(values: NDArray[np.float64], cmap: Any, *, percentile: float, low: float = np.inf) -> Any:
    """Return a colour scale up to a percentile: a few extreme values would leave all others in one colour."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return mappable(0.0, 1.0, cmap)
    low = min(low, float(finite.min()))
    return mappable(low, next((t for t in np.percentile(finite, [percentile, 100]) if t > low), low + 1.0), cmap)


def _draw(where: Any, handles: Sequence[Any], title: str | None, size: float | str = "small", **kwargs: Any) -> Any:
    """Draw a legend into a figure or Axes, headings in bold."""
    legend = where.legend(
        handles=list(handles), title=None if title is None else plain(title), frameon=False, fontsize=size,
        title_fontsize=size, alignment="left", handletextpad=0.5, labelspacing=0.5, **kwargs,
    )  # fmt: skip
    for text, handle in zip(legend.get_texts(), handles, strict=True):
        if handle.get_gid() == _HEADING:
            text.set_fontweight("bold")
    return legend


def _label(bar: Any, label: str, size: float | str = "small") -> None:
    bar.set_label(label, fontsize=size)
    bar.ax.tick_params(labelsize=size)
    bar.outline.set_visible(False)


def _inside(ax: Axes, handles: Sequence[Any], title: str | None, bars: Sequence[tuple[Any, str]]) -> None:
    """Make room within the Axes' own rectangle: the legend to the right of the data, bars under a map or the legend."""
    width, height = inches(ax)
    equal = ax.get_aspect() != "auto"
    under = _BAR_INCHES * len(bars)
    beside, legend = _fitting_legend(ax, handles, title, width, height - under, top=bool(bars) and not equal)
    if bars and not equal:
        beside = min(max(beside, text_inches([label for _, label in bars]) + 0.2, _BAR_WIDTH), 0.6 * width)
    ticks = [t for t in ax.get_xticks() if min(ax.get_xlim()) <= t <= max(ax.get_xlim())]
    width, height = _make_room(ax, beside, under if equal else 0.0, width, height)
    if not equal:  # no ticks beside the data, where the scale may mean nothing
        ax.set_xticks(ticks)
    elif legend is not None:
        legend.set_bbox_to_anchor((1.0, 0.5 * (1 + under / height)))
    start, span = (0.1 * (width - beside), 0.8 * (width - beside)) if equal else (width - beside + 0.1, beside - 0.2)
    for i, (bar, label) in enumerate(reversed(bars)):
        bottom = _BAR_INCHES * i + 0.36
        place = ax.inset_axes((start / width, bottom / height, span / width, 0.08 / height))
        drawn = ax.figure.colorbar(bar, cax=place, orientation="horizontal")
        _label(drawn, label, 7.0)
        drawn.ax.locator_params(nbins=3)


def _fitting_legend(
    ax: Axes, handles: Sequence[Any], title: str | None, width: float, height: float, *, top: bool
) -> tuple[float, Any]:
    """Draw the legend in the largest print that fits; return the width it takes (inches) and the legend."""
    if not handles:
        return 0.0, None
    for size in (8.0, 7.0, 6.0, 5.0, 4.0):
        legend = _draw(ax, handles, title, size, loc="upper right" if top else "center right",
                       bbox_to_anchor=(1.0, 1.0 if top else 0.5), borderaxespad=0.0, borderpad=0.2)  # fmt: skip
        box = legend.get_window_extent()
        need, tall = box.width / ax.figure.dpi + 0.1, box.height / ax.figure.dpi
        if need <= 0.6 * width and tall <= height:
            return need, legend
        legend.remove()
    warn("The legend does not fit into `ax` and is not drawn; pass a larger `ax`, or `legend=False`.")
    return 0.0, None


def _make_room(ax: Axes, beside: float, under: float, width: float, height: float) -> tuple[float, float]:
    """Extend the x axis to the right and the y axis down by so many inches; return the size of what is drawn."""
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    across, up = abs(right - left) / (width - beside), abs(top - bottom) / (height - under)  # units per inch
    if ax.get_aspect() != "auto":
        across = up = max(across, up)
    ax.set_xlim(left, right + np.sign(right - left) * beside * across)
    ax.set_ylim(bottom - np.sign(top - bottom) * under * up, top)
    return abs(right - left) / across + beside, abs(top - bottom) / up + under


def inches(ax: Axes) -> tuple[float, float]:
    """Width and height that the figure's layout gives to the Axes."""
    box, whole = ax.get_position(original=True), ax.figure.bbox
    return float(box.width * whole.width / ax.figure.dpi), float(box.height * whole.height / ax.figure.dpi)


def text_inches(labels: Sequence[str], size: str = "small") -> float:
    """Width of the longest label, in bold, as headings are."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    font = FontProperties(size=size, weight="bold")
    points = font.get_size_in_points()
    drawn = (TextPath((0, 0), text, size=points, prop=font) for text in labels if text.strip())
    return max((path.get_extents().width for path in drawn), default=0.0) / 72
