"""Biomarkers as ranked effects, as a volcano and as drug targets; evidence on the compartments."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import seaborn as sns
from anndata import AnnData
from matplotlib import rcParams
from matplotlib.axes import Axes
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from stxtools import _keys, get
from stxtools._checks import check_choice, check_int, check_names, listing
from stxtools._types import Floats

from . import _base, _legend
from ._legend import DOWN, UP

_EFFECTS = {
    "auroc": "AUROC", "logfoldchanges": "$\\log_2$ fold change", "scores": "test statistic (z)",
    "attribution": "attribution",
}  # fmt: skip
_GENES_MAX = 200
_TESTED = "st.tl.biomarkers(adata, groupby=...)"
_NOT_SIGNIFICANT = "#c8c8c8"
_GAP = 0.06  # share of the width between the outermost point and the names
_LINE = 0.14  # height of a name, inches
# of the columns that st.tl.targets joins, those that decide whether a gene can be a target, and their labels
_EVIDENCE: dict[str, str] = json.loads(Path(__file__).with_name("_evidence.json").read_text("utf-8"))
_AGAINST = {"is_essential", "safety_events"}
_JOINED = "st.tl.targets(adata, table=...)"
_CELL = 0.26  # inches
_Z_LIMIT, _ROWS_MAX = 6.0, 60


@_base.plot
def biomarkers(
    adata: AnnData, group: str | Sequence[str] | None = None, *, n_genes: int = 10, fdr: float = 0.05,
    kind: Literal["ranked", "volcano"] = "ranked",
    effect: Literal["auroc", "logfoldchanges", "scores", "attribution"] = "auroc", gene_symbols: str | None = None,
    key: str = _keys.BIOMARKERS, title: str | None = None, legend: bool = True,
    figsize: tuple[float, float] | None = None, ax: Axes | None = None, show: bool | None = None,
    save: bool | str | PathLike[str] | None = None,
) -> Axes | list[Axes] | None:  # fmt: skip
    """Plot the biomarkers of :func:`stxtools.tl.biomarkers`, one panel per group.

    ``"ranked"`` shows the top genes: effect size as position, log fold change as colour, fraction of expressing
    observations as area; genes above ``fdr`` are hollow. If the reference is a single group, genes with lower
    expression follow below a gap. ``"volcano"`` shows p-values against log fold changes and labels the top genes; a
    dashed line marks ``fdr`` if a threshold of p separates the significant genes. For expression in spatial
    coordinates use ``scanpy.pl.embedding(adata, "spatial", color=genes)``.

    Parameters
    ----------
    n_genes
        Number of genes per group to show (in ``"volcano"`` to label, if there is room); at most 200.
    kind
        Type of plot, ``"ranked"`` or ``"volcano"``.
    effect
        Effect size on the horizontal axis of ``"ranked"``, a column of the table.

    Examples
    --------
    >>> adata = st.datasets.synthetic_tissue(n_obs=400)
    >>> st.tl.biomarkers(adata, groupby="disease")
    >>> axes = st.pl.biomarkers(adata, n_genes=5)
    """
    check_choice("kind", kind, ("ranked", "volcano"))
    table, groups = _tested_groups(adata, key, group, n_genes, gene_symbols)
    params = adata.uns.get(f"{key}_params", {})
    reference = str(params.get("reference", "rest"))
    choose = f"`group={next(iter(groups))!r}`"
    names = [f"{name} vs. {reference}" for name in groups]
    if max(map(len, names)) > _legend.LABEL_MAX:  # shortened in their middle, they would look alike
        names = list(groups)
    if kind == "volcano":
        axes = _base.panels(names, title, ax, "group", 4.4, 3.8, choose=choose, ncols=3, figsize=figsize)
        tables = [_volcano_table(part, fdr) for part in groups.values()]
        colors = {"higher": UP, "lower": DOWN, "not significant": _NOT_SIGNIFICANT}
        if legend:  # before the names, which take the room that is left
            drawn = set().union(*(table["kind"] for table in tables))
            handles = _legend.class_handles([kind for kind in colors if kind in drawn], colors, missing=False)
            _legend.add_legend(axes, handles, ax=ax, title=f"FDR {fdr:g}")
        for axis, points in zip(axes, tables, strict=True):
            _volcano(axis, points, colors, fdr=fdr, n_genes=n_genes)
            _base.label_axes(axis, _EFFECTS["logfoldchanges"], f"$-\\log_{{10}}$ {points.attrs['p']}")
    else:
        check_choice("effect", effect, tuple(_EFFECTS))
        if effect not in table:
            raise KeyError(f"`effect={effect!r}` is not in `adata.uns[{key!r}]`; it has {listing(table.columns)}.")
        # groups that were compared with one group: no other rows show that group's own markers
        both = reference != "rest" and params.get("alternative", "two-sided") == "two-sided"
        parts = [_ranked_genes(part, n_genes, both) for part in groups.values()]
        height = 0.26 * max(map(len, parts)) + 0.7
        layout: dict[str, Any] = {"choose": choose, "bottom": 0.8 * legend, "figsize": figsize}
        axes = _base.panels(names, title, ax, "group", 2.9, height, **layout)
        handles, bar = _ranked(axes, parts, fdr=fdr, effect=effect, both=both)
        if legend:
            bars = [(bar, _EFFECTS["logfoldchanges"])] if (pd.concat(parts)["pvals_adj"] <= fdr).any() else []
            _legend.add_legend(axes, handles, ax=ax, bars=bars)
    return _base.save_or_show("biomarkers", axes, figsize, ax=ax, show=show, save=save)


def _tested_groups(
    adata: AnnData, key: str, group: str | Sequence[str] | None, n_genes: int, gene_symbols: str | None
) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """Return the table of the given groups, by default of all, and the rows of each."""
    check_int("n_genes", n_genes, minimum=1, maximum=_GENES_MAX)
    table = get.biomarkers(adata, group, gene_symbols=gene_symbols, key=key)
    if gene_symbols is not None:
        table["names"] = table[gene_symbols]
    if table.empty:
        raise ValueError(f"`adata.uns[{key!r}]` has no rows; run `{_TESTED}` on data with genes to test.")
    columns = [c for c in (*_EFFECTS, "pvals", "pvals_adj", "pct_nz_group") if c in table]
    _base.check_numeric(table, columns, f"adata.uns[{key!r}]", _TESTED)
    table = table.astype(dict.fromkeys(columns, float))
    group_of = table["group"].astype(str)
    names = pd.unique(group_of) if group is None else check_names("group", group, "a group")
    return table, {name: table[group_of == name] for name in names}


def _ranked_genes(part: pd.DataFrame, n_genes: int, both: bool) -> pd.DataFrame:
    """Return the first genes, and in both directions the last ones that are lower in the group."""
    if not both:
        return part.iloc[:n_genes]
    lower = part["scores"] < 0
    return pd.concat([part[~lower].iloc[:n_genes], part[lower].iloc[-n_genes:]])


def _ranked(
    axes: Sequence[Axes], parts: Sequence[pd.DataFrame], *, fdr: float, effect: str, both: bool
) -> tuple[list[Any], Any]:
    """Draw one group into each Axes, all on one scale; return the handles of the legend and the colours."""
    drawn = pd.concat(parts)
    significant = drawn["pvals_adj"] <= fdr
    change = np.abs(drawn.loc[significant, "logfoldchanges"].to_numpy())  # others are hollow
    limit = float(np.max(change, where=np.isfinite(change), initial=0.0)) or 1.0
    colors = _legend.mappable(-limit, limit, _base.DIVERGING)
    origin = 0.5 if effect == "auroc" else 0.0
    for axis, part in zip(axes, parts, strict=True):
        if axis is not axes[0]:
            axis.sharex(axes[0])
        passed = (part["pvals_adj"] <= fdr).to_numpy()
        lower = both & (part["scores"] < 0).to_numpy()
        y = np.arange(len(part)) + 0.5 * (lower & (~lower).any())  # a gap before the genes that are lower
        background = np.array(axis.get_facecolor())
        face = np.where(passed[:, None], colors.to_rgba(part["logfoldchanges"].to_numpy()), background)
        # a thin grey rim keeps pale dots (small changes) visible
        rim = np.where(passed, "#595959", "#999999")
        axis.hlines(y, origin, part[effect], color="#cccccc", linewidth=1, zorder=1)
        axis.axvline(origin, color="#888888", linewidth=0.8, zorder=0)
        axis.scatter(part[effect], y, s=_dot_area(part.get("pct_nz_group", np.full(len(part), 3 / 7))), c=face,
                     edgecolors=rim, linewidths=0.8, zorder=2, label="genes")  # fmt: skip
        _base.label_axes(axis, _EFFECTS[effect])
        _base.label_rows(axis, [_legend.label_text(n) for n in part["names"].astype(str)], y, style="italic")
        axis.margins(x=0.08)
        axis.locator_params(axis="x", nbins=5, steps=[1, 2.5, 5, 10])  # 0.5 is one of them
    handles = [_legend.point_handle(f"FDR ≤ {fdr:g}", "#888888")] if significant.any() else []
    if not significant.all():
        handles.append(_legend.point_handle("not significant", "#888888", edge=1))
    if "pct_nz_group" in drawn:
        sizes = {f"{share:.0%}": float(np.sqrt(_dot_area(share))) for share in (0.2, 0.6, 1.0)}
        handles.append(_legend.heading_handle("expressed in"))
        handles += [_legend.point_handle(label, "#888888", size=size) for label, size in sizes.items()]
    return handles, colors


def _dot_area(fraction: Any) -> Floats:
    return 15 + 105 * np.clip(np.nan_to_num(np.asarray(fraction, dtype=float)), 0, 1)


def _volcano_table(part: pd.DataFrame, fdr: float) -> pd.DataFrame:
    """Return the points of a group by uncorrected p-values: corrected ones end in a flat top."""
    raw = "pvals" in part
    table = pd.DataFrame({"name": part["names"].astype(str), "x": part["logfoldchanges"],
                          "p": part["pvals" if raw else "pvals_adj"], "passed": part["pvals_adj"] <= fdr})  # fmt: skip
    table = table[np.isfinite(table[["x", "p"]]).all(axis=1) & (table["p"] >= 0)].reset_index(drop=True)
    if table.empty:
        raise ValueError(f"No gene of group {part['group'].iloc[0]!r} has a finite log fold change and p-value to "
                         f"draw; run `{_TESTED}` again.")  # fmt: skip
    # p = 0 is an underflow: it is drawn at the smallest p above 0
    table["y"] = -np.log10(table["p"].clip(lower=table["p"].where(table["p"] > 0, 1.0).min()))
    table["kind"] = np.where(~table["passed"], "not significant", np.where(table["x"] >= 0, "higher", "lower"))
    table.attrs["p"] = "p" if raw else "adjusted p"
    return table


def _volcano(ax: Axes, table: pd.DataFrame, colors: Mapping[str, str], *, fdr: float, n_genes: int) -> None:
    """Draw one group, and name its first significant genes."""
    for kind, color in list(colors.items())[::-1]:  # the significant on top
        ax.scatter("x", "y", data=table[table["kind"] == kind], s=14, c=color, linewidths=0, label=kind,
                   rasterized=len(table) > 5000)  # fmt: skip
    ax.axvline(0, color="#888888", linewidth=0.8, zorder=0)
    # the top points; the table's order breaks ties of p-values that end in a floor
    table["inward"] = np.minimum(table.index, table.index[::-1])
    top = table[table["passed"]].sort_values(["p", "inward"]).head(n_genes)
    room = max(1, int(0.9 * _legend.axes_size(ax)[1] / _LINE))
    sides = [top[side].head(room) for side in (top["x"] < 0, top["x"] >= 0)]
    highest = table["y"].max() or 1.0
    named = _annotate_genes(ax, sides, min(table["x"].min(), -0.1), max(table["x"].max(), 0.1), highest)
    least, most = table.loc[table["passed"], "y"].min(), table.loc[~table["passed"], "y"].max()
    if most < least:  # false where there is none; a correction that uses more than p has no threshold of p
        at = (least + most) / 2
        ax.axhline(at, color="#888888", linewidth=0.8, linestyle="--", zorder=0)
        line = _LINE * np.ptp(ax.get_ylim()) / _legend.axes_size(ax)[1]
        free = [side for side, heights in enumerate(named) if not (abs(heights - at - line / 2) < line).any()]
        for side in free[:1]:
            ax.annotate(f"FDR {fdr:g}", (side, at), xycoords=ax.get_yaxis_transform(), xytext=(2 - 4 * side, 1),
                        textcoords="offset points", ha=("left", "right")[side], va="bottom", fontsize="x-small",
                        color="#888888", zorder=5, path_effects=[_base.halo()])  # fmt: skip


def _annotate_genes(ax: Axes, sides: Sequence[pd.DataFrame], low: float, high: float, top: float) -> list[Floats]:
    """Write names left and right of all points so that the sum of the lines to them is shortest: they do not cross.

    Return the heights of the names on each side.
    """
    size = _legend.axes_size(ax)
    shares = [min(0.35, _legend.text_width(part["name"]) / size[0] + _GAP) if len(part) else 0.04 for part in sides]
    span = (high - low) / (1 - sum(shares))
    ax.set(xlim=(low - shares[0] * span, high + shares[1] * span), ylim=(-0.03 * top, 1.08 * top))
    scale = size / [span, 1.11 * top]  # inches per unit
    named: list[Floats] = []
    for part, side, column in zip(sides, (-1, 1), (low, high), strict=True):
        n = max(len(part), int(size[1] / _LINE))
        heights = np.linspace(-0.03 * top, 1.08 * top, 2 * n + 1)[1::2]
        slots = np.c_[np.full(n, column + side * 0.6 * _GAP * span), heights]
        assigned = linear_sum_assignment(cdist(part[["x", "y"]] * scale, slots * scale))[1]
        for row, slot in zip(part.itertuples(), slots[assigned], strict=True):
            ax.plot(*zip((row.x, row.y), slot, strict=True), color="#999999", linewidth=0.5, zorder=1.5,
                    label="_leader")  # fmt: skip
            ax.annotate(_legend.label_text(row.name), slot, xytext=(2 * side, 0), textcoords="offset points",
                        ha="left" if side > 0 else "right", va="center", fontsize="x-small", style="italic",
                        zorder=4)  # fmt: skip
        named.append(heights[assigned])
    return named


@_base.plot
def describe(
    adata: AnnData, kind: str = "activity", *, group: str | Sequence[str] | None = None, n_top: int = 3,
    fdr: float = 0.05, key: str = _keys.DESCRIBE, cmap: str | None = None, title: str | None = None,
    legend: bool = True, figsize: tuple[float, float] | None = None, ax: Axes | None = None, show: bool | None = None,
    save: bool | str | PathLike[str] | None = None,
) -> Axes | list[Axes] | None:  # fmt: skip
    """Plot gene set activities or ligand-receptor contacts of :func:`stxtools.tl.describe` as a heat map.

    Colour is the test statistic (z); dots mark values significant at ``fdr``. Contacts without a significant pair are
    omitted, unless there is none at all.

    Parameters
    ----------
    kind
        ``"activity"`` (or a name given in ``net``) or ``"contact"``.
    n_top
        Number of rows for each compartment or contact: those with the largest positive z.

    Examples
    --------
    >>> import pandas as pd
    >>> adata = st.datasets.synthetic_tissue(n_obs=400)
    >>> st.tl.biomarkers(adata, groupby="compartment", n_null=100)
    >>> pairs = pd.DataFrame({"ligand": adata.var_names[:5], "receptor": adata.var_names[5:10]})
    >>> st.tl.describe(adata, "compartment", resource=pairs)
    >>> ax = st.pl.describe(adata, "contact")
    """
    n_top = check_int("n_top", n_top, minimum=1)
    table = get.describe(adata, kind, group=group, key=key)
    where = f"adata.uns[{f'{key}_evidence'!r}]"
    _base.check_numeric(table, ["scores", "pvals_adj"], where, "st.tl.describe(adata, ...)")
    partner = table["partner"].astype(str)
    table["column"] = table["group"].astype(str) + np.where(partner == "", "", " \N{RIGHTWARDS ARROW} " + partner)
    if table.duplicated(["column", "names"]).any():
        raise ValueError(f"`{where}` has duplicated rows; run `st.tl.describe` again.")
    higher = table[table["scores"] > 0]
    significant = pd.unique(higher.loc[higher["pvals_adj"] <= fdr, "column"])
    if kind == "contact" and len(significant):
        table, higher = (part[part["column"].isin(significant)] for part in (table, higher))
    names = pd.unique(higher.sort_values("scores", ascending=False, kind="stable").groupby("column", sort=False)
                      .head(n_top).sort_index()["names"])  # fmt: skip
    columns = pd.unique(table["column"])
    if not len(names):
        raise ValueError(f"`{where}` has no row of this kind with `scores` above 0; there is nothing to plot.")
    if max(len(columns), len(names)) > _ROWS_MAX:
        raise ValueError(f"{len(names)} rows and {len(columns)} columns are more than one figure shows ({_ROWS_MAX}); "
                         "choose some with `group=`, or fewer with `n_top=`.")  # fmt: skip
    scores, adjusted = (table.pivot(index="names", columns="column", values=v).reindex(index=names, columns=columns)
                        for v in ("scores", "pvals_adj"))  # fmt: skip
    dots = np.where(adjusted <= fdr, "\N{BULLET}", "")
    axes = _base.heatmap(scores, kind, title, label="z, against random regions", limits=(-_Z_LIMIT, _Z_LIMIT),
                         texts=dots, handles=[_legend.point_handle(f"FDR ≤ {fdr:g}", rcParams["text.color"], size=4)],
                         legend=legend, ax=ax, cmap=cmap or _base.DIVERGING)  # fmt: skip
    return _base.save_or_show("describe", axes, figsize, ax=ax, show=show, save=save)


@_base.plot
def targets(
    adata: AnnData, group: str | Sequence[str] | None = None, *, n_genes: int = 20, fdr: float = 0.05,
    columns: Sequence[str] | None = None, gene_symbols: str | None = None, key: str = _keys.BIOMARKERS,
    title: str | None = None, legend: bool = True, figsize: tuple[float, float] | None = None, ax: Axes | None = None,
    show: bool | None = None, save: bool | str | PathLike[str] | None = None,
) -> Axes | list[Axes] | None:  # fmt: skip
    """Plot the target evidence of :func:`stxtools.tl.targets` for the top biomarkers, one panel per group.

    Rows are genes in the order of the table, with grey names if not significant at ``fdr``; columns are kinds of
    evidence. Blue supports a target; red with a minus argues against it, on Open Targets' scale from -1 to 1. Drugs and
    tractability are blue. Grey cells have no value.

    Parameters
    ----------
    n_genes
        Number of genes per group, at most 200.
    columns
        Columns of the table to show; by default drugs, clinical phase, tractability, cellular location and safety.

    Examples
    --------
    >>> import pandas as pd
    >>> adata = st.datasets.synthetic_tissue(n_obs=400)
    >>> st.tl.biomarkers(adata, groupby="disease")
    >>> genes = adata.uns["biomarkers"]["names"][:4]
    >>> drugs = pd.DataFrame({"gene_name": genes, "drug_name": list("ABCD"), "approved": [True, False, False, True]})
    >>> st.tl.targets(adata, drugs)
    >>> ax = st.pl.targets(adata, group="diseased", n_genes=10)
    """
    table, groups = _tested_groups(adata, key, group, n_genes, gene_symbols)
    if columns is None:
        columns = [c for c in _EVIDENCE if c in table]
        if not columns:
            raise KeyError(f"`adata.uns[{key!r}]` has no column of targets; run `{_JOINED}` first, or name `columns`.")
    columns = check_names("columns", columns, "a column")
    if (absent := [c for c in columns if c not in table]) or not columns:
        raise KeyError(f"`columns` names {listing(absent)}; `adata.uns[{key!r}]` has {listing(table.columns)}.")
    _base.check_numeric(table, [c for c in columns if c.startswith("n_")], f"adata.uns[{key!r}]", _JOINED)
    parts = [part.iloc[:n_genes] for part in groups.values()]
    width, height = max(_CELL * len(columns) + 1.5, 2.6), _CELL * max(map(len, parts)) + 1.5
    axes = _base.panels(list(groups), title, ax, "group", width, height, bottom=0.5 * legend)
    for axis, part in zip(axes, parts, strict=True):
        _target_cells(axis, part, columns, fdr)
    if legend:
        bar = _legend.mappable(-1, 1, "RdBu")
        _legend.add_legend(axes, [], ax=ax, bars=[(bar, "evidence as a target\n(-1: against, 1: for)")])
    return _base.save_or_show("targets", axes, figsize, ax=ax, show=show, save=save)


def evidence_texts(table: pd.DataFrame) -> list[str]:
    """Return the evidence for and against each gene as a target, as text; empty where nothing is known."""
    parts = []
    for column in (c for c in _EVIDENCE if c in table):
        value = np.nan_to_num(_favourability(table[column]))
        numbers = [f" ({n:.0f})" for n in table[column]] if column.startswith("n_") else [""] * len(table)
        sides = np.select([value > 0, value < 0], [_EVIDENCE[column], f"against: {_EVIDENCE[column]}"], "")
        parts.append([f"{side}{n}" if side else "" for side, n in zip(sides, numbers, strict=True)])
    return [", ".join(filter(None, row)) for row in zip(*parts, strict=True)] if parts else [""] * len(table)


def _target_cells(ax: Axes, part: pd.DataFrame, columns: list[str], fdr: float) -> None:
    value = np.column_stack([_favourability(part[c]) for c in columns])
    numbers = np.column_stack([[f"{n:.0f}" if c.startswith("n_") and n > 0 else "" for n in part[c]] for c in columns])
    numbers = np.where(value < 0, "\N{MINUS SIGN}", numbers)  # in grey, red looks like blue
    ax.set_facecolor("#ececec")  # of cells without a value
    sns.heatmap(value, vmin=-1, vmax=1, cmap="RdBu", annot=numbers, fmt="", annot_kws={"size": "x-small"}, cbar=False,
                linewidths=0.5, linecolor="#999999", xticklabels=[_EVIDENCE.get(c, c) for c in columns],
                yticklabels=[_legend.label_text(n) for n in part["names"].astype(str)], ax=ax)  # fmt: skip
    _base.label_axes(ax)
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    for label in ax.get_xticklabels():
        label.set(rotation=60, ha="left", rotation_mode="anchor")
    for label, p in zip(ax.get_yticklabels(), part["pvals_adj"], strict=True):
        label.set(rotation=0, style="italic", color=label.get_color() if p <= fdr else "#999999")


def _favourability(column: pd.Series) -> Floats:
    """Return -1 (against the gene as a target) to 1 (for it) for every gene; NaN where nothing is known."""
    name = str(column.name)
    if pd.api.types.is_numeric_dtype(column.dtype) and name not in _AGAINST:
        value = column.to_numpy(dtype=float)
        return np.where(value > 0, 1.0, np.nan) if name.startswith("n_") else value
    present = column.fillna(False) if name == "is_essential" else column.astype(str).str.len() > 0
    return np.where(present, -1.0 if name in _AGAINST else 1.0, np.nan)
