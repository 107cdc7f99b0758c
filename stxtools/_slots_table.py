"""What each call writes into AnnData: the one table behind the documentation's page and its test.

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


_PARAMS = "parameters, seed and versions of the call"


def _network_rows(call: str) -> tuple[SlotRow, ...]:
    """Return what both graph-network calls write."""
    return (
        SlotRow(call, "regions.obsm", k.X_GNN, "float32", "n_regions x n_dims", "region embeddings"),
        SlotRow(
            call,
            "regions.obsp",
            k.ATTENTION,
            "csr float32",
            "n_regions x n_regions",
            "attention that a row's region pays to a column's, itself included; rows sum to 1",
        ),
        SlotRow(
            call,
            "regions.obs",
            k.ATTENTION,
            "float32",
            "n_regions",
            "mean attention that the region gets from those around it",
        ),
        SlotRow(call, "obsm", k.X_GNN, "float32", "n_obs x n_dims", "embedding of the observation's region"),
        SlotRow(call, "obs", k.ATTENTION, "float32", "n_obs", "attention of the observation's region"),
    )


SLOTS: tuple[SlotRow, ...] = (
    # pp.normalize
    SlotRow("pp.normalize", "layers", k.COUNTS, "as X was", "n_obs x n_vars", "expression before normalisation"),
    SlotRow("pp.normalize", "X", "", "csr float32", "n_obs x n_vars", "log1p of depth-normalised expression"),
    SlotRow("pp.normalize", "var", "highly_variable", "bool", "n_vars", "gene was used for the PCA"),
    SlotRow("pp.normalize", "obsm", k.X_PCA, "float32", "n_obs x n_comps", "principal components"),
    SlotRow("pp.normalize", "varm", "PCs", "float32", "n_vars x n_comps", "loadings, 0 for genes that were not used"),
    SlotRow("pp.normalize", "uns", "pca", "dict", "-", "variances of the components, as scanpy writes them"),
    SlotRow("pp.normalize", "uns", "log1p", "dict", "-", "scanpy's mark of logarithmic values"),
    SlotRow("pp.normalize", "uns", "normalize/params", "dict", "-", _PARAMS),
    # pp.rasterize
    SlotRow("pp.rasterize", "obsm", k.RASTER, "int32", "n_obs x 2", "row and column of the observation's pixel"),
    SlotRow(
        "pp.rasterize",
        "uns",
        f"{k.RASTER}/{{library}}",
        "dict",
        "-",
        "per section: shape, pixel size (units of the coordinates), origin, lattice (hex, square, scattered)",
    ),
    SlotRow("pp.rasterize", "uns", f"{k.RASTER}/params", "dict", "-", _PARAMS),
    # pp.align
    SlotRow("pp.align", "obsm", k.SPATIAL_ALIGNED, "float64", "n_obs x 2", "coordinates in the reference's frame"),
    SlotRow("pp.align", "uns", f"{k.ALIGN}/matrices/{{library}}", "float64", "2 x 3", "affine map M of the section"),
    SlotRow("pp.align", "uns", f"{k.ALIGN}/score/{{library}}", "dict", "-", "correlation and overlap, or rmse"),
    SlotRow("pp.align", "uns", f"{k.ALIGN}/reference", "str", "-", "name of the reference section"),
    SlotRow("pp.align", "uns", f"{k.ALIGN}/params", "dict", "-", _PARAMS),
    # pp.add_noise
    SlotRow(
        "pp.add_noise", "layers", k.NOISE, "as X was", "n_obs x n_vars", "noised expression; not with `use_rep`", False
    ),
    SlotRow(
        "pp.add_noise", "obsm", k.NOISE, "float32", "n_obs x n_features", "noised representation, with `use_rep`", False
    ),
    SlotRow("pp.add_noise", "uns", f"{k.NOISE}/params", "dict", "-", _PARAMS),
    # pp.split_counts
    SlotRow("pp.split_counts", "layers", f"{k.SPLIT}_train", "as X was", "n_obs x n_vars", "part to find groups in"),
    SlotRow("pp.split_counts", "layers", f"{k.SPLIT}_test", "as X was", "n_obs x n_vars", "part to test on"),
    SlotRow("pp.split_counts", "uns", f"{k.SPLIT}/params", "dict", "-", _PARAMS),
    # tl.pretrain
    SlotRow("tl.pretrain", "uns", f"{k.PRETRAIN}/params", "dict", "-", _PARAMS),
    SlotRow("tl.pretrain", "uns", f"{k.PRETRAIN}/history", "DataFrame", "n_epochs x n_losses", "losses by epoch"),
    # tl.segment
    SlotRow("tl.segment", "obs", k.SEGMENT, "category", "n_obs", "segment (compartment) of the observation"),
    SlotRow(
        "tl.segment",
        "obs",
        k.confidence(k.SEGMENT),
        "float32",
        "n_obs",
        "probability of the called segment, calibrated",
    ),
    SlotRow(
        "tl.segment", "obs", k.mask_id(k.SEGMENT), "int32", "n_obs", "value of the observation's segment in the mask"
    ),
    SlotRow("tl.segment", "obsm", k.proba(k.SEGMENT), "DataFrame", "n_obs x n_segments", "segment probabilities"),
    SlotRow("tl.segment", "obsm", k.X_UNET, "float32", "n_obs x n_features", "the U-Net's last features"),
    SlotRow(
        "tl.segment",
        "uns",
        k.columns(k.proba(k.SEGMENT)),
        "object",
        "n_segments",
        "true names of its columns; only where a class has a name that no column of a file may have",
        always=False,
    ),
    SlotRow(
        "tl.segment",
        "uns",
        f"{k.SEGMENT}/{k.MASKS}/{{library}}/image",
        "uint32",
        "height x width",
        "the mask S, one value per segment, 0 = background; squidpy draws it",
    ),
    SlotRow(
        "tl.segment",
        "uns",
        f"{k.SEGMENT}/{k.MASKS}/{{library}}/scale",
        "float",
        "-",
        "mask pixels per unit of the coordinates",
    ),
    SlotRow(
        "tl.segment",
        "uns",
        f"{k.SEGMENT}/{k.MASKS}/{{library}}/origin",
        "float64",
        "2",
        "coordinates of the mask's first pixel",
    ),
    SlotRow("tl.segment", "uns", k.colors(k.SEGMENT), "object", "n_segments", "colours of the segments"),
    SlotRow("tl.segment", "uns", f"{k.SEGMENT}/params", "dict", "-", _PARAMS),
    SlotRow("tl.segment", "uns", f"{k.SEGMENT}/history", "DataFrame", "n_epochs x n_losses", "losses of the training"),
    SlotRow(
        "tl.segment",
        "uns",
        f"{k.SEGMENT}/stability",
        "DataFrame",
        "n_tried x n_columns",
        "stability by number of segments; only where that number was chosen by the call",
        always=False,
    ),
    # tl.suggest_labels
    SlotRow("tl.suggest_labels", "obs", k.SUGGESTED, "float64", "n_obs", "1 for the first to label, ...; else NaN"),
    SlotRow("tl.suggest_labels", "uns", f"{k.SUGGESTED}/params", "dict", "-", _PARAMS),
    # tl.distill
    SlotRow("tl.distill", "uns", f"{k.DISTILL}/params", "dict", "-", _PARAMS),
    SlotRow("tl.distill", "uns", f"{k.DISTILL}/history", "DataFrame", "n_epochs x 5", "losses by epoch"),
    SlotRow(
        "tl.distill",
        "uns",
        f"{k.DISTILL}/agreement",
        "dict",
        "-",
        "for each task the share of held-out pixels on which student and teacher predict the same class",
    ),
    # tl.region_graph
    SlotRow("tl.region_graph", "obs", k.REGION_ID, "category", "n_obs", "connected region of the observation"),
    SlotRow(
        "tl.region_graph", "uns", k.REGIONS, "AnnData", "n_regions x n_vars", "the regions; its slots are the next rows"
    ),
    SlotRow("tl.region_graph", "regions.X", "", "csr float32", "n_regions x n_vars", "mean log-normalised expression"),
    SlotRow("tl.region_graph", "regions.obs", "segment", "category", "n_regions", "segment of the region"),
    SlotRow("tl.region_graph", "regions.obs", "library", "category", "n_regions", "section of the region"),
    SlotRow("tl.region_graph", "regions.obs", "n_obs", "int", "n_regions", "number of observations"),
    SlotRow("tl.region_graph", "regions.obs", "area", "float", "n_regions", "area in squared units of the coordinates"),
    SlotRow("tl.region_graph", "regions.obsm", k.SPATIAL, "float64", "n_regions x 2", "centroid"),
    SlotRow(
        "tl.region_graph", "regions.obsp", k.CONNECTIVITIES, "csr", "n_regions x n_regions", "1 where regions touch"
    ),
    SlotRow(
        "tl.region_graph",
        "regions.obsp",
        k.DISTANCES,
        "csr",
        "n_regions x n_regions",
        "distance between centroids of regions that touch",
    ),
    SlotRow(
        "tl.region_graph", "regions.obsp", k.CONTACT, "csr", "n_regions x n_regions", "length of the common border"
    ),
    SlotRow("tl.region_graph", "regions.uns", "params", "dict", "-", _PARAMS),
    SlotRow(
        "tl.region_graph",
        "regions.uns",
        k.colors("segment"),
        "object",
        "n_segments",
        "colours of the segments; only where `segment_key` has colours",
        always=False,
    ),
    # tl.embed
    *_network_rows("tl.embed"),
    SlotRow("tl.embed", "uns", f"{k.EMBED}/params", "dict", "-", _PARAMS),
    SlotRow("tl.embed", "uns", f"{k.EMBED}/history", "DataFrame", "n_epochs x n_losses", "losses of the training"),
    SlotRow("tl.embed", "uns", f"{k.EMBED}/Z", "DataFrame", "n_libraries x n_dims", "embedding Z of each section"),
    # tl.multitask
    SlotRow("tl.multitask", "obs", k.pred("{biomarker_key}"), "category", "n_obs", "predicted class, biomarker branch"),
    SlotRow("tl.multitask", "obs", k.pred("{region_key}"), "category", "n_obs", "predicted class, region branch"),
    SlotRow(
        "tl.multitask", "obsm", k.proba("{biomarker_key}"), "DataFrame", "n_obs x n_classes", "class probabilities"
    ),
    SlotRow("tl.multitask", "obsm", k.proba("{region_key}"), "DataFrame", "n_obs x n_classes", "class probabilities"),
    *(
        SlotRow("tl.multitask", "regions.obsm", k.proba(f"{{{key}}}"), "DataFrame", "n_regions x n_classes", meaning)
        for key, meaning in (
            ("biomarker_key", "expected share of each state in the region"),
            ("region_key", "expected share of each class in the region"),
        )
    ),
    *(
        SlotRow("tl.multitask", "regions.obs", k.pred(f"{{{key}}}"), "category", "n_regions", "the largest of them")
        for key in ("biomarker_key", "region_key")
    ),
    SlotRow(
        "tl.multitask",
        "obsm",
        k.EXPRESSION_PRED,
        "DataFrame",
        "n_obs x n_genes",
        "predicted log expression of the genes of `expression=`",
        False,
    ),
    SlotRow(
        "tl.multitask",
        "regions.obsm",
        k.EXPRESSION_PRED,
        "DataFrame",
        "n_regions x n_genes",
        "its means in the regions",
        False,
    ),
    *_network_rows("tl.multitask"),
    SlotRow("tl.multitask", "uns", f"{k.MULTITASK}/params", "dict", "-", _PARAMS),
    SlotRow("tl.multitask", "uns", f"{k.MULTITASK}/history", "DataFrame", "n_epochs x n_losses", "losses of training"),
    SlotRow(
        "tl.multitask", "uns", f"{k.MULTITASK}/task_weights", "dict", "-", "last weight of each task's loss, factors in"
    ),
    SlotRow(
        "tl.multitask",
        "uns",
        f"{k.MULTITASK}/weights",
        "DataFrame",
        "n_tasks * n_libraries x 7",
        "weight of each member of the ensemble",
    ),
    SlotRow("tl.multitask", "uns", f"{k.MULTITASK}/training", "dict", "-", "whether the network has converged"),
    SlotRow(
        "tl.multitask", "uns", f"{k.MULTITASK}/Z", "DataFrame", "n_libraries x n_dims", "embedding Z of each section"
    ),
    # tl.biomarkers
    SlotRow(
        "tl.biomarkers", "uns", k.BIOMARKERS, "DataFrame", "n_groups * n_vars x n_columns", "one row per group and gene"
    ),
    SlotRow("tl.biomarkers", "uns", f"{k.BIOMARKERS}_params", "dict", "-", _PARAMS),
    SlotRow(
        "tl.biomarkers", "var", k.BIOMARKER_SCORE, "float", "n_vars", "what is certain of the gene's log2 fold change"
    ),
    SlotRow(
        "tl.biomarkers", "uns", k.twin(k.BIOMARKERS), "dict", "-", "the same in scanpy's layout of rank_genes_groups"
    ),
    # tl.targets
    SlotRow(
        "tl.targets", "uns", k.BIOMARKERS, "DataFrame", "n_groups * n_vars x n_columns", "the table, with more columns"
    ),
    SlotRow("tl.targets", "uns", f"{k.TARGETS}_params", "dict", "-", f"{_PARAMS}; genes that were not matched"),
    # tl.attention_fidelity
    SlotRow(
        "tl.attention_fidelity",
        "uns",
        f"{k.FIDELITY}/table",
        "DataFrame",
        "n_rows x n_columns",
        "change of the prediction without, or with only, the first edges or regions of each order",
    ),
    SlotRow(
        "tl.attention_fidelity",
        "obs",
        k.SALIENCY,
        "float32",
        "n_obs",
        "gradient of the called logits in what the U-Net reads at the observation",
    ),
    SlotRow("tl.attention_fidelity", "uns", f"{k.FIDELITY}/params", "dict", "-", _PARAMS),
    SlotRow(
        "tl.attention_fidelity",
        "regions.obsp",
        k.ATTENTION_CORRECTED,
        "csr float32",
        "n_regions x n_regions",
        "what a row's region depends on a column's; rows sum to 1 or are empty",
    ),
    # tl.evaluate, tl.tune
    SlotRow(
        "tl.evaluate",
        "uns",
        k.EVALUATION,
        "DataFrame",
        "n_rows x n_columns",
        "one row per model, target, split and fold",
    ),
    SlotRow("tl.evaluate", "uns", f"{k.EVALUATION}_params", "dict", "-", _PARAMS),
    SlotRow("tl.tune", "uns", f"{k.TUNE}/best_params", "dict", "-", "the best fields, for `params=`"),
    SlotRow("tl.tune", "uns", f"{k.TUNE}/best_value", "float", "-", "mean metric of the best trial"),
    SlotRow("tl.tune", "uns", f"{k.TUNE}/trials", "DataFrame", "n_trials x n_columns", "one row per trial"),
    SlotRow("tl.tune", "uns", f"{k.TUNE}/params", "dict", "-", _PARAMS),
)
