"""Genes that mark a group of observations, with error rates that hold under spatial autocorrelation."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from .. import _keys
from .._progress import progress
from .._representation import expression, log_normalize
from .._slots import Slots, provenance
from .._validate import (
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
from ..stats._contrast import Design, Part, compare_between, compare_within, describe, plan, shrink
from ..stats._section import MIN_OBS, PSEUDO, Section
from ._attribution import ModelAttribution, load_models
from ._comparisons import chosen_groups, usable, warn_single
from ._covariates import covariate_names, read_covariates
from ._probe import LinearProbe
from ._protect import METHODS as PROTECTIONS
from ._protect import guard

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from stxtools.models import Segmenter

_METHODS = ("random_regions",)
COLUMNS = (
    "group",
    "names",
    "scores",
    "zscores",
    "logfoldchanges",
    "auroc",
    "effect",
    "effect_se",
    "pvals",
    "pvals_adj",
    "attribution",
    "attribution_rank",
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
    covariates: str | Sequence[str] | None = None,
    protect: Literal["thinning"] | None = "thinning",
    attribution_model: str | os.PathLike[str] | Segmenter | Sequence[str | os.PathLike[str] | Segmenter] | None = None,
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
    take spots as independent call those genes markers. Here a gene's mean difference (log(1 + x / 20) of
    depth-normalised expression x, group minus reference, within a section) is measured against its own null: the same
    difference between *random regions* of the section that are as large, as smooth and as patchy as the group. Their
    law is a Gaussian random field cut at a quantile, fitted to the group's own correlogram; the gene stays as it is.
    The null variance gives an effective sample size (Clifford, Richardson & Hemon 1989; Dutilleul 1993), and with it
    the t-test of the correlation between gene and region; where the null is skewed, its long tail is allowed for.
    Random surrogates of one of two autocorrelated maps: Viladomat et al. (2014).

    Two questions, two answers. The default is the *total* effect: which genes differ between the group and the
    reference, whatever the reason. Tumour against stroma, every epithelial gene does. ``covariates="composition"``
    asks for the effect *given the tissue's composition*: which genes differ more than the kinds of cells there say.
    The section's leading expression components (20, fewer in a small section) are taken out of gene and region. They
    are made without the tested gene, so that no gene explains itself, and made again without the genes that a first
    test calls. It is far more powerful where composition makes most of the noise, and it removes what *is*
    composition: of tumour against stroma, ``ERBB2`` with all of the epithelium.

    With ``library_key`` the library (patient, section) is the unit of replication, however many observations it
    has. Where group and reference occur in the same libraries (tumour against stroma), each library is tested
    within itself and the effects are combined in a random-effects meta-analysis (Hartung & Knapp 2001, Rover et
    al. 2015) whose between-library spread is moderated over genes (Smyth 2004). Where they occur in different
    libraries (patients against healthy donors), library means are compared by a moderated t-test; that needs two
    libraries on each side.

    Groups that were found in the expression they are tested on differ by construction (double dipping). Where
    ``groupby`` is a result of :func:`stxtools.tl.segment`, counts are therefore divided at random (Neufeld et al.
    2024): the tissue is segmented again from one half with the same parameters, each class takes the name of the
    user's class it overlaps most, and the other half is tested on these. Of a column that other software wrote, a
    clustering say, nothing is known and nothing is done: divide its counts with :func:`stxtools.pp.split_counts`,
    find groups in one part and test on the other.

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
    covariates
        What effects are adjusted for: ``"composition"``, keys of ``adata.obs`` (numbers, or classes) or
        ``adata.obsm``, or a list of those. A representation in ``obsm`` that was made from the tested genes lets each
        explain itself.
    protect
        ``"thinning"`` protects groups found by :func:`stxtools.tl.segment` as told above; ``None`` does not. Without
        protection, or where it is not possible, a warning says so.
    attribution_model
        A :class:`stxtools.models.Segmenter`, the path of a saved one, or several (other seeds, say) that tell the
        groups apart. Without one, ``attribution`` is that of a linear probe.
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
        - ``scores``: ``effect * effect**2 / (effect**2 + effect_se**2) * (1 - pvals / 2) * (0.9 + 0.1 *
          attribution_rank)``: effect, drawn to zero where libraries disagree, and evidence and attribution, which take
          off a half and a tenth at most. Positive where the gene is higher in the group, 0 where effect and test
          point in different directions. Evidence alone would put faint genes of low variance first; more weight
          to attribution makes lists of different patients agree less;
        - ``zscores``: the test statistic as a signed normal quantile;
        - ``logfoldchanges``: log2 ratio of mean depth-normalised expression, with 0.001 added to both;
        - ``auroc``: chance that an observation of the group exceeds one of the reference (ties count half);
        - ``effect``: difference of the square roots of pooled expression plus one, in counts per observation of
          median depth: of all scales tried, the one on which patients agreed most. Mean over libraries. With
          ``covariates`` the adjusted difference of log expression;
        - ``effect_se``: its standard error over libraries, NaN with one library;
        - ``pvals``, ``pvals_adj``: two-sided p-value, and Benjamini-Hochberg within the group;
        - ``attribution``, ``attribution_rank``: see below; the rank is 1 for the largest absolute value, 0 for none;
        - ``n_libraries``: libraries in which the gene's effect could be estimated;
        - ``direction_consistent``: whether all of these show the same direction (between-library design: whether
          every library lies on its side of the other side's mean);
        - ``pct_nz_group``, ``pct_nz_reference``: share of observations that express the gene.

        Fold change, AUROC and shares are averages over libraries. A gene that does not vary has score 0 and p 1.
    ``var["biomarker_score"]`` : float64, shape ``(n_vars,)``
        Largest ``|scores|`` of the gene over the groups. With ``key_added`` the column is ``"{key_added}_score"``.
    ``uns["biomarkers_params"]`` : dict
        Parameters, versions, the design used for each group, the groups' fitted correlation lengths (unit of the
        coordinates), ``attribution_agreement`` (per group, Spearman correlation of absolute ``attribution`` and
        ``zscores``), ``protected`` and, where groups were found again, ``protect_agreement`` (adjusted Rand index
        with the user's groups).

    Raises
    ------
    KeyError
        ``groupby``, ``library_key``, ``layer``, ``spatial_key`` or a covariate is missing.
    ValueError
        An unknown group; a group or its reference with fewer than three observations in every section; too few
        libraries for a comparison between libraries, or covariates in one; a model that does not know the groups.

    Warns
    -----
    UserWarning
        ``groupby`` was found from the same expression and is not protected: the p-values are then optimistic. Also
        when groups are left out, and when a comparison rests on a single library.

    Notes
    -----
    With ``attribution_model``, ``attribution`` is what the U-Net looks at: integrated gradients
    (Sundararajan et al. 2017, by Captum) of the log odds of the group, averaged over the group's observations minus
    over the reference's, along the path from the section's mean expression to the measured one. Features are linear
    in genes, so that the genes' parts follow exactly; they are averaged over the models given. Without a model it is
    what a *linear probe* sees: a shrinkage discriminant of group against reference on expression PCs, explained in
    the same way (exact for a linear score). In either case positive values speak for the group, absolute values sum
    to 1 in each group, and genes outside the gene set of the model or PCA have 0. It is no test.

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
    check_choice("protect", protect, PROTECTIONS)
    n_null = check_int("n_null", n_null, minimum=50)
    seed = check_int("random_state", random_state, minimum=0)
    key = check_key_added(key_added, _keys.BIOMARKERS)
    check_bool("copy", copy)
    codes, names = categories(adata, groupby, "groupby", min_classes=2)
    xy = coordinates(adata, spatial_key)
    libs = libraries(adata, library_key)
    if layer is not None:
        check_in(adata, "layers", layer, "layer")
    adjusted_for = covariate_names(covariates)
    given = read_covariates(adata, adjusted_for, groupby)
    chosen = chosen_groups(groups, reference, names, groupby)
    models = load_models(attribution_model)

    guarded = guard(adata, groupby, layer, protect, seed, show_progress)
    tested_adata, tested_layer = (adata, layer) if guarded is None else (guarded.adata, None)
    codes = codes if guarded is None else guarded.codes
    ref = None if reference == "rest" else names.index(reference)
    planned = [plan(name, names.index(name), ref, codes, libs.codes, len(libs)) for name in chosen]
    designs = usable(planned, reference, groupby, explicit=not isinstance(groups, str))
    warn_single(designs, groupby, library_key)
    _check_adjustable(designs, adjusted_for)

    matrix, scale = expression(tested_adata, tested_layer)
    logged = log_normalize(matrix, scale)
    depth = None if scale == "log" else np.asarray(matrix.sum(axis=1), dtype=np.float64).ravel()
    explain = None
    if models:
        tested_groups = [d.name for d in designs]
        explain = ModelAttribution(
            tested_adata, models, tested_groups, reference, tested_layer, spatial_key, library_key
        )
    probe = LinearProbe(tested_adata, tested_layer, logged, codes, libs, seed, unused=explain is not None)
    rows = {i: np.flatnonzero((libs.codes == i) & (codes >= 0)) for i in range(len(libs))}
    sections = {
        i: Section(
            logged[r],
            xy[r],
            seed,
            None if depth is None else depth[r],
            None if given is None else given.subset(np.isin(np.arange(adata.n_obs), r)),
        )
        for i, r in rows.items()
        if len(r) > 0
    }
    gene_names = np.asarray(adata.var_names, dtype=str).astype(object)
    tables, lengths, agreement, gene_score = [], [], [], np.zeros(adata.n_vars)
    with progress(len(designs), "biomarkers", show_progress) as bar:
        for design in designs:
            parts = [Part(sections[i], *design.sides(codes[rows[i]]), i) for i in design.libraries]
            found, error = describe(parts, design.kind)
            effect, length = found.effect, np.nan
            if design.kind == "within":
                tested, tested_error, length = compare_within(parts, n_null, seed)
                if given is not None:
                    effect, error = tested.effect, tested_error
            else:
                tested = compare_between(parts)
            z = signed_z(tested.statistic, tested.df)
            if explain is None:
                attribution = probe(design)
            else:
                inside, outside = design.sides(codes)
                used = np.isin(libs.codes, design.libraries)
                attribution = explain(design.name, reference, inside & used, outside & used)
            size = np.abs(attribution)
            rank = np.where(size > 0, rankdata(size) / len(size), 0.0)
            agreement.append(_spearman(size, np.abs(z)))
            score = shrink(effect, error) * (1 - tested.pvals / 2) * (0.9 + 0.1 * rank)
            score = np.where((tested.n_libraries > 0) & (effect * z > 0), score, 0.0)
            columns = (
                np.full(adata.n_vars, design.name, dtype=object),
                gene_names,
                score,
                z,
                np.log2((found.mean_group + PSEUDO) / (found.mean_reference + PSEUDO)),
                found.auroc,
                effect,
                error,
                tested.pvals,
                adjust_bh(tested.pvals),
                attribution,
                rank,
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
        covariates=adjusted_for or None,
        protect=protect,
        protected=guarded is not None,
        protect_agreement=None if guarded is None else guarded.agreement,
        attribution="linear probe" if explain is None else f"{len(models)} model(s)",
        attribution_agreement=np.array(agreement, dtype=np.float64),
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


def _check_adjustable(designs: Sequence[Design], covariates: Sequence[str]) -> None:
    between = [d.name for d in designs if d.kind == "between"]
    if covariates and between:
        raise ValueError(
            f"Group(s) {between} and their reference lie in different libraries: means of libraries are compared "
            "there, and `covariates` of observations cannot be taken out. Leave `covariates` out, or compare groups "
            "within libraries."
        )


def _spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])
