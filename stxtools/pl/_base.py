"""What the spatial plots share: sections, panels, images, spots and legends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stxtools import _keys
from stxtools._validate import coordinates, libraries, listing

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.collections import EllipseCollection
    from numpy.typing import NDArray

RASTERIZE_ABOVE = 50_000  # so many circles make a vector file that no viewer opens
PANEL_INCHES = 4.6
LEGEND_MAX = 40
_ROW_INCHES = 0.18  # height of a legend entry in small print


@dataclass(frozen=True)
class Panel:
    """One section: its name, the rows of its observations and where they lie."""

    library: str
    rows: NDArray[np.int64]
    xy: NDArray[np.float64]

    @property
    def limits(self) -> tuple[float, float, float, float]:
        """Left, right, top, bottom of the section with a margin."""
        low, high = self.xy.min(axis=0), self.xy.max(axis=0)
        pad = max(spacing(self.xy), 0.01 * float((high - low).max()))
        return low[0] - pad, high[0] + pad, low[1] - pad, high[1] + pad


def params_of(slot: Any) -> dict[str, Any]:
    """Return the provenance of a slot: a mapping with ``params``, or an AnnData with ``uns["params"]``."""
    holder = getattr(slot, "uns", slot)
    params = holder.get("params", {}) if isinstance(holder, Mapping) else {}
    return dict(params) if isinstance(params, Mapping) else {}


def regions_of(adata: AnnData, key: str) -> AnnData:
    """Return the region AnnData in ``uns[key]``, or say which call makes it."""
    from anndata import AnnData as AnnData_

    regions = adata.uns.get(key)
    if regions is None:
        raise KeyError(f"`adata.uns[{key!r}]` is missing; run `st.tl.region_graph(adata)` first.")
    if not isinstance(regions, AnnData_):
        raise TypeError(f"`adata.uns[{key!r}]` is a {type(regions).__name__}, not the AnnData of "
                        "`st.tl.region_graph`; run it again or name another `key`.")  # fmt: skip
    return regions


def panels_of(
    adata: AnnData,
    *,
    spatial_key: str,
    library_key: str | None,
    library: str | Sequence[str] | None,
    params: Mapping[str, Any] | None = None,
    several: bool = True,
) -> list[Panel]:
    """Return the sections to draw; without ``library_key`` it is read from ``params`` or those of the segments."""
    params = params_of(adata.uns.get(_keys.SEGMENT)) | dict(params or {})
    if library_key is None and params.get("library_key") in adata.obs:
        library_key = params["library_key"]
    xy = coordinates(adata, spatial_key)
    libs = libraries(adata, library_key)
    wanted = libs.names if library is None else [library] if isinstance(library, str) else [str(x) for x in library]
    absent = [name for name in wanted if name not in libs.names]
    if absent or not wanted:
        raise ValueError(f"`library={library!r}` is not there; the sections are {listing(libs.names)}.")
    if len(wanted) > 1 and not several:
        raise ValueError(
            f"`adata` has {len(wanted)} sections ({listing(wanted)}) and only one can be drawn here; "
            f"choose it with `library={wanted[0]!r}`."
        )
    found = [(name, libs.rows(libs.names.index(name))) for name in wanted]
    return [Panel(name, rows, xy[rows]) for name, rows in found]


def axes_for(panels: Sequence[Panel], ax: Axes | None, *, bottom: float = 0.0) -> list[Axes]:
    """Return one Axes per section: the given one, or those of a new figure that fits the tissue.

    ``bottom`` are the inches kept for colour bars; :func:`add_legend` widens the figure by what it needs.
    """
    if ax is not None:
        if len(panels) > 1:
            names = [p.library for p in panels]
            raise ValueError(
                f"`ax` takes one section, but there are {len(panels)} ({listing(names)}); "
                f"choose one with `library={names[0]!r}`, or leave `ax` out."
            )
        return [ax]
    boxes = [p.limits for p in panels]
    ratio = float(np.median([(b[3] - b[2]) / (b[1] - b[0]) for b in boxes]))
    width, height = PANEL_INCHES / max(1.0, ratio), PANEL_INCHES * min(1.0, ratio)
    if len(panels) == 1:
        return grid(1, max(width, 1.5), max(height, 1.5), bottom=bottom)
    return grid(len(panels), max(0.75 * width, 1.5), max(0.75 * height, 1.5) + 0.3, bottom=bottom)


def grid(n: int, width: float, height: float, *, bottom: float = 0.0, ncols: int = 4) -> list[Axes]:
    """Return ``n`` Axes of a new figure in a grid, each of ``width`` x ``height`` inches."""
    import matplotlib.pyplot as plt

    rows = -(-n // ncols)
    cols = -(-n // rows)
    figure, axes = plt.subplots(
        rows, cols, figsize=(cols * width, rows * height + bottom), squeeze=False, layout="constrained"
    )
    flat = list(axes.ravel())
    for spare in flat[n:]:
        figure.delaxes(spare)
    return flat[:n]


def one_or_all(axes: list[Axes]) -> Axes | list[Axes]:
    """Return a single Axes as itself, several as a list."""
    return axes[0] if len(axes) == 1 else axes


def spacing(xy: NDArray[np.float64]) -> float:
    """Typical distance of neighbouring observations, in the units of ``xy``.

    The median distance to the third neighbour: the pitch of hexagonal and square lattices, and about one over the
    root of the density for scattered cells. Observations at the very same place are not neighbours.
    """
    from scipy.spatial import cKDTree

    if len(xy) < 2:
        return 1.0
    probe = xy[:: max(1, len(xy) // 2000)]
    distance = cKDTree(xy).query(probe, k=min(10, len(xy)))[0]
    distance = np.sort(np.where(distance > 0, distance, np.inf), axis=1)
    third = distance[:, min(2, distance.shape[1] - 1)]
    third = np.where(np.isfinite(third), third, distance[:, 0])
    third = third[np.isfinite(third)]
    return float(np.median(third)) if len(third) else 1.0


def frame(ax: Axes, panel: Panel, title: str | None) -> None:
    """Image convention (y down), equal aspect, no ticks: coordinates of a section mean nothing to a reader."""
    left, right, top, bottom = panel.limits
    ax.set(xlim=(left, right), ylim=(bottom, top), aspect="equal", xticks=[], yticks=[], xlabel="", ylabel="")
    for spine in ax.spines.values():
        spine.set_visible(False)
    if title:
        ax.set_title(title, fontsize="medium")


def titles_for(panels: Sequence[Panel], title: str | None) -> list[str | None]:
    """Return the title of each panel: the section's name where there are several."""
    if len(panels) == 1:
        return [title]
    return [panel.library if title is None else f"{title}: {panel.library}" for panel in panels]


def draw_spots(
    ax: Axes,
    xy: NDArray[np.float64],
    colors: Any,
    *,
    size: float = 1.0,
    label: str = "spots",
    **kwargs: Any,
) -> EllipseCollection:
    """Draw observations as discs whose diameter is in data units, so that they tile the tissue at any figure size."""
    from matplotlib.collections import EllipseCollection

    diameter = spacing(xy) * size
    if np.ndim(colors) == 1:  # numbers for a colour map; those of high value lie on top, the missing at the bottom
        order = np.argsort(colors, kind="stable")
        order = np.roll(order, int(np.isnan(colors).sum()))
        xy, kwargs["array"] = xy[order], np.ma.masked_invalid(np.asarray(colors, dtype=float)[order])
    else:
        kwargs["facecolors"] = colors
    spots = EllipseCollection(
        [diameter],
        [diameter],
        [0.0],
        units="xy",
        offsets=xy,
        offset_transform=ax.transData,
        linewidths=0,
        rasterized=len(xy) > RASTERIZE_ABOVE,
        label=label,
        **kwargs,
    )
    ax.add_collection(spots, autolim=False)
    return spots


def draw_image(ax: Axes, adata: AnnData, library: str, img: bool | str | None, *, fits: bool = True) -> bool:
    """Draw the section's picture under the spots, in the coordinates of the spots; return whether there was one.

    ``img=None`` draws the picture where there is one and the coordinates are those of the picture (``fits``).
    """
    if img is False or (img is None and not fits):
        return False
    entry = adata.uns.get(_keys.SPATIAL, {})
    entry = entry.get(library, {}) if isinstance(entry, Mapping) else {}
    images = entry.get(_keys.IMAGES, {})
    pictures = [name for name in ("hires", "lowres") if name in images]
    pictures += [name for name in images if name not in pictures and not name.startswith(_keys.MASK_IMAGE)]
    names = [img] if isinstance(img, str) else pictures
    scalefactors = entry.get(_keys.SCALEFACTORS, {})
    for name in names:
        scale = scalefactors.get(f"tissue_{name}_scalef")
        if name in images and scale is not None:
            show_image(ax, np.asarray(images[name]), float(scale), zorder=-1)
            return True
    if img is None or (img is True and not pictures):
        return False
    raise KeyError(
        f"`img={img!r}`: section {library!r} has the pictures {listing(pictures)} and the scale factors "
        f"{listing(scalefactors)} in `adata.uns['spatial']`; a picture NAME needs `tissue_NAME_scalef`."
    )


def show_image(ax: Axes, picture: NDArray[Any], scale: float, **kwargs: Any) -> None:
    """Draw a picture in the coordinates of the spots; ``scale`` is pixels per unit, pixel centres are integers."""
    height, width = picture.shape[:2]
    extent = np.array([-0.5, width - 0.5, height - 0.5, -0.5]) / scale
    kwargs.setdefault("interpolation", "antialiased")
    ax.imshow(picture, extent=tuple(extent), origin="upper", **({"cmap": "gray"} | kwargs))


def dot(label: str, color: Any, *, size: float = 7.0, **kwargs: Any) -> Any:
    """Legend entry: a disc."""
    from matplotlib.lines import Line2D

    return Line2D(
        [], [], marker="o", linestyle="", markersize=size, color=color, markeredgewidth=0, label=label, **kwargs
    )


def heading(label: str) -> Any:
    """Legend entry: a heading above the entries that follow."""
    from matplotlib.lines import Line2D

    return Line2D([], [], linestyle="", label=label)


def class_handles(names: Sequence[str], colors: Mapping[str, str], missing: bool) -> list[Any]:
    """Legend entries of categories, at most :data:`LEGEND_MAX`."""
    from ._palette import MISSING, MISSING_LABEL

    handles = [dot(n, colors[n]) for n in names[:LEGEND_MAX]]
    if len(names) > LEGEND_MAX:
        handles.append(heading(f"... and {len(names) - LEGEND_MAX} more"))
    return [*handles, dot(MISSING_LABEL, MISSING)] if missing else handles


def add_legend(axes: Sequence[Axes], handles: Sequence[Any], *, own: bool, title: str | None = None) -> None:
    """Put one legend to the right: of the figure where it is our ``own``, else of the caller's Axes."""
    figure: Any = axes[0].figure
    room = figure.get_size_inches()[1] if own else axes[0].get_window_extent().height / figure.dpi
    ncols = max(1, -(-len(handles) // max(4, int(room / _ROW_INCHES) - 2)))
    options: dict[str, Any] = {
        "handles": list(handles),
        "title": title,
        "frameon": False,
        "fontsize": "small",
        "title_fontsize": "small",
        "alignment": "left",
        "ncols": ncols,
        "handletextpad": 0.5,
        "labelspacing": 0.5,
    }
    if not own:
        legend = axes[0].legend(loc="center left", bbox_to_anchor=(1.01, 0.5), borderaxespad=0.3, **options)
    else:
        legend = figure.legend(loc="outside right center", **options)
        longest = _text_inches([title or "", *(str(h.get_label()) for h in handles)])
        figure.set_figwidth(figure.get_figwidth() + ncols * (longest + 0.55) + 0.1)
    known = {h.get_label() for h in handles if _is_heading(h)}
    for text in legend.get_texts():
        if text.get_text() in known:
            text.set_fontweight("bold")


def _text_inches(labels: Sequence[str]) -> float:
    """Width of the longest label, in bold, as headings are."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    font = FontProperties(size="small", weight="bold")
    size = font.get_size_in_points()
    return max((TextPath((0, 0), x, size=size, prop=font).get_extents().width for x in labels if x), default=0.0) / 72


def _is_heading(handle: Any) -> bool:
    return handle.get_linestyle() in ("None", "none", "", " ") and handle.get_marker() in ("None", "none", "", None)


def color_map(name: str, low: float = 0.0, high: float = 1.0) -> Any:
    """Return a part of a colour map in which missing values are light grey."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    from ._palette import MISSING

    if name not in colormaps:
        raise ValueError(f"`cmap={name!r}` is no colour map of matplotlib; give a name such as 'magma_r'.")
    return ListedColormap(colormaps[name](np.linspace(low, high, 256))).with_extremes(bad=MISSING)


def color_bar(axes: Sequence[Axes], mappable: Any, label: str) -> Any:
    """Put a slim horizontal colour bar under the panels, clear of the legend to the right."""
    # a layout engine makes room for labels under the panels by itself
    pad = 0.02 if axes[0].figure.get_layout_engine() is not None or not axes[0].get_xlabel() else 0.18
    bar = axes[0].figure.colorbar(
        mappable, ax=list(axes), location="bottom", shrink=0.7, aspect=30, pad=pad, fraction=0.05
    )
    bar.set_label(label, fontsize="small")
    bar.ax.tick_params(labelsize="small")
    bar.outline.set_visible(False)
    return bar
