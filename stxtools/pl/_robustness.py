"""What noise costs."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

from stxtools import _keys

from . import _base, _legend, _output
from ._evaluation import LABELS, model_colors, seeds_of, targets_of

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes


@_output.plot
def robustness(
    adata: AnnData,
    metric: str = "accuracy",
    *,
    target: str | None = None,
    key: str = _keys.EVALUATION,
    title: str | None = None, legend: bool = True,
    ax: Axes | None = None, show: bool | None = None, save: bool | str | PathLike[str] | None = None,
) -> Axes | list[Axes] | None:  # fmt: skip
    """Draw how well models do against the level of noise: a line each, with the standard deviation over seeds.

    Parameters
    ----------
    adata
        Annotated data with ``uns[key]`` of :func:`stxtools.tl.evaluate`, called with several levels of ``noise``.
    %(parameters)s

    Examples
    --------
    >>> adata = st.datasets.synthetic_tissue(n_obs=600)
    >>> st.tl.evaluate(adata, ["lda", "nearest_label"], region_key="compartment", n_seeds=2, noise=[0, 0.2])
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
    axes, panels = _base.panels(targets_of(table), title, ax, "target", 4.2, 3.4)
    style = {"style": "scheme"} if table["scheme"].nunique() > 1 else {}
    for axis, name, text in panels:
        part = table[table["target"] == name].assign(percent=lambda t: 100 * t["noise"])
        sns.lineplot(
            part, x="percent", y="value", hue="model", palette=model_colors(table), errorbar="sd", err_style="bars",
            marker="o", markersize=5, err_kws={"capsize": 2, "elinewidth": 1}, ax=axis, **style,
        )  # fmt: skip
        axis.set_xticks([100 * level for level in levels])
        handles = axis.get_legend_handles_labels()[0]
        axis.legend().remove()
        _base.finish(axis, text, "noise (% of a gene's standard deviation)", LABELS[metric])
    if legend:
        _legend.add_legend(axes, handles, own=ax is None)
    return _output.done("robustness", axes, ax=ax, show=show, save=save)
