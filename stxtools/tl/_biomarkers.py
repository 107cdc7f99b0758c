"""Genes that mark a group of observations, with error rates that hold under spatial autocorrelation."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from scipy import sparse

from .. import _keys
from .._progress import progress
from .._representation import compute_representation, log_expression
from .._slots import Slots, provenance
from .._validate import (
    Libraries,
    categories,
    check_adata,
    check_bool,
    check_choice,
    check_in,
    check_int,
    check_key_added,
    coordinates,
    libraries,
)
from ..stats._combine import adjust_bh, signed_z
from ..stats._contrast import Design, Part, compare_between, compare_within, describe, plan
from ..stats._probe import contrast, linear_attribution
from ..stats._section import MIN_OBS, PSEUDO, Section

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

_METHODS = ("random_regions",)
_PROBE_COMPS = 100  # a biomarker is a small part of the variance: with 20 components it is ranked worse
COLUMNS = (
    "group",
    "names",
    "scores",
    "zscores",
    "logfoldchanges",
    "auroc",
    "pvals",
    "pvals_adj",
    "attribution",
    "n_libraries",
    "direction_consistent",
    "pct_nz_group",
    "pct_nz_reference",
)


def biomarkers(
    adata: AnnData,
    groupby: str,
    *,
    groups: Literal["all"] | Sequence[str] = "all",
    reference: str = "rest",
    layer: str | None = None,
    spatial_key: str = _keys.SPATIAL,
    library_key: str | None = None,
    method: str = "random_regions",
    n_null: int = 400,
    key_added: str | None = None,
    random_state: int = 0,
    show_progress: bool | None = None,
    copy: bool = False,
) -> AnnData | None:
    """Rank the genes that mark each group, with a false discovery rate that holds on tissue.

    Neighbouring spots are alike, so a smooth region differs from the rest in many genes by chance, and tests that
    take spots as independent call those genes markers. Here a gene's mean difference (log-normalised expression,
    group minus reference, within a section) is measured against its own null: the same difference between
    *random regions* of the section that are as large, as smooth and as patchy as the group. Their law is a
    Gaussian random field cut at a quantile, fitted to the group's own correlogram; the gene stays as it is. The
    null variance gives an effective sample size (Clifford, Richardson & Hemon 1989; Dutilleul 1993), and with it the
    t-test of the correlation between gene and region; where the null is skewed, its long tail is allowed for. Random
    surrogates of one of two autocorrelated maps: Viladomat et al. (2014).

    The question answered is the *total* effect: which genes differ between the group and the reference,
    whatever the reason. Tumour against stroma, every epithelial gene does.

    With ``library_key`` the library (patient, section) is the unit of replication, however many observations it
    has. Where group and reference occur in the same libraries (tumour against stroma), each library is tested
    within itself and the effects are combined in a random-effects meta-analysis (Hartung & Knapp 2001, Rover et
    al. 2015) whose between-library spread is moderated over genes (Smyth 2004). Where they occur in different
    libraries (patients against healthy donors), library means are compared by a moderated t-test; that needs two
    libraries on each side.

    Parameters
    ----------
    adata
        Counts, linear or log expression; see :func:`stxtools.pp.normalize`. Not changed but for the slots below.
    groupby
        Column of ``adata.obs`` with the groups (categorical, strings, booleans or integers). Observations where
        it is missing are left out.
    groups
        The groups to test, or ``"all"``.
    reference
        ``"rest"`` (all other observations with a group), or the name of a group.
    layer
        Layer with expression; by default ``layers["counts"]`` where there is one, else ``X``.
    spatial_key
        Key of ``adata.obsm`` with the positions.
    library_key
        Column of ``adata.obs`` that says which section an observation belongs to. No statistic crosses sections.
    method
        ``"random_regions"``, the test described above.
    n_null
        Random regions drawn per group and section. The null standard deviation of a gene is known to about
        ``71 / sqrt(n_null)`` percent.
    key_added
        Name of the results instead of ``"biomarkers"``.
    random_state
        Seed of the random regions. Same seed, same numbers.
    show_progress
        Show a progress bar; by default in terminals and notebooks.
    copy
        Return a changed copy instead of writing to ``adata``.

    Returns
    -------
    ``None``, or the changed copy with ``copy=True``. Sets

    ``uns["biomarkers"]`` : :class:`pandas.DataFrame`
        One row per group and gene, sorted by group and falling ``scores``, with the columns

        - ``group``, ``names``: the group and the gene;
        - ``scores``: ``+-|2 auroc - 1| (1 - pvals) agreement``, positive where the gene is higher in the group:
          effect, evidence and replication (the share of libraries with the common direction), -1 to 1. Evidence
          alone would put faint genes of low variance before the ones a biologist can use;
        - ``zscores``: the test statistic as a signed normal quantile;
        - ``logfoldchanges``: log2 ratio of mean depth-normalised expression, with 0.001 added to both;
        - ``auroc``: chance that an observation of the group exceeds one of the reference (ties count half);
        - ``pvals``, ``pvals_adj``: two-sided p-value, and Benjamini-Hochberg within the group;
        - ``attribution``: see below;
        - ``n_libraries``: libraries in which the gene's effect could be estimated;
        - ``direction_consistent``: whether all of these show the same direction (between-library design: whether
          every library lies on its side of the other side's mean);
        - ``pct_nz_group``, ``pct_nz_reference``: share of observations that express the gene.

        Fold change, AUROC and shares are averages over libraries. A gene that does not vary has score 0 and p 1.
    ``var["biomarker_score"]`` : float64, shape ``(n_vars,)``
        Largest ``|scores|`` of the gene over the groups. With ``key_added`` the column is ``"{key_added}_score"``.
    ``uns["biomarkers_params"]`` : dict
        Parameters, versions, the design used for each group, and the groups' fitted correlation lengths (unit of
        the coordinates).

    Raises
    ------
    KeyError
        ``groupby``, ``library_key``, ``layer`` or ``spatial_key`` is missing.
    ValueError
        An unknown group; a group or its reference with fewer than three observations in every section; too few
        libraries for a comparison between libraries.

    Warns
    -----
    UserWarning
        ``groupby`` was found from the same expression by :func:`stxtools.tl.segment`: the p-values are then
        optimistic. Also when groups are left out, and when a comparison rests on a single library.

    Notes
    -----
    ``attribution`` is what a *linear probe* sees, no more: a shrinkage discriminant of group against reference on
    expression PCs, explained by integrated gradients (exact for a linear score) and mapped to genes. It shows how
    genes share the credit for telling the group apart; absolute values sum to 1 in each group, genes outside the
    PCA's gene set have 0. It is no test.

    See Also
    --------
    stxtools.get.biomarkers : the table, filtered.
    stxtools.tl.targets : join what is known of the genes as drug targets.

    Examples
    --------
    >>> import stxtools as st
    >>> adata = st.datasets.synthetic_tissue()
    >>> st.tl.biomarkers(adata, groupby="compartment", n_null=100)
    >>> table = st.get.biomarkers(adata, fdr=0.05)
    """
    check_adata(adata, min_obs=2 * MIN_OBS)
    check_choice("method", method, _METHODS)
    n_null = check_int("n_null", n_null, minimum=50)
    seed = check_int("random_state", random_state, minimum=0)
    key = check_key_added(key_added, _keys.BIOMARKERS)
    check_bool("copy", copy)
    codes, names = categories(adata, groupby, "groupby", min_classes=2)
    xy = coordinates(adata, spatial_key)
    libs = libraries(adata, library_key)
    if layer is not None:
        check_in(adata, "layers", layer, "layer")
    chosen = _chosen_groups(groups, reference, names, groupby)
    ref = None if reference == "rest" else names.index(reference)
    planned = [plan(name, names.index(name), ref, codes, libs.codes, len(libs)) for name in chosen]
    designs = _usable(planned, reference, groupby, explicit=not isinstance(groups, str))
    _warn(adata, groupby, designs, library_key)

    logged = log_expression(adata, layer)
    probe = _Probe(adata, layer, logged, codes, libs, seed)
    rows = {i: np.flatnonzero((libs.codes == i) & (codes >= 0)) for i in range(len(libs))}
    sections = {i: Section(logged[r], xy[r], seed) for i, r in rows.items() if len(r) > 0}
    gene_names = np.asarray(adata.var_names, dtype=str).astype(object)
    tables, lengths, gene_score = [], [], np.zeros(adata.n_vars)
    with progress(len(designs), "biomarkers", show_progress) as bar:
        for design in designs:
            parts = [Part(sections[i], *design.sides(codes[rows[i]]), i) for i in design.libraries]
            if design.kind == "within":
                tested, length = compare_within(parts, n_null, seed, design.code)
            else:
                tested, length = compare_between(parts), np.nan
            found = describe(parts, design.kind)
            adjusted = adjust_bh(tested.pvals)
            z = signed_z(tested.statistic, tested.df)
            score = np.sign(z) * np.abs(2 * found.auroc - 1) * (1 - tested.pvals) * tested.agreement
            columns = (
                np.full(adata.n_vars, design.name, dtype=object),
                gene_names,
                score,
                z,
                np.log2((found.mean_group + PSEUDO) / (found.mean_reference + PSEUDO)),
                found.auroc,
                tested.pvals,
                adjusted,
                probe(design),
                tested.n_libraries,
                (tested.agreement == 1) & (tested.n_libraries > 0),
                found.nonzero_group,
                found.nonzero_reference,
            )
            table = pd.DataFrame(dict(zip(COLUMNS, columns, strict=True)))
            tables.append(table.iloc[np.argsort(-table["scores"].to_numpy(), kind="stable")])
            lengths.append(length)
            gene_score = np.maximum(gene_score, np.abs(score))
            bar.update(1)
    slots = Slots()
    table = pd.concat(tables, ignore_index=True)
    slots.uns[key] = table.astype({"group": str, "names": str})  # object, or pandas 3's str: as read back
    score_key = _keys.BIOMARKER_SCORE if key == _keys.BIOMARKERS else f"{key}_score"
    slots.var[score_key] = gene_score
    slots.uns[f"{key}_params"] = provenance(
        groupby=groupby,
        groups=[d.name for d in designs],
        reference=reference,
        layer=layer,
        spatial_key=spatial_key,
        library_key=library_key,
        method=method,
        n_null=n_null,
        random_state=seed,
        design=np.array([d.kind for d in designs], dtype=object),
        correlation_length=np.array(lengths, dtype=np.float64),
        libraries=libs.names,
    )
    target = adata.copy() if copy else adata
    slots.write(target)
    return target if copy else None


def _chosen_groups(groups: Any, reference: Any, names: list[str], groupby: str) -> list[str]:
    if not isinstance(reference, str) or (reference != "rest" and reference not in names):
        raise ValueError(f"`reference={reference!r}` is neither 'rest' nor a group of `{groupby}`; it has {names}.")
    if isinstance(groups, str) and groups == "all":
        return [n for n in names if n != reference]
    if isinstance(groups, str):
        raise TypeError(
            f"`groups` must be 'all' or a list of group names, not the string {groups!r}; use [{groups!r}]."
        )
    if not isinstance(groups, Iterable):
        raise TypeError(f"`groups` must be 'all' or a list of group names, not {groups!r}.")
    chosen = list(dict.fromkeys(str(g) for g in groups))
    unknown = [g for g in chosen if g not in names]
    if unknown or not chosen:
        raise ValueError(f"`groups` names {unknown or 'no group'}; `{groupby}` has {names}.")
    if reference in chosen:
        raise ValueError(f"`reference={reference!r}` is also in `groups`; a group cannot be compared with itself.")
    return chosen


def _usable(planned: list[Design], reference: str, groupby: str, *, explicit: bool) -> list[Design]:
    alone = [d.name for d in planned if d.kind == "unreplicated"]
    if alone:
        raise ValueError(
            f"Group(s) {alone} of `{groupby}` and their reference {reference!r} occur in different libraries, with "
            "fewer than two libraries on one side. The library is the replicate, so a comparison between libraries "
            "needs at least two on each side: add libraries, or compare groups that occur in the same library."
        )
    out = [d for d in planned if d.kind != "small"]
    small = [d.name for d in planned if d.kind == "small"]
    if small and (explicit or not out):
        raise ValueError(
            f"Group(s) {small} of `{groupby}` or their reference {reference!r} have fewer than {MIN_OBS} observations "
            "in every section; leave them out with `groups=[...]`, or merge them with others."
        )
    if small:
        warnings.warn(
            f"Group(s) {small} of `{groupby}` are left out: fewer than {MIN_OBS} observations in every section.",
            UserWarning,
            stacklevel=3,
        )
    return out


def _warn(adata: AnnData, groupby: str, designs: list[Design], library_key: str | None) -> None:
    single = [d.name for d in designs if d.kind == "within" and len(d.libraries) == 1]
    if library_key is not None and single:
        warnings.warn(
            f"Group(s) {single} of `{groupby}` can be compared within one library only: their p-values speak of that "
            "section and not of others (`n_libraries` is 1).",
            UserWarning,
            stacklevel=3,
        )
    record: Any = adata.uns.get(groupby)
    params: Any = record.get("params") if isinstance(record, Mapping) else None
    versions: Any = params.get("versions") if isinstance(params, Mapping) else None
    if isinstance(versions, Mapping) and "stxtools" in versions:
        warnings.warn(
            f"The groups of `{groupby}` were found from this expression, and the same genes are tested on them: the "
            "p-values are optimistic. Rank by effect (`auroc`, `logfoldchanges`) rather than by p, or find the groups "
            "on some libraries and test them on others, or test groups drawn without these genes (histology).",
            UserWarning,
            stacklevel=3,
        )


class _Probe:
    """Expression PCs of the tested observations, and each design's attribution on them."""

    def __init__(
        self,
        adata: AnnData,
        layer: str | None,
        logged: sparse.csr_matrix,
        codes: NDArray[np.int64],
        libs: Libraries,
        seed: int,
    ) -> None:
        self._logged, self._libraries, self._codes = logged, libs.codes, codes
        self._values: NDArray[np.float32] | None = None
        seen = np.bincount(logged.indices, minlength=adata.n_vars)
        if (seen >= min(3, adata.n_obs)).any():
            n_comps = int(np.clip(adata.n_obs // 10, 2, _PROBE_COMPS))
            rep = compute_representation(adata, layer, n_comps=n_comps, random_state=seed)
            if rep.genes is not None and rep.components is not None:
                self._values = rep.values
                self._components = rep.components
                self._at = adata.var_names.astype(str).get_indexer(rep.genes)

    def __call__(self, design: Design) -> NDArray[np.float64]:
        out = np.zeros(self._logged.shape[1])
        if self._values is None:
            return out
        inside, outside = design.sides(self._codes)
        used = (inside | outside) & np.isin(self._libraries, design.libraries)
        blocks = self._libraries[used] if design.kind == "within" else None
        weight = np.zeros(len(used))
        weight[used] = contrast(inside[used], blocks)
        difference = np.asarray(weight @ self._logged).ravel()
        out[self._at] = linear_attribution(
            self._values[used], self._components, difference[self._at], inside[used], blocks
        )
        return out
