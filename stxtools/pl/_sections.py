"""The sections of a plot: their positions, and Axes with the tissue image and a scale bar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection
from matplotlib.patches import Rectangle
from matplotlib_scalebar.scalebar import ScaleBar
from scipy.spatial import cKDTree

from stxtools import _keys
from stxtools._checks import check_names, listing
from stxtools._types import Floats, Ints
from stxtools._validate import array_positions, coordinates, libraries, params_of, spatial_entry, stored_library_key
from stxtools._warn import warn

from . import _base, _legend

_MICRONS = frozenset({"micron", "microns", "micrometer", "micrometers", "micrometre", "micrometres", "um", "µm", "μm"})
_IMAGE_SIDE = 2000  # pixels; to draw the 6000 of Visium HD takes 2 GB, and a figure does not show them
_VISIUM_PITCH = 100.0  # microns between the centres of neighbouring spots
# spot diameter / pitch: 0.55 by design; older Space Ranger wrote up to 0.71, so that the pitch is what is measured
_VISIUM_RATIO = (0.45, 0.8)
_GAP = 0.08  # between sections side by side, as a share of the largest
RASTERIZE_ABOVE = 50_000  # so many circles make a vector file that no viewer opens
_PANEL_INCHES = 4.6


@dataclass(frozen=True)
class Panel:
    """One section: its name, the rows of its observations, their positions and the key of these in ``obsm``."""

    library: str
    rows: Ints
    xy: Floats
    spatial_key: str

    @cached_property
    def limits(self) -> tuple[float, float, float, float]:
        """Return left, right, top and bottom of the section with a margin."""
        low, high = self.xy.min(axis=0), self.xy.max(axis=0)
        pad = max(self.pitch, 0.01 * float((high - low).max()))
        return low[0] - pad, high[0] + pad, low[1] - pad, high[1] + pad

    @cached_property
    def pitch(self) -> float:
        """Return the median distance to the third neighbour: the pitch of a lattice, about 1 / sqrt(density) else."""
        points = pd.DataFrame(self.xy).drop_duplicates().to_numpy()
        if len(points) < 2:
            return 1.0
        sample = points[:: max(1, len(points) // 2000)]
        return float(np.median(cKDTree(points).query(sample, k=min(4, len(points)))[0][:, -1]))


def panels_of(
    adata: AnnData, params: Mapping[str, Any], *, spatial_key: str | None, library_key: str | bool | None,
    library: str | Sequence[str] | None = None,
) -> list[Panel]:  # fmt: skip
    """Return the sections to draw, all by default; ``params`` of the call that made the results name other defaults."""
    if spatial_key is None:
        stored = params.get("spatial_key")
        spatial_key = stored if isinstance(stored, str) and stored in adata.obsm else _keys.SPATIAL
    libs = libraries(adata, _library_key(adata, params) if library_key is None else library_key)
    xy = coordinates(adata, spatial_key, libs)
    wanted = libs.names if library is None else check_names("library", library, "a section")
    if not wanted or not set(wanted) <= set(libs.names):
        raise ValueError(f"`library={library!r}` is not in `adata`; the sections are {listing(libs.names)}.")
    rows = [np.flatnonzero(libs.codes == libs.names.index(name)) for name in wanted]
    return [Panel(name, part, xy[part], spatial_key) for name, part in zip(wanted, rows, strict=True)]


def _library_key(adata: AnnData, params: Mapping[str, Any]) -> str | bool | None:
    """Return the ``library_key`` of the call that made the results, else a column of names in ``uns["spatial"]``."""
    slots = [adata.uns.get(_keys.SEGMENT), adata.uns.get(_keys.REGIONS)]
    for stored in (params, *map(params_of, slots)):
        key = stored_library_key(stored)
        if key is False or (isinstance(key, str) and key in adata.obs):
            return key
    spatial = adata.uns.get(_keys.SPATIAL)
    known = {str(name) for name in spatial} if isinstance(spatial, Mapping) else set()
    if len(known) > 1:
        for name, column in adata.obs.items():
            if column.dtype.kind not in "fc" and set(column.astype(str).unique()) <= known:
                return str(name)
    return None


def grid_offsets(panels: Sequence[Panel]) -> list[Floats]:
    """Return the shift of each section that puts all of them into a grid, at one scale."""
    limits = np.array([panel.limits for panel in panels])
    sizes = np.c_[limits[:, 1] - limits[:, 0], limits[:, 3] - limits[:, 2]]
    cell = sizes.max(axis=0) * (1 + _GAP)
    cols = int(np.ceil(np.sqrt(len(panels))))
    cells = np.array([[i % cols, i // cols] for i in range(len(panels))])
    return list(cells * cell + (cell - sizes) / 2 - limits[:, [0, 2]])


def positive_number(value: Any) -> float | None:
    """Return a number above 0 as a float, None for anything else."""
    number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    return float(value) if number and 0 < value < np.inf else None


def microns_per_unit(adata: AnnData, panels: Sequence[Panel], scale_bar: float | bool | None) -> list[float | None]:
    """Return how many microns one unit of the coordinates is in each section; None where it is not known."""
    if scale_bar is not None and not isinstance(scale_bar, bool):
        given = positive_number(scale_bar)
        if given is None:
            raise TypeError(
                f"`scale_bar` must be True, False, None or the microns of a unit of the coordinates, not {scale_bar!r}."
            )
        return [given] * len(panels)
    units = [_recorded_unit(adata, panel) if scale_bar is not False else None for panel in panels]
    if scale_bar is True and None in units:
        panel = panels[units.index(None)]
        raise ValueError(
            f"`scale_bar=True`: the unit of `adata.obsm[{panel.spatial_key!r}]` in section {panel.library!r} is not "
            "known. Pass its microns (`scale_bar=1.0` for Xenium, MERFISH and CosMx coordinates in microns), or keep "
            f"them in `adata.uns['spatial'][{panel.library!r}]['scalefactors']['microns_per_pixel']`."
        )
    return units


def _recorded_unit(adata: AnnData, panel: Panel) -> float | None:
    if panel.spatial_key != _keys.SPATIAL:
        return None
    slots = spatial_entry(adata, panel.library)
    factors, metadata = slots[_keys.SCALEFACTORS], slots["metadata"]
    recorded = positive_number(factors.get("microns_per_pixel"))
    if recorded is not None:
        return recorded
    if any(str(metadata.get(k)).lower() in _MICRONS for k in ("unit", "units")):
        return 1.0
    diameter, positions = positive_number(factors.get(_keys.SPOT_DIAMETER)), array_positions(adata)
    if diameter is None or positions is None or len(panel.rows) < 3:
        return None
    # Visium has every second column in a row, and the next row is shifted by one
    total = positions[panel.rows].sum(axis=1)
    hexagonal = np.isfinite(total).all() and (total % 2 == total[0] % 2).all()
    low, high = _VISIUM_RATIO
    return _VISIUM_PITCH / panel.pitch if hexagonal and low <= diameter / panel.pitch <= high else None


def section_axes(
    adata: AnnData, panels: Sequence[Panel], *, ax: Axes | None, title: str | None, img: bool | str | None,
    scale_bar: float | bool | None, bottom: float = 0.0, figsize: tuple[float, float] | None = None,
) -> list[Axes]:  # fmt: skip
    """Return one Axes per section with its image and scale bar: of a new figure that fits the tissue, or ``ax``."""
    stored, sections = adata.uns.get(_keys.SPATIAL), [panel.library for panel in panels]
    names = [] if img is not None or len(panels) < 2 or not isinstance(stored, Mapping) else list(stored)
    pictured = [name for name in names if spatial_entry(adata, name)[_keys.IMAGES]]
    if pictured and not set(sections) & set(names):
        warn(f"`adata.uns['spatial']` has images of {listing(pictured)} and none of the sections {listing(sections)}: "
             "no image is drawn. Give its keys the names of the sections, or pass `img=False`.")  # fmt: skip
    units = microns_per_unit(adata, panels, scale_bar)
    limits = [panel.limits for panel in panels]
    ratio = float(np.median([(end - top) / (right - left) for left, right, top, end in limits]))
    side = _PANEL_INCHES * (0.75 if len(panels) > 1 else 1.0)
    width, height = max(side / max(1.0, ratio), 1.5), max(side * min(1.0, ratio), 1.5) + 0.3 * (len(panels) > 1)
    names = [panel.library for panel in panels] if len(panels) > 1 else [""]
    axes = _base.panels(names, title, ax, "library", width, height, bottom=bottom, figsize=figsize)
    for axis, panel, (left, right, top, end), unit in zip(axes, panels, limits, units, strict=True):
        _draw_image(axis, adata, panel, img)
        # image convention (y down), equal aspect, no ticks: coordinates of a section mean nothing to a reader
        axis.set(xlim=(left, right), ylim=(end, top), aspect="equal", xticks=[], yticks=[], xlabel="", ylabel="")
        axis.spines[:].set_visible(False)
        if unit:
            wide, tall = _legend.axes_size(axis, shared=ax is not None)
            per_inch = max((right - left) / wide, (end - top) / tall)
            axis.set_ylim(end + 0.22 * per_inch, top)  # below the tissue
            axis.add_artist(ScaleBar(unit, "um", location="lower left", scale_loc="right", length_fraction=0.35, pad=0,
                                     border_pad=0.2, frameon=False, color=rcParams["text.color"],
                                     font_properties={"size": "small"}))  # fmt: skip
    return axes


def draw_spots(ax: Axes, panel: Panel, colors: Any, label: str, size: float = 1.0, **kwargs: Any) -> None:
    """Draw the observations as discs whose diameter is in data units.

    - ``colors``: One colour, or RGBA or a number of every observation of all sections.
    """
    diameter, xy = [panel.pitch * size], panel.xy
    if np.ndim(colors) == 1:  # numbers; those of high value lie on top, the missing at the bottom
        values = np.asarray(colors[panel.rows], dtype=float)
        order = np.argsort(np.where(np.isnan(values), -np.inf, values), kind="stable")
        xy, kwargs["array"] = xy[order], np.ma.masked_invalid(values[order])
    else:
        kwargs["facecolors"] = colors if isinstance(colors, str) else colors[panel.rows]
    spots = EllipseCollection(
        diameter, diameter, [0.0], units="xy", offsets=xy, offset_transform=ax.transData, linewidths=0,
        rasterized=len(xy) > RASTERIZE_ABOVE, label=label, **kwargs,
    )  # fmt: skip
    ax.add_collection(spots, autolim=False)


def _draw_image(ax: Axes, adata: AnnData, panel: Panel, img: bool | str | None) -> None:
    """Draw the section's image under the spots, by default if their coordinates are its pixels."""
    if img is False or (img is None and panel.spatial_key != _keys.SPATIAL):
        return
    library = panel.library
    images, scalefactors = (spatial_entry(adata, library)[k] for k in (_keys.IMAGES, _keys.SCALEFACTORS))
    present = sorted(map(str, images), key=lambda name: (name != "hires", name != "lowres"))
    wanted = [img] if isinstance(img, str) else present
    name = next((n for n in wanted if n in images and f"tissue_{n}_scalef" in scalefactors), None)
    if name is None:
        if not isinstance(img, str) and (img is None or not present):
            return
        raise KeyError(
            f"`img={img!r}`: section {library!r} has the images {listing(present)} and the scale factors "
            f"{listing(scalefactors)} in `adata.uns['spatial']`; an image NAME needs `tissue_NAME_scalef`."
        )
    pixels, scale = np.asarray(images[name]), scalefactors[f"tissue_{name}_scalef"]
    factor, channels = positive_number(scale), pixels.shape[2:] if pixels.ndim > 1 else None
    if factor is None or pixels.dtype.kind not in "buif" or channels not in ((), (3,), (4,)):
        raise ValueError(
            f"`adata.uns['spatial'][{library!r}]`: image {name!r} has shape {pixels.shape} and type "
            f"{pixels.dtype}, and `tissue_{name}_scalef` is {scale!r}; expected height x width, or height x "
            "width x 3 or 4 colours, of numbers, and a scale above 0. Replace them, or pass `img=False`."
        )
    step = max(1, max(pixels.shape[:2]) // _IMAGE_SIDE)
    pixels = pixels[::step, ::step]
    height, width = np.multiply(pixels.shape[:2], step)  # the centre of the first pixel is 0, 0
    extent = np.array([-0.5, width - 0.5, height - 0.5, -0.5]) / factor
    image = ax.imshow(pixels, extent=tuple(extent), origin="upper", cmap="gray", zorder=-1)
    left, right, top, bottom = panel.limits
    # a scale bar or a legend beside the section lies on the background
    image.set_clip_path(Rectangle((left, top), right - left, bottom - top, transform=ax.transData))
