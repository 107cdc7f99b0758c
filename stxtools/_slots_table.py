"""Slots that each call writes into AnnData: the one table behind docstrings, the documentation's page and its test.

Keys are those of a call with its default ``key_added``. A part in braces stands for the value of a
parameter (``{biomarker_key}``) or for a section's name (``{library}``).
"""

from __future__ import annotations

from dataclasses import dataclass

from . import _keys as k


@dataclass(frozen=True)
class SlotRow:
    """One slot that a call writes.

    ``where`` is an attribute of AnnData (``"obs"``), or of the regions' AnnData (``"regions.obs"``). ``key`` is a
    path of keys with ``/`` between them for what lies deeper in ``uns``, and empty for ``X``.
    ``always`` is false for a slot that depends on the input; ``meaning`` then says on what.
    """

    call: str
    where: str
    key: str
    type: str
    shape: str
    meaning: str
    always: bool = True

    @property
    def code(self) -> str:
        """The slot as a user would type it."""
        root, _, attribute = self.where.rpartition(".")
        owner = f'uns["{k.REGIONS}"].{attribute}' if root else self.where
        return owner + "".join(f'["{part}"]' for part in self.key.split("/") if part)


PARAMS = "parameters, seed and versions"
HISTORY = "losses by epoch"
Z = "embedding Z of each section"
_TASKS = ("{biomarker_key}", "{region_key}")

# fmt: off
_NETWORK = (
    ("regions.obsm", k.X_GNN, "float32", "n_regions x n_dims", "embeddings of the regions"),
    ("regions.obsp", k.ATTENTION, "csr float32", "n_regions x n_regions",
     "row attends to column; rows sum to 1"),
    ("regions.obs", k.ATTENTION, "float32", "n_regions", "mean attention that the region gets from its neighbours"),
    ("obsm", k.X_GNN, "float32", "n_obs x n_dims", "embedding of the observation's region; NaN outside any"),
    ("obs", k.ATTENTION, "float32", "n_obs", "attention that this region gets; NaN outside any"),
)

_ROWS: dict[str, tuple[tuple[str, str, str, str, str] | tuple[str, str, str, str, str, bool], ...]] = {
    "pp.normalize": (
        ("layers", k.COUNTS, "as X was", "n_obs x n_vars", "the values before normalisation; kept where there is one"),
        ("X", "", "csr float32", "n_obs x n_vars", "log1p of depth-normalised expression; dense or lazy where it was"),
        ("var", "highly_variable", "bool", "n_vars", "genes used for the PCA"),
        ("obsm", k.X_PCA, "float32", "n_obs x n_comps", "principal components"),
        ("varm", "PCs", "float32", "n_vars x n_comps", "loadings; 0 for genes that were not used"),
        ("uns", "pca", "dict", "-", "variances of the components, as scanpy writes them"),
        ("uns", "log1p", "dict", "-", "scanpy's mark of logarithmic values"),
        ("uns", "normalize/params", "dict", "-", PARAMS),
    ),
    "pp.rasterize": (
        ("obsm", k.RASTER, "int32", "n_obs x 2", "row and column of the pixel; scattered cells may share one"),
        ("uns", f"{k.RASTER}/{{library}}", "dict", "-",
         "``shape``, ``pixel_size`` (between centres, in units of the coordinates), ``origin`` (x, y of "
         "the centre of pixel (0, 0)), ``lattice`` (hex, square, scattered)"),
        ("uns", f"{k.RASTER}/params", "dict", "-", PARAMS),
    ),
    "pp.align": (
        ("obsm", k.SPATIAL_ALIGNED, "float64", "n_obs x 2", "coordinates in the frame and units of the reference"),
        ("uns", f"{k.ALIGN}/matrices/{{library}}", "float64", "2 x 3",
         "affine map M of the section: ``xy_aligned = M[:, :2] @ xy + M[:, 2]``"),
        ("uns", f"{k.ALIGN}/score/{{library}}", "dict", "-",
         "``correlation`` and ``overlap``, at most 1; with landmarks ``rmse``, in units of the coordinates"),
        ("uns", f"{k.ALIGN}/reference", "str", "-", "name of the reference section"),
        ("uns", f"{k.ALIGN}/params", "dict", "-", PARAMS),
    ),
    "pp.add_noise": (
        ("layers", k.NOISE, "as X was", "n_obs x n_vars", "noised expression; not with ``use_rep``", False),
        ("obsm", k.NOISE, "float32", "n_obs x n_features", "noised representation; with ``use_rep``", False),
        ("uns", f"{k.NOISE}/params", "dict", "-", PARAMS),
    ),
    "pp.split_counts": (
        ("layers", f"{k.SPLIT}_train", "as X was", "n_obs x n_vars", "part to find groups in"),
        ("layers", f"{k.SPLIT}_test", "as X was", "n_obs x n_vars", "part to test on"),
        ("uns", f"{k.SPLIT}/params", "dict", "-", f"{PARAMS}, names of the layers"),
    ),
    "tl.pretrain": (
        ("uns", f"{k.PRETRAIN}/params", "dict", "-", PARAMS),
        ("uns", f"{k.PRETRAIN}/history", "DataFrame", "n_epochs x n_losses", HISTORY),
    ),
    "tl.segment": (
        ("obs", k.SEGMENT, "category", "n_obs", 'compartment: ``"0"``, ``"1"``, ... (largest first), or the classes'),
        ("obs", k.mask_id(k.SEGMENT), "int32", "n_obs", "value of the compartment in the mask, from 1"),
        ("obs", k.confidence(k.SEGMENT), "float32", "n_obs", "calibrated probability of the compartment"),
        ("obsm", k.proba(k.SEGMENT), "DataFrame", "n_obs x n_segments", "probabilities of all compartments"),
        ("uns", k.columns(k.proba(k.SEGMENT)), "object", "n_segments",
         'true names of its columns; only where no file can hold one', False),
        ("obsm", k.X_UNET, "float32", "n_obs x n_features", "features of the U-Net's last layer"),
        ("uns", k.colors(k.SEGMENT), "object", "n_segments", "colours of the compartments"),
        ("uns", f"{k.SEGMENT}/{k.MASKS}/{{library}}/image", "uint32", "height x width", "mask S"),
        ("uns", f"{k.SEGMENT}/{k.MASKS}/{{library}}/scale", "float", "-", "pixels per unit"),
        ("uns", f"{k.SEGMENT}/{k.MASKS}/{{library}}/origin", "float64", "2", "pixel: ``(xy - origin) * scale``"),
        ("uns", f"{k.SEGMENT}/library_nmi", "float", "-",
         "mutual information with the sections, 0: no batch effect; only with several", False),
        ("uns", f"{k.SEGMENT}/params", "dict", "-", PARAMS),
        ("uns", f"{k.SEGMENT}/history", "DataFrame", "n_epochs x n_losses", HISTORY),
        ("uns", f"{k.SEGMENT}/stability", "DataFrame", "n_tried x n_columns",
         "BIC, agreement; only if chosen here", False),
        ("uns", f"{k.SEGMENT}/members", "DataFrame", "n_libraries x n_members", "weights of members", False),
    ),
    "io.read_annotations": (
        ("obs", "annotation", "category", "n_obs", "name of the annotation; missing outside any"),
        ("uns", "annotation/params", "dict", "-", PARAMS),
        ("uns", "annotation_colors", "object", "n_annotations", "colours of the annotations, as QuPath has them"),
    ),
    "tl.suggest_labels": (
        ("obs", k.SUGGESTED, "float64", "n_obs", "1 for the observation to label first, 2 for the next, ...; else NaN"),
        ("uns", f"{k.SUGGESTED}/params", "dict", "-", PARAMS),
    ),
    "tl.distill": (
        ("uns", f"{k.DISTILL}/params", "dict", "-", PARAMS),
        ("uns", f"{k.DISTILL}/history", "DataFrame", "n_epochs x 5", HISTORY),
        ("uns", f"{k.DISTILL}/agreement", "dict", "-",
         "for each task the share of held-out pixels on which student and teacher predict the same class"),
    ),
    "tl.region_graph": (
        ("obs", k.REGION_ID, "category", "n_obs", 'region of the observation, one of ``uns["regions"].obs_names``'),
        ("uns", k.REGIONS, "AnnData", "n_regions x n_vars", "the regions, with the following slots"),
        ("regions.X", "", "csr float32", "n_regions x n_vars",
         "mean log-normalised expression (of a scaled ``X``, where there is nothing else)"),
        ("regions.obs", "segment", "category", "n_regions", "compartment of the region"),
        ("regions.obs", "library", "category", "n_regions", "section of the region"),
        ("regions.obs", "n_obs", "int", "n_regions", "number of observations"),
        ("regions.obs", "area", "float", "n_regions", "area in squared units of the coordinates"),
        ("regions.obsm", k.SPATIAL, "float64", "n_regions x 2", "centroids"),
        ("regions.obsp", k.CONNECTIVITIES, "csr", "n_regions x n_regions", "1 where regions touch"),
        ("regions.obsp", k.DISTANCES, "csr", "n_regions x n_regions", "distance between centroids of touching regions"),
        ("regions.obsp", k.CONTACT, "csr", "n_regions x n_regions", "length of the common border"),
        ("regions.uns", "params", "dict", "-", PARAMS),
        ("regions.uns", k.colors("segment"), "object", "n_segments",
         "colours of the compartments; only where ``segment_key`` has colours", False),
    ),
    "tl.embed": (
        *_NETWORK,
        ("uns", f"{k.EMBED}/params", "dict", "-", PARAMS),
        ("uns", f"{k.EMBED}/history", "DataFrame", "n_epochs x n_losses", HISTORY),
        ("uns", f"{k.EMBED}/Z", "DataFrame", "n_libraries x n_dims", Z),
    ),
    "tl.multitask": (
        *(("obs", k.pred(key), "category", "n_obs", "predicted class") for key in _TASKS),
        *(("obsm", k.proba(key), "DataFrame", "n_obs x n_classes", "class probabilities; NaN outside any region")
          for key in _TASKS),
        *(("regions.obsm", k.proba(key), "DataFrame", "n_regions x n_classes", "expected shares of the classes")
          for key in _TASKS),
        *(("regions.obs", k.pred(key), "category", "n_regions", "class with the largest share") for key in _TASKS),
        ("obsm", k.EXPRESSION_PRED, "DataFrame", "n_obs x n_genes",
         "predicted log expression; only with ``expression``", False),
        ("regions.obsm", k.EXPRESSION_PRED, "DataFrame", "n_regions x n_genes", "its means in the regions", False),
        *_NETWORK,
        ("uns", f"{k.MULTITASK}/params", "dict", "-", PARAMS),
        ("uns", f"{k.MULTITASK}/history", "DataFrame", "n_epochs x n_losses", "losses and weights by epoch"),
        ("uns", f"{k.MULTITASK}/task_weights", "dict", "-", "the last of these"),
        ("uns", f"{k.MULTITASK}/weights", "DataFrame", "n_tasks * n_libraries x 8",
         "factor of each member by task and section, ``bandwidth`` of the labels"),
        ("uns", f"{k.MULTITASK}/training", "dict", "-", "whether it ``converged``"),
        ("uns", f"{k.MULTITASK}/Z", "DataFrame", "n_libraries x n_dims", Z),
    ),
    "tl.biomarkers": (
        ("uns", k.BIOMARKERS, "DataFrame", "n_groups * n_vars x n_columns", "one row per group and gene, see below"),
        ("uns", f"{k.BIOMARKERS}_params", "dict", "-", f"{PARAMS}; designs and agreements by group"),
        ("var", k.BIOMARKER_SCORE, "float", "n_vars", "largest absolute ``certain_logfoldchanges`` over the groups"),
        ("uns", k.twin(k.BIOMARKERS), "dict", "-", "the same genes in the layout of scanpy's ``rank_genes_groups``"),
    ),
    "tl.compare": (
        ("uns", k.COMPARE, "DataFrame", "n_rows x 15",
         "one row per comparison: ``group`` (condition), ``kind``, ``compartment``, ``names`` (the other compartment, "
         "or the gene), ``logfoldchanges`` (log2; group minus reference) with its 95 % limits ``ci_low``, ``ci_high``, "
         "``scores`` (z), ``pvals``, ``pvals_adj`` (Benjamini-Hochberg within group and kind), ``mean_group`` and "
         "``mean_reference`` (typical share, contact over chance, or counts per million), ``n_group`` and "
         "``n_reference`` (subjects)"),
        ("uns", f"{k.COMPARE}_params", "dict", "-", PARAMS),
    ),
    "tl.track": (
        ("obs", k.TRACK, "category", "n_obs", "lineage of the compartment: what links connect over the times"),
        ("obs", f"{k.TRACK}_next", "float32", "n_obs",
         "share of the region's mass with a counterpart at the next time; NaN at the last, and outside any region"),
        ("obs", f"{k.TRACK}_previous", "float32", "n_obs", "the same for the time before"),
        ("uns", f"{k.TRACK}/links", "DataFrame", "n_rows x 10",
         "``time_from``, ``time_to``, ``source``, ``target``, ``event`` (continues, splits, merges, appears, "
         "disappears, none), ``mass``, its share ``forward`` of the source and ``backward`` of the target, ``pvals`` "
         "against shuffled labels, ``pvals_adj``"),
        ("uns", f"{k.TRACK}/compartments", "DataFrame", "n_rows x 6",
         "``time``, ``compartment``, ``lineage``, ``share``, and of it the shares with a counterpart, ``previous`` and "
         "``next``"),
        ("uns", f"{k.TRACK}/regions", "DataFrame", "n_rows x 5",
         "best counterparts: ``library_from``, ``library_to``, ``region_from``, ``region_to``, ``probability``"),
        ("uns", f"{k.TRACK}/params", "dict", "-", PARAMS),
    ),
    "tl.trends": (
        ("uns", k.TRENDS, "DataFrame", "n_rows x 14",
         "one row per value: ``kind`` (share, area, contact, expression), ``compartment``, ``feature`` (the other "
         "compartment, or the gene), ``slope`` (log2 per unit of time) with its 95 % limits ``ci_low``, ``ci_high``, "
         "``scores`` (z), ``pvals``, ``pvals_order`` (order alone), both also as ``_adj`` (Benjamini-Hochberg within "
         "kind), ``mean_start`` and ``mean_end`` (fitted at the first and last time: share, area, contact over chance, "
         "counts per million), ``n_subjects``"),
        ("uns", f"{k.TRENDS}_values", "DataFrame", "n_rows x n_subjects",
         "log2 of every subject, in the order of ``subjects`` and ``times`` in the parameters; NaN for none"),
        ("uns", f"{k.TRENDS}_params", "dict", "-", PARAMS),
    ),
    "tl.describe": (
        ("uns", k.DESCRIBE, "DataFrame", "n_groups x n_columns",
         "one row per compartment, its name in the index: ``proposed_name``, ``n_obs``, ``share``, ``markers``, and "
         'one text for each of ``net`` (``activity``, or its name) and ``contact``: what is higher at an FDR of 5 %'),
        ("uns", f"{k.DESCRIBE}_evidence", "DataFrame", "n_rows x 10",
         "what was tested: ``kind`` (``activity`` or the name given, ``contact``), ``group``, ``partner`` (the other "
         "compartment of a contact), ``names``, ``scores`` (z), ``pvals``, ``pvals_adj`` (Benjamini-Hochberg within "
         "group, partner and kind), ``mean_group``, ``mean_reference``, ``n_libraries``"),
        ("uns", f"{k.DESCRIBE}_params", "dict", "-", PARAMS),
    ),
    "tl.targets": (
        ("uns", k.BIOMARKERS, "DataFrame", "n_groups * n_vars x n_columns",
         "the biomarker table with the columns above and ``in_{format}``: whether the file lists the gene; a gene that "
         "it does not list has NaN, 0 (counts), False or an empty text"),
        ("uns", f"{k.TARGETS}_params", "dict", "-",
         f"by format: {PARAMS}, ``matched_by``, ``n_matched``, ``n_unmatched``, and the genes that are ``unmatched``, "
         "``ambiguous``, ``case_mismatch`` or ``outdated``"),
    ),
    "tl.attention_fidelity": (
        ("uns", f"{k.FIDELITY}/table", "DataFrame", "n_rows x n_columns",
         "a row for each ``library``, ``unit`` (edges, regions), ``method``, ``mode`` (remove, keep) and ``share``: "
         "``change`` (mean total variation of the probabilities), ``flipped`` (share of regions whose predicted class "
         "changed), ``n_regions``"),
        ("uns", f"{k.FIDELITY}/params", "dict", "-", f"{PARAMS}, and the network's weight in the prediction"),
        ("regions.obsp", k.ATTENTION_CORRECTED, "csr float32", "n_regions x n_regions",
         'scores by the first of ``methods`` other than ``"attention"``; rows sum to 1 or are empty'),
        ("obs", k.SALIENCY, "float32", "n_obs",
         "length of the gradient of the predicted class's logits in the input features; NaN outside any region"),
    ),
    "tl.evaluate": (
        ("uns", k.EVALUATION, "DataFrame", "n_rows x n_columns",
         "one row per model, target, scheme, seed, noise level and fold: ``model``, ``target`` (biomarker, region, "
         "expression), ``key``, ``scheme``, ``leaky``, ``seed``, ``noise``, ``fold``, ``n_train``, ``n_test``, "
         "``accuracy``, ``precision``, ``recall``, ``auroc`` (averages over the classes), ``mse``, ``seconds``"),
        ("uns", f"{k.EVALUATION}_params", "dict", "-", PARAMS),
    ),
    "tl.tune": (
        ("uns", f"{k.TUNE}/best_params", "dict", "-", "best fields together with ``params``, for ``params=``"),
        ("uns", f"{k.TUNE}/best_value", "float", "-", "mean metric of the best trial"),
        ("uns", f"{k.TUNE}/trials", "DataFrame", "n_trials x n_columns",
         "one row per trial: ``value`` and its ``value_sd`` over folds, ``value_{target}``, ``seconds``, each field"),
        ("uns", f"{k.TUNE}/params", "dict", "-", PARAMS),
    ),
}
# fmt: on

SLOTS: tuple[SlotRow, ...] = tuple(SlotRow(call, *row) for call, rows in _ROWS.items() for row in rows)
