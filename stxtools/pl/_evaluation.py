"""Models side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stxtools import _keys
from stxtools._validate import listing
from stxtools.get import evaluation as _table

from . import _base

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes

LABELS = {
    "accuracy": "accuracy", "precision": "precision (macro)", "recall": "recall (macro)",
    "auroc": "AUROC (one against rest, macro)", "mse": "MSE of held-out genes",
}  # fmt: skip


def evaluation(
    adata: AnnData,
    metric: str = "auroc",
    *,
    target: str | None = None,
    noise: float | None = None,
    key: str = _keys.EVALUATION,
    title: str | None = None,
    legend: bool = True,
    ax: Axes | None = None,
) -> Axes | list[Axes]:
    """Draw a bar for every model: mean over seeds, standard deviation, and the seeds themselves.

    Parameters
    ----------
    adata
        Annotated data with ``uns[key]`` of :func:`stxtools.tl.evaluate`.
    metric
        ``"accuracy"``, ``"precision"``, ``"recall"``, ``"auroc"`` or ``"mse"``.
    target
        ``"biomarker"``, ``"region"`` or ``"expression"``; all that have this metric by default, one panel each.
    noise
        The noise level to draw; the lowest by default.
    key
        Name under which the results were written.
    title
        Title; panels carry the target's name where there are several.
    legend
        Whether a legend is drawn, where several split schemes are.
    ax
        Axes to draw into; only for one target.

    Returns
    -------
    The Axes, or a list of one Axes per target. Bars of a leaky scheme say so. ``adata`` does not change.

    Raises
    ------
    KeyError
        There is no evaluation in ``uns[key]``.
    ValueError
        The metric, target or level is not in it, or ``ax`` is given and there are several targets.

    Examples
    --------
    >>> import stxtools as st
    >>> adata = st.datasets.synthetic_tissue(n_obs=600)
    >>> st.tl.evaluate(adata, ["lda", "nearest_label"], region_key="compartment", n_seeds=2)
    >>> ax = st.pl.evaluation(adata, "accuracy")
    """
    import seaborn as sns

    table = seeds_of(adata, metric, target, key)
    levels = sorted(table["noise"].unique())
    level = levels[0] if noise is None else noise
    if level not in levels:
        raise ValueError(f"`noise={noise!r}` was not measured; the levels are {listing(levels)}.")
    table = table[table["noise"] == level]
    axes, targets = panels_by_target(table, ax, width=max(2.6, 0.75 * table["model"].nunique() + 1.2))
    several = table["scheme"].nunique() > 1
    colors = model_colors(table)
    for axis, name in zip(axes, targets, strict=True):
        part = table[table["target"] == name]
        by = "scheme" if several else "model"
        shared: dict[str, Any] = {"data": part, "x": "model", "y": "value", "hue": by, "ax": axis}
        sns.barplot(
            **shared, errorbar="sd", palette=None if several else colors,
            legend=several and legend and axis is axes[-1],
            err_kws={"linewidth": 1.2}, capsize=0.15, alpha=0.75,
        )  # fmt: skip
        sns.stripplot(
            **shared, dodge=several, palette=["black"] * part[by].nunique(), size=3, jitter=False, legend=False
        )
        axis.set(xlabel="", ylabel=LABELS[metric])
        if axis.get_legend() is not None:
            sns.move_legend(axis, "center left", bbox_to_anchor=(1.0, 0.5))
        axis.tick_params(axis="x", rotation=40)
        for text in axis.get_xticklabels():
            text.set(ha="right", rotation_mode="anchor")
        if metric != "mse":
            low = float(part["value"].min())
            axis.set_ylim(max(0.0, min(low - 0.05, 0.9)), 1.0)
        finish(axis, name if title is None else title if len(axes) == 1 else f"{title}: {name}")
    return _base.one_or_all(axes)


def seeds_of(adata: AnnData, metric: str, target: str | None, key: str) -> pd.DataFrame:
    """Return one value per model, target, scheme, level and seed; leaky schemes are called so."""
    table = _table(adata, metric, target=target, per_seed=True, key=key)
    if table.empty:
        raise ValueError(f"`metric={metric!r}` was not measured for this target in `adata.uns[{key!r}]`.")
    leaky = table["leaky"].to_numpy(dtype=bool)
    return table.assign(scheme=table["scheme"].astype(str).where(~leaky, table["scheme"].astype(str) + " (leaky)"))


def panels_by_target(table: pd.DataFrame, ax: Axes | None, *, width: float) -> tuple[list[Axes], list[str]]:
    """Return one Axes per target, and the targets."""
    targets = [str(t) for t in dict.fromkeys(table["target"])]
    if ax is not None and len(targets) > 1:
        raise ValueError(
            f"`ax` takes one target, but there are {len(targets)} ({listing(targets)}); choose one with "
            f"`target={targets[0]!r}`, or leave `ax` out."
        )
    return ([ax] if ax is not None else _base.grid(len(targets), width, 3.4)), targets


def model_colors(table: pd.DataFrame) -> dict[str, Any]:
    """One colour for each model, the same in every plot of an evaluation."""
    import seaborn as sns

    models = list(dict.fromkeys(table["model"]))
    palette = "colorblind" if len(models) <= 10 else "husl"
    return dict(zip(models, sns.color_palette(palette, len(models)), strict=True))


def finish(ax: Axes, title: str) -> None:
    """Title, small print, open frame."""
    ax.set_title(title, fontsize="medium")
    ax.xaxis.label.set_fontsize("small")
    ax.yaxis.label.set_fontsize("small")
    ax.tick_params(labelsize="small")
    ax.spines[["top", "right"]].set_visible(False)
    legend = ax.get_legend()
    if legend is not None:
        legend.set_frame_on(False)
        legend.set_title("")
        for text in legend.get_texts():
            text.set_fontsize("small")
