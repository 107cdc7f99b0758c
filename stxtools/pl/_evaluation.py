"""Training curves, choice of parameters, comparison of models, and faithfulness of attention."""

from __future__ import annotations

from os import PathLike
from typing import Any, Literal

import numpy as np
import pandas as pd
import seaborn as sns
from anndata import AnnData
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from stxtools import _keys, get
from stxtools._checks import check_choice, listing
from stxtools._validate import params_of

from . import _base, _legend
from ._legend import DOWN, UP

LABELS = {
    "accuracy": "accuracy", "precision": "precision (macro)", "recall": "recall (macro)",
    "auroc": "AUROC (one against rest, macro)", "mse": "MSE of held-out genes",
}  # fmt: skip
_METHOD_COLORS = {"attention": "#0072B2", "attention_gradient": "#D55E00", "occlusion": "#009E73",
                  "gradient": "#CC79A7", "random": "#7f7f7f"}  # fmt: skip
_CALLS = {_keys.SEGMENT: "st.tl.segment(adata)", _keys.EMBED: "st.tl.embed(adata)",
          _keys.MULTITASK: "st.tl.multitask(adata, ...)"}  # fmt: skip
_PARAMS = {"alpha": "α (biomarker)", "beta": "β (classification)"}
_STAGES = {"pretrain_masked": "masked pretraining", "pretrain_contrastive": "contrastive pretraining",
           "segment": "segmentation", "embed": "embedding", "multitask": "prediction",
           "distill": "distillation"}  # fmt: skip


@_base.plot
def history(
    adata: AnnData, key: str = _keys.SEGMENT, *, stage: str | None = None, title: str | None = None,
    legend: bool = True, figsize: tuple[float, float] | None = None, ax: Axes | None = None, show: bool | None = None,
    save: bool | str | PathLike[str] | None = None,
) -> Axes | list[Axes] | None:  # fmt: skip
    """Plot training and validation loss over the epochs of each training stage, and mark the best epoch.

    Parameters
    ----------
    stage
        Training stage to plot; by default all, one panel each.

    Examples
    --------
    >>> adata = st.datasets.synthetic_tissue(n_obs=400)
    >>> st.tl.segment(adata)
    >>> ax = st.pl.history(adata)
    """
    call, columns = _CALLS.get(str(key), _CALLS[_keys.SEGMENT]), ["epoch", "loss", "val_loss"]
    table = _base.numeric_table(adata, key, "history", columns, call, "training curve", "stage")
    if table.empty:
        raise ValueError(f"`adata.uns[{key!r}]['history']` is empty: nothing was trained in that call.")
    stages = list(pd.unique(table["stage"].astype(str)))
    if stage is not None:
        check_choice("stage", stage, stages)
        stages = [stage]
    axes = _base.panels([stage_name(name) for name in stages], title, ax, "stage", 3.6, 2.8)
    for axis, name in zip(axes, stages, strict=True):
        part = table[table["stage"].astype(str) == name]
        for column, label, color in (("loss", "training", DOWN), ("val_loss", "validation", UP)):
            loss = part[["epoch", column]].astype(float).dropna().to_numpy()
            if len(loss):  # a stage of a single epoch is a point, which a line alone would not show
                axis.plot(*loss.T, color=color, label=label, marker="o" if len(loss) == 1 else None)
            if len(loss) and column == "val_loss":
                best = loss[loss[:, 1].argmin()]
                axis.plot(*best, "o", color=color, markersize=6, label=f"best (epoch {best[0]:g})")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        _base.label_axes(axis, "epoch", "loss")
    if legend:
        axes[-1].legend(frameon=False, fontsize="small")
    return _base.save_or_show("history", axes, figsize, ax=ax, show=show, save=save)


@_base.plot
def stability(
    adata: AnnData, key: str = _keys.SEGMENT, *, title: str | None = None, legend: bool = True,
    figsize: tuple[float, float] | None = None, ax: Axes | None = None, show: bool | None = None,
    save: bool | str | PathLike[str] | None = None,
) -> Axes | None:  # fmt: skip
    """Plot the Bayesian information criterion (BIC) of each number of segments, and mark the chosen number.

    A single segment is not shown: it is chosen if there is no spatial structure, not by BIC.

    Examples
    --------
    >>> adata = st.datasets.synthetic_tissue(n_obs=400)
    >>> st.tl.segment(adata)
    >>> ax = st.pl.stability(adata)
    """
    what = "choice of a number of segments (made without `n_segments` and `labels_key`)"
    curve = _base.numeric_table(adata, key, "stability", ["n_segments", "bic"], "st.tl.segment(adata)", what)
    chosen = params_of(adata.uns[key]).get("n_segments")
    if chosen not in set(curve["n_segments"]):
        raise ValueError(f"`adata.uns[{key!r}]['stability']` does not hold the chosen number, {chosen!r}; run "
                         "`st.tl.segment(adata)` again.")  # fmt: skip
    curve = curve[(curve["n_segments"] > 1) | (chosen == 1)]
    (axis,) = axes = _base.panels([""], title, ax, "curve", 4.2, 3.2)
    x, y = curve["n_segments"].to_numpy(), curve["bic"].to_numpy()
    axis.plot(x, y, color="0.5", marker="o", markersize=4)
    label = f"chosen: {chosen}" + (", the largest tried" if chosen == x.max() else "")
    axis.plot(x[x == chosen], y[x == chosen], "o", markersize=9, color=UP, label=label)
    axis.set_xticks(x)
    if legend:
        axis.legend(frameon=False, fontsize="small")
    _base.label_axes(axis, "number of segments", "BIC")
    return _base.save_or_show("stability", axes, figsize, ax=ax, show=show, save=save)


@_base.plot
def sensitivity(
    adata: AnnData, x: str = "alpha", y: str = "beta", *, key: str = _keys.TUNE, cmap: str | None = None,
    title: str | None = None, legend: bool = True, figsize: tuple[float, float] | None = None, ax: Axes | None = None,
    show: bool | None = None, save: bool | str | PathLike[str] | None = None,
) -> Axes | None:  # fmt: skip
    """Plot the AUROC of :func:`stxtools.tl.tune` over two parameters as a heat map, by default alpha and beta.

    Values are means over targets and folds, the objective of the trials, with the standard deviation over folds below.
    The best cell is framed; cells without a completed trial are grey.

    Parameters
    ----------
    x, y
        Parameters on the axes. Of several trials in a cell, the best is shown.
    cmap
        Colour map of the cells; by default ``"viridis"``.

    Examples
    --------
    >>> adata = st.datasets.synthetic_tissue(n_obs=400)
    >>> st.tl.tune(
    ...     adata, "weights", biomarker_key="disease", region_key="compartment", n_folds=2,
    ...     space={"alpha": [0.5, 1.0], "beta": [0.5, 1.0]}, params={"epochs": 3},
    ... )
    >>> ax = st.pl.sensitivity(adata)
    """
    if not isinstance(x, str) or not isinstance(y, str) or x == y:
        raise ValueError(f"`x` and `y` must be the names of two parameters, not {x!r} and {y!r}.")
    call = "st.tl.tune(adata, 'weights', ...)"
    trials = _base.numeric_table(adata, key, "trials", ["value"], call, "trials", "state")
    if absent := [c for c in (x, y) if c not in trials]:
        raise KeyError(f"{listing(absent)} is not in `adata.uns[{key!r}]['trials']`; it has {listing(trials.columns)}.")
    completed = trials[(trials["state"] == "COMPLETE") & trials["value"].notna()]
    if completed.empty:
        raise ValueError(f"No trial in `adata.uns[{key!r}]['trials']` was completed; run `st.tl.tune` again.")
    best = completed.loc[completed.groupby([x, y])["value"].idxmax()]
    value, sd = (best.reindex(columns=[y, x, c]).pivot(index=y, columns=x, values=c).sort_index(ascending=False)
                 for c in ("value", "value_sd"))  # fmt: skip
    numbers = value.map(lambda v: f"{v:.3f}" if v == v else "") + sd.map(lambda v: f"\n± {v:.3f}" if v == v else "")
    axes = _base.heatmap(
        value, "", title, label=f"{LABELS['auroc']}\nmean ± SD over folds", texts=numbers, legend=legend, ax=ax,
        cmap=cmap or "viridis", limits=(best["value"].min(), best["value"].max()), cell=(0.75, 0.6),
        xlabel=_PARAMS.get(x, x), ylabel=_PARAMS.get(y, y), linewidths=1, annot_kws={"size": "small"},
    )  # fmt: skip
    row, column = divmod(int(np.nanargmax(value.to_numpy())), value.shape[1])
    axes[0].add_patch(Rectangle((column, row), 1, 1, fill=False, edgecolor="black", linewidth=2, clip_on=False))
    return _base.save_or_show("sensitivity", axes, figsize, ax=ax, show=show, save=save)


@_base.plot
def evaluation(
    adata: AnnData, metric: Literal["accuracy", "precision", "recall", "auroc", "mse"] = "auroc", *,
    target: Literal["biomarker", "region", "expression"] | None = None, key: str = _keys.EVALUATION,
    title: str | None = None, legend: bool = True, figsize: tuple[float, float] | None = None, ax: Axes | None = None,
    show: bool | None = None, save: bool | str | PathLike[str] | None = None,
) -> Axes | list[Axes] | None:  # fmt: skip
    """Plot a metric of each model: single seeds, and their mean and standard deviation.

    The dashed line is the AUROC of random predictions; leaky schemes are marked. Of several noise levels, only the
    lowest is shown.

    Examples
    --------
    >>> adata = st.datasets.synthetic_tissue(n_obs=600)
    >>> st.tl.evaluate(adata, ["lda", "nearest_label"], region_key="compartment", n_seeds=2)
    >>> ax = st.pl.evaluation(adata, "accuracy")
    """
    table = _seeds(adata, metric, target, key)
    table = table[table["noise"] == table["noise"].min()]
    models, schemes = pd.unique(table["model"]), list(pd.unique(table["scheme"]))
    colors = dict(zip(schemes, sns.color_palette("colorblind", len(schemes)), strict=True))
    width = max(2.6, 0.55 * len(models) + 1.6)
    targets = pd.unique(table["target"].astype(str))
    axes = _base.panels(targets, title, ax, "target", width, 3.4)
    for axis, name in zip(axes, targets, strict=True):
        part = table[table["target"] == name]
        common: dict[str, Any] = {"x": "model", "y": "value", "hue": "scheme", "order": models, "legend": False}
        sns.stripplot(part, **common, palette=dict.fromkeys(schemes, rcParams["text.color"]), dodge=len(schemes) > 1,
                      jitter=False, size=3.5, alpha=0.5, zorder=4, ax=axis)  # fmt: skip
        sns.pointplot(part, **common, palette=colors, dodge=0.4 * (len(schemes) > 1), linestyle="none", errorbar="sd",
                      markersize=6, capsize=0.1, err_kws={"linewidth": 1.2}, zorder=3, ax=axis)  # fmt: skip
        if metric == "auroc" and part["value"].min() < 0.65:
            axis.axhline(0.5, color="#888888", linewidth=0.8, linestyle="--", zorder=1)
        axis.set_xticks(range(len(models)), [_legend.label_text(m) for m in models], rotation=40, ha="right",
                        rotation_mode="anchor")  # fmt: skip
        axis.grid(axis="y", color="#e6e6e6", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.margins(y=0.12)
        _base.label_axes(axis, ylabel=_mean_label(metric, table) if axis is axes[0] else "")
    if legend and len(schemes) > 1:
        handles = [_legend.point_handle(scheme, colors[scheme]) for scheme in schemes]
        _legend.add_legend(axes, handles, ax=ax, title="split")
    return _base.save_or_show("evaluation", axes, figsize, ax=ax, show=show, save=save)


@_base.plot
def robustness(
    adata: AnnData, metric: Literal["accuracy", "precision", "recall", "auroc", "mse"] = "accuracy", *,
    target: Literal["biomarker", "region", "expression"] | None = None, key: str = _keys.EVALUATION,
    title: str | None = None, legend: bool = True, figsize: tuple[float, float] | None = None, ax: Axes | None = None,
    show: bool | None = None, save: bool | str | PathLike[str] | None = None,
) -> Axes | list[Axes] | None:  # fmt: skip
    """Plot a metric of each model against the noise level, with the standard deviation over seeds.

    Examples
    --------
    >>> adata = st.datasets.synthetic_tissue(n_obs=600)
    >>> st.tl.evaluate(adata, ["lda", "nearest_label"], region_key="compartment", n_seeds=2, noise=[0, 0.2])
    >>> ax = st.pl.robustness(adata)
    """
    table = _seeds(adata, metric, target, key)
    levels = sorted(table["noise"].unique())
    if len(levels) < 2:
        raise ValueError(f"Only the noise level {levels[0]:g} was measured; run `st.tl.evaluate(adata, ..., "
                         "noise=[0, 0.05, 0.1, 0.2])` first.")  # fmt: skip
    targets = pd.unique(table["target"].astype(str))
    axes = _base.panels(targets, title, ax, "target", 4.2, 3.4)
    style = "split" if table["scheme"].nunique() > 1 else None
    palette = "colorblind" if table["model"].nunique() <= 10 else "husl"
    for axis, name in zip(axes, targets, strict=True):
        part = table[table["target"] == name].assign(percent=lambda t: 100 * t["noise"], split=table["scheme"])
        sns.lineplot(
            part, x="percent", y="value", hue="model", style=style, palette=palette, errorbar="sd", err_style="bars",
            marker="o", markersize=5, err_kws={"capsize": 2, "elinewidth": 1}, ax=axis,
        )  # fmt: skip
        axis.set_xticks([100 * level for level in levels])
        handles = axis.get_legend_handles_labels()[0]
        axis.legend().remove()
        label = _mean_label(metric, table) if axis is axes[0] else ""
        _base.label_axes(axis, "noise (% of a gene's standard deviation)", label)
    if legend:
        named = {"model", "split"} if style else set()  # headings of seaborn
        labels = [str(h.get_label()) for h in handles]
        handles = [_legend.heading_handle(n) if n in named else h for n, h in zip(labels, handles, strict=True)]
        _legend.add_legend(axes, handles, ax=ax, title=None if style else "model")
    return _base.save_or_show("robustness", axes, figsize, ax=ax, show=show, save=save)


@_base.plot
def attention_fidelity(
    adata: AnnData, unit: Literal["edges", "regions"] | None = None, *, key: str = _keys.FIDELITY,
    title: str | None = None, legend: bool = True, figsize: tuple[float, float] | None = None, ax: Axes | None = None,
    show: bool | None = None, save: bool | str | PathLike[str] | None = None,
) -> Axes | list[Axes] | None:  # fmt: skip
    """Plot how predictions change when the top edges or regions of each score are removed, or all others are.

    A faithful score lies above the random one when its top edges are removed, and below when only these are kept.
    Sections are averaged. Each unit has a panel for removing and one for keeping.

    Parameters
    ----------
    unit
        ``"edges"`` or ``"regions"``; both by default.
    ax
        Axes to draw the panel of removing into; needs ``unit``.

    Examples
    --------
    >>> adata = st.datasets.synthetic_tissue(n_obs=600)
    >>> st.tl.region_graph(adata, "compartment", max_size=20)
    >>> st.tl.multitask(adata, None, "compartment", save_model="net.stx", params={"epochs": 2})
    >>> st.tl.attention_fidelity(adata, "net.stx", max_regions=5)
    >>> axes = st.pl.attention_fidelity(adata, "edges")
    """
    check_choice("unit", unit, ("edges", "regions", None))
    if ax is not None and unit is None:
        raise ValueError("`ax` takes a single panel; pass `unit='edges'` or `unit='regions'`, or omit `ax`.")
    call, columns = "st.tl.attention_fidelity(adata, model)", ("unit", "mode", "method")
    table = _base.numeric_table(adata, key, "table", ["share", "change"], call, "fidelity of attention", *columns)
    verbs = {"remove": "removed", "keep": "kept"} if ax is None else {"remove": "removed"}
    units = ("edges", "regions") if unit is None else (unit,)
    shown = {f"{u} {verb}": (u, mode) for u in units for mode, verb in verbs.items()}
    n = table["library"].nunique() if "library" in table else 1
    label = "change of the probabilities" + (f"\nmean of {n} sections" if n > 1 else "")
    axes = _base.panels(list(shown), title, ax, "unit", 3.0, 2.6)
    for axis, (name, (u, mode)) in zip(axes, shown.items(), strict=True):
        part = table[(table["unit"] == u) & (table["mode"] == mode)]
        means = part.pivot_table(index="share", columns="method", values="change")
        for method in (m for m in _METHOD_COLORS if m in means):
            axis.plot(100 * means.index, means[method], color=_METHOD_COLORS[method], marker="o", markersize=4,
                      linestyle="--" if method == "random" else "-", label=method.replace("_", " x "))  # fmt: skip
        if axis is not axes[0]:
            axis.sharey(axes[0])
        _base.label_axes(axis, f"first {name} (%)", label if axis is axes[0] else "")
        axis.set_ylim(bottom=0)
        axis.locator_params(axis="x", nbins=4)
    if legend:
        _legend.add_legend(axes, axes[0].get_legend_handles_labels()[0], ax=ax, title="order")
    return _base.save_or_show("attention_fidelity", axes, figsize, ax=ax, show=show, save=save)


def _mean_label(metric: str, table: pd.DataFrame) -> str:
    """Return the label of an axis of means over seeds."""
    seeds = table.groupby(["target", "model", "scheme", "noise"])["seed"].nunique()
    n = "–".join(dict.fromkeys([f"{seeds.min()}", f"{seeds.max()}"]))
    return f"{LABELS[metric]}\nmean ± SD, {n} seed{'s' if n != '1' else ''}"


def stage_name(stage: str) -> str:
    """Return the name of a training stage for a title."""
    return _STAGES.get(stage, stage.replace("_", " "))


def _seeds(adata: AnnData, metric: str, target: str | None, key: str) -> pd.DataFrame:
    """Return one value per model, target, scheme, noise level and seed; leaky schemes are marked."""
    check_choice("metric", metric, tuple(LABELS))
    _base.numeric_table(adata, key, None, [*LABELS, "noise"], "st.tl.evaluate(adata, ...)", "evaluation")
    table = get.evaluation(adata, metric, target=target, per_seed=True, key=key)
    if not np.isfinite(table["value"].to_numpy(dtype=float)).all():
        raise ValueError(f"{metric!r} is infinite for some seeds in `adata.uns[{key!r}]`; run "
                         "`st.tl.evaluate(adata, ...)` again.")  # fmt: skip
    return table.assign(scheme=table["scheme"].astype(str) + np.where(table["leaky"], " (leaky)", ""))
