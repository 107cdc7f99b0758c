"""What noise costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stxtools import _keys

from . import _base
from ._evaluation import LABELS, finish, model_colors, panels_by_target, seeds_of

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes


def robustness(
    adata: AnnData,
    metric: str = "accuracy",
    *,
    target: str | None = None,
    key: str = _keys.EVALUATION,
    title: str | None = None,
    legend: bool = True,
    ax: Axes | None = None,
) -> Axes | list[Axes]:
    """Draw how well models do against the level of noise: a line each, with the standard deviation over seeds.

    Parameters
    ----------
    adata
        Annotated data with ``uns[key]`` of :func:`stxtools.tl.evaluate`, called with several levels of ``noise``.
    metric
        ``"accuracy"``, ``"precision"``, ``"recall"``, ``"auroc"`` or ``"mse"``.
    target
        ``"biomarker"``, ``"region"`` or ``"expression"``; all that have this metric by default, one panel each.
    key
        Name under which the results were written.
    title
        Title; panels carry the target's name where there are several.
    legend
        Whether a legend is drawn.
    ax
        Axes to draw into; only for one target.

    Returns
    -------
    The Axes, or a list of one Axes per target. Several split schemes get lines of their own. ``adata`` does not
    change.

    Raises
    ------
    KeyError
        There is no evaluation in ``uns[key]``.
    ValueError
        Only one noise level was measured, or the metric or target is not there.

    Examples
    --------
    >>> import stxtools as st
    >>> adata = st.datasets.synthetic_tissue(n_obs=600)
    >>> st.tl.evaluate(adata, ["lda"], region_key="compartment", n_seeds=2, noise=[0, 0.1, 0.2])
    >>> ax = st.pl.robustness(adata)
    """
    import seaborn as sns

    table = seeds_of(adata, metric, target, key)
    levels = sorted(table["noise"].unique())
    if len(levels) < 2:
        raise ValueError(
            f"Only the noise level {levels[0]:g} was measured; run `st.tl.evaluate(adata, ..., "
            "noise=[0, 0.05, 0.1, 0.2])` first."
        )
    axes, targets = panels_by_target(table, ax, width=4.2)
    style = {"style": "scheme"} if table["scheme"].nunique() > 1 else {}
    for axis, name in zip(axes, targets, strict=True):
        part = table[table["target"] == name].assign(percent=lambda t: 100 * t["noise"])
        sns.lineplot(
            part, x="percent", y="value", hue="model", palette=model_colors(table), errorbar="sd", err_style="bars",
            marker="o", markersize=5, err_kws={"capsize": 2, "elinewidth": 1}, ax=axis,
            legend=legend and axis is axes[-1], **style,
        )  # fmt: skip
        axis.set(xlabel="noise (% of a gene's standard deviation)", ylabel=LABELS[metric])
        axis.set_xticks([100 * level for level in levels])
        if axis.get_legend() is not None:
            sns.move_legend(axis, "center left", bbox_to_anchor=(1.0, 0.5))
        finish(axis, name if title is None else title if len(axes) == 1 else f"{title}: {name}")
    return _base.one_or_all(axes)
