"""Shared by all plots: checks of arguments, saving and showing, reading of results, panels and heat maps."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial, wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from anndata import AnnData
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.backends import BackendFilter, backend_registry
from matplotlib.font_manager import FontProperties
from matplotlib.patheffects import withStroke

from stxtools import _keys
from stxtools._api import public
from stxtools._checks import check_bool, check_number, listing
from stxtools._colors import colors_slot
from stxtools._on_spatialdata import OnSpatialData
from stxtools._validate import check_adata, stored_table

from . import _legend

Colors = tuple[AnnData, str, Mapping[str, str]]
P = ParamSpec("P")
R = TypeVar("R")

PANELS_MAX = 100
DIVERGING = "RdBu_r"


def plot(function: Callable[P, R]) -> OnSpatialData[P, R]:
    """Check what all plots take, close the figures that a failing call leaves, and complete the docstring."""

    @wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        if args:  # `public` hands `adata` on by position
            check_adata(args[0], unique_vars=False)
        for name, check in _CHECKS.items():
            if name in kwargs and not (kwargs[name] is None and name in _NONE_ALLOWED):
                check(kwargs[name])
        if kwargs.get("ax") is not None and kwargs.get("figsize") is not None:
            raise ValueError("`figsize` is the size of a new figure; omit it, or omit `ax`.")
        before = set(plt.get_fignums())
        try:
            return function(*args, **kwargs)
        except BaseException:
            for number in set(plt.get_fignums()) - before:
                plt.close(number)
            raise

    return public(checked)


def save_or_show(
    name: str, axes: Sequence[Axes], figsize: tuple[float, float] | None, *, ax: Axes | None, show: bool | None,
    save: bool | str | os.PathLike[str] | None, colors: Sequence[Colors] = (),
) -> Any:  # fmt: skip
    """Save the figure, store the colours of categories, and show it; return its Axes if it is not shown."""
    figure = axes[0].figure.canvas.figure  # of an Axes in a sub-figure, the whole
    if figsize is not None:
        figure.set_size_inches(figsize)  # a legend has made it wider
    if save is None and ax is None and "scanpy" in sys.modules:  # else its settings are the defaults
        save = bool(_scanpy_settings().autosave)
    if save not in (None, False):
        _save(figure, name, save)
    for adata, key, chosen in colors:
        store_colors(adata, key, chosen)
    if show is None:
        can_show = plt.get_backend().lower() not in backend_registry.list_builtin(BackendFilter.NON_INTERACTIVE)
        show = ax is None and can_show and bool(_scanpy_settings().autoshow)
    if show:
        plt.show()
    if save not in (None, False) and ax is None:  # as scanpy does: a loop over many plots leaves no figures open
        plt.close(figure)
    if show:
        return None
    return axes[0] if len(axes) == 1 else list(axes)


def store_colors(adata: AnnData, key: str, colors: Mapping[str, str]) -> None:
    """Store the colours of categories where scanpy and squidpy look for them, except in a view."""
    slot, new = _keys.colors(key), colors_slot(colors)
    old = adata.uns.get(slot)
    same = np.ndim(old) == 1 and [str(c) for c in old] == list(new)
    if not (adata.is_view or isinstance(old, Mapping) or same):
        adata.uns[slot] = new


def _scanpy_settings() -> Any:
    from scanpy import settings

    return settings


def _save(figure: Any, name: str, save: bool | str | os.PathLike[str] | None) -> None:
    path = Path(save).expanduser() if isinstance(save, os.PathLike) else None
    if path is None:
        text, settings = "" if save is True else str(save), _scanpy_settings()
        ending = Path(text).suffix
        if ending[1:] not in figure.canvas.get_supported_filetypes():
            ending = f".{settings.file_format_figs}"
        path = Path(settings.figdir) / f"{name}{text.removesuffix(ending)}{settings.plot_suffix}{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, bbox_inches="tight")


def _check_axes(ax: Any) -> None:
    if not isinstance(ax, Axes):
        hint = " One of them is, such as `ax=axes[0]`." if isinstance(ax, (list, tuple, np.ndarray)) else ""
        raise TypeError(f"`ax` must be a matplotlib Axes, such as `plt.subplots()[1]`, not {type(ax).__name__}.{hint}")
    if ax.name != "rectilinear":
        raise TypeError(f"`ax` must have two rectangular axes; this one has the projection {ax.name!r}.")
    if ax.figure is None:
        raise ValueError("`ax` was removed from its figure; pass one that is in a figure.")


def _check_figsize(figsize: Any) -> None:
    if not isinstance(figsize, (tuple, list, np.ndarray)) or len(figsize) != 2:
        raise TypeError(f"`figsize` must be (width, height) in inches, not {figsize!r}.")
    for side in figsize:
        check_number("figsize", side, above=0, maximum=200)


def _check_save(save: Any) -> None:
    _check_type("save", save, (bool, str, os.PathLike), "True, a string that follows the plot's name, or a path")
    if isinstance(save, str) and ("/" in save or "\\" in save or "\0" in save):
        raise ValueError(
            f"`save={save!r}` follows the plot's name in `scanpy.settings.figdir` and cannot hold a folder; pass "
            f"`save=pathlib.Path({save!r})` to write to that path."
        )


def _check_type(name: str, value: Any, types: tuple[type, ...], allowed: str) -> None:
    if not isinstance(value, types):
        raise TypeError(f"`{name}` must be {allowed}, not {value!r}.")


_NONE_ALLOWED = frozenset({"figsize", "ax", "show", "save", "title", "img"})
_CHECKS: dict[str, Callable[[Any], object]] = {
    "figsize": _check_figsize,
    "ax": _check_axes,
    "show": partial(_check_type, "show", types=(bool,), allowed="True, False or None"),
    "save": _check_save,
    "fdr": partial(check_number, "fdr", minimum=0, maximum=1),
    "title": partial(_check_type, "title", types=(str,), allowed="a string"),
    "legend": partial(check_bool, "legend"),
    "heatmap": partial(check_bool, "heatmap"),
    "img": partial(_check_type, "img", types=(bool, str), allowed="True, False, None or the name of an image"),
}


# --- panels ------------------------------------------------------------------------------------------------------


def numeric_table(
    adata: AnnData, key: Any, part: str | None, columns: Sequence[str], call: str, what: str, *others: str
) -> pd.DataFrame:
    """Return the table ``uns[key]`` or ``uns[key][part]``, checked to have numbers in ``columns``, and ``others``."""
    table = stored_table(adata, key, set(others), what, call, part)
    check_numeric(table, columns, f"adata.uns[{key!r}]" + ("" if part is None else f"[{part!r}]"), call)
    return table


def check_numeric(table: pd.DataFrame, columns: Sequence[str], where: str, call: str) -> None:
    """Check that a table of results still has its columns, and numbers in them."""
    if absent := [c for c in columns if c not in table]:
        raise KeyError(f"`{where}` lacks {listing(absent)}; it has {listing(table.columns)}. Run `{call}` again.")
    for column in columns:
        kind = table[column].dtype
        if not pd.api.types.is_numeric_dtype(kind) or pd.api.types.is_complex_dtype(kind):
            raise TypeError(f"Column {column!r} of `{where}` holds {kind}, not numbers; run `{call}` again.")


def panels(
    names: Sequence[str], title: str | None, ax: Axes | None, what: str, width: float, height: float, *,
    choose: str | None = None, bottom: float = 0.0, ncols: int = 4, figsize: tuple[float, float] | None = None,
) -> list[Axes]:  # fmt: skip
    """Return an Axes of ``width`` x ``height`` inches with a title for each name: of a new figure, or the caller's."""
    n = len(names)
    if ax is not None and n > 1:
        choose = choose or f"`{what}={names[0]!r}`"
        raise ValueError(f"`ax` takes one {what}, but there are {n} ({listing(names)}); choose one with "
                         f"{choose}, or omit `ax`.")  # fmt: skip
    titles = [_legend.label_text(name) for name in names]
    if title is not None:
        titles = [title] if n == 1 else [f"{title}: {name}" for name in titles]
    axes: list[Any] = [ax]
    if ax is None:
        if n > PANELS_MAX:
            raise ValueError(f"{n} panels are too many for one figure (at most {PANELS_MAX}); select sections, groups "
                             "or genes at a time.")  # fmt: skip
        rows = -(-n // ncols)
        cols = -(-n // rows)
        size = (cols * max(width, _legend.text_width(titles) + 0.2), rows * height + bottom)
        size = size if figsize is None else figsize
        figure, subplots = plt.subplots(rows, cols, figsize=size, squeeze=False, layout="compressed")
        axes = list(subplots.ravel())
        for spare in axes[n:]:
            figure.delaxes(spare)
    for axis, text in zip(axes, titles, strict=False):
        if text:
            axis.set_title(text, fontsize="medium")
    return axes[:n]


def label_axes(ax: Axes, xlabel: str = "", ylabel: str = "") -> None:
    """Set the labels in a small font, and open the frame."""
    ax.set_xlabel(xlabel, fontsize="small")
    ax.set_ylabel(ylabel, fontsize="small")
    ax.tick_params(labelsize="small")
    ax.spines[["top", "right"]].set_visible(False)


def halo() -> Any:
    """Return an outline of letters, in the background colour, that sets them off from a drawing."""
    return withStroke(linewidth=2, foreground=rcParams["axes.facecolor"])


def label_rows(ax: Axes, names: Sequence[str], y: Any, **font: Any) -> None:
    """Label the rows of a panel at heights ``y``, the first on top, without frame or ticks beside them."""
    small = FontProperties(size="small").get_size()  # points
    size = min(small, 50 * _legend.axes_size(ax)[1] / len(names))  # less in low Axes of a caller
    ax.set_yticks(y, names, fontsize=size, **font)
    ax.set_ylim(y[-1] + 0.6, -0.6)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)


def heatmap(
    values: pd.DataFrame, name: str, title: str | None, *, label: str, legend: bool, ax: Axes | None,
    cmap: str, limits: tuple[float, float], cell: tuple[float, float] = (0.28, 0.28), xlabel: str = "",
    ylabel: str = "", texts: Any = None, handles: Sequence[Any] = (), **kwargs: Any,
) -> list[Axes]:  # fmt: skip
    """Draw a table as cells (of so many inches) with ``texts`` in them and a colour bar."""
    names, columns = ([_legend.label_text(str(name)) for name in axis] for axis in (values.index, values.columns))
    name_width, column_width = _legend.text_width(names), _legend.text_width(columns)
    rotated = column_width > cell[0]
    width = max(cell[0] * len(columns) + name_width + 1.0, 2.6)
    height = max(cell[1] * len(names), 1.0) + 0.6 + (column_width if rotated else 0.2)
    axes = panels([name], title, ax, "table", width, height, bottom=0.6 * legend)
    bar = _legend.mappable(*limits, _legend.color_map(cmap))
    if ((values < limits[0]) | (values > limits[1])).any(axis=None):
        bar.cmap.colorbar_extend = "both"
    sns.heatmap(values, norm=bar.norm, cmap=bar.cmap, annot=texts, fmt="", cbar=False, xticklabels=columns,
                yticklabels=names, ax=axes[0], **kwargs)  # fmt: skip
    label_axes(axes[0], xlabel, ylabel)
    axes[0].tick_params(axis="x", length=0, rotation=90 if rotated else 0)
    axes[0].tick_params(axis="y", length=0, rotation=0)
    if legend:
        _legend.add_legend(axes, handles, ax=ax, bars=[(bar, label)])
    return axes
