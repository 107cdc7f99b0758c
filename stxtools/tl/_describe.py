"""Description of compartments: markers, activities of gene sets, and ligand-receptor pairs at their contacts."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from importlib import import_module
from itertools import product
from math import isqrt
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from stxtools import _keys
from stxtools._checks import check_int, check_key, check_seed, listing
from stxtools._data.expression import log_matrix
from stxtools._data.sections import Geometry
from stxtools._docs import documented
from stxtools._progress import progress_bar, stage
from stxtools._slots import Slots, free_key, provenance
from stxtools._types import Array, Bools, Csr, Floats, Ints
from stxtools._validate import (
    Labels,
    categories,
    check_adata,
    inherited_library_key,
    stored_table,
    subject_of_libraries,
)
from stxtools.stats._composition import Covariates
from stxtools.stats._design import plan
from stxtools.stats._meta_analysis import adjust_bh, signed_z
from stxtools.stats._region_test import MIN_NULL
from stxtools.stats._section import MIN_OBS
from stxtools.tl._biomarkers._design import compare, testable
from stxtools.tl._biomarkers._protect import DataToTest
from stxtools.tl._targets._tables import read_table

CONTACT = "contact"
FDR = 0.05
MIN_CONTACT = 10  # observations of a compartment that touch another
MIN_TARGETS = 5  # of a source, among the genes: decoupler's own default
_N_TOP = 5  # names in each text of the summary
_ROWS = 5000  # observations that decoupler makes dense at a time
_SUMMARY = ("contact", "markers", "n_obs", "proposed_name", "share")  # columns of the summary besides those of `net`
_EVIDENCE = {
    **dict.fromkeys(("kind", "group", "partner", "names"), str),
    **dict.fromkeys(("scores", "pvals", "pvals_adj", "mean_group", "mean_reference"), float), "n_libraries": np.int64,
}  # fmt: skip
Table: TypeAlias = pd.DataFrame | str | os.PathLike[str]


@documented
@progress_bar({"segment": 16, "testing genes": 8})
def describe(
    adata: AnnData, groupby: str = _keys.SEGMENT, *, net: Table | Mapping[str, Table] | None = None,
    resource: Table | None = None, biomarkers_key: str = _keys.BIOMARKERS, layer: str | None = None,
    spatial_key: str = _keys.SPATIAL, library_key: str | bool | None = None, subject_key: str | None = None,
    n_null: int = 400, key_added: str | None = None, random_state: int = 0, show_progress: bool | None = None,
    copy: bool = False,
) -> AnnData | None:  # fmt: skip
    """Annotate compartments with markers, gene set activity and ligand-receptor pairs, and propose names.

    Markers are those of :func:`biomarkers`, which must be run first. Gene sets (pathways, regulons, cell types) are
    scored for each observation by decoupler's univariate linear model. Ligand-receptor pairs are scored at the borders
    between compartments: the ligand in one and the receptor in neighbours of the other. Scores are tested like genes,
    against random regions; groups of :func:`segment` are found again in half of the counts. A contact is compared with
    all other borders or, if there are none, with its opposite side. Gene sets and pairs need ``pip install
    'stxtools[describe]'``.

    Parameters
    ----------
    net
        Gene sets in decoupler's format (columns ``source``, ``target`` and optionally ``weight``), such as
        :func:`stxtools.datasets.hallmark_gene_sets` or ``decoupler.op.progeny()``: a DataFrame, a path (csv, tsv,
        parquet, gmt), or a dict from names to several of these.
    resource
        Ligand-receptor pairs (columns ``ligand`` and ``receptor``, subunits joined by ``_``): a DataFrame, a path, or
        the name of a resource of liana (``"consensus"``, ``"mouseconsensus"``).
    biomarkers_key
        Key of ``uns`` with the table of :func:`biomarkers` for ``groupby``.

    %(returns)s

    To use the proposed names: ``adata.obs["name"] = adata.obs[groupby].map(adata.uns["describe"]["proposed_name"])``.

    Examples
    --------
    >>> adata = st.datasets.synthetic_tissue()
    >>> st.tl.biomarkers(adata, groupby="compartment", n_null=100)
    >>> st.tl.describe(adata, "compartment")
    >>> st.get.describe(adata)["proposed_name"]
    """
    check_adata(adata, min_obs=2 * MIN_OBS, layer=layer, copy=copy)
    key = free_key(adata, "tl.describe", key_added, _keys.DESCRIBE, uns=["", "_evidence", "_params"])
    n_null = check_int("n_null", n_null, minimum=MIN_NULL)
    seed = check_seed(random_state)
    named = categories(adata, groupby, "groupby", min_classes=2)
    markers = _markers(adata, biomarkers_key, groupby)
    genes = [str(name) for name in adata.var_names]
    nets, pairs = read_nets(net, set(genes)), read_pairs(resource, set(genes))
    library_key = library_key if library_key is not None else inherited_library_key(adata, groupby)

    kinds = [*nets, *([CONTACT] if pairs is not None else [])]
    parts: list[pd.DataFrame] = []
    record: dict[str, Any] = {}
    if kinds:
        where = Geometry(adata, spatial_key, library_key, raster=pairs is not None)
        subjects = subject_of_libraries(adata, where.libs, subject_key)
        data = DataToTest(adata, groupby, named, layer, "thinning", seed, show_progress)
        record = {"protected": data.protected, **data.record}
        logged, obs_names = log_matrix(data.read), np.asarray(adata.obs_names, dtype=str)
        options = {"n_null": n_null, "seed": seed, "show_progress": show_progress}
        for name, table in nets.items():
            features = activities(logged, genes, table)
            parts.append(_test(name, features, data.codes, named.names, groupby, where, obs_names, subjects, options))
        if pairs is not None:
            features, codes = contact_scores(where.graph, data.codes, len(named.names), logged, genes, pairs)
            contacts = [f"{group}\t{partner}" for group, partner in product(named.names, repeat=2)]
            parts.append(_test(CONTACT, features, codes, contacts, groupby, where, obs_names, subjects, options))
    empty = pd.DataFrame({name: pd.Series(dtype=dtype) for name, dtype in _EVIDENCE.items()})
    evidence = pd.concat([part for part in parts if len(part)] or [empty], ignore_index=True)
    params = provenance(
        groupby=groupby, kinds=kinds, resource=resource if isinstance(resource, str) else None,
        biomarkers_key=biomarkers_key, layer=layer, spatial_key=spatial_key, library_key=library_key,
        subject_key=subject_key, n_null=n_null, random_state=seed, **record,
    )  # fmt: skip
    summary = _summary(named, markers, evidence, kinds)
    tables = {key: summary, f"{key}_evidence": evidence, f"{key}_params": params}
    return Slots("tl.describe", uns=tables).write(adata, copy)


def _markers(adata: AnnData, key: str, groupby: str) -> pd.DataFrame:
    """Genes that are significantly higher in a group, from the biomarker table for ``groupby``."""
    columns, call = {"group", "names", "scores", "pvals_adj"}, f"st.tl.biomarkers(adata, {groupby!r})"
    table = stored_table(adata, key, columns, "biomarker table", call, param="biomarkers_key")
    params = adata.uns.get(f"{key}_params", {})
    made_for = params.get("groupby") if isinstance(params, Mapping) else None
    if made_for != groupby:
        raise ValueError(f"`adata.uns[{key!r}]` was made for `groupby={made_for!r}`; run `st.tl.biomarkers(adata, "
                         f"{groupby!r}, key_added=...)` and name its table with `biomarkers_key`.")  # fmt: skip
    return table[(table["scores"] > 0) & (table["pvals_adj"] <= FDR)]


def _test(
    kind: str, features: Features, codes: Ints, names: list[str], groupby: str, where: Geometry, obs_names: Array,
    subjects: tuple[int, ...] | None, options: Mapping[str, Any],
) -> pd.DataFrame:  # fmt: skip
    """Test every group that is large enough, as biomarkers does; contacts have two names, with a tab between."""
    stage("testing genes")
    groups, sizes = np.unique(codes[codes >= 0], return_counts=True)
    large = groups[sizes >= (MIN_CONTACT if kind == CONTACT else MIN_OBS)]
    planned = [plan(names[g], int(g), None, codes, where.libs.codes, len(where.libs), subjects) for g in large]
    if kind == CONTACT:
        designs, n = [d for d in planned if d.kind == "within"], isqrt(len(names))
        for i, d in enumerate(designs):  # the other side of a border is no reference where there are other borders
            opposite = d.code % n * n + d.code // n
            if np.setdiff1d(groups, [d.code, opposite]).size:
                designs[i] = replace(d, excluded=opposite)
    else:
        designs = testable(planned, "rest", groupby, explicit=False)
    if not designs or not features.names:
        return pd.DataFrame()
    outcomes = compare(
        features, designs, codes, where, obs_names, Covariates(), both=False,
        unweighted=kind == CONTACT, **options,  # a border is a strip: smooth variation along it must count
    )  # fmt: skip
    tables = []
    for design, outcome in zip(designs, outcomes, strict=True):
        tested, (inside, outside) = outcome.tested, design.sides(codes)
        group, _, partner = design.name.partition("\t") if kind == CONTACT else (design.name, "", "")
        table = pd.DataFrame({
            "kind": kind, "group": group, "partner": partner, "names": features.names,
            "scores": signed_z(tested.statistic, tested.df), "pvals": tested.pvals,
            "pvals_adj": adjust_bh(tested.pvals), "mean_group": features.means(inside),
            "mean_reference": features.means(outside), "n_libraries": tested.n_libraries,
        })  # fmt: skip
        tables.append(table.sort_values("scores", ascending=False, kind="stable"))
    return pd.concat(tables, ignore_index=True)


def _summary(named: Labels, markers: pd.DataFrame, evidence: pd.DataFrame, kinds: list[str]) -> pd.DataFrame:
    """One row per compartment: a name, its size, and the top results of each kind of evidence."""
    significant = evidence[(evidence["scores"] > 0) & (evidence["pvals_adj"] <= FDR)]
    significant = significant.sort_values("scores", ascending=False, kind="stable")
    sizes = np.bincount(named.codes[named.codes >= 0], minlength=len(named.names))
    rows = []
    for group, size in zip(named.names, sizes, strict=True):
        genes = list(markers.loc[markers["group"].astype(str) == group, "names"].astype(str)[:_N_TOP])
        row: dict[str, Any] = {"proposed_name": "", "n_obs": size, "share": size / sizes.sum(),
                               "markers": ", ".join(genes)}  # fmt: skip
        gene_sets: list[str] = []
        for kind in kinds:
            top = significant[(significant["kind"] == kind) & (significant["group"] == group)][:_N_TOP]
            row[kind] = ", ".join(top["names"] + np.where(top["partner"] == "", "", " (" + top["partner"] + ")"))
            gene_sets += [] if kind == CONTACT else list(top["names"][:1])
        signature = " ".join(f"{gene}+" for gene in genes[:2])
        name = f"{gene_sets[0]} ({signature})" if gene_sets and signature else (gene_sets or [signature])[0]
        row["proposed_name"] = name or group
        rows.append(row)
    table = pd.DataFrame(rows, index=pd.Index(named.names, name="group"))
    duplicated = table["proposed_name"].duplicated(keep=False)
    table.loc[duplicated, "proposed_name"] += " [" + table.index[duplicated] + "]"
    return table


def _import(name: str, feature: str) -> ModuleType:
    """Import a library of the extra ``describe``; matplotlib's settings and the root logger stay as they are."""
    import matplotlib as mpl

    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    try:
        with mpl.rc_context():
            return import_module(name)
    except ImportError as err:
        raise ImportError(f"{feature} needs {name}: `pip install 'stxtools[describe]'`.") from err
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers


def read_nets(net: Table | Mapping[str, Table] | None, genes: set[str]) -> dict[str, pd.DataFrame]:
    """Read decoupler's networks (source, target, weight) by name, with the sources that have enough genes."""
    if net is None:
        return {}
    named = dict(net) if isinstance(net, Mapping) else {"activity": net}
    taken = [name for name in named if name in _SUMMARY]
    if taken:
        raise ValueError(f"`net` uses the name(s) {taken}, which are columns of the output; choose others.")
    return {check_key("net", name): _read_net(table, f"net[{name!r}]", genes) for name, table in named.items()}


def _read_net(table: Table, param: str, genes: set[str]) -> pd.DataFrame:
    if isinstance(table, (str, os.PathLike)) and Path(table).suffix == ".gmt":
        table = _import("decoupler", "Reading .gmt").pp.read_gmt(table)
    raw = read_table(table, param)
    _check_columns(raw, ("source", "target"), param)
    net = raw[["source", "target"]].astype(str)
    net["weight"] = pd.to_numeric(raw["weight"], errors="coerce") if "weight" in raw else 1.0
    if not np.isfinite(net["weight"]).all():
        raise ValueError(f"Column 'weight' of `{param}` has values that are not finite numbers.")
    net = net[raw["source"].notna() & raw["target"].notna()].drop_duplicates(["source", "target"])
    known = net[net["target"].isin(genes)]
    enough = known.groupby("source")["target"].transform("size") >= MIN_TARGETS
    if not enough.any():
        raise ValueError(
            f"No source of `{param}` has {MIN_TARGETS} targets among the {len(genes)} genes: {len(known)} of its "
            f"{len(net)} rows name one. Its targets look like {listing(net['target'][:3])}, the genes like "
            f"{listing(list(genes)[:3])}; both must be symbols of one species, or ids."
        )
    return known[enough].reset_index(drop=True)


def read_pairs(resource: Table | None, genes: set[str]) -> pd.DataFrame | None:
    """Read pairs of ligand and receptor of which all genes, subunits joined by ``_``, are known."""
    if resource is None:
        return None
    if isinstance(resource, str) and not Path(resource).suffix:
        resources = _import("liana", f"`resource={resource!r}`").rs
        if resource not in resources.show_resources():
            raise ValueError(
                f"`resource={resource!r}` is not in liana, which has {listing(resources.show_resources(), 20)}."
            )
        resource = resources.select_resource(resource)
    raw = read_table(resource, "resource")
    _check_columns(raw, ("ligand", "receptor"), "resource")
    pairs = raw[["ligand", "receptor"]].dropna().astype(str).drop_duplicates()
    known = pairs[[genes.issuperset(row.split("_")) for row in pairs["ligand"] + "_" + pairs["receptor"]]]
    if known.empty:
        raise ValueError(
            f"None of the {len(pairs)} pairs of `resource` has all of its genes among the {len(genes)} genes, such as "
            f"{listing(list(genes)[:3])}; its pairs are like {listing(pairs['ligand'][:3])}. Is it of another species?"
        )
    return known.reset_index(drop=True)


def _check_columns(table: pd.DataFrame, columns: Sequence[str], param: str) -> None:
    missing = [c for c in columns if c not in table.columns]
    if missing:
        raise KeyError(f"`{param}` lacks the column(s) {missing}; it has {listing(table.columns)}.")


class Features:
    """Features of all observations (CSR) in place of expression."""

    depth = n_genes = None
    limit = np.inf

    def __init__(self, values: Csr, names: Sequence[str]) -> None:
        self.values, self.names = values, list(names)
        self.shape = (int(values.shape[0]), int(values.shape[1]))
        self.slices = [slice(0, self.shape[1])]

    def block(self, genes: slice) -> Csr:
        """Return all features: there is one block."""
        return self.values

    def rows(self, genes: Ints | None = None) -> Iterator[tuple[slice, Csr]]:
        """Yield all observations at once."""
        yield slice(0, self.shape[0]), self.values if genes is None else self.values[:, genes]

    def means(self, side: Bools) -> Floats:
        """Mean of each feature over some observations."""
        return np.asarray(self.values.T @ side.astype(np.float64)) / max(int(side.sum()), 1)


def activities(logged: Csr, genes: Sequence[str], net: pd.DataFrame) -> Features:
    """Activity of each source in each observation: decoupler's univariate linear model, centred."""
    expressed = np.flatnonzero(np.diff(logged.indptr))  # others have no activity
    adata = AnnData(logged[expressed], var=pd.DataFrame(index=pd.Index(genes)))
    _import("decoupler", "`net=`").mt.ulm(adata, net, tmin=MIN_TARGETS, empty=False, bsize=_ROWS)
    scores = adata.obsm["score_ulm"]
    values = np.zeros((logged.shape[0], scores.shape[1]))
    values[expressed] = np.nan_to_num(scores.to_numpy(dtype=np.float64))
    centred = (values - values.mean(axis=0)).astype(np.float32)
    return Features(sparse.csr_matrix(centred), [str(name) for name in scores.columns])


def contact_scores(
    graph: Csr, codes: Ints, n: int, logged: Csr, genes: Sequence[str], pairs: pd.DataFrame
) -> tuple[Features, Ints]:
    """Score pairs at borders: geometric mean of the ligand and of the receptor in the neighbours across the border.

    Return the code of the contact of each observation, too: ``own * n + other``, the compartment that it touches most.
    """
    from sklearn.preprocessing import normalize

    edges = graph.tocoo()
    across = (codes[edges.row] >= 0) & (codes[edges.col] >= 0) & (codes[edges.row] != codes[edges.col])
    row, col = edges.row[across], edges.col[across]
    touched = sparse.csr_matrix((np.ones(len(row)), (row, codes[col])), shape=(len(codes), n))
    other = np.asarray(touched.argmax(axis=1)).ravel()
    contact = np.where(np.diff(touched.indptr) > 0, codes * n + other, -1)
    kept = codes[col] == other[row]
    neighbours = sparse.csr_matrix((np.ones(kept.sum()), (row[kept], col[kept])), shape=graph.shape)

    border = np.flatnonzero(contact >= 0)
    by_gene, mean = sparse.csc_matrix(logged[border]), normalize(neighbours, norm="l1")[border][:, border]
    at = {gene: i for i, gene in enumerate(genes)}
    sides = []
    for column in ("ligand", "receptor"):
        expression = {  # of a complex: its least expressed subunit
            name: reduce(lambda a, b: a.minimum(b), (by_gene[:, [at[gene]]] for gene in name.split("_")))
            for name in pairs[column].unique()
        }
        sides.append(sparse.hstack([expression[name] for name in pairs[column]], format="csr"))
    score = sparse.csc_matrix(sides[0].multiply(mean @ sides[1])).sqrt()
    scored = np.flatnonzero(np.diff(score.indptr) >= MIN_CONTACT)
    part = sparse.coo_matrix(score[:, scored], dtype=np.float32)
    values = sparse.csr_matrix((part.data, (border[part.row], part.col)), shape=(len(codes), len(scored)))
    names = (pairs["ligand"] + "^" + pairs["receptor"]).to_numpy()[scored]
    return Features(values, [str(name) for name in names]), contact
