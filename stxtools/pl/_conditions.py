"""Comparisons of conditions and of times: effects with intervals, trends, and tracked compartments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba_array
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, StrMethodFormatter

from stxtools import _keys, get
from stxtools._checks import check_choice, check_int
from stxtools._types import Array, Ints
from stxtools._validate import check_in, params_of

from . import _base, _legend
from ._legend import DOWN, MISSING, NEITHER, UP, category_codes, colors_of, rgba
from ._sections import draw_spots, panels_of, section_axes

_COMPARED_MAX, _TRENDS_MAX = 100, 60  # rows of a panel
_TITLES = {"share": "share of the tissue", "contact": "contact", "expression": "expression"}
_UNITS = {
    "share": "share of the tissue", "area": "area (square units)", "contact": "contact over chance",
    "expression": "counts per million",
}  # fmt: skip
_BAR_WIDTH = 0.16  # in steps of time
_MIN_ALPHA = 0.2


@_base.plot
def compare(
    adata: AnnData, kind: Literal["share", "contact", "expression"] | None = None, *,
    group: str | Sequence[str] | None = None, compartment: str | Sequence[str] | None = None, n_top: int = 15,
    fdr: float = 0.05, key: str = _keys.COMPARE, title: str | None = None, legend: bool = True,
    figsize: tuple[float, float] | None = None, ax: Axes | None = None, show: bool | None = None,
    save: bool | str | PathLike[str] | None = None,
) -> Axes | list[Axes] | None:  # fmt: skip
    """Plot log fold changes of :func:`stxtools.tl.compare` with 95 % intervals, one panel per condition and kind.

    Filled dots are significant at ``fdr``. The rows with the smallest p-values are shown or, without p-values, those
    with the largest effects.

    Parameters
    ----------
    n_top
        Number of rows per panel, at most 100.

    Examples
    --------
    >>> adata = st.datasets.synthetic_tissue(n_obs=300, n_patients=6, disease="patient")
    >>> st.tl.compare(adata, "disease", "patient", groupby="compartment", library_key="section")
    >>> axes = st.pl.compare(adata)
    """
    n_top = check_int("n_top", n_top, minimum=1, maximum=_COMPARED_MAX)
    table = get.compare(adata, kind, group=group, compartment=compartment, key=key)
    parts = [part for _, part in table.groupby(["group", "kind"], sort=False, observed=True)]
    if not parts:
        raise ValueError(f"`adata.uns[{key!r}]` has no rows for this selection; there is nothing to plot.")
    parts = [part if len(part) <= n_top else part.iloc[_order(part, "logfoldchanges")[:n_top]] for part in parts]
    width = 2.6 + 0.8 * max(_legend.text_width(_row_names(part, "names")) for part in parts)
    height = 0.26 * max(len(part) for part in parts) + 1.0
    names = [f"{_TITLES[part['kind'].iloc[0]]}: {part['group'].iloc[0]}" for part in parts]
    reference = adata.uns.get(f"{key}_params", {}).get("reference", "the reference")
    axes = _base.panels(names, title, ax, "panel", width, height, choose="`kind` and `group`", ncols=3,
                        figsize=figsize)  # fmt: skip
    for axis, part in zip(axes, parts, strict=True):
        color, y = _direction_colors(part, "logfoldchanges", fdr), np.arange(len(part))
        axis.axvline(0, color="#888888", linewidth=0.8, zorder=0)
        axis.hlines(y, part["ci_low"], part["ci_high"], colors=color, linewidth=1.5)
        face = to_rgba_array(color)
        face[color == NEITHER] = axis.get_facecolor()
        axis.scatter(part["logfoldchanges"], y, s=36, c=face, edgecolors=color, linewidths=1.2, zorder=2)
        _base.label_rows(axis, _row_names(part, "names"), y)
        sides = (part["group"].iloc[0], part["n_group"]), (reference, part["n_reference"])
        against = " against ".join(f"{_legend.label_text(str(name))} (n = {n.max():.0f})" for name, n in sides)
        _base.label_axes(axis, f"$\\log_2$ fold change, 95 % interval\n{against}")
    if legend:
        drawn = pd.concat(parts)
        colors = _direction_colors(drawn, "logfoldchanges", fdr)
        _legend.add_legend(axes, _direction_handles("higher", "lower", colors, drawn), ax=ax)
    return _base.save_or_show("compare", axes, figsize, ax=ax, show=show, save=save)


@_base.plot
def trends(
    adata: AnnData, kind: Literal["share", "area", "contact", "expression"] = "share", *,
    compartment: str | Sequence[str] | None = None, feature: str | Sequence[str] | None = None, heatmap: bool = False,
    n_top: int | None = None, fdr: float = 0.05, key: str = _keys.TRENDS, cmap: str | None = None,
    title: str | None = None, legend: bool = True, figsize: tuple[float, float] | None = None, ax: Axes | None = None,
    show: bool | None = None, save: bool | str | PathLike[str] | None = None,
) -> Axes | list[Axes] | None:  # fmt: skip
    """Plot the trends of :func:`stxtools.tl.trends` over time, as lines with 95 % intervals or as a heat map.

    Dots are subjects; coloured lines are significant at ``fdr``. The vertical axis is logarithmic, as the fit is: a
    share of 0 is drawn at the smallest share that could be seen. The values with the smallest p-values are shown or,
    without p-values, those with the largest slopes.

    Parameters
    ----------
    kind
        Kind of values: ``"share"``, ``"area"``, ``"contact"`` or ``"expression"``.
    heatmap
        Whether to plot a heat map of the subjects' mean at each time point, relative to the mean of the row.
    n_top
        Number of values to show, at most 60; by default 8 panels, or 30 rows of the heat map.

    Examples
    --------
    >>> adata = st.datasets.synthetic_series(3, 3, obs_per_section=200)
    >>> st.tl.trends(adata, "time", subject_key="subject", groupby="compartment", library_key="section")
    >>> axes = st.pl.trends(adata, "share")
    """
    n_top = check_int("n_top", (30 if heatmap else 8) if n_top is None else n_top, minimum=1, maximum=_TRENDS_MAX)
    table = get.trends(adata, kind, compartment=compartment, feature=feature, values=True, key=key)
    table = table[table["slope"].notna()]  # others were seen at one time
    if table.empty:
        raise ValueError(f"`adata.uns[{key!r}]` has no rows for this selection; there is nothing to plot.")
    params = adata.uns[f"{key}_params"]
    times, time_key = np.asarray(params["times"], dtype=float), str(params["time_key"])
    table = table.iloc[_order(table, "slope")[:n_top]]
    values = table.iloc[:, -len(times) :].to_numpy(dtype=float)  # of the subjects: the last columns
    if heatmap:
        mean = pd.DataFrame(values).T.groupby(times).mean().T
        mean = mean.sub(mean.mean(axis=1), axis=0).set_axis([f"{t:g}" for t in mean], axis=1)
        names = np.array(_row_names(table, "feature"), dtype=object) + np.where(table["pvals_adj"] <= fdr, " *", "")
        mean = mean.set_axis(names).iloc[np.argsort(table["slope"].to_numpy())[::-1]]
        star = f"* FDR ≤ {fdr:g}" if (table["pvals_adj"] <= fdr).any() else ""
        limit = float(np.nanmax(np.abs(mean))) or 1.0
        axes = _base.heatmap(mean, star, title, xlabel=time_key, cell=(0.5, 0.22), limits=(-limit, limit), ax=ax,
                             label="$\\log_2$ deviation from the mean", legend=legend,
                             cmap=cmap or _base.DIVERGING)  # fmt: skip
    else:
        choose = "`feature` and `compartment`"
        axes = _base.panels(_row_names(table, "feature"), title, ax, "panel", 2.4, 2.2, choose=choose)
        colors = _direction_colors(table, "slope", fdr)
        for axis, color, (_, row), value in zip(axes, colors, table.iterrows(), values, strict=True):
            _draw_trend(axis, times, value, row, color)
            axis.set_xlim(times.min() - 0.05 * np.ptp(times), times.max() + 0.05 * np.ptp(times))
            if len(np.unique(times)) <= 6:
                axis.set_xticks(np.unique(times))
            subplot: Any = axis.get_subplotspec()
            first = ax is not None or subplot.is_first_col()
            _base.label_axes(axis, time_key, _UNITS[str(row["kind"])] if first else "")
        if legend:
            _legend.add_legend(axes, _direction_handles("rises", "falls", colors, table), ax=ax)
    return _base.save_or_show("trends", axes, figsize, ax=ax, show=show, save=save)


def _draw_trend(ax: Axes, times: Array, value: Array, row: pd.Series, color: str) -> None:
    """Draw the line of one trend with its interval, and the values of the subjects."""
    known = np.isfinite(value)
    times, value = times[known], value[known]  # the line ends where the values do
    x, centre, middle = np.linspace(times.min(), times.max(), 50), times.mean(), value.mean()
    slope, *interval = (middle + row[c] * (x - centre) for c in ("slope", "ci_low", "ci_high"))
    ax.fill_between(x, 2 ** np.fmin(*interval), 2 ** np.fmax(*interval), color=color, alpha=0.15, linewidth=0)
    ax.plot(x, 2**slope, color=color, linewidth=1.8)
    face = ax.get_facecolor() if color == NEITHER else color
    ax.scatter(times, 2**value, s=22, color=[face], edgecolors=[color], linewidths=1, zorder=3)
    ax.set_yscale("log")  # as the fit is
    low, high = 2 ** (value.min() - 0.5), 2 ** (value.max() + 0.5)
    # a span of less than five may hold one of 1, 2, 5, and LogLocator would fill it with ticks
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high >= 5 * low else MaxNLocator(3))
    ax.yaxis.set_major_formatter(EngFormatter(sep="") if (value > 0).all() else StrMethodFormatter("{x:g}"))
    ax.minorticks_off()
    ax.set_ylim(low, high)


def _order(table: pd.DataFrame, effect: str) -> Ints:
    """Return the order of the rows by p-value, or by effect where there are none."""
    return np.lexsort((-table[effect].abs(), table["pvals"].fillna(2.0)))


def _row_names(table: pd.DataFrame, other: str) -> list[str]:
    """Return names of the rows: the compartment, both of a contact, or the gene and its compartment."""
    kind, first, second = str(table["kind"].iloc[0]), table["compartment"].astype(str), table[other].astype(str)
    names = {"contact": first + " – " + second, "expression": second + " (" + first + ")"}.get(kind, first)
    return [_legend.label_text(name) for name in names]


def _direction_colors(table: pd.DataFrame, effect: str, fdr: float) -> Array:
    """Return the colour of each row: that of its direction if it is significant."""
    return np.where(table["pvals_adj"] <= fdr, np.where(table[effect] > 0, UP, DOWN), NEITHER)


def _direction_handles(up: str, down: str, colors: Array, table: pd.DataFrame) -> list[Any]:
    """Return legend entries of the colours that occur."""
    neither = "not significant" if table["pvals"].notna().any() else "not tested: few subjects"
    handles = [_legend.point_handle(up, UP), _legend.point_handle(down, DOWN),
               _legend.point_handle(neither, NEITHER, edge=1.2)]  # fmt: skip
    return [handle for handle in handles if handle.get_color() in colors]


@_base.plot
def track(
    adata: AnnData, kind: Literal["alluvial", "tissue"] = "alluvial", *, library: str | Sequence[str] | None = None,
    library_key: str | bool | None = None, spatial_key: str | None = None, key: str = _keys.TRACK,
    palette: str | Sequence[str] | Mapping[str, str] | None = None, title: str | None = None,
    scale_bar: float | bool | None = None, legend: bool = True, figsize: tuple[float, float] | None = None,
    ax: Axes | None = None, show: bool | None = None, save: bool | str | PathLike[str] | None = None,
) -> Axes | list[Axes] | None:  # fmt: skip
    """Plot the compartments of :func:`stxtools.tl.track` over time, coloured by lineage.

    Parameters
    ----------
    kind
        ``"alluvial"``: stacked bars show the shares of compartments at each time point, and the width of ribbons shows
        the matched mass. ``"tissue"``: the sections in order of time; tissue without a counterpart at an adjacent time
        point is pale.

    Examples
    --------
    >>> adata = st.datasets.synthetic_series(3, 2, obs_per_section=200)
    >>> st.tl.region_graph(adata, "compartment", library_key="section", max_size=20)
    >>> st.tl.track(adata, "time")
    >>> ax = st.pl.track(adata)
    """
    check_choice("kind", kind, ("alluvial", "tissue"))
    table = get.track(adata, "compartments", key=key)
    check_in(adata, "obs", key, "key", "Run `st.tl.track(adata, time_key)` again.")
    colors, params = colors_of(adata, key, palette), params_of(adata.uns[key])
    panels = panels_of(adata, params, spatial_key=spatial_key, library_key=library_key, library=library)
    if kind == "alluvial":
        if library is not None:
            raise ValueError("`library` selects sections for `kind='tissue'`; omit it, as 'alluvial' shows all.")
        longest = 0.8 * _legend.text_width([_legend.label_text(name) for name in table["compartment"]])
        step, n_times = max(1.7, longest + 0.8), table["time"].nunique()
        axes = _base.panels([""], title, ax, "panel", 0.9 + step * n_times, 4.2)
        _alluvial(axes[0], table, get.track(adata, key=key), colors)
        axes[0].set_xlim(-0.3, n_times - 1 + _BAR_WIDTH + max(longest / step, 0.2))
        _base.label_axes(axes[0], str(params["time_key"]), "share of the tissue")
    else:
        time = adata.obs[params["time_key"]].to_numpy(dtype=float)
        panels = sorted(panels, key=lambda panel: time[panel.rows[0]])
        kept = adata.obs[[f"{key}_previous", f"{key}_next"]].to_numpy(dtype=float)
        face = rgba(category_codes(adata, key)[0], colors)
        face[:, 3] = np.fmax(np.where(np.isnan(kept).all(axis=1), 1.0, np.fmin(*kept.T)), _MIN_ALPHA)
        axes = section_axes(adata, panels, ax=ax, title=title, img=False, scale_bar=scale_bar, figsize=figsize)
        for axis, panel in zip(axes, panels, strict=True):
            draw_spots(axis, panel, face, key)
            if title is None:
                axis.set_title(f"{panel.library}, {params['time_key']} {time[panel.rows[0]]:g}", fontsize="medium")
    if legend:
        handles = _legend.class_handles(list(colors), colors, missing=False)
        if kind == "tissue":
            handles.append(_legend.heading_handle("pale: no counterpart"))
        _legend.add_legend(axes, handles, ax=ax, title="lineage")
    return _base.save_or_show("track", axes, figsize, ax=ax, show=show, save=save, colors=[(adata, key, colors)])


def _alluvial(axis: Axes, table: pd.DataFrame, links: pd.DataFrame, colors: Mapping[str, str]) -> None:
    """Draw a stacked bar per time, and a ribbon per link, as wide at each end as the share of the bar that it takes."""
    times = np.sort(table["time"].unique())
    colors = dict.fromkeys(table["lineage"], MISSING) | dict(colors)  # a subset may lack a lineage
    bars = table.assign(number=table["lineage"].astype(int), x=np.searchsorted(times, table["time"]))
    bars = bars.sort_values(["time", "number", "compartment"])
    bars["bottom"] = bars.groupby("time")["share"].cumsum() - bars["share"]
    axis.bar(bars["x"], bars["share"], _BAR_WIDTH, bars["bottom"], color=list(bars["lineage"].map(colors)),
             edgecolor="white", linewidth=0.8, zorder=2)  # fmt: skip
    for bar in bars.itertuples():
        axis.annotate(_legend.label_text(bar.compartment), (bar.x + _BAR_WIDTH / 2, bar.bottom + bar.share / 2),
                      xytext=(3, 0), textcoords="offset points", ha="left", va="center", fontsize="x-small", zorder=3,
                      path_effects=[_base.halo()])  # fmt: skip
    links = links[~links["event"].isin(["none", "appears", "disappears"])]
    bars, ends = bars.set_index(["time", "compartment"]), []
    for names, mass, side in ((["time_from", "source"], "forward", 1), (["time_to", "target"], "backward", -1)):
        linked = bars.loc[list(links[names].itertuples(index=False, name=None))]
        height = links[mass].clip(upper=1.0) * linked["share"].to_numpy()
        low = linked["bottom"].to_numpy() + height.groupby([links[name] for name in names]).cumsum() - height
        ends.append(zip(linked["x"] + side * _BAR_WIDTH / 2, low, low + height, linked["lineage"], strict=True))
    t = np.linspace(0, 1, 40)
    for (x, low, high, lineage), (to, low_to, high_to, _) in zip(*ends, strict=True):
        between = [a + (b - a) * t**2 * (3 - 2 * t) for a, b in ((low, low_to), (high, high_to))]
        axis.fill_between(x + (to - x) * t, *between, color=colors[lineage], alpha=0.4, linewidth=0, zorder=1)
    axis.set_xticks(range(len(times)), [f"{time:g}" for time in times])
    axis.set_ylim(0, 1.02)
