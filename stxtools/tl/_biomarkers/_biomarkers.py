"""Genes that mark a group of observations, with error rates that hold under spatial autocorrelation."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from stxtools import _keys
from stxtools._data.covariates import covariate_names, read_covariates
from stxtools._data.gene_blocks import GeneBlocks
from stxtools._data.one_section import sections
from stxtools._ownership import check_free
from stxtools._progress import stage, whole_call
from stxtools._slots import Slots, provenance
from stxtools._validate import (
    categories,
    check_adata,
    check_bool,
    check_choice,
    check_in,
    check_int,
    check_key_added,
    check_seed,
)
from stxtools.stats._design import Design, plan
from stxtools.stats._section import MIN_OBS

from ._attribution import ModelAttribution, load_models
from ._compare import compare
from ._design import chosen_groups, other_group, usable, warn_single
from ._probe import LinearProbe
from ._protect import METHODS as PROTECTIONS
from ._protect import guard
from ._table import design_table, ordered, scanpy_twin

if TYPE_CHECKING:
    from anndata import AnnData

    from stxtools.models import Segmenter, TissueNet

_METHODS = ("random_regions",)


@whole_call({
    "segment": 16, "attributing genes": 2, "testing genes": 5,
})  # fmt: skip
def biomarkers(
    adata: AnnData,
    groupby: str,
    *,
    groups: Literal["all"] | Sequence[str] = "all",
    reference: str = "rest",
    covariates: str | Sequence[str] | None = None,
    protect: Literal["thinning"] | None = "thinning",
    attribution_model: str
    | os.PathLike[str]
    | Segmenter
    | TissueNet
    | Sequence[str | os.PathLike[str] | Segmenter | TissueNet]
    | None = None,
    layer: str | None = None,
    spatial_key: str = _keys.SPATIAL,
    library_key: str | bool | None = None,
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
    the test of the correlation between gene and region; its tails follow the null's skewness and kurtosis (beta law,
    Pitman 1937). Random surrogates of one of two autocorrelated maps: Viladomat et al. (2014).

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
    al. 2015) whose between-library spread is moderated over genes (Smyth 2004). The libraries' skewness and kurtosis
    are carried along: cumulants of independent effects add up. Where they occur in different
    libraries (patients against healthy donors), library means are compared by a moderated t-test; that needs two
    libraries on each side.

    Groups that were found in the expression they are tested on differ by construction (double dipping). Where
    ``groupby`` is a result of :func:`stxtools.tl.segment`, counts are therefore divided at random (Neufeld et al.
    2024): the tissue is segmented again from one half with the same parameters, picture and pretrained model, each
    class takes the name of the user's class it overlaps most, and the other half is tested on these. A PCA in
    ``obsm["X_pca"]`` is made again from the half in the way that makes it from all counts; its stored loadings would
    bring the other half's noise along, and so does a pretrained model that saw these very counts. In how far the
    user's groups are found again is in ``protect_agreement``. The halves are independent where counts are
    Poisson given the true expression; what over-dispersed counts have in excess is in both, and p-values are then
    still optimistic (:func:`stxtools.pp.split_counts` says by how much). Of a column that other software wrote, a
    clustering say, nothing is known and nothing is done: divide its counts with :func:`stxtools.pp.split_counts`,
    find groups in one part and test on the other.

    Parameters
    ----------
    adata
        Counts, linear or log expression; see :func:`stxtools.pp.normalize`. Not changed but for the slots below.
        Expression may lie in a file or be a dask array, see Notes.
    groupby
        Column of ``adata.obs`` with the groups (categorical, strings, booleans or integers). Observations where
        it is missing are left out.
    groups
        The groups to test, or ``"all"``. Where there are two groups, each is the other's rest and one table says it
        all: ``"all"`` is then the second of them (of categories in their order, else as sorted: ``True``, ``"yes"``,
        ``"tumour"`` and not ``"normal"``), and the first is its reference, as in R's model formulas. Name the other
        (``groups=["normal"]``) to turn signs round, or both to have both.
    reference
        ``"rest"`` (all other observations with a group), or the name of a group.
    covariates
        What effects are adjusted for: ``"composition"``, keys of ``adata.obs`` (numbers, or classes) or
        ``adata.obsm``, or a list of those. A representation in ``obsm`` that was made from the tested genes lets each
        explain itself.
    protect
        ``"thinning"`` protects groups found by :func:`stxtools.tl.segment` as told above; ``None`` does not. Without
        protection, or where it is not possible, a warning says so. Thinning needs expression in memory.
    attribution_model
        A :class:`stxtools.models.Segmenter` or :class:`stxtools.models.TissueNet`, the path of a saved one, or several
        (other seeds, say) that tell the groups apart. A TissueNet reads the region graph of
        :func:`stxtools.tl.region_graph`. Without a model, ``attribution`` is that of a linear probe.
    layer
        Layer with expression; by default ``layers["counts"]`` where there is one, else ``X``.
    spatial_key
        Key of ``adata.obsm`` with the positions.
    library_key
        Column of ``adata.obs`` that says which section an observation belongs to. No statistic crosses sections.
        ``False`` says that all observations are one section.
    method
        ``"random_regions"``, the test described above.
    n_null
        Random regions drawn per group and section. The null standard deviation of a gene is known to about
        ``71 / sqrt(n_null)`` percent.
    key_added
        Name of the results instead of ``"biomarkers"``.
    random_state
        Seed of the random regions. Same seed, same numbers; the order of the observations does not matter.
    show_progress
        Show a progress bar; by default in terminals and notebooks.
    copy
        Return a changed copy instead of writing to ``adata``.

    Returns
    -------
    ``None``, or the changed copy with ``copy=True``. Sets

    ``uns["biomarkers"]`` : :class:`pandas.DataFrame`
        One row per tested group and gene, sorted by group and, within it, by what is certain: first the genes that are
        significantly higher in the group (``pvals_adj`` of at most 0.05), by falling ``certain_logfoldchanges``; then
        those that are not significant, by falling ``rank_score``; last those that are significantly lower, the most
        certain at the end. So both ends hold markers, as in a table of scanpy. The columns are

        - ``group``, ``names``: the group and the gene;
        - ``scores``: the test statistic as a signed normal quantile; positive where the gene is higher in the group;
        - ``logfoldchanges``: log2 ratio of mean depth-normalised expression, with 0.001 added to both;
        - ``pvals``, ``pvals_adj``: two-sided p-value, and Benjamini-Hochberg within the group;
        - ``pct_nz_group``, ``pct_nz_reference``: share of observations that express the gene;
        - ``ci_low``, ``ci_high``: confidence interval of ``logfoldchanges`` under the null of the test: its standard
          error is ``abs(logfoldchanges / scores)``. The level accounts for many genes (false coverage rate of 5 %,
          Benjamini & Yekutieli 2005): the interval leaves 0 out where, and only where, the gene is significant. NaN
          where the fold change has not the sign of the test, which then says nothing of it: the test compares means
          of a logarithm, and with ``covariates`` adjusted ones, while the fold change is that of the plain means;
        - ``certain_logfoldchanges``: the limit nearer to zero of the same interval for the log2 ratio with one molecule
          per observation of median depth added to both, 0 where the gene is not significant: what the fold change is
          at least. Without the molecule, genes with hardly a count on one side would stand first;
        - ``auroc``: chance that an observation of the group exceeds one of the reference (ties count half);
        - ``attribution``: see below;
        - ``n_libraries``: libraries in which the gene's effect could be estimated;
        - ``direction_consistent``: whether all of these show the same direction (between-library design: whether
          every library lies on its side of the other side's mean); missing (``NA``) where there are fewer than two;
        - ``rank_score``: orders the genes that are not significant. With few libraries these are most, and an order by
          the test statistic hardly comes back in other patients. It is ``e**3 / (e**2 + se**2) * (1 - pvals / 2) *
          (0.9 + 0.1 * r)``. ``e`` is the difference of the square roots of pooled expression plus one, in counts per
          observation of median depth, averaged over libraries (with ``covariates`` the adjusted difference of log
          expression); ``se`` its standard error over libraries (0 with one); ``r`` the rank of the absolute
          ``attribution``, 1 for the largest. 0 where ``e`` has not the sign of the test.

        Fold change, AUROC and shares are averages over libraries. A gene that does not vary has score 0 and p 1.
    ``uns["rank_genes_groups_biomarkers"]`` : dict
        The same genes in the same order in the layout of :func:`scanpy.tl.rank_genes_groups` (``names``, ``scores``,
        ``logfoldchanges``, ``pvals``, ``pvals_adj``, ``params``): pass the key to
        :func:`scanpy.get.rank_genes_groups_df` or :func:`scanpy.pl.rank_genes_groups`. With ``key_added`` it is
        ``"rank_genes_groups_{key_added}"``.
    ``var["biomarker_score"]`` : float64, shape ``(n_vars,)``
        Largest ``abs(certain_logfoldchanges)`` of the gene over the groups; 0 where it is significant in none. With
        ``key_added`` the column is ``"{key_added}_score"``.
    ``uns["biomarkers_params"]`` : dict
        Parameters, versions, the design used for each group, the groups' fitted correlation lengths (unit of the
        coordinates), ``attribution_agreement`` (per group, Spearman correlation of absolute ``attribution`` and
        ``scores``), ``protected`` and, where groups were found again, ``protect_agreement`` (adjusted Rand index
        with the user's groups), ``protect_representation`` (what in) and ``protect_missing`` (what the user's
        segmentation read and this one could not).

    Raises
    ------
    KeyError
        ``groupby``, ``library_key``, ``layer``, ``spatial_key`` or a covariate is missing, or the region graph that a
        TissueNet reads.
    ValueError
        An unknown group; a group or its reference with fewer than three observations in every section; too few
        libraries for a comparison between libraries, or covariates in one; a model that does not know the groups;
        groups that were found in expression which is out of core and to be thinned.

    Warns
    -----
    UserWarning
        ``groupby`` was found from the same expression and is not protected: the p-values are then optimistic. Groups
        that were found again for protection agree with ``groupby`` to an adjusted Rand index below 0.8, or without
        something that its segmentation read: the table describes them. Also when groups are not tested, and when a
        comparison rests on a single library.

    Notes
    -----
    Genes are read in blocks that fit into ``settings.max_memory``, from memory, a file (backed) or a dask array (by the
    user's :class:`dask.distributed.Client`, if there is one). Random regions are the same for all blocks: the table
    does not depend on how genes are divided or where they lie. A group and its complement are computed once.

    With ``attribution_model``, ``attribution`` is what the model looks at: integrated gradients (Sundararajan et al.
    2017, by Captum) of the log odds of the group, averaged over the group's observations minus over the reference's,
    along the path from the section's mean expression to the measured one. What a Segmenter's U-Net reads is linear in
    genes, so that the genes' parts follow exactly. A TissueNet answers by the task that knows the groups, its region
    graph held fixed; the genes that it reads beside the features add their own parts. Parts are averaged over the
    models given. Without a model it is what a *linear probe* sees: a shrinkage discriminant of group against reference
    on expression PCs, explained in the same way (exact for a linear score). In either case positive values speak for
    the group, absolute values sum to 1 in each group, and genes outside the gene set of the model or PCA have 0. It is
    no test.

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
    seed = check_seed(random_state)
    key = check_key_added(key_added, _keys.BIOMARKERS)
    score_key = _keys.BIOMARKER_SCORE if key == _keys.BIOMARKERS else f"{key}_score"
    check_free(adata, "tl.biomarkers", var=[score_key], uns=[key, f"{key}_params", _keys.twin(key)])
    check_bool("copy", copy)
    codes, names = categories(adata, groupby, "groupby", min_classes=2)
    xy, libs = sections(adata, spatial_key, library_key)
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

    blocks = GeneBlocks(tested_adata, tested_layer)
    stage("attributing genes")
    if models:
        tested_groups = [d.name for d in designs]
        explain = ModelAttribution(
            tested_adata, models, tested_groups, reference, tested_layer, spatial_key, library_key, adata
        )
        attributions = [explain.of(d, codes, libs.codes) for d in designs]
    else:
        attributions = LinearProbe(tested_adata, blocks, codes, libs, seed)(designs)
    observations = np.asarray(adata.obs_names, dtype=str)
    outcomes = compare(
        blocks, designs, codes, libs, xy, observations, given, n_null=n_null, seed=seed, show_progress=show_progress
    )
    gene_names = np.asarray(adata.var_names, dtype=str).astype(object)
    tables, agreement, gene_score = [], [], np.zeros(adata.n_vars)
    for design, outcome, attribution in zip(designs, outcomes, attributions, strict=True):
        table, agrees = design_table(design, outcome, attribution, gene_names, adjusted=given is not None)
        tables.append(ordered(table))
        agreement.append(agrees)
        gene_score = np.maximum(gene_score, np.abs(table["certain_logfoldchanges"].to_numpy()))
    slots = Slots("tl.biomarkers")
    table = pd.concat(tables, ignore_index=True)
    slots.uns[key] = table.astype({"group": str, "names": str})  # object, or pandas 3's str: as read back
    slots.var[score_key] = gene_score
    compared_with = other_group(chosen, reference, names)
    slots.uns[_keys.twin(key)] = scanpy_twin(tables, groupby, compared_with, method, layer)
    slots.uns[f"{key}_params"] = provenance(
        groupby=groupby,
        groups=[d.name for d in designs],
        reference=compared_with,
        covariates=adjusted_for or None,
        protect=protect,
        protected=guarded is not None,
        protect_agreement=None if guarded is None else guarded.agreement,
        protect_representation=None if guarded is None else guarded.representation,
        protect_missing=None if guarded is None or not guarded.missing else guarded.missing,
        attribution=f"{len(models)} model(s)" if models else "linear probe",
        attribution_agreement=np.array(agreement, dtype=np.float64),
        layer=layer,
        **(blocks.logged.read if guarded is None else guarded.read),
        spatial_key=spatial_key,
        library_key=library_key,
        method=method,
        n_null=n_null,
        random_state=seed,
        design=np.array([d.kind for d in designs], dtype=object),
        correlation_length=np.array([o.length for o in outcomes], dtype=np.float64),
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
