"""Biomarkers: ranked effects, volcano, and expression over the tissue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from stxtools import _keys
from stxtools._validate import check_adata, check_choice, check_in, check_int, check_number, listing

from . import _base, _volcano

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

_EFFECTS = {
    "auroc": "AUROC",
    "logfoldchanges": "$\\log_2$ fold change",
    "scores": "score",
    "attribution": "attribution",
}
_DIVERGING = "RdBu_r"
_CALL = "st.tl.biomarkers(adata, groupby=...)"


def biomarkers(
    adata: AnnData,
    *,
    group: str | Sequence[str] | None = None,
    n_genes: int = 10,
    fdr: float = 0.05,
    kind: Literal["ranked", "volcano", "spatial"] = "ranked",
    effect: Literal["auroc", "logfoldchanges", "scores", "attribution"] = "auroc",
    layer: str | None = None,
    key: str = _keys.BIOMARKERS,
    library: str | None = None,
    library_key: str | None = None,
    spatial_key: str = _keys.SPATIAL,
    legend: bool = True,
    ax: Axes | None = None,
) -> Axes | list[Axes]:
    """Draw the biomarkers of :func:`stxtools.tl.biomarkers`, one panel per group.

    ``"ranked"`` shows the first genes of every group in the order of the table, with their effect size on the axis,
    the log fold change as colour and the fraction of expressing observations as area; a gene that does not pass
    ``fdr`` is hollow. ``"volcano"`` shows all genes and names the significant ones of largest score in
    either direction. ``"spatial"`` shows the expression of the first genes of one group over one section, a panel
    per gene.

    Parameters
    ----------
    adata
        Annotated data with the table in ``uns[key]``.
    group
        Group or groups; all by default.
    n_genes
        Number of genes per group that are shown (``"ranked"``, ``"spatial"``) or named (``"volcano"``).
    fdr
        False discovery rate up to which ``pvals_adj`` counts as significant.
    kind
        Which picture.
    effect
        Column of the table on the horizontal axis of ``"ranked"``.
    layer
        Layer with the expression for ``"spatial"``; ``X`` by default.
    key
        Key of the table in ``uns``.
    library
        The section that ``"spatial"`` draws; needed where there are several.
    library_key
        ``obs`` column that names the section of each observation; by default the one the table was made with.
    spatial_key
        Key of the coordinates in ``obsm``, for ``"spatial"``.
    legend
        Whether ``"ranked"`` gets its legend and colour bar.
    ax
        Axes to draw into; only for one panel.

    Returns
    -------
    The Axes, or a list of one Axes per panel. ``adata`` does not change.

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
    check_adata(adata, unique_vars=False)
    check_choice("kind", kind, ("ranked", "volcano", "spatial"))
    n_genes = check_int("n_genes", n_genes, minimum=1)
    fdr = check_number("fdr", fdr, minimum=0, maximum=1)
    table = biomarker_table(adata, key)
    groups = biomarker_groups(table, group)
    if kind == "spatial":
        params = adata.uns.get(f"{key}_params")
        genes = _genes_of_one(table, groups, n_genes)
        panel = _base.panels_of(
            adata, spatial_key=spatial_key, library_key=library_key, library=library,
            params=params if isinstance(params, dict) else {}, several=False,
        )[0]  # fmt: skip
        return _spatial(adata, panel, genes, layer, ax)
    if ax is not None and len(groups) > 1:
        raise ValueError(f"`ax` takes one group, but there are {len(groups)} ({listing(groups)}); "
                         f"choose one with `group={groups[0]!r}`, or leave `ax` out.")  # fmt: skip
    if kind == "volcano":
        axes = [ax] if ax is not None else _base.grid(len(groups), 4.4, 3.8, ncols=3)
        for axis, name in zip(axes, groups, strict=True):
            _volcano.draw(axis, table[table["group"].astype(str) == name], fdr=fdr, n_genes=n_genes, title=name)
        return _base.one_or_all(axes)
    check_choice("effect", effect, tuple(_EFFECTS))
    if effect not in table:
        raise KeyError(f"`effect={effect!r}` is not in `adata.uns[{key!r}]`; it has {listing(table.columns)}.")
    return _ranked(table, groups, n_genes, fdr, effect, legend, ax)


def biomarker_table(adata: AnnData, key: str) -> pd.DataFrame:
    """Return the table, or say which call makes it."""
    table = adata.uns.get(key)
    if table is None:
        raise KeyError(f"`adata.uns[{key!r}]` is missing; run `{_CALL}` first.")
    if not isinstance(table, pd.DataFrame) or not {"group", "names", "logfoldchanges", "pvals_adj"} <= set(table):
        raise TypeError(f"`adata.uns[{key!r}]` is not the table of `st.tl.biomarkers`; run `{_CALL}`, "
                        "or name another `key`.")  # fmt: skip
    if table.empty:
        raise ValueError(f"`adata.uns[{key!r}]` has no rows; run `{_CALL}` on data with genes to test.")
    return table


def biomarker_groups(table: pd.DataFrame, group: str | Sequence[str] | None) -> list[str]:
    """Return the groups asked for, all by default."""
    there = list(dict.fromkeys(table["group"].astype(str)))
    if group is None:
        return there
    wanted = [group] if isinstance(group, str) else [str(g) for g in group]
    absent = [g for g in wanted if g not in there]
    if absent or not wanted:
        raise ValueError(f"`group={group!r}` is not in the table; the groups are {listing(there)}.")
    return wanted


def _genes_of_one(table: pd.DataFrame, groups: list[str], n_genes: int) -> list[str]:
    if len(groups) > 1:
        raise ValueError(f"`kind='spatial'` draws the genes of one group, but there are {len(groups)} "
                         f"({listing(groups)}); choose one with `group={groups[0]!r}`.")  # fmt: skip
    return list(table.loc[table["group"].astype(str) == groups[0], "names"].astype(str)[:n_genes])


def _ranked(
    table: pd.DataFrame, groups: list[str], n_genes: int, fdr: float, effect: str, legend: bool, ax: Axes | None
) -> Axes | list[Axes]:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    parts = [table[table["group"].astype(str) == g].iloc[:n_genes] for g in groups]
    change = np.abs(np.concatenate([p["logfoldchanges"].to_numpy(dtype=float) for p in parts]))
    change = change[np.isfinite(change)]
    limit = float(change.max()) if change.size and change.max() > 0 else 1.0
    mapper = ScalarMappable(Normalize(-limit, limit), _DIVERGING)
    height = 0.26 * max(len(p) for p in parts) + 0.7
    axes = [ax] if ax is not None else _base.grid(len(groups), 2.9, height, bottom=0.8 * legend)
    has_fraction = "pct_nz_group" in table
    hollow = False
    for axis, name, part in zip(axes, groups, parts, strict=True):
        value = part[effect].to_numpy(dtype=float)
        place = np.arange(len(part))
        passed = part["pvals_adj"].to_numpy(dtype=float) <= fdr
        hollow |= bool((~passed).any())
        edge = mapper.to_rgba(part["logfoldchanges"].to_numpy(dtype=float))
        face = np.where(passed[:, None], edge, np.array([1.0, 1.0, 1.0, 1.0]))
        area = _area(part["pct_nz_group"]) if has_fraction else np.full(len(part), 60.0)
        origin = 0.5 if effect == "auroc" else 0.0
        axis.hlines(place, origin, value, color="#cccccc", linewidth=1, zorder=1)
        axis.axvline(origin, color="#888888", linewidth=0.8, zorder=0)
        # a thin grey rim keeps pale dots (small changes) visible; hollow dots carry their colour on the rim
        rim = np.where(passed[:, None], np.array([0.35, 0.35, 0.35, 1.0]), np.array([0.6, 0.6, 0.6, 1.0]))
        axis.scatter(value, place, s=area, c=face, edgecolors=rim, linewidths=0.8, zorder=2, label="genes")
        axis.set_yticks(place, part["names"].astype(str), fontsize="small", style="italic")
        axis.set_ylim(len(part) - 0.4, -0.6)
        axis.set_xlabel(_EFFECTS[effect], fontsize="small")
        axis.tick_params(axis="x", labelsize="small")
        axis.tick_params(axis="y", length=0)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.set_title(name, fontsize="medium")
    _same_limits(axes, [p[effect].to_numpy(dtype=float) for p in parts], 0.5 if effect == "auroc" else 0.0)
    if not legend:
        return _base.one_or_all(axes)
    _base.color_bar(axes, mapper, _EFFECTS["logfoldchanges"])
    handles = []
    if has_fraction:
        handles = [_base.heading("expressed in"), *[
            _base.dot(f"{s:.0%}", "#888888", size=float(np.sqrt(_area(s)))) for s in (0.2, 0.6, 1.0)
        ]]  # fmt: skip
    handles.append(_base.dot(f"FDR ≤ {fdr:g}", "#888888"))
    if hollow:
        handles.append(_ring("not significant"))
    _base.add_legend(axes, handles, own=ax is None)
    return _base.one_or_all(axes)


def _same_limits(axes: Sequence[Axes], values: Sequence[NDArray[np.float64]], origin: float) -> None:
    """Give all groups one scale, so that their effects can be compared."""
    every = np.append(np.concatenate(values), origin)
    low, high = float(np.nanmin(every)), float(np.nanmax(every))
    pad = 0.08 * (high - low) or 0.1
    for axis in axes:
        axis.set_xlim(low - pad, high + pad)


def _area(fraction: Any) -> NDArray[np.float64]:
    return 15 + 105 * np.clip(np.nan_to_num(np.asarray(fraction, dtype=float)), 0, 1)


def _ring(label: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], marker="o", linestyle="", markersize=7, markerfacecolor="white", markeredgecolor="#888888",
                  label=label)  # fmt: skip


def _spatial(
    adata: AnnData, panel: _base.Panel, genes: list[str], layer: str | None, ax: Axes | None
) -> Axes | list[Axes]:
    from matplotlib.colors import Normalize

    if layer is not None:
        check_in(adata, "layers", layer, "layer")
    if ax is not None and len(genes) > 1:
        raise ValueError(f"`ax` takes one gene, but `n_genes` asks for {len(genes)}; give `n_genes=1` or leave `ax` "
                         "out.")  # fmt: skip
    absent = [g for g in genes if g not in adata.var_names]
    if absent:
        raise KeyError(f"The table names genes that are not in `adata.var_names`: {listing(absent)}; "
                       f"run `{_CALL}` again.")  # fmt: skip
    left, right, top, bottom = panel.limits
    ratio = (bottom - top) / (right - left)
    width = 2.6 / max(1.0, ratio)
    axes = [ax] if ax is not None else _base.grid(len(genes), width + 0.5, width * ratio + 0.4, ncols=5)
    values = adata[panel.rows, genes].layers[layer] if layer is not None else adata[panel.rows, genes].X
    for i, (axis, gene) in enumerate(zip(axes, genes, strict=True)):
        column = values[:, [i]]
        value = np.asarray(column.toarray() if hasattr(column, "toarray") else column, dtype=float).ravel()
        # a few extreme counts would leave the rest of the tissue in one colour
        high = float(np.quantile(value, 0.995)) or float(value.max()) or 1.0
        spots = _base.draw_spots(
            axis,
            panel.xy,
            value,
            cmap=_base.color_map("viridis"),
            norm=Normalize(min(0.0, float(value.min())), high),
            label=gene,
        )
        _base.frame(axis, panel, None)
        axis.set_title(gene, fontsize="medium", style="italic")
        bar = axis.figure.colorbar(spots, ax=axis, shrink=0.6, aspect=15, pad=0.01, extend="max")
        bar.ax.tick_params(labelsize="x-small")
        bar.outline.set_visible(False)
    return _base.one_or_all(axes)
