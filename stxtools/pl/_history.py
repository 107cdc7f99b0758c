"""Training curves, and how the number of segments was chosen."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stxtools import _keys
from stxtools._validate import check_bool, listing

from . import _base, _output
from ._palette import DOWN, UP

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

_CALLS = {_keys.SEGMENT: "st.tl.segment(adata)", _keys.EMBED: "st.tl.embed(adata)",
          _keys.MULTITASK: "st.tl.multitask(adata, ...)"}  # fmt: skip
_STAGES = {"pretrain_masked": "masked pretraining", "pretrain_contrastive": "contrastive pretraining"}


@_output.plot
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
    adata
        Annotated data with ``uns[key]["history"]``.
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
    log = check_bool("log", log)
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
    return _output.done("history", axes, ax=ax, show=show, save=save)


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


@_output.plot
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
    adata
        Annotated data with ``uns[key]["stability"]``.
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
    return _output.done("stability", [axis], ax=ax, show=show, save=save)
