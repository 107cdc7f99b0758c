"""Evidence beyond the tests of genes: what compartments are, and which biomarkers can be drug targets."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike

import numpy as np
import pandas as pd
import seaborn as sns
from anndata import AnnData
from matplotlib.axes import Axes
from numpy.typing import NDArray

from stxtools import _keys
from stxtools._checks import check_int, check_names, listing
from stxtools.get import describe as get_describe

from . import _base, _legend
from ._biomarkers import read_biomarkers

# of the columns that st.tl.targets joins, those that decide whether a gene can be a target
KNOWN = {
    "n_approved_drugs": "approved drugs", "n_drugs": "drugs", "n_clinical_drugs": "clinical drugs",
    "maxClinicalStage": "clinical stage", "maxClinicalTrialPhase": "clinical phase", "tractability_ab": "antibody",
    "tractability_sm": "small molecule", "tractability_pr": "degrader", "isInMembrane": "membrane protein",
    "isSecreted": "secreted protein", "hasLigand": "ligand", "hasPocket": "pocket", "hasSafetyEvent": "safety",
    "safety_events": "safety events", "is_essential": "essential", "tissueSpecificity": "tissue specificity",
}  # fmt: skip
_AGAINST = {"is_essential", "safety_events"}
_CALL = "st.tl.targets(adata, table=...)"
_CELL = 0.26
_LIMIT, _MOST = 6.0, 60


@_base.plot
def describe(
    adata: AnnData, kind: str = "activity", *, group: str | Sequence[str] | None = None, n_top: int = 3,
    fdr: float = 0.05, key: str = _keys.DESCRIBE, title: str | None = None, legend: bool = True, ax: Axes | None = None,
    show: bool | None = None, save: bool | str | PathLike[str] | None = None,
) -> Axes | list[Axes] | None:  # fmt: skip
    """Draw the evidence of :func:`stxtools.tl.describe`: the first rows of each compartment against all of them.

    Colour is the test statistic z; a dot marks what passes ``fdr``. Of contacts, those with a significant pair are
    drawn, or all where there is none.

    Parameters
    ----------
    kind
        ``"activity"`` (or a name that ``net`` was given) or ``"contact"``.
    n_top
        Rows that each compartment or contact contributes: those with the largest z above 0.
    %(parameters)s

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
    table = get_describe(adata, kind, group=group, key=key)
    where = f"adata.uns[{f'{key}_evidence'!r}]"
    _base.check_columns(table, ["scores", "pvals_adj"], where, "st.tl.describe(adata, ...)")
    partner = table["partner"].astype(str)
    table["column"] = table["group"].astype(str) + np.where(partner == "", "", " \N{RIGHTWARDS ARROW} " + partner)
    if table.duplicated(["column", "names"]).any():
        raise ValueError(f"`{where}` names rows twice; run `st.tl.describe` again.")
    higher = table[table["scores"] > 0]
    called = pd.unique(higher.loc[higher["pvals_adj"] <= fdr, "column"])
    if kind == "contact" and len(called):
        table, higher = (part[part["column"].isin(called)] for part in (table, higher))
    names = pd.unique(higher.sort_values("scores", ascending=False, kind="stable").groupby("column", sort=False)
                      .head(n_top).sort_index()["names"])  # fmt: skip
    columns = pd.unique(table["column"])
    if not len(names):
        raise ValueError(f"`{where}` has no row of this kind with `scores` above 0 to draw.")
    if max(len(columns), len(names)) > _MOST:
        raise ValueError(f"{len(names)} rows and {len(columns)} columns are more than one figure shows ({_MOST}); "
                         "choose some with `group=`, or fewer with `n_top=`.")  # fmt: skip
    wide = [table.pivot(index="names", columns="column", values=v).reindex(index=names, columns=columns)
            for v in ("scores", "pvals_adj")]  # fmt: skip
    (text,) = _base.titles_of([kind], title)
    axis = _base.heat(wide[0], text, label="z, against random regions", limit=_LIMIT, marks=wide[1] <= fdr,
                      mark=f"FDR ≤ {fdr:g}", legend=legend, ax=ax)  # fmt: skip
    return _base.done("describe", [axis], ax=ax, show=show, save=save)


@_base.plot
def targets(
    adata: AnnData, group: str | Sequence[str] | None = None, *, n_genes: int = 20, fdr: float = 0.05,
    columns: Sequence[str] | None = None, key: str = _keys.BIOMARKERS, legend: bool = True, ax: Axes | None = None,
    show: bool | None = None, save: bool | str | PathLike[str] | None = None,
) -> Axes | list[Axes] | None:  # fmt: skip
    """Draw what :func:`stxtools.tl.targets` joined to the first biomarkers, one panel per group.

    A row is a gene, in the order of the table; one that does not pass ``fdr`` is grey. A column is a kind of evidence.
    Blue speaks for the target and red against it, on Open Targets' scale from -1 to 1; numbers of drugs and
    tractability are blue. A grey cell says that the file does not list the gene.

    Parameters
    ----------
    n_genes
        Number of genes per group, at most 200.
    columns
        Columns of the table to show; by default drugs, clinical phase, tractability, location in the cell and safety.
    %(parameters)s

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
    table, groups = read_biomarkers(adata, key, group, n_genes)
    found = [c for c in KNOWN if c in table]
    if columns is None and not found:
        raise KeyError(f"`adata.uns[{key!r}]` knows nothing of targets; run `{_CALL}` first, or name `columns`.")
    shown = found if columns is None else check_names("columns", columns, "a column")
    absent = [c for c in shown if c not in table]
    if absent or not shown:
        raise KeyError(f"`columns` names {listing(absent)}; `adata.uns[{key!r}]` has {listing(table.columns)}.")
    _base.check_columns(table, [c for c in shown if c.startswith("n_")], f"adata.uns[{key!r}]", _CALL)
    parts = [part.iloc[:n_genes] for part in groups.values()]
    width, height = max(_CELL * len(shown) + 1.5, 2.6), _CELL * max(len(p) for p in parts) + 1.5
    axes, panels = _base.panels(list(groups), None, ax, "group", width, height, bottom=0.5 * legend)
    for (axis, _, text), part in zip(panels, parts, strict=True):
        _panel(axis, part, shown, fdr, text)
    if legend:
        bar = _legend.mappable(-1, 1, "RdBu"), "against the target - for it"
        _legend.add_legend(axes, [], own=ax is None, bars=[bar])
    return _base.done("targets", axes, ax=ax, show=show, save=save)


def _panel(ax: Axes, part: pd.DataFrame, columns: list[str], fdr: float, title: str) -> None:
    value = np.column_stack([favour(part[c]) for c in columns])
    numbers = np.column_stack([[f"{n:.0f}" if c.startswith("n_") and n > 0 else "" for n in part[c]] for c in columns])
    ax.set_facecolor("#ececec")  # what is not known
    sns.heatmap(value, vmin=-1, vmax=1, cmap="RdBu", annot=numbers, fmt="", annot_kws={"size": "x-small"}, cbar=False,
                linewidths=0.5, linecolor="#999999", xticklabels=[KNOWN.get(c, c) for c in columns],
                yticklabels=[_legend.plain(n) for n in part["names"].astype(str)], ax=ax)  # fmt: skip
    _base.finish(ax, title)
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    for label in ax.get_xticklabels():
        label.set(rotation=60, ha="left", rotation_mode="anchor")
    for label, p in zip(ax.get_yticklabels(), part["pvals_adj"].to_numpy(dtype=float), strict=True):
        label.set(rotation=0, style="italic", color=label.get_color() if p <= fdr else "#999999")


def favour(column: pd.Series) -> NDArray[np.float64]:
    """Return -1 (against) to 1 (for) for every gene; NaN where nothing is known."""
    name = str(column.name)
    if name in _AGAINST:
        return -np.where(column if name == "is_essential" else column.astype(str).str.len() > 0, 1.0, np.nan)
    if pd.api.types.is_bool_dtype(column.dtype):
        return column.to_numpy(dtype=float)
    if pd.api.types.is_numeric_dtype(column.dtype):
        value = column.to_numpy(dtype=float)
        return np.where(value > 0, 1.0, np.nan) if name.startswith("n_") else value
    return np.where(column.astype(str).str.len() > 0, 1.0, np.nan)
