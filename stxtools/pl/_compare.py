"""Conditions compared: effects with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from stxtools import _keys
from stxtools._validate import check_int, check_number
from stxtools.get import compare as get_compare

from . import _base, _legend, _output

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

_TITLES = {"share": "share of the tissue", "contact": "contact", "expression": "expression"}
_UP, _DOWN, _NEITHER = "#d55e00", "#0072b2", "#9a9a9a"  # Okabe and Ito
ROWS_MAX = 100


@_output.plot
def compare(
    adata: AnnData,
    kind: Literal["share", "contact", "expression"] | None = None,
    *,
    group: str | Sequence[str] | None = None,
    compartment: str | Sequence[str] | None = None,
    n_top: int = 15,
    fdr: float = 0.05,
    key: str = _keys.COMPARE,
    title: str | None = None, legend: bool = True,
    ax: Axes | None = None, show: bool | None = None, save: bool | str | PathLike[str] | None = None,
) -> Axes | list[Axes] | None:  # fmt: skip
    """Draw the effects of :func:`stxtools.tl.compare` with their 95 % intervals, one panel per condition and kind.

    A filled dot passes ``fdr``. Rows are those with the smallest p-values, or the largest effects where there are none.

    Parameters
    ----------
    kind
        ``"share"``, ``"contact"`` or ``"expression"``; all by default.
    n_top
        Rows per panel, at most 100.
    %(parameters)s

    Examples
    --------
    >>> adata = st.datasets.synthetic_tissue(n_obs=300, n_patients=6, disease="patient")
    >>> st.tl.compare(adata, "disease", "patient", groupby="compartment", library_key="section")
    >>> axes = st.pl.compare(adata)
    """
    n_top = check_int("n_top", n_top, minimum=1, maximum=ROWS_MAX)
    fdr = check_number("fdr", fdr, minimum=0, maximum=1)
    table = get_compare(adata, kind, group=group, compartment=compartment, key=key)
    parts = [part for _, part in table.groupby(["group", "kind"], sort=False, observed=True)]
    if not parts:
        raise ValueError(f"`adata.uns[{key!r}]` has no such row to draw.")
    if ax is not None and len(parts) > 1:
        raise ValueError(f"`ax` takes one panel, but there are {len(parts)}; choose one with `kind=` and `group=`.")
    parts = [_first(part, n_top) for part in parts]
    longest = max(len(name) for part in parts for name in _names(part))
    height = 0.26 * max(len(part) for part in parts) + 1.0
    names = [f"{_TITLES[part['kind'].iloc[0]]}: {part['group'].iloc[0]}" for part in parts]
    axes, panels = _base.panels(names, title, ax, "panel", 2.6 + 0.065 * longest, height, ncols=3)
    for (axis, _, text), part in zip(panels, parts, strict=True):
        _effects(axis, part, fdr, text)
    if legend:
        handles = [_legend.dot("higher", _UP), _legend.dot("lower", _DOWN), _legend.dot("not significant", _NEITHER)]
        _legend.add_legend(axes, handles, own=ax is None)
    return _output.done("compare", axes, ax=ax, show=show, save=save)


def _first(part: pd.DataFrame, n: int) -> pd.DataFrame:
    """Return the rows with the smallest p-values; all in the order of the table where they are few."""
    if len(part) <= n:
        return part
    order = np.lexsort((-part["logfoldchanges"].abs(), part["pvals"].fillna(2.0)))
    return part.iloc[order[:n]]


def _names(part: pd.DataFrame) -> list[str]:
    one, two = part["compartment"].astype(str), part["names"].astype(str)
    joined = {"share": one, "contact": one + " – " + two, "expression": two + " (" + one + ")"}
    return [_legend.plain(name) for name in joined[str(part["kind"].iloc[0])]]


def _effects(axis: Axes, part: pd.DataFrame, fdr: float, title: str) -> None:
    effect = part["logfoldchanges"].to_numpy(dtype=float)
    place, passed = np.arange(len(part)), part["pvals_adj"].to_numpy(dtype=float) <= fdr
    color = np.where(passed, np.where(effect > 0, _UP, _DOWN), _NEITHER)
    axis.axvline(0, color="#888888", linewidth=0.8, zorder=0)
    axis.hlines(place, part["ci_low"], part["ci_high"], colors=color, linewidth=1.5)
    axis.scatter(effect, place, s=36, c=np.where(passed, color, "white"), edgecolors=color, linewidths=1.2, zorder=2)
    axis.set_yticks(place, _names(part), fontsize="small")
    axis.set_ylim(len(part) - 0.4, -0.6)
    _base.finish(axis, title, "$\\log_2$ fold change, 95 % interval")
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
