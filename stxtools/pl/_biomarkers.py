"""Biomarkers: ranked effects, volcano, and expression over the tissue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from stxtools import _keys
from stxtools._checks import check_names
from stxtools._validate import check_choice, check_int, check_number, listing

from . import _base, _expression, _legend, _output, _volcano
from ._sections import panels_of

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

_EFFECTS = {
    "auroc": "AUROC",
    "logfoldchanges": "$\\log_2$ fold change",
    "scores": "test statistic (z)",
    "attribution": "attribution",
}
_DIVERGING = "RdBu_r"
GENES_MAX = 200
_CALL = "st.tl.biomarkers(adata, groupby=...)"


@_output.plot
def biomarkers(
    adata: AnnData,
    group: str | Sequence[str] | None = None,
    *,
    n_genes: int = 10,
    fdr: float = 0.05,
    kind: Literal["ranked", "volcano", "spatial"] = "ranked",
    effect: Literal["auroc", "logfoldchanges", "scores", "attribution"] = "auroc",
    layer: str | None = None,
    key: str = _keys.BIOMARKERS,
    library: str | Sequence[str] | None = None, library_key: str | bool | None = None,
    spatial_key: str = _keys.SPATIAL, scale_bar: float | bool | None = None,
    title: str | None = None, legend: bool = True,
    ax: Axes | None = None, show: bool | None = None, save: bool | str | PathLike[str] | None = None,
) -> Axes | list[Axes] | None:  # fmt: skip
    """Draw the biomarkers of :func:`stxtools.tl.biomarkers`, one panel per group.

    ``"ranked"`` shows the first genes of every group: effect size on the axis, log fold change as colour, fraction of
    expressing observations as area; a gene that does not pass ``fdr`` is hollow. Against one named group, genes that
    are lower follow below a gap. ``"volcano"`` shows the p-values of all genes against the log fold change, and names
    the top ones; the broken line is where ``fdr`` is reached. ``"spatial"`` shows the expression of the first genes of
    one group.

    Parameters
    ----------
    adata
        Annotated data with the table in ``uns[key]``.
    n_genes
        Number of genes per group that are shown (``"volcano"``: named, as many as have room), at most 200.
    kind
        Which plot.
    effect
        Column of the table on the horizontal axis of ``"ranked"``.
    layer
        Layer with the expression for ``"spatial"``; ``X`` by default.
    key
        Key of the table in ``uns``.
    %(parameters)s

    Examples
    --------
    >>> adata = st.datasets.synthetic_tissue(n_obs=400)
    >>> st.tl.biomarkers(adata, groupby="disease")
    >>> axes = st.pl.biomarkers(adata, n_genes=5)
    """
    check_choice("kind", kind, ("ranked", "volcano", "spatial"))
    table, groups = read_biomarkers(adata, key, group, n_genes=n_genes, fdr=fdr)
    stored = adata.uns.get(f"{key}_params")
    params = stored if isinstance(stored, Mapping) else {}
    if kind == "spatial":
        if len(groups) > 1:
            raise ValueError(f"`kind='spatial'` draws the genes of one group, but there are {len(groups)} "
                             f"({listing(groups)}); choose one with `group={next(iter(groups))!r}`.")  # fmt: skip
        genes = list(next(iter(groups.values()))["names"].astype(str)[:n_genes])
        panels = panels_of(adata, spatial_key=spatial_key, library_key=library_key, library=library, params=params)
        axes = _expression.draw(adata, panels, genes, layer=layer, title=title, legend=legend, ax=ax,
                                spatial_key=spatial_key, scale_bar=scale_bar)  # fmt: skip
        return _output.done("biomarkers", axes, ax=ax, show=show, save=save)
    if kind == "volcano":
        axes, volcanoes = _base.panels(list(groups), title, ax, "group", 4.4, 3.8, ncols=3)
        for axis, name, text in volcanoes:
            _volcano.draw(axis, groups[name], fdr=fdr, n_genes=n_genes, title=text)
    else:
        check_choice("effect", effect, tuple(_EFFECTS))
        if effect not in table:
            raise KeyError(f"`effect={effect!r}` is not in `adata.uns[{key!r}]`; it has {listing(table.columns)}.")
        # groups that were compared with one group: no other rows show that group's own markers
        both = "scores" in table and str(params.get("reference", "rest")) != "rest"
        shown = {name: _shown(part, n_genes, both) for name, part in groups.items()}
        height = 0.26 * max(map(len, shown.values())) + 0.7
        axes, ranked = _base.panels(list(shown), title, ax, "group", 2.9, height, bottom=0.8 * legend)
        _ranked(
            [(axis, text, shown[name]) for axis, name, text in ranked],
            fdr=fdr,
            effect=effect,
            both=both,
            legend=legend,
            own=ax is None,
        )
    return _output.done("biomarkers", axes, ax=ax, show=show, save=save)


def read_biomarkers(
    adata: AnnData, key: str, group: str | Sequence[str] | None, *, n_genes: int, fdr: float
) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """Return the table, or say which call makes it, and the rows of the groups asked for, by default of all."""
    check_int("n_genes", n_genes, minimum=1, maximum=GENES_MAX)
    check_number("fdr", fdr, minimum=0, maximum=1)
    table = _base.slot_of(adata, key)
    if table is None:
        raise KeyError(f"`adata.uns[{key!r}]` is missing; run `{_CALL}` first.")
    if not isinstance(table, pd.DataFrame) or not {"group", "names", "logfoldchanges", "pvals_adj"} <= set(table):
        raise TypeError(f"`adata.uns[{key!r}]` is not the table of `st.tl.biomarkers`; run `{_CALL}`, "
                        "or name another `key`.")  # fmt: skip
    if table.empty:
        raise ValueError(f"`adata.uns[{key!r}]` has no rows; run `{_CALL}` on data with genes to test.")
    columns = [c for c in (*_EFFECTS, "pvals", "pvals_adj", "pct_nz_group") if c in table]
    _base.check_columns(table, columns, f"adata.uns[{key!r}]", _CALL)
    group_of = table["group"].astype(str)
    there = list(dict.fromkeys(group_of))
    wanted = there if group is None else check_names("group", group, "a group")
    absent = [g for g in wanted if g not in there]
    if absent or not wanted:
        raise ValueError(f"`group={group!r}` is not in the table; the groups are {listing(there)}.")
    return table, {name: table[group_of == name] for name in wanted}


def _shown(part: pd.DataFrame, n_genes: int, both: bool) -> pd.DataFrame:
    """Return the first genes, and in both directions the last ones that are lower in the group."""
    if not both:
        return part.iloc[:n_genes]
    lower = part["scores"].to_numpy(dtype=float) < 0
    return pd.concat([part[~lower].iloc[:n_genes], part[lower].iloc[-n_genes:]])


def _ranked(
    panels: list[tuple[Axes, str, pd.DataFrame]], *, fdr: float, effect: str, both: bool, legend: bool, own: bool
) -> None:  # fmt: skip
    """Draw one group into each Axes; all have one scale, so that their effects can be compared."""
    axes, _, parts = zip(*panels, strict=True)
    change = np.abs(np.concatenate([_numbers(p, "logfoldchanges") for p in parts]))
    limit = float(np.max(change, where=np.isfinite(change), initial=0.0)) or 1.0
    colors = _legend.mappable(-limit, limit, _DIVERGING)
    origin = 0.5 if effect == "auroc" else 0.0
    hollow = False
    for axis, text, part in panels:
        value, passed = _numbers(part, effect), _numbers(part, "pvals_adj") <= fdr
        lower = _numbers(part, "scores") < 0 if both else np.zeros(len(part), dtype=bool)
        place = np.arange(len(part)) + 0.5 * (lower & (~lower).any())  # a gap before the genes that are lower
        hollow |= bool((~passed).any())
        face = np.where(passed[:, None], colors.to_rgba(_numbers(part, "logfoldchanges")), 1.0)
        # a thin grey rim keeps pale dots (small changes) visible
        rim = np.where(passed, "#595959", "#999999")
        axis.hlines(place, origin, value, color="#cccccc", linewidth=1, zorder=1)
        axis.axvline(origin, color="#888888", linewidth=0.8, zorder=0)
        axis.scatter(value, place, s=_area(part.get("pct_nz_group", np.full(len(part), 3 / 7))), c=face,
                     edgecolors=rim, linewidths=0.8, zorder=2, label="genes")  # fmt: skip
        _base.finish(axis, text, _EFFECTS[effect])
        axis.set_yticks(place, [_legend.plain(n) for n in part["names"].astype(str)], fontsize="small", style="italic")
        axis.set_ylim(len(part) - 0.4 + 0.5 * bool(lower.any()), -0.6)
        axis.locator_params(axis="x", nbins=4)
        axis.tick_params(axis="y", length=0)
        axis.spines["left"].set_visible(False)
    every = np.append(np.concatenate([_numbers(p, effect) for p in parts]), origin)
    low, high = np.min(every[np.isfinite(every)]), np.max(every[np.isfinite(every)])
    pad = 0.08 * (high - low) or 0.1
    for axis in axes:
        axis.set_xlim(low - pad, high + pad)
    if legend:
        handles = [_legend.dot(f"FDR ≤ {fdr:g}", "#888888")]
        handles += [_legend.ring("not significant", "#888888")] if hollow else []
        if "pct_nz_group" in parts[0]:
            sizes = [_legend.dot(f"{s:.0%}", "#888888", size=float(np.sqrt(_area(s)))) for s in (0.2, 0.6, 1.0)]
            handles = [_legend.heading("expressed in"), *sizes, *handles]
        _legend.add_legend(axes, handles, own=own, bars=[(colors, _EFFECTS["logfoldchanges"])])


def _numbers(part: pd.DataFrame, column: str) -> NDArray[np.float64]:
    return part[column].to_numpy(dtype=float)


def _area(fraction: Any) -> NDArray[np.float64]:
    return 15 + 105 * np.clip(np.nan_to_num(np.asarray(fraction, dtype=float)), 0, 1)
