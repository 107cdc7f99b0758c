"""What the spatial plots share: sections, panels, images and spots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stxtools import _keys
from stxtools._validate import check_number, coordinates, libraries, listing, stored_library_key

from ._legend import plain
from ._output import check_pixels

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.collections import EllipseCollection
    from numpy.typing import NDArray

RASTERIZE_ABOVE = 50_000  # so many circles make a vector file that no viewer opens
PANEL_INCHES = 4.6
PANELS_MAX = 100
SIZE_MAX = 100.0
_LARGEST, _FINEST = 1e100, 1e-9  # coordinates that can be squared, and told apart beside their distance from 0


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

    regions = slot_of(adata, key)
    if regions is None:
        raise KeyError(f"`adata.uns[{key!r}]` is missing; run `st.tl.region_graph(adata)` first.")
    if not isinstance(regions, AnnData_):
        raise TypeError(f"`adata.uns[{key!r}]` is a {type(regions).__name__}, not the AnnData of "
                        "`st.tl.region_graph`; run it again or name another `key`.")  # fmt: skip
    sizes = regions.obs.get("n_obs")
    if sizes is None or not np.issubdtype(getattr(sizes.dtype, "type", object), np.number) or not len(sizes):
        raise KeyError(f"`adata.uns[{key!r}].obs['n_obs']`, the size of each region, is missing or holds no numbers; "
                       "run `st.tl.region_graph(adata)` again.")  # fmt: skip
    return regions


def slot_of(adata: AnnData, key: Any, param: str = "key") -> Any:
    """Return ``uns[key]``, None where there is none; a key is a string."""
    if not isinstance(key, str):
        raise TypeError(f"`{param}` must be a string, a key of `adata.uns`; got {key!r}.")
    return adata.uns.get(key)


def panels_of(
    adata: AnnData,
    *,
    spatial_key: str,
    library_key: str | bool | None,
    library: str | Sequence[str] | None,
    params: Mapping[str, Any] | None = None,
) -> list[Panel]:
    """Return the sections to draw, all by default.

    Without ``library_key`` it is the one in ``params``, or in those of the segments or regions, or the column that
    holds the names of the sections in ``uns["spatial"]``.
    """
    libs = libraries(adata, _library_key(adata, params) if library_key is None else library_key)
    xy = coordinates(adata, spatial_key, libs)
    wanted = libs.names if library is None else names_of(library, "library", "a section")
    absent = [name for name in wanted if name not in libs.names]
    if absent or not wanted:
        raise ValueError(f"`library={library!r}` is not there; the sections are {listing(libs.names)}.")
    panels = [Panel(name, rows, xy[rows]) for name in wanted for rows in [libs.rows(libs.names.index(name))]]
    for panel in panels:
        _check_extent(panel, spatial_key)
    return panels


def names_of(value: Any, param: str, what: str) -> list[str]:
    """Return one name or several as a list of strings."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, (Sequence, np.ndarray, pd.Index, pd.Series)) or np.ndim(np.asarray(value, object)) != 1:
        raise TypeError(f"`{param}` must be {what} or a list of them, not {value!r}.")
    return [str(x) for x in value]


def check_columns(table: pd.DataFrame, columns: Sequence[str], where: str, call: str) -> None:
    """Check that a table of results still has its columns, and numbers in them."""
    absent = [c for c in columns if c not in table]
    if absent:
        raise KeyError(f"`{where}` lacks {listing(absent)}; it has {listing(table.columns)}. Run `{call}` again.")
    for column in columns:
        kind = table[column].dtype
        if not pd.api.types.is_numeric_dtype(kind) or pd.api.types.is_complex_dtype(kind):
            raise TypeError(f"Column {column!r} of `{where}` holds {kind}, not numbers; run `{call}` again.")


def check_size(size: Any) -> float:
    """Check the diameter of an observation relative to the spacing."""
    size = check_number("size", size, minimum=0, maximum=SIZE_MAX)
    if size == 0:
        raise ValueError("`size=0` draws nothing; 1 makes neighbours touch.")
    return size


def check_title(title: Any) -> None:
    """Check that a title is a string."""
    if title is not None and not isinstance(title, str):
        raise TypeError(f"`title` must be a string, not {title!r}.")


def _library_key(adata: AnnData, params: Mapping[str, Any] | None) -> str | bool | None:
    slots = [adata.uns.get(_keys.SEGMENT), adata.uns.get(_keys.REGIONS)]
    for made_with in (params or {}, *(params_of(slot) for slot in slots)):
        key = stored_library_key(made_with)
        if key is False or (isinstance(key, str) and key in adata.obs):
            return key
    spatial = adata.uns.get(_keys.SPATIAL)
    known = {str(name) for name in spatial} if isinstance(spatial, Mapping) else set()
    if len(known) > 1:
        for name, column in adata.obs.items():
            if column.dtype.kind not in "fc" and set(column.astype(str).unique()) <= known:
                return str(name)
    return None


def _check_extent(panel: Panel, spatial_key: str) -> None:
    """Check that the observations of a section can be told apart on an axis of double precision."""
    low, high = panel.xy.min(axis=0), panel.xy.max(axis=0)
    far, span = float(np.abs(panel.xy).max()), float((high - low).max())
    if far > _LARGEST or (span > 0 and (span < 1 / _LARGEST or span < _FINEST * far)):
        raise ValueError(
            f"`adata.obsm[{spatial_key!r}]` reaches {far:.3g} and spans {span:.3g} in section {panel.library!r}, which "
            "cannot be drawn; move it near 0 and give it another unit, e.g. "
            f"`xy = adata.obsm[{spatial_key!r}]; adata.obsm[{spatial_key!r}] = xy - xy.min(axis=0)`."
        )


def axes_for(
    panels: Sequence[Panel], ax: Axes | None, *, bottom: float = 0.0, ncols: int = 4, shrink: float = 1.0
) -> list[Axes]:
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
    if len(panels) > 1:
        shrink *= 0.75
    width, height = shrink * PANEL_INCHES / max(1.0, ratio), shrink * PANEL_INCHES * min(1.0, ratio)
    title = 0.3 * (len(panels) > 1)
    return grid(len(panels), max(width, 1.5), max(height, 1.5) + title, bottom=bottom, ncols=ncols, layout="compressed")


def grid(
    n: int, width: float, height: float, *, bottom: float = 0.0, ncols: int = 4, layout: str = "constrained"
) -> list[Axes]:
    """Return ``n`` Axes of a new figure in a grid, each of ``width`` x ``height`` inches."""
    import matplotlib.pyplot as plt

    if n > PANELS_MAX:
        raise ValueError(f"{n} panels are more than one figure shows ({PANELS_MAX}); draw some of the sections, groups "
                         "or genes at a time.")  # fmt: skip
    rows = -(-n // ncols)
    cols = -(-n // rows)
    check_pixels(cols * width, rows * height + bottom, plt.rcParams["figure.dpi"])
    figure, axes = plt.subplots(
        rows, cols, figsize=(cols * width, rows * height + bottom), squeeze=False, layout=layout
    )
    flat = list(axes.ravel())
    for spare in flat[n:]:
        figure.delaxes(spare)
    return flat[:n]


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
    check_title(title)
    if len(panels) == 1:
        return [title]
    names = [plain(panel.library) for panel in panels]
    return [name if title is None else f"{title}: {name}" for name in names]


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


def draw_image(ax: Axes, adata: AnnData, panel: Panel, img: bool | str | None, *, fits: bool = True) -> bool:
    """Draw the section's picture under the spots, in the coordinates of the spots; return whether there was one.

    ``img=None`` draws the picture where there is one and the coordinates are those of the picture (``fits``).
    """
    if img is False or (img is None and not fits):
        return False
    library = panel.library
    images, scalefactors = (picture_slots(adata, library)[k] for k in (_keys.IMAGES, _keys.SCALEFACTORS))
    pictures = [name for name in ("hires", "lowres") if name in images]
    pictures += [str(n) for n in images if n not in pictures]
    names = [img] if isinstance(img, str) else pictures
    for name in names:
        scale = scalefactors.get(f"tissue_{name}_scalef")
        if name in images and scale is not None:
            show_image(ax, _picture(images[name], name, library), _factor(scale, name, library), zorder=-1)
            _clip(ax, panel)
            return True
    if img is None or (img is True and not pictures):
        return False
    raise KeyError(
        f"`img={img!r}`: section {library!r} has the pictures {listing(pictures)} and the scale factors "
        f"{listing(scalefactors)} in `adata.uns['spatial']`; a picture NAME needs `tissue_NAME_scalef`."
    )


def _clip(ax: Axes, panel: Panel) -> None:
    """Keep the picture to the section: a scale bar or a legend beside it stands on white."""
    from matplotlib.patches import Rectangle

    left, right, top, bottom = panel.limits
    box = Rectangle((left, top), right - left, bottom - top, transform=ax.transData)
    ax.images[-1].set_clip_path(box)


def check_img(img: Any) -> None:
    """Check ``img``: a name, True, False or None."""
    if img is not None and not isinstance(img, (bool, str)):
        raise TypeError(f"`img` must be True, False, None or the name of a picture, not {img!r}.")


def picture_slots(adata: AnnData, library: str) -> dict[str, Mapping[str, Any]]:
    """Return ``images``, ``scalefactors`` and ``metadata`` of a section, empty where it has none."""
    spatial = adata.uns.get(_keys.SPATIAL, {})
    entry = spatial.get(library, {}) if isinstance(spatial, Mapping) else {}
    slots: dict[str, Mapping[str, Any]] = {}
    for name in (_keys.IMAGES, _keys.SCALEFACTORS, "metadata"):
        found = entry.get(name, {}) if isinstance(entry, Mapping) else {}
        slots[name] = found if isinstance(found, Mapping) else {}
    return slots


def _picture(value: Any, name: str, library: str) -> NDArray[Any]:
    try:
        picture = np.asarray(value)
    except (TypeError, ValueError):
        picture = np.empty(0, dtype=object)
    grey = picture.ndim == 2
    if picture.dtype.kind not in "buif" or not (grey or (picture.ndim == 3 and picture.shape[2] in (3, 4))) or (
        picture.size == 0
    ):  # fmt: skip
        raise ValueError(
            f"`adata.uns['spatial'][{library!r}]['images'][{name!r}]` is no picture (height x width, or height x width "
            f"x 3 or 4 colours, of numbers): it is a {type(value).__name__} of shape {np.shape(picture)} and type "
            f"{picture.dtype}; replace it, or pass `img=False`."
        )
    return picture


def _factor(value: Any, name: str, library: str) -> float:
    number = positive(value)
    if number is None:
        raise ValueError(
            f"`adata.uns['spatial'][{library!r}]['scalefactors']['tissue_{name}_scalef']` must be a number above 0, "
            f"not {value!r}; mend it, or pass `img=False`."
        )
    return number


def positive(value: Any) -> float | None:
    """Return a number above 0 that others can be divided by as a float, None for anything else."""
    if isinstance(value, (bool, str)) or np.ndim(value) != 0 or np.iscomplexobj(value):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if 1 / _LARGEST < number < _LARGEST else None


def show_image(ax: Axes, picture: NDArray[Any], scale: float, origin: Any = (0.0, 0.0), **kwargs: Any) -> None:
    """Draw a picture in the coordinates of the spots; ``scale`` is pixels per unit, ``origin`` the first pixel."""
    height, width = picture.shape[:2]
    extent = np.array([-0.5, width - 0.5, height - 0.5, -0.5]) / scale + np.repeat(origin, 2)
    kwargs.setdefault("interpolation", "antialiased")
    ax.imshow(picture, extent=tuple(extent), origin="upper", **({"cmap": "gray"} | kwargs))
