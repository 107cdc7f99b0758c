"""Choices and training: the curves, the number of segments, and the weights of the losses."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stxtools import _keys
from stxtools._validate import listing

from . import _base, _legend
from ._evaluation import LABELS
from ._legend import DOWN, UP

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

_CALLS = {_keys.SEGMENT: "st.tl.segment(adata)", _keys.EMBED: "st.tl.embed(adata)",
          _keys.MULTITASK: "st.tl.multitask(adata, ...)"}  # fmt: skip
_STAGES = {"pretrain_masked": "masked pretraining", "pretrain_contrastive": "contrastive pretraining"}


@_base.plot
def history(
    adata: AnnData,
    key: str = _keys.SEGMENT,
    *,
    stage: str | None = None, log: bool = False, title: str | None = None, legend: bool = True,
    ax: Axes | None = None, show: bool | None = None, save: bool | str | PathLike[str] | None = None,
) -> Axes | list[Axes] | None:  # fmt: skip
    """Draw the loss of every training stage over the epochs, with the best epoch marked.

    Parameters
    ----------
    key
        Which training: ``"segment"``, ``"embed"``, ``"multitask"`` or the ``key_added`` of the call.
    stage
        The stage to draw; all by default, one panel each, as their losses have different scales.
    log
        Whether the loss is drawn on a logarithmic axis; only where all losses are positive.
    %(parameters)s

    Examples
    --------
    >>> adata = st.datasets.synthetic_tissue(n_obs=400)
    >>> st.tl.segment(adata)
    >>> ax = st.pl.history(adata)
    """
    call = _CALLS.get(key, _CALLS[_keys.SEGMENT]) if isinstance(key, str) else ""
    table = _base.table_of(adata, key, "history", ["epoch"], call)
    if table.empty:
        raise ValueError(f"`adata.uns[{key!r}]['history']` is empty: nothing was trained in that call.")
    losses = [c for c in ("loss", "val_loss") if c in table]
    _base.check_columns(table, losses, f"adata.uns[{key!r}]['history']", call)
    names = table["stage"].astype(str) if "stage" in table else pd.Series("", index=table.index)
    stages = list(dict.fromkeys(names))
    if stage is not None and (not isinstance(stage, str) or stage not in stages):
        raise ValueError(f"`stage={stage!r}` is not in the history; it has {listing(stages)}.")
    wanted = stages if stage is None else [stage]
    axes, panels = _base.panels([stage_name(name) for name in wanted], title, ax, "stage", 3.6, 2.8)
    for (axis, _, text), name in zip(panels, wanted, strict=True):
        _draw(axis, table[(names == name).to_numpy()], log=log)
        _base.finish(axis, text, "epoch", "loss")
    if legend:
        axes[-1].legend(frameon=False, fontsize="small")
    return _base.done("history", axes, ax=ax, show=show, save=save)


@_base.plot
def stability(
    adata: AnnData,
    key: str = _keys.SEGMENT,
    *,
    title: str | None = None,
    ax: Axes | None = None, show: bool | None = None, save: bool | str | PathLike[str] | None = None,
) -> Axes | None:  # fmt: skip
    """Draw the Bayesian information criterion (BIC) of each number of segments tried.

    The number that was taken is marked.

    Parameters
    ----------
    key
        ``"segment"``, or the ``key_added`` of the call.
    %(parameters)s

    Examples
    --------
    >>> adata = st.datasets.synthetic_tissue(n_obs=400)
    >>> st.tl.segment(adata)
    >>> ax = st.pl.stability(adata)
    """
    (text,) = _base.titles_of([""], title)
    call, hint = "st.tl.segment(adata)", ", without `n_segments` and `labels_key`"
    curve = _base.table_of(adata, key, "stability", ["n_segments", "stability", "bic"], call, hint)
    taken = _base.params_of(adata.uns[key]).get("n_segments")
    if taken not in set(curve["n_segments"]):
        raise ValueError(f"`adata.uns[{key!r}]['stability']` does not hold the number that was taken, {taken!r}; run "
                         "`st.tl.segment(adata)` again.")  # fmt: skip
    axis = _base.grid(1, 4.2, 3.2)[0] if ax is None else ax
    x, y = curve["n_segments"].to_numpy(), curve["bic"].to_numpy()
    axis.plot(x, y, color="0.5", marker="o", markersize=4)
    axis.plot(x[x == taken], y[x == taken], "o", markersize=9, color=UP, label=f"taken: {taken}")
    axis.set_xticks(x)
    axis.legend(frameon=False, fontsize="small")
    _base.finish(axis, text, "number of segments", "BIC")
    return _base.done("stability", [axis], ax=ax, show=show, save=save)


@_base.plot
def sensitivity(
    adata: AnnData,
    x: str = "alpha",
    y: str = "beta",
    *,
    target: str | None = None,
    key: str = _keys.TUNE,
    cmap: str = "viridis",
    title: str | None = None,
    ax: Axes | None = None, show: bool | None = None, save: bool | str | PathLike[str] | None = None,
) -> Axes | None:  # fmt: skip
    """Draw the tuning metric over two parameters as a heat map, by default AUROC over alpha and beta.

    The best cell has a frame. Where trials ran several folds, each cell shows their standard deviation below the mean.

    Parameters
    ----------
    x, y
        Parameters on the axes. Where several trials share a cell, the best of them is shown.
    target
        ``"biomarker"`` or ``"region"``; by default the mean of the targets, by which trials are judged.
    cmap
        Colour map.
    ax
        Axes to draw into, without a colour bar: cells carry their values.
    %(parameters)s

    Examples
    --------
    >>> adata = st.datasets.synthetic_tissue(n_obs=400)
    >>> st.tl.tune(
    ...     adata, "weights", biomarker_key="disease", region_key="compartment", n_folds=2,
    ...     space={"alpha": [0.5, 1.0], "beta": [0.5, 1.0]}, params={"epochs": 3},
    ... )
    >>> ax = st.pl.sensitivity(adata)
    """
    import seaborn as sns
    from matplotlib.patches import Rectangle

    _legend.color_map(cmap)
    value = "value" if target is None else f"value_{target}"
    if not isinstance(x, str) or not isinstance(y, str) or x == y:
        raise ValueError(f"`x` and `y` must be the names of two parameters, not {x!r} and {y!r}.")
    trials = _base.table_of(adata, key, "trials", [value], "st.tl.tune(adata, 'weights', ...)")
    absent = [c for c in (x, y, "state") if c not in trials]
    if absent:
        raise KeyError(f"{listing(absent)} is not in `adata.uns[{key!r}]['trials']`; it has {listing(trials.columns)}.")
    done = trials[(trials["state"] == "COMPLETE") & trials[value].notna()]
    if done.empty:
        raise ValueError(f"No trial in `adata.uns[{key!r}]['trials']` was completed.")
    metric = str(_base.params_of(adata.uns[key]).get("metric", "value"))
    metric = LABELS.get(metric, metric)
    shown = ": ".join(part for part in (target, metric if ax is not None else None) if part)
    (text,) = _base.titles_of([""], title if title is not None else shown)
    best = done.loc[done.groupby([x, y])[value].idxmax()]
    cells = best.pivot(index=y, columns=x, values=value).sort_index(ascending=False)
    axis = ax if ax is not None else _base.grid(1, 0.75 * cells.shape[1] + 2.2, max(0.6 * cells.shape[0] + 1.4, 2.8))[0]
    numbers = _annotations(best, cells, x, y, spread="value_sd" if target is None else None)
    sns.heatmap(cells, annot=numbers, fmt="", cmap=cmap, ax=axis, linewidths=1, annot_kws={"size": "small"},
                cbar=ax is None)  # fmt: skip
    if ax is None:
        bar: Any = axis.collections[0].colorbar
        bar.set_label(metric, fontsize="small")
        bar.ax.tick_params(labelsize="small")
        bar.ax.locator_params(nbins=4)
    row, column = divmod(int(np.nanargmax(cells.to_numpy())), cells.shape[1])
    axis.add_patch(Rectangle((column, row), 1, 1, fill=False, edgecolor="black", linewidth=2, clip_on=False))
    _base.finish(axis, text, _greek(x), _greek(y))
    axis.tick_params(axis="y", rotation=0)
    return _base.done("sensitivity", [axis], ax=ax, show=show, save=save)


def stage_name(stage: str) -> str:
    """Return what a stage of training is called in a figure."""
    return _STAGES.get(stage, stage.replace("_", " "))


def _draw(ax: Axes, table: pd.DataFrame, *, log: bool) -> None:
    from matplotlib.ticker import MaxNLocator

    epoch = table["epoch"].to_numpy(dtype=float)
    for column, label, color in (("loss", "training", DOWN), ("val_loss", "validation", UP)):
        loss = table[column].to_numpy(dtype=float) if column in table else np.full(len(table), np.nan)
        seen = np.isfinite(loss)
        if not seen.any():
            continue
        # a stage of a single epoch is a point, which a line alone would not show
        ax.plot(epoch[seen], loss[seen], color=color, label=label, marker="o" if seen.sum() == 1 else None)
        if column == "val_loss":
            best = int(np.nanargmin(loss))
            ax.plot(epoch[best], loss[best], "o", color=color, markersize=6, label=f"best (epoch {epoch[best]:g})")
    if log:
        ax.set_yscale("log")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))


def _annotations(best: pd.DataFrame, cells: pd.DataFrame, x: str, y: str, *, spread: str | None) -> Any:
    """What stands in each cell: the value, and below it its spread where it is known."""
    text = cells.map(lambda v: "" if np.isnan(v) else f"{v:.3f}")
    if spread in best:
        sd = best.pivot(index=y, columns=x, values=spread).reindex_like(cells)
        text = text + sd.map(lambda v: "" if np.isnan(v) else f"\n± {v:.3f}")
    return text.to_numpy()


def _greek(name: str) -> str:
    return {"alpha": "α (biomarker)", "beta": "β (classification)"}.get(name, name)
