"""The figure of the method: what goes into each network and what comes out."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

DATA, NETWORK, RESULT = "#e8eef7", "#1f4e8c", "#eaf5ea"
COLORS = np.array(["#1f77b4", "#ff7f0e", "#279e68"])


def _box(axes: Axes, x: float, y: float, w: float, h: float, text: str, kind: str) -> None:
    axes.add_patch(FancyBboxPatch((x, y), w, h, boxstyle="round,pad=0.02,rounding_size=0.08", fc=kind, ec="#555555"))
    color = "white" if kind == NETWORK else "black"
    axes.text(x + w / 2, y + h / 2, text, ha="center", va="center", fontsize=9, color=color, linespacing=1.35)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], bend: float = 0) -> None:
    style = f"arc3,rad={bend}"
    axes.add_patch(
        FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=12, connectionstyle=style, color="#333333")
    )


def _raster(axes: Axes, x: float, y: float, side: float, classes: bool) -> None:
    """Draw pixels of a small tissue: expression, or its classes."""
    rng = np.random.default_rng(0)
    row, column = np.mgrid[:8, :8]
    label = np.where(column + 0.6 * np.sin(row) < 2.6, 0, np.where(column + row < 10, 1, 2))
    values = mpl.colors.to_rgba_array(COLORS[label.ravel()]).reshape(8, 8, 4) if classes else (
        mpl.colormaps["Blues"](0.25 + 0.25 * label + 0.15 * rng.random((8, 8)))
    )  # fmt: skip
    axes.imshow(values, extent=(x, x + side, y, y + side), zorder=2)


def _graph(axes: Axes, x: float, y: float) -> None:
    """Draw a small region graph."""
    nodes = np.array([[0, 1.2], [0, 0.2], [0.75, 1.3], [0.75, 0.55], [1.5, 0.95], [1.4, 0]]) * 0.85 + (x, y)
    for a, b in [(0, 1), (0, 2), (0, 3), (1, 3), (2, 3), (2, 4), (3, 4), (3, 5), (4, 5), (1, 5)]:
        axes.plot(*nodes[[a, b]].T, color="#888888", lw=1.3, zorder=2)
    axes.scatter(*nodes.T, c=COLORS[[0, 0, 1, 1, 2, 2]], s=75, edgecolor="#333333", zorder=3)


def draw(path: Path) -> None:
    """Write the figure as SVG."""
    with mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": "stxtools", "font.family": "DejaVu Sans"}):
        figure = Figure(figsize=(11, 4.3), layout="constrained")
        axes = figure.add_subplot()
        _raster(axes, 0, 2.55, 1.5, classes=False)
        axes.text(0.75, 2.4, "input raster $X$\npp.rasterize", ha="center", va="top", fontsize=9)
        _arrow(axes, (1.55, 3.3), (2.2, 3.3))
        _box(axes, 2.25, 2.85, 1.7, 0.9, "U-Net $U$\ntl.segment", NETWORK)
        _arrow(axes, (4.0, 3.3), (4.65, 3.3))
        _raster(axes, 4.7, 2.55, 1.5, classes=True)
        axes.text(5.45, 2.4, "compartments $S$", ha="center", va="top", fontsize=9)
        _arrow(axes, (6.25, 3.3), (6.9, 3.3))
        _graph(axes, 7.1, 2.75)
        axes.text(7.75, 2.4, "region graph $G$\ntl.region_graph", ha="center", va="top", fontsize=9)
        _arrow(axes, (8.6, 3.3), (9.25, 3.3))
        _box(axes, 9.3, 2.85, 1.7, 0.9, "graph network\ntl.embed", NETWORK)
        _arrow(axes, (11.05, 3.3), (11.7, 3.3))
        _box(axes, 11.75, 2.85, 1.75, 0.9, "embeddings $h_v$, $Z$\nattention", RESULT)
        _box(axes, 2.25, 1.0, 1.7, 0.9, "pseudo-labels\nfrom mixtures or\nlinear classifiers", DATA)
        _arrow(axes, (3.1, 1.95), (3.1, 2.78))
        _arrow(axes, (0.75, 1.7), (2.2, 1.3), bend=0.2)
        _box(axes, 9.3, 1.0, 1.7, 0.9, "heads and ensemble\ntl.multitask", NETWORK)
        _arrow(axes, (10.15, 2.78), (10.15, 1.95))
        _arrow(axes, (11.05, 1.45), (11.7, 1.45))
        _box(axes, 11.75, 1.0, 1.75, 0.9, "tissue class,\nbiomarker state", RESULT)
        _box(axes, 4.7, 0.0, 1.7, 0.9, "tests of genes\ntl.biomarkers", NETWORK)
        _arrow(axes, (5.5, 2.05), (5.5, 0.98))
        _arrow(axes, (6.45, 0.45), (7.1, 0.45))
        _box(axes, 7.15, 0.0, 1.6, 0.9, "biomarkers,\ntargets", RESULT)
        axes.set(xlim=(-0.1, 13.6), ylim=(-0.1, 4.2), aspect="equal")
        axes.axis("off")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
