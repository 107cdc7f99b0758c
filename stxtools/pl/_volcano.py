"""The volcano: change against significance, with the names beside the points and never over each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

UP, DOWN, NEITHER = "#d55e00", "#0072b2", "#c8c8c8"  # Okabe and Ito: told apart by colour-blind readers
_MARGIN = 0.34  # share of the data's width kept on a side for names
_LINE = 0.052  # height of a name, as a share of the Axes


def draw(ax: Axes, part: pd.DataFrame, *, fdr: float, n_genes: int, title: str) -> None:
    """Draw one group; the ``n_genes`` significant genes of largest score, in either direction, are named."""
    change = part["logfoldchanges"].to_numpy(dtype=float)
    p = part["pvals_adj"].to_numpy(dtype=float)
    seen = np.isfinite(change) & np.isfinite(p)
    names, change, p = part["names"].astype(str).to_numpy()[seen], change[seen], p[seen]
    # p = 0 is an underflow: it is drawn at the smallest p that was not
    floor = float(p[p > 0].min()) if (p > 0).any() else 1.0
    height = -np.log10(np.maximum(p, floor))
    passed = p <= fdr
    for chosen, color, label in (
        (~passed, NEITHER, "not significant"),
        (passed & (change >= 0), UP, "higher"),
        (passed & (change < 0), DOWN, "lower"),
    ):
        ax.scatter(change[chosen], height[chosen], s=14, c=color, linewidths=0, label=label,
                   rasterized=len(change) > 5000, zorder=1 if label == "not significant" else 2)  # fmt: skip
    if fdr > 0:
        ax.axhline(-np.log10(fdr), color="#888888", linewidth=0.8, linestyle="--", zorder=0)
        ax.annotate(
            f"FDR {fdr:g}",
            (1.0, -np.log10(fdr)),
            xytext=(3, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="left",
            va="center",
            fontsize="x-small",
            color="#666666",
        )
    ax.axvline(0, color="#888888", linewidth=0.8, zorder=0)
    # the table is sorted by signed score: its first rows alone would leave out the genes that are lower
    score = np.abs(part["scores"].to_numpy(dtype=float)[seen]) if "scores" in part else -p
    order = np.argsort(-score, kind="stable")
    named = order[passed[order]][:n_genes]
    _limits(ax, change, height, named, fdr)
    for side in (1, -1):
        here = named[(change[named] >= 0) == (side > 0)]
        _names(ax, names[here], change[here], height[here], side)
    ax.set_title(title, fontsize="medium")
    ax.set_xlabel("$\\log_2$ fold change", fontsize="small")
    ax.set_ylabel("$-\\log_{10}$ adjusted p", fontsize="small")
    ax.tick_params(labelsize="small")
    ax.spines[["top", "right"]].set_visible(False)


def _limits(ax: Axes, change: NDArray[Any], height: NDArray[Any], named: NDArray[Any], fdr: float) -> None:
    low, high = (float(change.min()), float(change.max())) if len(change) else (-1.0, 1.0)
    low, high = min(low, -0.1), max(high, 0.1)
    width = high - low
    right = _MARGIN if (change[named] >= 0).any() else 0.05
    left = _MARGIN if (change[named] < 0).any() else 0.05
    ax.set_xlim(low - left * width, high + right * width)
    line = -np.log10(fdr) if fdr > 0 else 0.0  # the line is always seen: also where nothing comes near it
    top = max(float(height.max()) if len(height) else 0.0, line) or 1.0
    ax.set_ylim(-0.03 * top, 1.08 * top)


def _names(ax: Axes, names: NDArray[Any], x: NDArray[Any], y: NDArray[Any], side: int) -> None:
    """Write names in a column at the edge, in the order of their points, each with a thin line to its point."""
    if not len(names):
        return
    low, high = ax.get_ylim()
    left, right = ax.get_xlim()
    order = np.argsort(-y, kind="stable")
    wish = (y[order] - low) / (high - low)
    step = min(_LINE, 0.98 / len(names))
    place = np.minimum.accumulate(wish + step * np.arange(len(wish))) - step * np.arange(len(wish))
    place += max(0.0, step / 2 - float(place[-1]))  # lift the column where it would leave the bottom
    edge = right - 0.02 * (right - left) if side > 0 else left + 0.02 * (right - left)
    for i, at in zip(order, np.minimum(place, 1.0), strict=True):
        ax.annotate(
            names[i], (x[i], y[i]), xytext=(edge, low + at * (high - low)), textcoords="data",
            ha="right" if side > 0 else "left", va="center", fontsize="x-small", style="italic", zorder=4,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.2},
            arrowprops={"arrowstyle": "-", "color": "#999999", "linewidth": 0.5, "shrinkA": 1, "shrinkB": 2},
        )  # fmt: skip
