"""Whether attention points at what a prediction depends on."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

from stxtools import _keys
from stxtools._validate import check_choice

from . import _base, _legend, _output

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

_METHODS = {
    "attention": ("attention", "#0072B2"),
    "attention_gradient": ("attention x gradient", "#D55E00"),
    "occlusion": ("occlusion", "#009E73"),
    "gradient": ("gradient", "#CC79A7"),
    "random": ("random", "#7f7f7f"),
}


@_output.plot
def attention_fidelity(
    adata: AnnData,
    unit: str | None = None,
    *,
    value: str = "change",
    key: str = _keys.FIDELITY,
    title: str | None = None, legend: bool = True,
    ax: Axes | None = None, show: bool | None = None, save: bool | str | PathLike[str] | None = None,
) -> Axes | list[Axes] | None:  # fmt: skip
    """Draw how a prediction changes when the first edges or regions of each order are removed, or kept alone.

    Removed, a faithful order lies above the random one; kept, below it. Sections are averaged.

    There is one panel for removing and one for keeping, for each unit.

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

    Examples
    --------
    >>> adata = st.datasets.synthetic_tissue(n_obs=600)
    >>> st.tl.region_graph(adata, "compartment", max_size=20)
    >>> st.tl.multitask(adata, None, "compartment", save_model="net.stx", params={"epochs": 2})
    >>> st.tl.attention_fidelity(adata, "net.stx", max_regions=5)
    >>> axes = st.pl.attention_fidelity(adata, "edges")
    """
    check_choice("value", value, ("change", "flipped"))
    check_choice("unit", unit, ("edges", "regions", None))
    if ax is not None and unit is None:
        raise ValueError("`ax` takes one panel; choose `unit='edges'` or `unit='regions'`, or leave `ax` out.")
    table = _base.table_of(adata, key, "table", ["share", value], "st.tl.attention_fidelity(adata, model)")
    if not {"unit", "mode", "method"} <= set(table):
        raise KeyError(f"`adata.uns[{key!r}]['table']` is not that of `st.tl.attention_fidelity`; run "
                       "`st.tl.attention_fidelity(adata, model)` first, or name another `key`.")  # fmt: skip
    wanted = [(u, m) for u in ("edges", "regions") if unit in (None, u) for m in ("remove", "keep")]
    wanted = wanted if ax is None else wanted[:1]
    verbs = {"remove": "removed", "keep": "kept"}
    titles = _base.titles_of([f"{name} {verbs[mode]}" for name, mode in wanted], title)
    axes = _base.grid(len(wanted), 3.0, 2.6) if ax is None else [ax]
    ylabel = "change of the probabilities" if value == "change" else "regions with another class"
    for axis, (name, mode), text in zip(axes, wanted, titles, strict=True):
        part = table[(table["unit"] == name) & (table["mode"] == mode)]
        for method, (label, color) in _METHODS.items():
            mean = part[part["method"] == method].groupby("share")[value].mean().dropna()
            if len(mean):
                line = "--" if method == "random" else "-"
                axis.plot(100 * mean.index, mean, color=color, ls=line, marker="o", ms=4, label=label)
        _base.finish(axis, text, f"first {name} {verbs[mode]} (%)", ylabel if axis is axes[0] else "")
        axis.set_ylim(bottom=0)
        axis.locator_params(axis="x", nbins=4)
    if legend:
        _legend.add_legend(axes, axes[0].get_legend_handles_labels()[0], own=ax is None, title="order")
    return _output.done("attention_fidelity", axes, ax=ax, show=show, save=save)
