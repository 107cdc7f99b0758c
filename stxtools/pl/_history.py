"""Choices and training: the curves, the number of segments, and the weights of the losses."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stxtools import _keys
from stxtools._validate import listing

from . import _base
from ._evaluation import LABELS
from ._legend import DOWN, UP

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

_CALLS = {_keys.SEGMENT: "st.tl.segment(adata)", _keys.EMBED: "st.tl.embed(adata)",
          _keys.MULTITASK: "st.tl.multitask(adata, ...)"}  # fmt: skip
_PARAMS = {"alpha": "α (biomarker)", "beta": "β (classification)"}
_STAGES = {"pretrain_masked": "masked pretraining", "pretrain_contrastive": "contrastive pretraining"}


@_base.plot
def history(
    adata: AnnData,
    key: str = _keys.SEGMENT,
    *,
    stage: str | None = None, title: str | None = None, legend: bool = True,
    ax: Axes | None = None, show: bool | None = None, save: bool | str | PathLike[str] | None = None,
) -> Axes | list[Axes] | None:  # fmt: skip
    """Draw the loss of every training stage over the epochs, with the best epoch marked.

    Parameters
    ----------
    key
        Which training: ``"segment"``, ``"embed"``, ``"multitask"`` or the ``key_added`` of the call.
    stage
        The stage to draw; all by default, one panel each, as their losses have different scales.
    %(parameters)s

    Examples
    --------
    >>> adata = st.datasets.synthetic_tissue(n_obs=400)
    >>> st.tl.segment(adata)
    >>> ax = st.pl.history(adata)
    """
    from matplotlib.ticker import MaxNLocator

    call = _CALLS.get(key, _CALLS[_keys.SEGMENT]) if isinstance(key, str) else ""
    table = _base.table_of(adata, key, "history", ["epoch"], call, "training curve")
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
        part = table[(names == name).to_numpy()]
        for column, label, color in (("loss", "training", DOWN), ("val_loss", "validation", UP)):
            loss = part[["epoch", *losses]].reindex(columns=["epoch", column]).astype(float).dropna().to_numpy()
            if len(loss):  # a stage of a single epoch is a point, which a line alone would not show
                axis.plot(*loss.T, color=color, label=label, marker="o" if len(loss) == 1 else None)
            if len(loss) and column == "val_loss":
                best = loss[loss[:, 1].argmin()]
                axis.plot(*best, "o", color=color, markersize=6, label=f"best (epoch {best[0]:g})")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
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
    what = "choice of a number of segments (made without `n_segments` and `labels_key`)"
    curve = _base.table_of(adata, key, "stability", ["n_segments", "bic"], "st.tl.segment(adata)", what)
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
    key: str = _keys.TUNE,
    title: str | None = None,
    ax: Axes | None = None, show: bool | None = None, save: bool | str | PathLike[str] | None = None,
) -> Axes | None:  # fmt: skip
    """Draw the tuning metric over two parameters as a heat map, by default AUROC over alpha and beta.

    The metric is the mean of the targets, by which trials are judged. The best cell has a frame. Where trials ran
    several folds, each cell shows their standard deviation below the mean.

    Parameters
    ----------
    x, y
        Parameters on the axes. Where several trials share a cell, the best of them is shown.
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

    if not isinstance(x, str) or not isinstance(y, str) or x == y:
        raise ValueError(f"`x` and `y` must be the names of two parameters, not {x!r} and {y!r}.")
    trials = _base.table_of(adata, key, "trials", ["value"], "st.tl.tune(adata, 'weights', ...)", "trials")
    absent = [c for c in (x, y, "state") if c not in trials]
    if absent:
        raise KeyError(f"{listing(absent)} is not in `adata.uns[{key!r}]['trials']`; it has {listing(trials.columns)}.")
    done = trials[(trials["state"] == "COMPLETE") & trials["value"].notna()]
    if done.empty:
        raise ValueError(f"No trial in `adata.uns[{key!r}]['trials']` was completed.")
    metric = str(_base.params_of(adata.uns[key]).get("metric", "value"))
    metric = LABELS.get(metric, metric)
    (text,) = _base.titles_of(["" if ax is None else metric], title)
    best = done.loc[done.groupby([x, y])["value"].idxmax()]
    value, sd = (best.reindex(columns=[y, x, c]).pivot(index=y, columns=x, values=c).sort_index(ascending=False)
                 for c in ("value", "value_sd"))  # fmt: skip
    numbers = value.map(lambda v: f"{v:.3f}" if v == v else "") + sd.map(lambda v: f"\n± {v:.3f}" if v == v else "")
    axis = ax if ax is not None else _base.grid(1, 0.75 * value.shape[1] + 2.2, max(0.6 * value.shape[0] + 1.4, 2.8))[0]
    sns.heatmap(value, annot=numbers, fmt="", cmap="viridis", ax=axis, linewidths=1, annot_kws={"size": "small"},
                cbar=ax is None, cbar_kws={"label": metric})  # fmt: skip
    row, column = divmod(int(np.nanargmax(value.to_numpy())), value.shape[1])
    axis.add_patch(Rectangle((column, row), 1, 1, fill=False, edgecolor="black", linewidth=2, clip_on=False))
    _base.finish(axis, text, _PARAMS.get(x, x), _PARAMS.get(y, y))
    axis.tick_params(axis="y", rotation=0)
    return _base.done("sensitivity", [axis], ax=ax, show=show, save=save)


def stage_name(stage: str) -> str:
    """Return what a stage of training is called in a figure."""
    return _STAGES.get(stage, stage.replace("_", " "))
