"""Every AnnData key that the package reads or writes by default."""

from __future__ import annotations

# read
SPATIAL = "spatial"
X_PCA = "X_pca"
COUNTS = "counts"
ARRAY_ROW = "array_row"
ARRAY_COL = "array_col"

# pp
RASTER = "raster"
SPATIAL_ALIGNED = "spatial_aligned"
ALIGN = "align"
NOISE = "noise"
SPLIT = "split"

# tl.segment
SEGMENT = "segment"
X_UNET = "X_unet"
DISTILL = "distill"
SUGGESTED = "suggested"
PRETRAIN = "pretrain"
IMAGES = "images"
SCALEFACTORS = "scalefactors"
MASKS = "masks"
SPOT_DIAMETER = "spot_diameter_fullres"

# tl.region_graph, tl.embed
REGION_ID = "region_id"
REGIONS = "regions"
CONNECTIVITIES = "spatial_connectivities"
DISTANCES = "spatial_distances"
CONTACT = "contact_length"
X_GNN = "X_gnn"
ATTENTION = "attention"
ATTENTION_CORRECTED = "attention_corrected"
FIDELITY = "attention_fidelity"
SALIENCY = "attention_saliency"
EMBED = "embed"

# tl.multitask, tl.biomarkers, tl.targets
MULTITASK = "multitask"
EXPRESSION_PRED = "expression_pred"
BIOMARKERS = "biomarkers"
BIOMARKER_SCORE = "biomarker_score"
RANK_GENES_GROUPS = "rank_genes_groups"
TARGETS = "targets"
COMPARE = "compare"
DESCRIBE = "describe"

# tl.track, tl.trends
TRACK = "track"
TRENDS = "trends"

# tl.evaluate, tl.tune
EVALUATION = "evaluation"
TUNE = "tune"

# name of a single section without library_key, unless ``uns["spatial"]`` names it
LIBRARY = "section"

# names that ``key_added`` must not be, unless they are the call's default
RESERVED = frozenset({
    SPATIAL, RASTER, ALIGN, SEGMENT, SPLIT, PRETRAIN, REGIONS, EMBED, MULTITASK, BIOMARKERS, COMPARE, TRACK, TRENDS,
    DESCRIBE, X_PCA, X_UNET, X_GNN, EVALUATION, TUNE, "log1p", "pca",
})  # fmt: skip

# names that a call derives from its key, the default one or ``key_added``
proba = "{}_proba".format  # obsm: class probabilities
confidence = "{}_confidence".format  # obs: probability of the predicted class
mask_id = "{}_id".format  # obs: value that the observation's class has in the mask image
columns = "{}_columns".format  # uns: names of the columns of an obsm table that files cannot store
pred = "{}_pred".format  # obs: predicted class
colors = "{}_colors".format  # uns: scanpy's palette for a categorical obs column
twin = f"{RANK_GENES_GROUPS}_{{}}".format  # uns: biomarkers in the layout of scanpy.tl.rank_genes_groups


def region_id(regions_key: str) -> str:
    """``obs`` key of the region of an observation."""
    return REGION_ID if regions_key == REGIONS else f"{regions_key}_region"
