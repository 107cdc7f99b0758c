"""Tables of results, filtered by the values of their columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import pandas as pd
from anndata import AnnData

from stxtools import _keys
from stxtools._api import public
from stxtools._checks import check_bool, check_choice, check_int, check_key, check_names, check_number, listing
from stxtools._validate import check_adata, check_in, stored_table

_EFFECTS = {"kind", "compartment", "ci_low", "ci_high", "pvals", "pvals_adj"}
_COMPARED = _EFFECTS | {"group", "names", "logfoldchanges", "n_group", "n_reference"}
_TRENDS = _EFFECTS | {"feature", "slope", "pvals_order"}
_METRICS = ("accuracy", "precision", "recall", "auroc", "mse")
_EVENTS = ("continues", "splits", "merges", "splits and merges", "appears", "disappears", "none")
_BY = ("model", "target", "scheme", "leaky", "noise")


@public
def biomarkers(
    adata: AnnData, group: str | Sequence[str] | None = None, *, fdr: float | None = None,
    sign: Literal["both", "up", "down"] = "both", min_libraries: int = 0, n_top: int | None = None,
    gene_symbols: str | None = None, key: str = _keys.BIOMARKERS,
) -> pd.DataFrame:  # fmt: skip
    """Get the results of :func:`stxtools.tl.biomarkers` as a DataFrame, optionally filtered.

    Parameters
    ----------
    sign
        ``"up"`` keeps genes with higher expression in the group, ``"down"`` genes with lower expression.
    min_libraries
        Keep genes whose effect was estimated in at least this number of sections.
    n_top
        Keep this number of genes per group, after the other filters: the first ones, or the last ones (the most
        strongly decreased) with ``sign="down"``.
    gene_symbols
        Column of ``var`` with names to add as the last column.

    Examples
    --------
    >>> adata = st.datasets.synthetic_tissue()
    >>> st.tl.biomarkers(adata, groupby="compartment", n_null=100)
    >>> table = st.get.biomarkers(adata, fdr=0.05, sign="up")
    """
    check_adata(adata, unique_vars=False)
    columns = {"group", "names", "scores", "pvals_adj"}
    if "kind" in getattr(adata.uns.get(check_key("key", key)), "columns", ["kind"]):  # none, or of another call
        columns |= {"logfoldchanges", "n_libraries"}
    table = stored_table(adata, key, columns, "biomarker table", "st.tl.biomarkers(adata, groupby=...)")
    check_choice("sign", sign, ("both", "up", "down"))
    min_libraries = check_int("min_libraries", min_libraries, minimum=0)
    hint = (" Of two groups only the second is tested by default: name others in "
            "`st.tl.biomarkers(adata, groupby, groups=[...])`." if table["group"].nunique() == 1 else "")  # fmt: skip
    table = _filtered(table, f"adata.uns[{key!r}]", fdr, hint, group=group)
    if sign != "both":
        table = table[table["scores"] > 0 if sign == "up" else table["scores"] < 0]
    if min_libraries > 0:
        table = table[table["n_libraries"] >= min_libraries]
    if n_top is not None:
        n_top = check_int("n_top", n_top, minimum=1)
        by_group = table.groupby("group", sort=False, observed=True)
        lower_last = adata.uns.get(f"{key}_params", {}).get("alternative") != "less"
        table = by_group.tail(n_top) if sign == "down" and lower_last else by_group.head(n_top)
    if gene_symbols is not None:
        table = table.assign(**{gene_symbols: symbols_of(adata, table["names"], gene_symbols)})
    return table.reset_index(drop=True)


def symbols_of(adata: AnnData, genes: pd.Series | pd.Index, gene_symbols: str) -> list[str]:
    """Return the symbols of genes, or their names where they have none."""
    check_in(adata, "var", gene_symbols, "gene_symbols")
    known = adata.var[gene_symbols].astype(object)
    known = known[known.notna() & (known.astype(str).str.strip() != "")].astype(str)
    return [str(name) for name in genes.astype(object).map(lambda gene: known.get(gene, gene))]


@public
def compare(
    adata: AnnData, kind: Literal["share", "contact", "expression"] | None = None, *,
    group: str | Sequence[str] | None = None, compartment: str | Sequence[str] | None = None, fdr: float | None = None,
    key: str = _keys.COMPARE,
) -> pd.DataFrame:  # fmt: skip
    """Get the results of :func:`stxtools.tl.compare` as a DataFrame, optionally filtered.

    Examples
    --------
    >>> adata = st.datasets.synthetic_tissue(n_obs=300, n_patients=6, disease="patient")
    >>> st.tl.compare(adata, "disease", "patient", groupby="compartment", library_key="section")
    >>> shares = st.get.compare(adata, "share")
    """
    call = "st.tl.compare(adata, condition_key, subject_key)"
    table = stored_table(adata, key, _COMPARED, "comparison of conditions", call)
    return _filtered(table, f"adata.uns[{key!r}]", fdr, kind=kind, group=group, compartment=compartment)


@public
def describe(
    adata: AnnData, kind: str | None = None, *, group: str | Sequence[str] | None = None, fdr: float | None = None,
    key: str = _keys.DESCRIBE,
) -> pd.DataFrame:  # fmt: skip
    """Get the summary of :func:`stxtools.tl.describe`, or the evidence of one kind, as a DataFrame.

    Parameters
    ----------
    kind
        Evidence to get: ``"activity"`` (or a name given in ``net``) or ``"contact"``; by default the summary.

    Examples
    --------
    >>> adata = st.datasets.synthetic_tissue()
    >>> st.tl.biomarkers(adata, groupby="compartment", n_null=100)
    >>> st.tl.describe(adata, "compartment")
    >>> summary = st.get.describe(adata, group="layer_1")
    """
    columns = {"proposed_name", "markers"}
    summary = stored_table(adata, key, columns, "description", "st.tl.describe(adata, groupby)")
    groups = pd.DataFrame({"group": summary.index.astype(str)})
    groups = _filtered(groups, f"adata.uns[{key!r}]", group=group)
    if kind is None:
        if fdr is not None:
            raise ValueError("`fdr` filters the evidence of a `kind`, such as 'activity'; the summary has no p-values.")
        return summary[summary.index.astype(str).isin(groups["group"])].copy()
    evidence = adata.uns.get(f"{key}_evidence", pd.DataFrame(columns=["kind", "group"]))
    hint = " What was not described needs `net=` for activities or `resource=` for contacts in `st.tl.describe`."
    evidence = _filtered(evidence, f"adata.uns[{f'{key}_evidence'!r}]", fdr, hint, kind=check_key("kind", kind))
    return evidence[evidence["group"].astype(str).isin(groups["group"])].reset_index(drop=True)


@public
def evaluation(
    adata: AnnData, metric: Literal["accuracy", "precision", "recall", "auroc", "mse"] | None = None, *,
    target: Literal["biomarker", "region", "expression"] | None = None, versus: str | None = None,
    per_seed: bool = False, key: str = _keys.EVALUATION,
) -> pd.DataFrame:  # fmt: skip
    """Get the metrics of :func:`stxtools.tl.evaluate` as mean and standard deviation over seeds.

    The folds of a seed are averaged first: seeds, not folds, are the replicates.

    Parameters
    ----------
    versus
        Model to compare the others with, paired by seed: adds ``difference`` and its standard error ``se``.
    per_seed
        Whether to return one row per seed, with ``seed`` and ``value`` instead of ``mean``, ``sd`` and ``n``.

    Returns
    -------
    A DataFrame with one row per model, target, scheme, noise level and metric, and the columns ``model``, ``target``,
    ``scheme``, ``leaky``, ``noise``, ``metric``, ``mean``, ``sd`` (NaN for one seed), ``n`` (seeds), and with
    ``versus`` also ``difference`` and ``se``.

    Examples
    --------
    >>> adata = st.datasets.synthetic_tissue(n_obs=600)
    >>> st.tl.evaluate(adata, ["lda", "nearest_label"], region_key="compartment", n_seeds=2)
    >>> table = st.get.evaluation(adata, "accuracy", versus="nearest_label")
    """
    columns = {*_BY, "seed", "fold", *_METRICS}
    table = stored_table(adata, key, columns, "evaluation", "st.tl.evaluate(adata, region_key=...)")
    if metric is not None:
        check_choice("metric", metric, _METRICS)
    for name, value, column in (("target", target, "target"), ("versus", versus, "model")):
        present = pd.unique(table[column].astype(str))
        if value is not None and check_key(name, value) not in present:
            raise ValueError(f"`{name}={value!r}` is not in the evaluation; it has {listing(present)}.")
    long = table.melt([*_BY, "seed", "fold"], list(_METRICS) if metric is None else [metric], "metric", "value")
    long = long[long["value"].notna() & (target is None or long["target"] == target)]
    if long.empty:
        raise ValueError(
            f"`metric={metric!r}` was not measured for this target in `adata.uns[{key!r}]`: 'mse' is that of `genes`, "
            "the others are those of `biomarker_key` and `region_key` of `st.tl.evaluate`."
        )
    if versus is not None and per_seed:
        raise ValueError("`versus` compares means over seeds; omit it, or `per_seed`.")
    by = [*_BY, "metric"]
    out = seeds = long.groupby([*by, "seed"], sort=False, observed=True)["value"].mean().reset_index()
    if not check_bool("per_seed", per_seed):
        out = seeds.groupby(by, sort=False, observed=True)["value"].agg(mean="mean", sd="std", n="size").reset_index()
        if versus is not None:
            out = out.merge(_differences(seeds, by, versus), on=by, how="left")
    # models in the order of the call
    order = {name: i for i, name in enumerate(pd.unique(table["model"]))}
    out = out.sort_values("model", key=lambda column: column.map(order), kind="stable")
    return out.sort_values(["target", "metric", "scheme", "noise"], kind="stable").reset_index(drop=True)


@public
def track(
    adata: AnnData, table: Literal["links", "compartments", "regions"] = "links", *,
    event: str | Sequence[str] | None = None, fdr: float | None = None, key: str = _keys.TRACK,
) -> pd.DataFrame:  # fmt: skip
    """Get a table of :func:`stxtools.tl.track` as a DataFrame, optionally filtered.

    Parameters
    ----------
    table
        ``"links"``: all pairs of compartments of consecutive time points. ``"compartments"``: the compartments at each
        time point, with their lineages. ``"regions"``: the best counterparts of each region.
    event
        Keep links of these kinds: ``"continues"``, ``"splits"``, ``"merges"``, ``"splits and merges"``, ``"appears"``,
        ``"disappears"``, ``"none"`` (pairs without a link). All by default.
    fdr
        Keep pairs with ``pvals_adj`` up to this value, and what appears or disappears, which has no p-value.

    Examples
    --------
    >>> adata = st.datasets.synthetic_series(3, 2, obs_per_section=200)
    >>> st.tl.region_graph(adata, "compartment", library_key="section", max_size=20)
    >>> st.tl.track(adata, "time")
    >>> found = st.get.track(adata, "compartments")
    """
    check_choice("table", table, ("links", "compartments", "regions"))
    rows = stored_table(adata, key, set(), "tracked compartments", "st.tl.track(adata, time_key)", table)
    if table != "links" and (event is not None or fdr is not None):
        raise ValueError(f"`event` and `fdr` filter links; omit them for `table={table!r}`.")
    if event is not None:
        events = check_names("event", event, "an event")
        for name in events:
            check_choice("event", name, _EVENTS)
        rows = rows[rows["event"].isin(events)]
    if fdr is not None:
        rows = rows[~(rows["pvals_adj"] > check_number("fdr", fdr, minimum=0.0, maximum=1.0))]
    return rows.reset_index(drop=True).copy()


@public
def trends(
    adata: AnnData, kind: Literal["share", "area", "contact", "expression"] | None = None, *,
    compartment: str | Sequence[str] | None = None, feature: str | Sequence[str] | None = None,
    fdr: float | None = None, values: bool = False, key: str = _keys.TRENDS,
) -> pd.DataFrame:  # fmt: skip
    """Get the results of :func:`stxtools.tl.trends` as a DataFrame, optionally filtered.

    Parameters
    ----------
    values
        Whether to add the log2 values of the subjects, one column per subject.

    Examples
    --------
    >>> adata = st.datasets.synthetic_series(3, 3, obs_per_section=200)
    >>> st.tl.trends(adata, "time", subject_key="subject", groupby="compartment", library_key="section")
    >>> shares = st.get.trends(adata, "share")
    """
    table = stored_table(adata, key, _TRENDS, "trends", "st.tl.trends(adata, time_key, subject_key=...)")
    if check_bool("values", values):
        subjects = [str(name) for name in adata.uns[f"{key}_params"]["subjects"]]
        stored = adata.uns.get(f"{key}_values")
        if not isinstance(stored, pd.DataFrame) or stored.shape != (len(table), len(subjects)):
            raise ValueError(f"`adata.uns['{key}_values']` lacks a column for each subject; run `st.tl.trends` again.")
        table = pd.concat([table, stored.set_axis(subjects, axis=1)], axis=1)
    return _filtered(table, f"adata.uns[{key!r}]", fdr, kind=kind, compartment=compartment, feature=feature)


def _filtered(
    table: pd.DataFrame, where: str, fdr: float | None = None, hint: str = "", **columns: str | Sequence[str] | None
) -> pd.DataFrame:
    """Return a copy of the rows that have one of the given names in each of the ``columns``, and pass ``fdr``."""
    for column, value in columns.items():
        if value is None:
            continue
        names, present = check_names(column, value, f"a {column}"), pd.unique(table[column].astype(str))
        present = present[present != ""]  # of kinds that have no such names
        if unknown := [name for name in names if name not in present]:
            raise ValueError(f"`{column}` names {listing(unknown)}; `{where}` has {listing(present)}.{hint}")
        table = table[table[column].astype(str).isin(names)]
    if fdr is not None:
        table = table[table["pvals_adj"] <= check_number("fdr", fdr, minimum=0.0, maximum=1.0)]
    return table.reset_index(drop=True).copy()


def _differences(seeds: pd.DataFrame, by: list[str], versus: str) -> pd.DataFrame:
    """Return the mean difference to one model over the seeds that both have, and its standard error."""
    rest = [c for c in by if c != "model"]
    other = seeds.loc[seeds["model"] == versus, [*rest, "seed", "value"]].rename(columns={"value": "other"})
    both = seeds.merge(other, on=[*rest, "seed"])
    both["difference"] = both["value"] - both["other"]
    return both.groupby(by, sort=False, observed=True)["difference"].agg(difference="mean", se="sem").reset_index()
