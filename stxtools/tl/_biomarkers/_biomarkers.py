"""Genes that mark a group of observations, with error rates that hold under spatial autocorrelation."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import pandas as pd
from anndata import AnnData

from stxtools import _keys
from stxtools._api import public
from stxtools._checks import check_choice, check_int, check_seed
from stxtools._data.covariates import COMPOSITION, covariate_columns, covariate_names
from stxtools._data.expression import GeneBlocks
from stxtools._data.regions import Regions
from stxtools._data.sections import Geometry
from stxtools._progress import progress_bar, stage
from stxtools._slots import Slots, check_free, provenance
from stxtools._validate import categories, check_adata, check_key_added, inherited_library_key, subject_of_libraries
from stxtools.stats._composition import Covariates
from stxtools.stats._design import plan
from stxtools.stats._meta_analysis import Alternative
from stxtools.stats._region_test import MIN_NULL
from stxtools.stats._section import MIN_OBS

from ._attribution import load_models, model_attributions, reads_regions
from ._design import chosen_groups, compare, group_sizes, testable, warn_single
from ._probe import probe_attributions
from ._protect import DataToTest
from ._table import design_table, scanpy_twin, sort_genes

if TYPE_CHECKING:
    from stxtools.models import Segmenter, TissueNet


@public
@progress_bar({"segment": 16, "attributing genes": 2, "testing genes": 5})
def biomarkers(
    adata: AnnData, groupby: str, *, groups: Literal["all"] | Sequence[str] = "all", reference: str = "rest",
    alternative: Literal["two-sided", "greater", "less"] = "two-sided", covariates: str | Sequence[str] | None = None,
    protect: Literal["thinning"] | None = "thinning", attribution_model: str | os.PathLike[str] | Segmenter | TissueNet
    | Sequence[str | os.PathLike[str] | Segmenter | TissueNet] | None = None, layer: str | None = None,
    spatial_key: str = _keys.SPATIAL, library_key: str | bool | None = None, subject_key: str | None = None,
    method: Literal["random_regions"] = "random_regions", n_null: int = 400, key_added: str | None = None,
    random_state: int = 0, show_progress: bool | None = None, copy: bool = False,
) -> AnnData | None:  # fmt: skip
    """Rank marker genes of groups, with a false discovery rate that is calibrated under spatial autocorrelation.

    Neighbouring spots are similar, so that any compact region differs from the rest in many genes by chance. The
    difference in means is compared with that of *random regions* of the same size and smoothness in the same section.
    Sections, or subjects, are the replicates. A second test asks whether a gene differs more than composition explains.

    Parameters
    ----------
    adata
        Annotated data matrix with counts, linear or log expression; in memory, backed, or as a dask array.
    groupby
        Column of ``obs`` with the groups; observations with a missing value are ignored.
    groups
        Groups to test. ``"all"`` of two groups tests the second one against the first.
    reference
        Group to compare with, or ``"rest"``: all other observations with a group.
    alternative
        ``"greater"`` tests for higher expression only, ``"less"`` for lower; genes are ranked accordingly.
    covariates
        Keys of ``obs`` or ``obsm`` to adjust for, or ``"composition"``, which swaps the two tests; by default none.
    attribution_model
        One or more models of the groups to explain (path, Segmenter, TissueNet); by default a linear probe.
    subject_key
        Column of ``obs`` with the patient of each section: effects are averaged over a patient's sections first.
    method
        ``"random_regions"``, the only one.

    %(returns)s

    Columns (see the method page): ``group``, ``names``, ``scores``, ``logfoldchanges``, ``pvals``, ``pvals_adj``, the
    second test's (``..._composition``, ``..._total``), ``beyond_composition``, ``pct_nz_...``, ``ci_low``, ``ci_high``,
    ``certain_logfoldchanges``, ``auroc``, ``attribution``, ``n_libraries``, ``direction_consistent``, ``rank_score``.

    Warns
    -----
    UserWarning
        If groups were found in the tested expression and are not well protected, are too small, or in one section only.

    Examples
    --------
    >>> adata = st.datasets.synthetic_tissue()
    >>> st.tl.biomarkers(adata, groupby="compartment", n_null=100)
    >>> table = st.get.biomarkers(adata, fdr=0.05)
    """
    check_adata(adata, min_obs=2 * MIN_OBS, layer=layer, copy=copy, genes=True)
    check_choice("method", method, ("random_regions",))
    check_choice("protect", protect, ("thinning", None))
    check_choice("alternative", alternative, get_args(Alternative))
    n_null = check_int("n_null", n_null, minimum=MIN_NULL)
    seed = check_seed(random_state)
    key = check_key_added(key_added, _keys.BIOMARKERS)
    score_key = _keys.BIOMARKER_SCORE if key == _keys.BIOMARKERS else f"{key}_score"
    named = categories(adata, groupby, "groupby", min_classes=2)
    check_free(adata, "tl.biomarkers", var=[score_key], uns=[key, f"{key}_params", _keys.twin(key)])
    library_key = inherited_library_key(adata, groupby, library_key)
    where = Geometry(adata, spatial_key, library_key, raster=False)
    libs, names = where.libs, named.names
    subjects = subject_of_libraries(adata, libs, subject_key)
    adjusted_for = covariate_names(covariates)
    adjusters = Covariates(COMPOSITION in adjusted_for, covariate_columns(adata, adjusted_for, groupby))
    chosen = chosen_groups(groups, reference, names, groupby)
    models = load_models(attribution_model)
    regions = Regions(adata, _keys.REGIONS, spatial_key) if any(map(reads_regions, models)) else None

    data = DataToTest(adata, groupby, named, layer, protect, seed, show_progress)
    codes = data.codes
    ref = None if reference == "rest" else names.index(reference)
    planned = [plan(name, names.index(name), ref, codes, libs.codes, len(libs), subjects) for name in chosen]
    designs = testable(planned, reference, groupby, explicit=not isinstance(groups, str))
    warn_single(designs, groupby, library_key)
    between = [d.name for d in designs if d.kind == "between"]
    if adjusted_for and between:
        raise ValueError(
            f"Group(s) {between} and their reference lie in different libraries, so that means of libraries "
            "are compared, without `covariates` of observations. Omit `covariates`, or compare groups within libraries."
        )

    blocks, observations = GeneBlocks(data.read), np.asarray(adata.obs_names, dtype=str)
    stage("attributing genes")
    if models:
        attributions = model_attributions(data.adata, models, designs, codes, reference, data.layer, where, regions)
    else:
        attributions = probe_attributions(blocks, codes, libs.codes, designs, seed)
    outcomes = compare(
        blocks, designs, codes, where, observations, adjusters, n_null=n_null, seed=seed,
        show_progress=show_progress, alternative=alternative,
    )  # fmt: skip
    gene_names = np.asarray(adata.var_names, dtype=str).astype(object)
    tables, agreement, gene_score = [], [], np.zeros(adata.n_vars)
    for design, outcome, attribution in zip(designs, outcomes, attributions, strict=True):
        table, agrees = design_table(
            design, outcome, attribution, gene_names, adjusted=bool(adjusted_for),
            composition=adjusters.composition, alternative=alternative,
        )  # fmt: skip
        tables.append(sort_genes(table, alternative))
        agreement.append(agrees)
        gene_score = np.maximum(gene_score, np.abs(table["certain_logfoldchanges"].to_numpy()))
    slots = Slots("tl.biomarkers", open_ended=("ci_low", "ci_high"))
    table = pd.concat(tables, ignore_index=True)
    slots.uns[key] = table.astype({"group": str, "names": str})  # object, or pandas 3's str: as read back
    slots.var[score_key] = gene_score
    pair = len(names) == 2 and len(chosen) == 1  # the rest is one group, called by its name
    compared_with = next(n for n in names if n not in chosen) if pair else reference
    slots.uns[_keys.twin(key)] = scanpy_twin(tables, groupby, compared_with, method, layer)
    slots.uns[f"{key}_params"] = provenance(
        groupby=groupby, groups=[d.name for d in designs], reference=compared_with, alternative=alternative,
        covariates=adjusted_for or None,
        protect=protect, protected=data.protected,
        attribution=f"{len(models)} model(s)" if models else "linear probe",
        attribution_agreement=np.array(agreement, dtype=np.float64), layer=layer, **data.record,
        spatial_key=spatial_key, library_key=library_key, subject_key=subject_key,
        method=method, n_null=n_null, random_state=seed,
        design=np.array([d.kind for d in designs], dtype=object), **group_sizes(designs, codes, libs.codes),
        correlation_length=np.array([o.length for o in outcomes], dtype=np.float64), libraries=libs.names,
    )  # fmt: skip
    return slots.write(adata, copy)
