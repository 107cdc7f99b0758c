"""Description of compartments: markers, activities of gene sets, and ligand-receptor pairs at their contacts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from stxtools import _keys
from stxtools._api import public
from stxtools._checks import check_int, check_seed, listing
from stxtools._data.expression import log_matrix
from stxtools._data.sections import Geometry
from stxtools._progress import progress_bar, stage
from stxtools._slots import Slots, free_key, provenance
from stxtools._types import Array, Ints
from stxtools._validate import (
    Labels,
    Libraries,
    categories,
    check_adata,
    inherited_library_key,
    stored_table,
    subject_of_libraries,
)
from stxtools.stats._composition import Covariates
from stxtools.stats._design import Design, plan
from stxtools.stats._meta_analysis import adjust_bh, signed_z
from stxtools.stats._region_test import MIN_NULL
from stxtools.stats._section import MIN_OBS
from stxtools.tl._biomarkers._design import compare, testable
from stxtools.tl._biomarkers._protect import DataToTest

from ._resources import CONTACT, Table, read_nets, read_pairs
from ._scores import MIN_CONTACT, ScoreMatrix, activities, contact_scores

FDR = 0.05
_N_TOP = 5  # names in each text of the summary
_EVIDENCE = {
    **dict.fromkeys(("kind", "group", "partner", "names"), str),
    **dict.fromkeys(("scores", "pvals", "pvals_adj", "mean_group", "mean_reference"), float), "n_libraries": np.int64,
}  # fmt: skip


@public
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
    markers = _markers(adata, biomarkers_key, groupby, named.names)
    genes = [str(name) for name in adata.var_names]
    nets, pairs = read_nets(net, set(genes)), read_pairs(resource, set(genes))
    library_key = inherited_library_key(adata, groupby, library_key)

    kinds = [*nets, *([CONTACT] if pairs is not None else [])]
    parts: list[pd.DataFrame] = []
    record: dict[str, Any] = {}
    if kinds:
        where = Geometry(adata, spatial_key, library_key, raster=pairs is not None)
        subjects = subject_of_libraries(adata, where.libs, subject_key)
        data = DataToTest(adata, groupby, named, layer, "thinning", seed, show_progress)
        record = {"protected": data.protected, **data.record}
        logged = log_matrix(data.read)
        options = {"n_null": n_null, "seed": seed, "show_progress": show_progress}
        obs_names = np.asarray(adata.obs_names, dtype=str)
        if nets:
            planned = _plan(data.codes, named.names, MIN_OBS, where.libs, subjects)
            designs = testable(planned, "rest", groupby, explicit=False)
        for kind, table in nets.items():
            features = activities(logged, genes, table)
            parts.append(_test(kind, features, data.codes, named.names, designs, where, obs_names, options))
        if pairs is not None:
            features, codes = contact_scores(where.graph, data.codes, len(named.names), logged, genes, pairs)
            designs = _contact_designs(codes, named.names, where.libs, subjects)
            parts.append(_test(CONTACT, features, codes, named.names, designs, where, obs_names, options))
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


def _markers(adata: AnnData, key: str, groupby: str, groups: list[str]) -> pd.DataFrame:
    """Genes that are significantly higher in a group, from the biomarker table for ``groupby``."""
    columns, call = {"group", "names", "scores", "pvals_adj"}, f"st.tl.biomarkers(adata, {groupby!r})"
    table = stored_table(adata, key, columns, "biomarker table", call, param="biomarkers_key")
    params = adata.uns.get(f"{key}_params", {})
    made_for = params.get("groupby") if isinstance(params, Mapping) else None
    if made_for != groupby:
        raise ValueError(f"`adata.uns[{key!r}]` was made for `groupby={made_for!r}`; run `st.tl.biomarkers(adata, "
                         f"{groupby!r}, key_added=...)` and name its table with `biomarkers_key`.")  # fmt: skip
    if others := sorted(set(table["group"].astype(str)) - set(groups)):
        raise ValueError(f"`adata.uns[{key!r}]` has the groups {listing(others)}, which `adata.obs[{groupby!r}]` no "
                         f"longer has; run `{call}` again.")  # fmt: skip
    return table[(table["scores"] > 0) & (table["pvals_adj"] <= FDR)]


def _plan(codes: Ints, names: list[str], least: int, libs: Libraries, subjects: tuple[int, ...] | None) -> list[Design]:
    """Plan the comparison of every group of at least ``least`` observations with the rest."""
    groups, sizes = np.unique(codes[codes >= 0], return_counts=True)
    large = groups[sizes >= least].tolist()
    return [plan(names[g], g, None, codes, libs.codes, len(libs), subjects) for g in large]


def _contact_designs(codes: Ints, names: list[str], libs: Libraries, subjects: tuple[int, ...] | None) -> list[Design]:
    """Compare each side of a border with all others; with its opposite side only where there are no other borders."""
    designs = []
    for design in _plan(codes, [name for name in names for _ in names], MIN_CONTACT, libs, subjects):
        own, other = divmod(design.code, len(names))
        opposite = other * len(names) + own
        has_others = np.any((codes >= 0) & (codes != design.code) & (codes != opposite))
        designs.append(replace(design, excluded=opposite) if has_others else design)
    return [design for design in designs if design.kind == "within"]


def _test(
    kind: str, features: ScoreMatrix, codes: Ints, names: list[str], designs: list[Design], where: Geometry,
    obs_names: Array, options: Mapping[str, Any],
) -> pd.DataFrame:  # fmt: skip
    """Test features as biomarkers tests genes."""
    stage("testing genes")
    if not designs or not features.names:
        return pd.DataFrame()
    # a border is a strip: smooth variation along it must count
    options = {**options, "both": False, "unweighted": kind == CONTACT}
    outcomes = compare(features, designs, codes, where, obs_names, Covariates(), **options)
    tables = []
    for design, outcome in zip(designs, outcomes, strict=True):
        tested, (inside, outside) = outcome.tested, design.sides(codes)
        partner = names[design.code % len(names)] if kind == CONTACT else ""  # the other compartment
        table = pd.DataFrame({
            "kind": kind, "group": design.name, "partner": partner, "names": features.names,
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
