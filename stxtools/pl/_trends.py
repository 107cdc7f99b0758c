"""Trends over time: lines with their intervals, or a heat map."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from stxtools import _keys
from stxtools._validate import check_bool, check_int, check_number
from stxtools.get import trends as get_trends

from . import _base, _legend, _output

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

_LABELS = {"share": "share of the tissue", "area": "area", "contact": "contact over chance", "expression": "CPM"}
_UP, _DOWN, _NEITHER = "#d55e00", "#0072b2", "#9a9a9a"  # Okabe and Ito
ROWS_MAX = 60


@_output.plot
def trends(
    adata: AnnData,
    kind: Literal["share", "area", "contact", "expression"] = "share",
    *,
    compartment: str | Sequence[str] | None = None,
    feature: str | Sequence[str] | None = None,
    heatmap: bool = False,
    n_top: int | None = None,
    fdr: float = 0.05,
    key: str = _keys.TRENDS,
    title: str | None = None, legend: bool = True,
    ax: Axes | None = None, show: bool | None = None, save: bool | str | PathLike[str] | None = None,
) -> Axes | list[Axes] | None:  # fmt: skip
    """Draw the trends of :func:`stxtools.tl.trends`: a line with its 95 % interval per value, or one heat map.

    Dots are subjects. A coloured line passes ``fdr``. Drawn are the values with the smallest p-values, or the steepest
    where there are none.

    Parameters
    ----------
    kind
        ``"share"``, ``"area"``, ``"contact"`` or ``"expression"``.
    feature
        Gene or genes, or the other compartment of a contact; all by default.
    heatmap
        Whether to draw the means of the subjects at each time, a row per value, as deviations from the row's mean.
    n_top
        Values to draw, at most 60; by default 8 lines, or 30 rows of the heat map.
    %(parameters)s

    Examples
    --------
    >>> adata = st.datasets.synthetic_series(3, 3, obs_per_section=200)
    >>> st.tl.trends(adata, "time", subject_key="subject", groupby="compartment", library_key="section")
    >>> axes = st.pl.trends(adata, "share")
    """
    heatmap, fdr = check_bool("heatmap", heatmap), check_number("fdr", fdr, minimum=0, maximum=1)
    n_top = check_int("n_top", (30 if heatmap else 8) if n_top is None else n_top, minimum=1, maximum=ROWS_MAX)
    chosen = {"compartment": compartment, "feature": feature, "key": key}
    table = get_trends(adata, kind, **chosen)  # type: ignore[call-overload]
    if not len(table):
        raise ValueError(f"`adata.uns[{key!r}]` has no such row to draw.")
    params = adata.uns[f"{key}_params"]
    times = np.asarray(params["times"], dtype=float)
    first = np.lexsort((-table["slope"].abs(), table["pvals"].fillna(2.0)))[:n_top]
    values = get_trends(adata, kind, values=True, **chosen).to_numpy(dtype=object)[:, -len(times) :]  # type: ignore[call-overload]
    values = values[first].astype(float)
    table, label = table.iloc[first], str(params["time_key"])
    if heatmap:
        axes = _heatmap(table, times, values, fdr, (title, label), legend=legend, ax=ax)
    else:
        axes = _lines(table, times, values, fdr, (title, label), legend=legend, ax=ax)
    return _output.done("trends", axes, ax=ax, show=show, save=save)


def _names(table: pd.DataFrame) -> list[str]:
    one, two = table["compartment"].astype(str), table["feature"].astype(str)
    kind = str(table["kind"].iloc[0])
    joined = one if kind in ("share", "area") else one + " – " + two if kind == "contact" else two + " (" + one + ")"
    return [_legend.plain(name) for name in joined]


def _lines(
    table: pd.DataFrame, times: np.ndarray, values: np.ndarray, fdr: float, text: tuple[str | None, str], *,
    legend: bool, ax: Axes | None,
) -> list[Axes]:  # fmt: skip
    kind = str(table["kind"].iloc[0])
    axes, panels = _base.panels(_names(table), text[0], ax, "feature", 2.4, 2.2)
    for (axis, _, name), (_, row), value in zip(panels, table.iterrows(), values, strict=True):
        known = np.isfinite(value)
        color = (_UP if row["slope"] > 0 else _DOWN) if row["pvals_adj"] <= fdr else _NEITHER
        x, centre, middle = np.linspace(times.min(), times.max(), 50), times[known].mean(), value[known].mean()
        low, high = (middle + row[c] * (x - centre) for c in ("ci_low", "ci_high"))
        axis.fill_between(x, 2 ** np.fmin(low, high), 2 ** np.fmax(low, high), color=color, alpha=0.15, linewidth=0)
        axis.plot(x, 2 ** (middle + row["slope"] * (x - centre)), color=color, linewidth=1.8)
        axis.scatter(times[known], 2 ** value[known], s=22, color=color, edgecolors="white", linewidths=0.5, zorder=3)
        span = 2 ** value[known]
        axis.set_ylim(0, 1.35 * span.max())
        _base.finish(axis, name, text[1], _LABELS[kind])
    if legend:
        handles = [_legend.dot("rises", _UP), _legend.dot("falls", _DOWN), _legend.dot("not significant", _NEITHER)]
        _legend.add_legend(axes, handles, own=ax is None)
    return axes


def _heatmap(
    table: pd.DataFrame, times: np.ndarray, values: np.ndarray, fdr: float, text: tuple[str | None, str], *,
    legend: bool, ax: Axes | None,
) -> list[Axes]:  # fmt: skip
    steps, at = np.unique(times, return_inverse=True)
    known = np.isfinite(values)
    total = np.stack([np.where(known, values, 0.0)[:, at == i].sum(axis=1) for i in range(len(steps))], axis=1)
    count = np.stack([known[:, at == i].sum(axis=1) for i in range(len(steps))], axis=1)
    mean = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    mean -= np.nanmean(mean, axis=1, keepdims=True)
    order = np.argsort(table["slope"].to_numpy())[::-1]
    names = np.array(_names(table))[order]
    passed = table["pvals_adj"].to_numpy()[order] <= fdr
    width = 2.0 + 0.5 * len(steps) + 0.07 * max(len(name) for name in names)
    axes = [ax] if ax is not None else _base.grid(1, width, 0.22 * len(names) + 1.0, bottom=0.5 * legend)
    top = float(np.nanmax(np.abs(mean))) or 1.0
    cmap = _legend.color_map("RdBu_r")
    axes[0].imshow(mean[order], cmap=cmap, vmin=-top, vmax=top, aspect="auto", interpolation="nearest")
    axes[0].set_yticks(range(len(names)), [f"{n} *" if p else n for n, p in zip(names, passed, strict=True)])
    axes[0].set_xticks(range(len(steps)), [f"{step:g}" for step in steps])
    _base.finish(axes[0], text[0] or f"* FDR of {fdr:g}", text[1])
    if legend:
        bars = [(_legend.mappable(-top, top, cmap), "$\\log_2$ deviation from the mean")]
        _legend.add_legend(axes, [], own=ax is None, bars=bars)
    return axes
