"""Whether attention points at what a prediction depends on."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any

import pandas as pd

from stxtools import _keys
from stxtools._docs import documented
from stxtools._validate import check_adata, check_bool, check_choice, check_in

from . import _base, _legend, _output

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

_LABELS = {
    "attention": "attention", "attention_gradient": "attention x gradient", "occlusion": "occlusion",
    "gradient": "gradient", "random": "random",
}  # fmt: skip
_COLORS = {
    "attention": "#0072B2", "attention_gradient": "#D55E00", "occlusion": "#009E73", "gradient": "#CC79A7",
    "random": "#7f7f7f",
}  # fmt: skip


@documented
@_output.plot
def attention_fidelity(
    adata: AnnData,
    unit: str | None = None,
    *,
    value: str = "change",
    key: str = _keys.FIDELITY,
    title: str | None = None,
    legend: bool = True,
    ax: Axes | None = None,
    show: bool | None = None,
    save: bool | str | PathLike[str] | None = None,
) -> Axes | list[Axes] | None:
    """Draw how a prediction changes when the first edges or regions of each order are removed, or kept alone.

    Removed, a faithful order lies above the random one; kept, below it. Sections are averaged.

    Parameters
    ----------
    adata
        Annotated data after :func:`stxtools.tl.attention_fidelity`.
    unit
        ``"edges"`` or ``"regions"``; both by default.
    value
        ``"change"`` (of the probabilities) or ``"flipped"`` (share of regions whose class changed).
    ax
        Axes to draw removal into; only with one ``unit``.
    %(parameters)s

    Returns
    -------
    None where the figure was shown, else the Axes, or a list: for each unit one for removing and one for keeping.

    Raises
    ------
    KeyError
        There is no such result.
    ValueError
        ``unit`` or ``value`` is not known, or ``ax`` is given without ``unit``.

    Examples
    --------
    >>> import stxtools as st
    >>> adata = st.datasets.synthetic_tissue(n_obs=600)
    >>> st.tl.region_graph(adata, "compartment", max_size=20)
    >>> st.tl.multitask(adata, None, "compartment", save_model="net.stx", params={"epochs": 2})
    >>> st.tl.attention_fidelity(adata, "net.stx", max_regions=5)
    >>> axes = st.pl.attention_fidelity(adata, "edges")
    """
    check_adata(adata, unique_vars=False)
    check_in(adata, "uns", key, "key", "Run `st.tl.attention_fidelity(adata, model)` first.")
    check_choice("value", value, ("change", "flipped"))
    check_choice("unit", unit, ("edges", "regions", None))
    if ax is not None and unit is None:
        raise ValueError("`ax` takes one panel; choose `unit='edges'` or `unit='regions'`, or leave `ax` out.")
    legend = check_bool("legend", legend)
    _base.check_title(title)
    slot = adata.uns[key]
    table = slot.get("table") if isinstance(slot, Mapping) else None
    if not isinstance(table, pd.DataFrame) or not {"unit", "mode", "method", "share", value} <= set(table):
        raise KeyError(f"`adata.uns[{key!r}]['table']` is not that of `st.tl.attention_fidelity`; run "
                       "`st.tl.attention_fidelity(adata, model)` first, or name another `key`.")  # fmt: skip
    _base.check_columns(
        table, ["share", value], f"adata.uns[{key!r}]['table']", "st.tl.attention_fidelity(adata, model)"
    )
    wanted = [(u, m) for u in ("edges", "regions") if unit in (None, u) for m in ("remove", "keep")]
    if ax is not None:
        wanted, axes = wanted[:1], [ax]
    else:
        axes = _base.grid(len(wanted), 3.0, 2.6)
    for axis, (name, mode) in zip(axes, wanted, strict=True):
        part = table[(table["unit"] == name) & (table["mode"] == mode)]
        for method in _LABELS:
            mean = part[part["method"] == method].groupby("share")[value].mean().dropna()
            if len(mean):
                style: dict[str, Any] = {"color": _COLORS[method], "ls": "--" if method == "random" else "-"}
                axis.plot(
                    100 * mean.index.to_numpy(), mean.to_numpy(), marker="o", ms=4, label=_LABELS[method], **style
                )
        verb = "removed" if mode == "remove" else "kept"
        axis.set_title(title if title is not None else f"{name} {verb}")
        axis.set_xlabel(f"first {name} {verb} (%)")
        if axis is axes[0]:
            axis.set_ylabel("change of the probabilities" if value == "change" else "regions with another class")
        axis.set_ylim(bottom=0)
        axis.spines[["top", "right"]].set_visible(False)
    if legend:
        handles = axes[0].get_legend_handles_labels()[0]
        _legend.add_legend(axes, handles, own=ax is None, title="order")
    return _output.done("attention_fidelity", axes, ax=ax, show=show, save=save)
