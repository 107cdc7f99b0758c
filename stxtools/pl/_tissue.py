"""Sections side by side: for each the image, what a plot draws over it, a frame and a scale bar."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stxtools import _keys
from stxtools._validate import listing

from . import _base, _legend
from ._sections import Panel, bars_of, draw_bar, image_slots, positive

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    Draw = Callable[[Axes, int, bool], object]  # which panel, and whether it lies over an image

RASTERIZE_ABOVE = 50_000  # so many circles make a vector file that no viewer opens
PANEL_INCHES = 4.6


def draw_sections(
    adata: AnnData,
    panels: Sequence[Panel],
    draw: Draw,
    *,
    ax: Axes | None,
    spatial_key: str,
    title: str | list[str] | None = None,
    img: bool | str | None = False,
    scale_bar: float | bool | None = None,
    bottom: float = 0.0,
    ncols: int = 4,
    shrink: float = 1.0,
) -> list[Axes]:
    """Let ``draw`` fill one Axes per panel, those of a new figure that fits the tissue or the given one.

    Several titles are taken as they are. ``bottom`` are the inches kept for colour bars;
    :func:`._legend.add_legend` widens the figure by what it needs.
    """
    names = [panel.library for panel in panels]
    titles = title if isinstance(title, list) else _base.titles_of(names if len(names) > 1 else [""], title)
    bars = bars_of(adata, panels, spatial_key, scale_bar)
    _base.check_room(ax, names, "section", "library")
    if ax is not None:
        axes = [ax]
    else:
        boxes = [panel.limits for panel in panels]
        ratio = float(np.median([(b[3] - b[2]) / (b[1] - b[0]) for b in boxes]))
        side = PANEL_INCHES * shrink * (0.75 if len(panels) > 1 else 1.0)
        width, height = max(side / max(1.0, ratio), 1.5), max(side * min(1.0, ratio), 1.5) + 0.3 * (len(panels) > 1)
        width = max(width, _legend.text_inches(titles, "medium") + 0.2)
        axes = _base.grid(len(panels), width, height, bottom=bottom, ncols=ncols, layout="compressed")
    for i, (axis, panel) in enumerate(zip(axes, panels, strict=True)):
        draw(axis, i, _draw_image(axis, adata, panel, img, fits=spatial_key == _keys.SPATIAL))
        _frame(axis, panel, titles[i])
        draw_bar(axis, panel, bars[panel.library])
    return axes


def _frame(ax: Axes, panel: Panel, title: str | None) -> None:
    """Image convention (y down), equal aspect, no ticks: coordinates of a section mean nothing to a reader."""
    left, right, top, bottom = panel.limits
    ax.set(xlim=(left, right), ylim=(bottom, top), aspect="equal", xticks=[], yticks=[], xlabel="", ylabel="")
    ax.spines[:].set_visible(False)
    if title:
        ax.set_title(title, fontsize="medium")


def draw_spots(
    ax: Axes, panel: Panel, colors: Any, *, size: float = 1.0, label: str = "observations", **kwargs: Any
) -> None:
    """Draw a section as discs whose diameter is in data units, so that they tile the tissue at any figure size.

    ``colors`` is one colour, or RGBA or a number for a colour map of every observation of all sections.
    """
    from matplotlib.collections import EllipseCollection

    diameter, xy = [panel.pitch * size], panel.xy
    if isinstance(colors, str):
        kwargs["facecolors"] = colors
    elif np.ndim(colors) == 1:  # those of high value lie on top, the missing at the bottom
        values = colors[panel.rows]
        order = np.argsort(values, kind="stable")
        order = np.roll(order, int(np.isnan(values).sum()))
        xy, kwargs["array"] = xy[order], np.ma.masked_invalid(np.asarray(values, dtype=float)[order])
    else:
        kwargs["facecolors"] = colors[panel.rows]
    spots = EllipseCollection(
        diameter, diameter, [0.0], units="xy", offsets=xy, offset_transform=ax.transData, linewidths=0,
        rasterized=len(xy) > RASTERIZE_ABOVE, label=label, **kwargs,
    )  # fmt: skip
    ax.add_collection(spots, autolim=False)


def _draw_image(ax: Axes, adata: AnnData, panel: Panel, img: bool | str | None, *, fits: bool) -> bool:
    """Draw the section's image under the spots, in the coordinates of the spots; return whether there was one.

    ``img=None`` draws the image where there is one and the coordinates are those of the image (``fits``).
    """
    from matplotlib.patches import Rectangle

    if img is False or (img is None and not fits):
        return False
    library = panel.library
    images, scalefactors = (image_slots(adata, library)[k] for k in (_keys.IMAGES, _keys.SCALEFACTORS))
    found = [name for name in ("hires", "lowres") if name in images]
    found += [str(n) for n in images if n not in found]
    for name in [img] if isinstance(img, str) else found:
        scale = scalefactors.get(f"tissue_{name}_scalef")
        if name in images and scale is not None:
            show_image(ax, _image_array(images[name], name, library), _factor(scale, name, library), zorder=-1)
            # a scale bar or a legend beside the section stands on white
            left, right, top, bottom = panel.limits
            ax.images[-1].set_clip_path(Rectangle((left, top), right - left, bottom - top, transform=ax.transData))
            return True
    if img is None or (img is True and not found):
        return False
    raise KeyError(
        f"`img={img!r}`: section {library!r} has the images {listing(found)} and the scale factors "
        f"{listing(scalefactors)} in `adata.uns['spatial']`; an image NAME needs `tissue_NAME_scalef`."
    )


def _image_array(value: Any, name: str, library: str) -> NDArray[Any]:
    try:
        pixels = np.asarray(value)
    except (TypeError, ValueError):
        pixels = np.empty(0, dtype=object)
    is_image = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))
    if pixels.dtype.kind not in "buif" or not is_image or pixels.size == 0:
        raise ValueError(
            f"`adata.uns['spatial'][{library!r}]['images'][{name!r}]` is no image (height x width, or height x width "
            f"x 3 or 4 colours, of numbers): it is a {type(value).__name__} of shape {np.shape(pixels)} and type "
            f"{pixels.dtype}; replace it, or pass `img=False`."
        )
    return pixels


def _factor(value: Any, name: str, library: str) -> float:
    number = positive(value)
    if number is None:
        raise ValueError(
            f"`adata.uns['spatial'][{library!r}]['scalefactors']['tissue_{name}_scalef']` must be a number above 0, "
            f"not {value!r}; mend it, or pass `img=False`."
        )
    return number


def show_image(ax: Axes, pixels: NDArray[Any], scale: float, origin: Any = (0.0, 0.0), **kwargs: Any) -> None:
    """Draw an image in the coordinates of the spots; ``scale`` is pixels per unit, ``origin`` the first pixel."""
    height, width = pixels.shape[:2]
    extent = np.array([-0.5, width - 0.5, height - 0.5, -0.5]) / scale + np.repeat(origin, 2)
    ax.imshow(
        pixels, extent=tuple(extent), origin="upper", **({"cmap": "gray", "interpolation": "antialiased"} | kwargs)
    )
