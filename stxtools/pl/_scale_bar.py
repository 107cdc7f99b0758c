"""A scale bar, where the unit of the coordinates is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stxtools import _keys
from stxtools._validate import array_positions

from ._sections import Panel, image_slots, positive, spacing

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

_MICRONS = frozenset({"micron", "microns", "micrometer", "micrometers", "micrometre", "micrometres", "um", "µm", "μm"})
_VISIUM_PITCH = 100.0  # microns between the centres of neighbouring spots
# spot diameter / pitch: 0.55 by design; older Space Ranger wrote up to 0.71, so that the pitch is what is measured
_VISIUM_RATIO = (0.45, 0.8)


@dataclass(frozen=True)
class Bar:
    """Microns of a unit of the coordinates, and of the bar."""

    microns_per_unit: float
    microns: float


def bars_of(
    adata: AnnData, panels: Sequence[Panel], spatial_key: str, scale_bar: float | bool | None
) -> dict[str, Bar | None]:
    """Return the bar of each section, None where none is drawn; all are of one round length."""
    units = _units_of(adata, panels, spatial_key, scale_bar)
    widths = [unit * (p.limits[1] - p.limits[0]) for p in panels if (unit := units[p.library]) is not None]
    if not widths:
        return dict.fromkeys(units)
    longest = min(widths) / 3
    power = 10.0 ** np.floor(np.log10(longest))
    length = float(max(m * power for m in (1, 2, 5) if m * power <= longest * (1 + 1e-9)))
    return {name: None if unit is None else Bar(unit, length) for name, unit in units.items()}


def _units_of(
    adata: AnnData, panels: Sequence[Panel], spatial_key: str, scale_bar: float | bool | None
) -> dict[str, float | None]:
    """Return the microns of a unit of the coordinates for each section."""
    if scale_bar is not None and not isinstance(scale_bar, bool):
        given = positive(scale_bar)
        if given is None:
            raise TypeError(
                f"`scale_bar` must be True, False, None or the microns of a unit of the coordinates, not {scale_bar!r}."
            )
        return {panel.library: given for panel in panels}
    known = scale_bar is not False and spatial_key == _keys.SPATIAL
    units = {panel.library: _known(adata, panel) if known else None for panel in panels}
    unknown = [name for name, unit in units.items() if unit is None]
    if scale_bar is True and unknown:
        raise ValueError(
            f"`scale_bar=True`: the unit of `adata.obsm[{spatial_key!r}]` in section {unknown[0]!r} is not known. Pass "
            "its microns (`scale_bar=1.0` for Xenium, MERFISH and CosMx coordinates in microns), or keep them in "
            f"`adata.uns['spatial'][{unknown[0]!r}]['scalefactors']['microns_per_pixel']`."
        )
    return units


def _known(adata: AnnData, panel: Panel) -> float | None:
    slots = image_slots(adata, panel.library)
    factors, about = slots[_keys.SCALEFACTORS], slots["metadata"]
    recorded = positive(factors.get("microns_per_pixel"))
    if recorded is not None:
        return recorded
    if any(str(about.get(k)).lower() in _MICRONS for k in ("unit", "units")):
        return 1.0
    diameter = positive(factors.get(_keys.SPOT_DIAMETER))
    if diameter is None or not _hexagonal(adata, panel):
        return None
    pitch = spacing(panel.xy)
    low, high = _VISIUM_RATIO
    return _VISIUM_PITCH / pitch if low <= diameter / pitch <= high else None


def _hexagonal(adata: AnnData, panel: Panel) -> bool:
    """Whether the array positions are those of Visium: in every row each second column, the next row shifted by one."""
    positions = array_positions(adata)
    if positions is None or len(panel.rows) < 3:
        return False
    total = positions[panel.rows].sum(axis=1)
    return bool(np.isfinite(total).all() and (total % 2 == total[0] % 2).all())


def draw(ax: Axes, panel: Panel, bar: Bar | None) -> None:
    """Draw the bar under the tissue."""
    if bar is None:
        return
    left, right, top, bottom = panel.limits
    x, y = left + 0.02 * (right - left), bottom + 0.03 * (bottom - top)
    end = x + bar.microns / bar.microns_per_unit
    ax.plot([x, end], [y, y], color="black", linewidth=2, solid_capstyle="butt", label="scale bar")
    text = f"{bar.microns / 1000:g} mm" if bar.microns >= 1000 else f"{bar.microns:g} µm"
    ax.annotate(text, (end, y), xytext=(4, 0), textcoords="offset points", ha="left", va="center",
                fontsize="small", annotation_clip=False)  # fmt: skip
    ax.set(xlim=(left, right), ylim=(bottom + 0.07 * (bottom - top), top))
