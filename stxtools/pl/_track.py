"""Compartments tracked over time: on the tissue, or as an alluvial plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from stxtools import _keys
from stxtools._checks import check_choice
from stxtools._validate import check_in
from stxtools.get import track as get_track

from . import _base, _legend, _output
from ._legend import MISSING, category_codes, colors_of, rgba
from ._sections import draw_sections, panels_of, spots_drawn

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

_BAR = 0.16  # width of a time's bar, in steps
_FAINTEST = 0.2


@_output.plot
def track(
    adata: AnnData,
    kind: Literal["alluvial", "tissue"] = "alluvial",
    *,
    library: str | Sequence[str] | None = None, library_key: str | bool | None = None,
    spatial_key: str = _keys.SPATIAL, key: str = _keys.TRACK,
    palette: str | Sequence[str] | Mapping[str, str] | None = None,
    title: str | None = None, scale_bar: float | bool | None = None, legend: bool = True,
    ax: Axes | None = None, show: bool | None = None, save: bool | str | PathLike[str] | None = None,
) -> Axes | list[Axes] | None:  # fmt: skip
    """Draw what :func:`stxtools.tl.track` found, in one colour per lineage.

    Parameters
    ----------
    kind
        ``"alluvial"``: compartments as bars at each time, as high as their share, and links as ribbons as wide as the
        mass that they carry. ``"tissue"``: the sections in the order of their times; what has no counterpart at a
        neighbouring time is pale.
    %(parameters)s

    Examples
    --------
    >>> adata = st.datasets.synthetic_series(3, 2, obs_per_section=200)
    >>> st.tl.region_graph(adata, "compartment", library_key="section", max_size=20)
    >>> st.tl.track(adata, "time")
    >>> ax = st.pl.track(adata)
    """
    check_choice("kind", kind, ("alluvial", "tissue"))
    table = get_track(adata, "compartments", key=key)
    check_in(adata, "obs", key, "key", "Run `st.tl.track(adata, time_key)` again.")
    colors, params = colors_of(adata, key, palette), _base.params_of(adata.uns[key])
    if kind == "alluvial":
        longest = _legend.text_inches([_legend.plain(name) for name in table["compartment"]], "x-small")
        step = max(1.7, longest + 0.8)
        axes = [ax] if ax is not None else _base.grid(1, 0.9 + step * table["time"].nunique(), 4.2)
        _alluvial(axes[0], table, get_track(adata, key=key), colors)
        axes[0].set_xlim(-0.3, table["time"].nunique() - 1 + _BAR + max(longest / step, 0.2))
        (text,) = _base.titles_of([""], title)
        _base.finish(axes[0], text, str(params["time_key"]), "share of the tissue")
    else:
        panels = panels_of(adata, spatial_key=spatial_key, library_key=library_key, library=library, params=params)
        time = adata.obs[params["time_key"]].astype(float).to_numpy()
        panels = sorted(panels, key=lambda panel: time[panel.rows[0]])
        codes, names = category_codes(adata, key)
        face, kept = rgba(codes, names, colors), adata.obs[[f"{key}_previous", f"{key}_next"]].to_numpy(dtype=float)
        face[:, 3] = np.fmax(np.where(np.isnan(kept).all(axis=1), 1.0, np.fmin(*kept.T)), _FAINTEST)
        titles = [f"{panel.library}, {params['time_key']} {time[panel.rows[0]]:g}" for panel in panels]
        axes = draw_sections(adata, panels, [spots_drawn(face, key)], ax=ax, spatial_key=spatial_key,
                             scale_bar=scale_bar, title=titles if title is None else title)  # fmt: skip
    if legend:
        _legend.add_legend(axes, _legend.class_handles(list(colors), colors, missing=False), own=ax is None,
                           title="lineage")  # fmt: skip
    return _output.done("track", axes, ax=ax, show=show, save=save, colors=[(adata, key, colors)])


def _alluvial(axis: Axes, table: pd.DataFrame, links: pd.DataFrame, colors: Mapping[str, str]) -> None:
    from matplotlib.patheffects import withStroke

    times = np.sort(table["time"].unique())
    colors = dict.fromkeys(table["lineage"], MISSING) | dict(colors)  # a subset may lack a lineage
    bottom: dict[tuple[int, str], float] = {}
    ordered = table.assign(number=table["lineage"].astype(int)).sort_values(["time", "number", "compartment"])
    for i, time in enumerate(times):
        level = 0.0
        for row in ordered[ordered["time"] == time].itertuples():
            bottom[i, row.compartment] = level
            axis.bar(i, row.share, _BAR, level, color=colors[row.lineage], edgecolor="white", linewidth=0.8, zorder=2)
            axis.annotate(_legend.plain(row.compartment), (i + _BAR / 2, level + row.share / 2), xytext=(3, 0),
                          textcoords="offset points", ha="left", va="center", fontsize="x-small", zorder=3,
                          path_effects=[withStroke(linewidth=2, foreground="white")])  # fmt: skip
            level += row.share
    share = table.set_index(["time", "compartment"])
    out, into = dict(bottom), dict(bottom)
    drawn = links[~links["event"].isin(["none", "appears", "disappears"])]
    for row in drawn.itertuples():
        i, j = int(np.searchsorted(times, row.time_from)), int(np.searchsorted(times, row.time_to))
        left, right = (i, row.source), (j, row.target)
        start, end = share.loc[(row.time_from, row.source)], share.loc[(row.time_to, row.target)]
        heights = min(row.forward, 1.0) * start["share"], min(row.backward, 1.0) * end["share"]
        _ribbon(axis, (i + _BAR / 2, j - _BAR / 2), (out[left], into[right]), heights, colors[start["lineage"]])
        out[left] += heights[0]
        into[right] += heights[1]
    axis.set_xticks(range(len(times)), [f"{time:g}" for time in times])
    axis.set_ylim(0, 1.02)


def _ribbon(
    axis: Axes, x: tuple[float, float], low: tuple[float, float], height: tuple[float, float], color: str
) -> None:
    t = np.linspace(0, 1, 40)
    ease = t**2 * (3 - 2 * t)
    under = low[0] + (low[1] - low[0]) * ease
    over = low[0] + height[0] + (low[1] + height[1] - low[0] - height[0]) * ease
    axis.fill_between(x[0] + (x[1] - x[0]) * t, under, over, color=color, alpha=0.4, linewidth=0, zorder=1)
