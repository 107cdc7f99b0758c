"""Every AnnData key that the package reads or writes by default, in one place.

``key_added`` replaces the base name of a call's outputs; the functions below derive the rest from it.
"""

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

# one section without library_key is called this in ``uns``, unless ``uns["spatial"]`` names it
LIBRARY = "section"


# names that ``key_added`` must not take, except where they are a call's own default
RESERVED = frozenset({
    SPATIAL, RASTER, ALIGN, SEGMENT, SPLIT, PRETRAIN, REGIONS, EMBED, MULTITASK, BIOMARKERS, COMPARE, TRACK, TRENDS,
    DESCRIBE, X_PCA, X_UNET, X_GNN, EVALUATION, TUNE, "log1p", "pca",
})  # fmt: skip


def proba(key: str) -> str:
    """``obsm`` key of class probabilities."""
    return f"{key}_proba"


def confidence(key: str) -> str:
    """``obs`` key of the probability of the predicted class."""
    return f"{key}_confidence"


def region_id(regions_key: str) -> str:
    """``obs`` key of the region of an observation."""
    return REGION_ID if regions_key == REGIONS else f"{regions_key}_region"


def mask_id(key: str) -> str:
    """``obs`` key of the value that the observation's class has in the mask image."""
    return f"{key}_id"


def columns(key: str) -> str:
    """``uns`` key of the true names of the columns of ``obsm[key]``, where files cannot hold them as columns."""
    return f"{key}_columns"


def pred(key: str) -> str:
    """``obs`` key of a predicted class."""
    return f"{key}_pred"


def colors(key: str) -> str:
    """``uns`` key of scanpy's palette for a categorical ``obs`` column."""
    return f"{key}_colors"


def twin(key: str) -> str:
    """``uns`` key of a biomarker table in the layout of :func:`scanpy.tl.rank_genes_groups`."""
    return f"{RANK_GENES_GROUPS}_{key}"
