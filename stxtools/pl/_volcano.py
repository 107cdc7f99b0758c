"""The volcano: change against the p-value, with the names beside the points and never over each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from . import _legend
from ._base import finish
from ._palette import DOWN, UP

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

_NEITHER = "#c8c8c8"
_GAP = 0.06  # share of the width between the outermost point and the names
_LINE = 0.14  # height of a name, inches
_LETTER = 0.075  # width of a letter, inches


def draw(ax: Axes, part: pd.DataFrame, *, fdr: float, n_genes: int, title: str) -> None:
    """Draw one group; up to ``n_genes`` significant genes, in either direction, are named.

    They are the top points, and of equal p-values those that stand nearest to an end of the table.
    The p-values are those before correction: corrected ones are equal over long runs of genes and end in a flat top.
    """
    raw = "pvals" in part
    change = part["logfoldchanges"].to_numpy(dtype=float, na_value=np.nan)
    p = part["pvals" if raw else "pvals_adj"].to_numpy(dtype=float, na_value=np.nan)
    adjusted = part["pvals_adj"].to_numpy(dtype=float, na_value=np.nan)
    seen = np.isfinite(change) & np.isfinite(p) & (p >= 0)
    names, change, p, adjusted = part["names"].astype(str).to_numpy()[seen], change[seen], p[seen], adjusted[seen]
    if not len(change):
        raise ValueError(f"No gene of {title!r} has a finite log fold change and p-value to draw; run "
                         "`st.tl.biomarkers(adata, groupby=...)` again.")  # fmt: skip
    # p = 0 is an underflow: it is drawn at the smallest p that was not
    floor = float(p[p > 0].min()) if (p > 0).any() else 1.0
    height = -np.log10(np.maximum(p, floor))
    passed = adjusted <= fdr
    for chosen, color, label in (
        (~passed, _NEITHER, "not significant"),
        (passed & (change >= 0), UP, "higher"),
        (passed & (change < 0), DOWN, "lower"),
    ):
        ax.scatter(change[chosen], height[chosen], s=14, c=color, linewidths=0, label=label,
                   rasterized=len(change) > 5000, zorder=1 if label == "not significant" else 2)  # fmt: skip
    ax.axvline(0, color="#888888", linewidth=0.8, zorder=0)
    # the top points; the table's order breaks ties of p-values that end in a floor
    inward = np.minimum(np.arange(len(p)), np.arange(len(p))[::-1])
    order = np.lexsort((inward, p))
    named = _fitting(ax, order[passed[order]][:n_genes], change)
    _limits(ax, change, height, names, named)
    line = _threshold(ax, height, passed, fdr)
    for side, taken in ((-1, line), (1, np.inf)):
        here, end = named[(change[named] >= 0) == (side > 0)], float(change.max() if side > 0 else change.min())
        _names(ax, names[here], change[here], height[here], end, side, taken)
    finish(ax, title, "$\\log_2$ fold change", "$-\\log_{10}$ p" if raw else "$-\\log_{10}$ adjusted p")


def _inches(ax: Axes) -> tuple[float, float]:
    box = ax.get_window_extent()
    return float(box.width / ax.figure.dpi), float(box.height / ax.figure.dpi)


def _fitting(ax: Axes, named: NDArray[Any], change: NDArray[Any]) -> NDArray[Any]:
    """Return the genes whose names have room: a line each, on either side."""
    room = max(1, int(0.9 * _inches(ax)[1] / _LINE))
    higher = change[named] >= 0
    rank = np.where(higher, np.cumsum(higher), np.cumsum(~higher))
    return named[rank <= room]


def _limits(ax: Axes, change: NDArray[Any], height: NDArray[Any], names: NDArray[Any], named: NDArray[Any]) -> None:
    """Leave room for the names left and right of all points."""
    low, high = (float(change.min()), float(change.max())) if len(change) else (-1.0, 1.0)
    low, high = min(low, -0.1), max(high, 0.1)
    width = _inches(ax)[0]
    share = []
    for side in (change[named] < 0, change[named] >= 0):
        longest = max((len(n) for n in names[named[side]]), default=0)
        share.append(min(0.35, longest * _LETTER / width + _GAP) if longest else 0.04)
    unit = (high - low) / (1 - sum(share))
    ax.set_xlim(low - share[0] * unit, high + share[1] * unit)
    top = float(height.max()) if len(height) else 0.0
    ax.set_ylim(-0.03 * (top or 1.0), 1.08 * (top or 1.0))


def _threshold(ax: Axes, height: NDArray[Any], passed: NDArray[Any], fdr: float) -> float:
    """Draw and return the line between the genes that pass and those that do not, where there are both."""
    from matplotlib.patheffects import withStroke

    if not passed.any() or passed.all():
        return np.inf
    least = float(height[passed].min())
    below = height[~passed & (height < least)]
    at = (least + float(below.max())) / 2 if len(below) else least
    ax.axhline(at, color="#888888", linewidth=0.8, linestyle="--", zorder=0)
    ax.annotate(f"FDR {fdr:g}", (0, at), xycoords=("axes fraction", "data"), xytext=(3, 1), textcoords="offset points",
                ha="left", va="bottom", fontsize="x-small", color="#666666", zorder=5,
                path_effects=[withStroke(linewidth=2, foreground="white")])  # fmt: skip
    return at


def _names(
    ax: Axes, names: NDArray[Any], x: NDArray[Any], y: NDArray[Any], outermost: float, side: int, taken: float
) -> None:
    """Write names in a column beyond the outermost point, each with a thin line to its point.

    Places are given out so that the lines are shortest in sum; such lines do not cross. At ``taken`` stands a label.
    """
    from scipy.optimize import linear_sum_assignment

    if not len(names):
        return
    (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
    width, tall = _inches(ax)
    column = outermost + side * 0.6 * _GAP * (right - left)
    n_places = max(len(names), int(tall / _LINE))
    step = 1 / n_places
    places = low + (np.arange(n_places) + 0.5) * step * (high - low)
    free = np.abs(places - taken - 0.5 * step * (high - low)) > step * (high - low)
    places = places[free] if free.sum() >= len(names) else places
    across = (x - column)[:, None] * width / (right - left)
    along = (y[:, None] - places[None, :]) * tall / (high - low)
    chosen = linear_sum_assignment(np.hypot(across, along))[1]
    for i, place in enumerate(places[chosen]):
        ax.plot([x[i], column], [y[i], place], color="#999999", linewidth=0.5, zorder=1.5, label="_leader")
        ax.annotate(_legend.plain(names[i]), (column, place), xytext=(2 * side, 0), textcoords="offset points",
                    ha="left" if side > 0 else "right", va="center", fontsize="x-small", style="italic",
                    zorder=4)  # fmt: skip
