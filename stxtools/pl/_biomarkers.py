"""Biomarkers: ranked effects, volcano, and expression over the tissue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from stxtools import _keys
from stxtools._docs import documented
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


@documented
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
    library: str | Sequence[str] | None = None,
    library_key: str | bool | None = None,
    spatial_key: str = _keys.SPATIAL,
    scale_bar: float | bool | None = None,
    title: str | None = None,
    legend: bool = True,
    ax: Axes | None = None,
    show: bool | None = None,
    save: bool | str | PathLike[str] | None = None,
) -> Axes | list[Axes] | None:
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

    Returns
    -------
    None where the figure was shown, else the Axes, or a list of one Axes per panel.

    Raises
    ------
    KeyError
        The table is missing, or has no column ``effect``.
    ValueError
        ``group``, ``kind`` or ``library`` is not understood, or ``ax`` is given and there are several panels.

    Examples
    --------
    >>> import stxtools as st
    >>> adata = st.datasets.synthetic_tissue(n_obs=400)
    >>> st.tl.biomarkers(adata, groupby="disease")
    >>> axes = st.pl.biomarkers(adata, n_genes=5)
    """
    check_choice("kind", kind, ("ranked", "volcano", "spatial"))
    n_genes = check_int("n_genes", n_genes, minimum=1, maximum=GENES_MAX)
    fdr = check_number("fdr", fdr, minimum=0, maximum=1)
    table = biomarker_table(adata, key)
    groups = biomarker_groups(table, group)
    stored = adata.uns.get(f"{key}_params")
    params = stored if isinstance(stored, Mapping) else {}
    if kind == "spatial":
        genes = _genes_of_one(table, groups, n_genes)
        panels = panels_of(adata, spatial_key=spatial_key, library_key=library_key, library=library, params=params)
        axes = _expression.draw(adata, panels, genes, layer=layer, title=title, legend=legend, ax=ax,
                                spatial_key=spatial_key, scale_bar=scale_bar)  # fmt: skip
        return _output.done("biomarkers", axes, ax=ax, show=show, save=save)
    axes = _base.given(ax, groups, "group", "group")
    titles = _base.titles_of(groups, title)
    parts = [table[table["group"].astype(str) == name] for name in groups]
    if kind == "volcano":
        axes = axes or _base.grid(len(groups), 4.4, 3.8, ncols=3)
        for axis, part, text in zip(axes, parts, titles, strict=True):
            _volcano.draw(axis, part, fdr=fdr, n_genes=n_genes, title=text)
    else:
        check_choice("effect", effect, tuple(_EFFECTS))
        if effect not in table:
            raise KeyError(f"`effect={effect!r}` is not in `adata.uns[{key!r}]`; it has {listing(table.columns)}.")
        # groups that were compared with one group: no other rows show that group's own markers
        both = "scores" in table and str(params.get("reference", "rest")) != "rest"
        parts = [_shown(part, n_genes, both) for part in parts]
        axes = axes or _base.grid(len(parts), 2.9, 0.26 * max(map(len, parts)) + 0.7, bottom=0.8 * legend)
        _ranked(axes, parts, titles, fdr=fdr, effect=effect, both=both, legend=legend, own=ax is None)
    return _output.done("biomarkers", axes, ax=ax, show=show, save=save)


def biomarker_table(adata: AnnData, key: str) -> pd.DataFrame:
    """Return the table, or say which call makes it."""
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
    return table


def biomarker_groups(table: pd.DataFrame, group: str | Sequence[str] | None) -> list[str]:
    """Return the groups asked for, all by default."""
    there = list(dict.fromkeys(table["group"].astype(str)))
    if group is None:
        return there
    wanted = _base.names_of(group, "group", "a group")
    absent = [g for g in wanted if g not in there]
    if absent or not wanted:
        raise ValueError(f"`group={group!r}` is not in the table; the groups are {listing(there)}.")
    return wanted


def _genes_of_one(table: pd.DataFrame, groups: list[str], n_genes: int) -> list[str]:
    if len(groups) > 1:
        raise ValueError(f"`kind='spatial'` draws the genes of one group, but there are {len(groups)} "
                         f"({listing(groups)}); choose one with `group={groups[0]!r}`.")  # fmt: skip
    return list(table.loc[table["group"].astype(str) == groups[0], "names"].astype(str)[:n_genes])


def _shown(part: pd.DataFrame, n_genes: int, both: bool) -> pd.DataFrame:
    """Return the first genes, and in both directions the last ones that are lower in the group."""
    if not both:
        return part.iloc[:n_genes]
    lower = part["scores"].to_numpy(dtype=float) < 0
    return pd.concat([part[~lower].iloc[:n_genes], part[lower].iloc[-n_genes:]])


def _ranked(
    axes: Sequence[Axes], parts: Sequence[pd.DataFrame], titles: Sequence[str], *, fdr: float, effect: str, both: bool,
    legend: bool, own: bool,
) -> None:  # fmt: skip
    """Draw one group into each Axes; all have one scale, so that their effects can be compared."""
    change = np.abs(np.concatenate([_numbers(p, "logfoldchanges") for p in parts]))
    limit = float(np.max(change, where=np.isfinite(change), initial=0.0)) or 1.0
    colors = _legend.mappable(-limit, limit, _DIVERGING)
    origin = 0.5 if effect == "auroc" else 0.0
    hollow = False
    for axis, text, part in zip(axes, titles, parts, strict=True):
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
