"""What compartments are: their markers, activities of gene sets, and ligand-receptor pairs at their contacts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from math import isqrt
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData

from stxtools import _keys
from stxtools._checks import check_key
from stxtools._data.expression import log_matrix
from stxtools._data.sections import Geometry
from stxtools._docs import documented
from stxtools._progress import stage, whole_call
from stxtools._slots import Slots, free_key, provenance
from stxtools._validate import Labels, categories, check_adata, check_choice, check_int, check_seed
from stxtools.stats._composition import Covariates
from stxtools.stats._design import Design, plan
from stxtools.stats._meta_analysis import adjust_bh, signed_z
from stxtools.stats._region_test import MIN_NULL
from stxtools.stats._section import MIN_OBS
from stxtools.tl._biomarkers._design import compare, usable
from stxtools.tl._biomarkers._protect import METHODS as PROTECTIONS
from stxtools.tl._biomarkers._protect import Tested
from stxtools.tl._region_graph import inherited_library_key

from ._features import Contacts, Features, Table, activities, read_nets, read_pairs

CONTACT = "contact"
FDR = 0.05
MIN_CONTACT = 10  # observations of a compartment that touch another
_NOTHING = pd.DataFrame({
    **{name: pd.Series([], dtype=str) for name in ("kind", "group", "partner", "names")},
    **{name: pd.Series([], dtype=float) for name in ("scores", "pvals", "pvals_adj", "mean_group", "mean_reference")},
    "n_libraries": pd.Series([], dtype=np.int64),
})  # fmt: skip


@documented
@whole_call({"segment": 16, "testing genes": 8})
def describe(
    adata: AnnData, groupby: str = _keys.SEGMENT, *, net: Table | Mapping[str, Table] | None = None,
    resource: Table | None = None, n_top: int = 5, biomarkers_key: str = _keys.BIOMARKERS,
    protect: Literal["thinning"] | None = "thinning", layer: str | None = None, spatial_key: str = _keys.SPATIAL,
    library_key: str | bool | None = None, n_null: int = 400, key_added: str | None = None, random_state: int = 0,
    show_progress: bool | None = None, copy: bool = False,
) -> AnnData | None:  # fmt: skip
    """Describe each compartment: its markers, its active gene sets, its ligand-receptor pairs, and a short name.

    Markers are those of :func:`biomarkers`, which is called first. Pathways, transcription factors or cell types are
    scored in every observation (decoupler's univariate linear model). A ligand in one compartment and its receptor in
    the neighbours across a border give a score at each observation of the border. These values are tested like genes:
    against random regions. A contact is compared with all other borders or, where there is none, with its other side.
    Gene sets and pairs need ``pip install 'stxtools[describe]'``.

    Parameters
    ----------
    net
        Gene sets in decoupler's layout (``source``, ``target``, and ``weight`` if there is one), such as
        :func:`stxtools.datasets.hallmark_gene_sets` or ``decoupler.op.progeny()``: a DataFrame or a path (csv, tsv,
        parquet, gmt), or a dict of several by name.
    resource
        Pairs of ``ligand`` and ``receptor`` (subunits joined by ``_``): a DataFrame, a path, or the name of one of
        liana's resources (``"consensus"``, ``"mouseconsensus"``).
    n_top
        Number of names in each text of the summary.
    biomarkers_key
        Key of ``uns`` with the table of :func:`biomarkers` for ``groupby``.
    library_key
        Column of ``obs`` with the section of each observation; by default as in the call that wrote ``groupby``.
    %(parameters)s

    %(returns)s

    To accept the names: ``adata.obs["name"] = adata.obs[groupby].map(adata.uns["describe"]["proposed_name"])``.

    Examples
    --------
    >>> adata = st.datasets.synthetic_tissue()
    >>> st.tl.biomarkers(adata, groupby="compartment", n_null=100)
    >>> st.tl.describe(adata, "compartment")
    >>> st.get.describe(adata)["proposed_name"]
    """
    check_adata(adata, min_obs=2 * MIN_OBS, layer=layer, copy=copy)
    key = free_key(adata, "tl.describe", key_added, _keys.DESCRIBE, uns=["", "_evidence", "_params"])
    check_choice("protect", protect, PROTECTIONS)
    n_null, n_top = check_int("n_null", n_null, minimum=MIN_NULL), check_int("n_top", n_top, minimum=1)
    seed = check_seed(random_state)
    named = categories(adata, groupby, "groupby", min_classes=2)
    markers = _markers(adata, biomarkers_key, groupby)
    genes = [str(name) for name in adata.var_names]
    nets, pairs = read_nets(net, set(genes)), read_pairs(resource, set(genes))
    library_key = library_key if library_key is not None else inherited_library_key(adata, groupby)

    parts: list[pd.DataFrame] = []
    record: dict[str, Any] = {}
    if nets or pairs is not None:
        where = Geometry(adata, spatial_key, library_key, raster=pairs is not None)
        tested = Tested(adata, groupby, named, layer, protect, seed, show_progress)
        record = {"protected": tested.protected, **tested.record}
        logged = log_matrix(tested.read)
        how = {"n_null": n_null, "seed": seed, "show_progress": show_progress}
        test = partial(_tested, where, np.asarray(adata.obs_names, dtype=str), how)
        for name, table in nets.items():
            parts.append(test(name, activities(logged, genes, table), tested.codes, named.names, groupby))
        if pairs is not None:
            contacts = Contacts(where.graph, tested.codes, len(named.names))
            scores = contacts.scores(logged, genes, pairs, MIN_CONTACT)
            two = [f"{one}\t{other}" for one in named.names for other in named.names]
            parts.append(test(CONTACT, scores, contacts.code, two, groupby))
    parts = [part for part in parts if len(part)]
    evidence = pd.concat(parts, ignore_index=True) if parts else _NOTHING.copy()
    kinds = [*nets, *([CONTACT] if pairs is not None else [])]
    slots = Slots("tl.describe")
    slots.uns[key] = _summary(named, markers, evidence, kinds, n_top)
    slots.uns[f"{key}_evidence"] = evidence
    slots.uns[f"{key}_params"] = provenance(
        groupby=groupby, kinds=kinds, resource=resource if isinstance(resource, str) else None, n_top=n_top,
        biomarkers_key=biomarkers_key, protect=protect, layer=layer, spatial_key=spatial_key, library_key=library_key,
        n_null=n_null, random_state=seed, **record,
    )  # fmt: skip
    return slots.write(adata, copy)


def _markers(adata: AnnData, key: str, groupby: str) -> pd.DataFrame:
    """Genes that are significantly higher in a group, from the biomarker table for ``groupby``."""
    table, params = adata.uns.get(check_key("biomarkers_key", key)), adata.uns.get(f"{key}_params", {})
    made_for = params.get("groupby") if isinstance(params, Mapping) else None
    if not isinstance(table, pd.DataFrame) or not {"group", "names", "scores", "pvals_adj"} <= set(table.columns):
        raise KeyError(f"`adata.uns[{key!r}]` holds no biomarker table; run `st.tl.biomarkers(adata, {groupby!r})` "
                       "first, or name the table with `biomarkers_key`.")  # fmt: skip
    if made_for != groupby:
        raise ValueError(f"`adata.uns[{key!r}]` was made for `groupby={made_for!r}`; run `st.tl.biomarkers(adata, "
                         f"{groupby!r}, key_added=...)` and name its table with `biomarkers_key`.")  # fmt: skip
    return table[(table["scores"] > 0) & (table["pvals_adj"] <= FDR)]


def _tested(
    where: Geometry, names_of_obs: np.ndarray, how: Mapping[str, Any], kind: str, features: Features,
    codes: np.ndarray, names: list[str], groupby: str,
) -> pd.DataFrame:  # fmt: skip
    """Test as biomarkers does every group that is large enough; a name of two is one at its contact with the other."""
    stage("testing genes")
    groups, sizes = np.unique(codes[codes >= 0], return_counts=True)
    chosen = groups[sizes >= (MIN_CONTACT if kind == CONTACT else MIN_OBS)]
    planned = [plan(names[g], int(g), None, codes, where.libs.codes, len(where.libs)) for g in chosen]
    if kind == CONTACT:
        designs = [_one_side(design, groups, isqrt(len(names))) for design in planned if design.kind == "within"]
    else:
        designs = usable(planned, "rest", groupby, explicit=False)
    if not designs or not features.names:
        return _NOTHING
    outcomes = compare(
        features, designs, codes, where.libs, where.xy, names_of_obs, Covariates(), both=False,
        plain=kind == CONTACT, **how,  # a border is a strip: smooth variation along it must count
    )  # fmt: skip
    tables = [_table(kind, d, outcome.tested, features, codes) for d, outcome in zip(designs, outcomes, strict=True)]
    return pd.concat(tables, ignore_index=True)


def _one_side(design: Design, groups: np.ndarray, n: int) -> Design:
    """Leave the other side of the same border out of the reference, where there are other borders."""
    own, other = divmod(design.code, n)
    opposite = other * n + own
    return replace(design, left_out=opposite) if np.setdiff1d(groups, [design.code, opposite]).size else design


def _table(kind: str, design: Design, tested: Any, features: Features, codes: np.ndarray) -> pd.DataFrame:
    inside, outside = design.sides(codes)
    group, _, partner = design.name.partition("\t") if kind == CONTACT else (design.name, "", "")
    table = pd.DataFrame({
        "kind": kind, "group": group, "partner": partner, "names": features.names,
        "scores": signed_z(tested.statistic, tested.df), "pvals": tested.pvals, "pvals_adj": adjust_bh(tested.pvals),
        "mean_group": features.means(inside), "mean_reference": features.means(outside),
        "n_libraries": tested.n_libraries,
    })  # fmt: skip
    return table.sort_values("scores", ascending=False, kind="stable")


def _summary(
    named: Labels, markers: pd.DataFrame, evidence: pd.DataFrame, kinds: list[str], n_top: int
) -> pd.DataFrame:
    """One row per compartment: a name, its size, and what stands first of each kind of evidence."""
    found = evidence[(evidence["scores"] > 0) & (evidence["pvals_adj"] <= FDR)]
    sizes = np.bincount(named.codes[named.codes >= 0], minlength=len(named.names))
    rows = []
    for group, size in zip(named.names, sizes, strict=True):
        genes = list(markers.loc[markers["group"].astype(str) == group, "names"].astype(str)[:n_top])
        row: dict[str, Any] = {"proposed_name": "", "n_obs": size, "share": size / sizes.sum(),
                               "markers": ", ".join(genes)}  # fmt: skip
        firsts = []
        for kind in kinds:
            own = found[(found["kind"] == kind) & (found["group"] == group)].sort_values(
                "scores", ascending=False, kind="stable")[:n_top]  # fmt: skip
            at = own["names"] + np.where(own["partner"] == "", "", " (" + own["partner"] + ")")
            row[kind] = ", ".join(at)
            firsts += [] if kind == CONTACT else list(own["names"][:1])
        row["proposed_name"] = _name(group, firsts[:1], genes[:2])
        rows.append(row)
    table = pd.DataFrame(rows, index=pd.Index(named.names, name="group"))
    again = table["proposed_name"].duplicated(keep=False)
    table.loc[again, "proposed_name"] += " [" + table.index[again] + "]"
    return table


def _name(group: str, activity: list[str], genes: list[str]) -> str:
    """The gene set and the two genes that stand first; the compartment's own name where nothing does."""
    signs = " ".join(f"{gene}+" for gene in genes)
    if activity and signs:
        return f"{activity[0]} ({signs})"
    return (activity or [signs])[0] or group
