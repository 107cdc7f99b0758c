"""How much the weights of the two losses matter."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stxtools import _keys
from stxtools._validate import listing

from . import _base, _legend, _output
from ._evaluation import LABELS

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes


@_output.plot
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
    adata
        Annotated data with ``uns[key]`` of :func:`stxtools.tl.tune`.
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
    return _output.done("sensitivity", [axis], ax=ax, show=show, save=save)


def _annotations(best: pd.DataFrame, cells: pd.DataFrame, x: str, y: str, *, spread: str | None) -> Any:
    """What stands in each cell: the value, and below it its spread where it is known."""
    text = cells.map(lambda v: "" if np.isnan(v) else f"{v:.3f}")
    if spread in best:
        sd = best.pivot(index=y, columns=x, values=spread).reindex_like(cells)
        text = text + sd.map(lambda v: "" if np.isnan(v) else f"\n± {v:.3f}")
    return text.to_numpy()


def _greek(name: str) -> str:
    return {"alpha": "α (biomarker)", "beta": "β (classification)"}.get(name, name)
