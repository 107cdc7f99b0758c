"""A segmentation made again from a part of the counts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray
from scipy import sparse

from stxtools import _keys
from stxtools._data.representation import log_normalize, median_depth, principal_axes, select_genes
from stxtools._spatial.matrices import column_moments
from stxtools._validate import categories, stored_library_key

SAME = 0.9  # share of a stored PCA's variance that one made of the counts must explain to pass for the same
_FOUND = "found_again"  # the column in which they are found
_TARGETS = (None, 1e4)  # depth after normalisation: the median, or scanpy's habit


def found_again(
    adata: AnnData, part: AnnData, counts: sparse.csr_matrix, given: Mapping[str, Any], show_progress: bool | None
) -> tuple[NDArray[np.int64], list[str], dict[str, Any]]:
    """Segment ``part``, which holds a part of the ``counts`` of ``adata``, with the parameters of its segmentation.

    Return the groups, their names, and what ``params`` say of them: in what they were found, and what was missing.
    """
    from stxtools.tl import segment

    missing: list[str] = []
    image_key, pretrained = _image(adata, given, missing), _start(given, missing)
    spatial_key = str(given.get("spatial_key", _keys.SPATIAL))
    part.obsm[spatial_key] = adata.obsm[spatial_key]
    if _keys.RASTER in adata.uns and _keys.RASTER in adata.obsm:
        part.obsm[_keys.RASTER], part.uns[_keys.RASTER] = adata.obsm[_keys.RASTER], adata.uns[_keys.RASTER]
    if image_key is not None:
        part.uns[_keys.SPATIAL] = adata.uns[_keys.SPATIAL]
    representation = "PCA of the variable genes" if pretrained is None else "components of the pretrained model"
    if _reads_stored_pca(given, there=_keys.X_PCA in adata.obsm):
        representation = _put_pca(adata, part, counts, missing) or representation

    labels_key = None if given.get("labels_key") is None else str(given["labels_key"])
    shares = given.get("class_shares")
    if shares is not None and labels_key is not None:  # 0: not given
        classes = categories(part, labels_key, "labels_key")[1]
        shares = {c: float(v) for c, v in zip(classes, shares, strict=True) if v}
    segment(
        part, n_segments=None if labels_key is not None else int(given["n_segments"]), labels_key=labels_key,
        keep_labels=bool(given.get("keep_labels", False)), class_shares=shares,
        abstain_below=given.get("abstain_below"), pretrained=pretrained, image_key=image_key,
        spatial_key=spatial_key, library_key=stored_library_key(given),
        params={k: v.tolist() if isinstance(v, np.ndarray | np.generic) else v for k, v in given["segmenter"].items()},
        random_state=int(given.get("random_state", 0)), show_progress=show_progress, key_added=_FOUND,
    )  # fmt: skip
    read = {"protect_representation": representation, "protect_missing": missing or None}
    return *categories(part, _FOUND, "groupby"), read


def _image(adata: AnnData, given: Mapping[str, Any], missing: list[str]) -> str | None:
    """Return the image that was read, if it is still there."""
    if given.get("image_key") is None:
        return None
    key, spatial = str(given["image_key"]), adata.uns.get(_keys.SPATIAL)
    if isinstance(spatial, Mapping) and any(key in entry.get(_keys.IMAGES, {}) for entry in spatial.values()):
        return key
    missing.append(f"the image {key!r}, which is not in `uns['spatial']` any more")
    return None


def _start(given: Mapping[str, Any], missing: list[str]) -> str | None:
    """Return the file of the pretrained model that training started from, if it is still there."""
    path = str(given.get("pretrained_path", ""))
    if not given.get("pretrained", False):
        return None
    if os.path.exists(path):
        return path
    missing.append(
        f"the pretrained model, which is not at {path!r} any more"
        if path
        else "the pretrained model, which was given in memory (name its file as `pretrained=`)"
    )
    return None


def _reads_stored_pca(given: Mapping[str, Any], *, there: bool) -> bool:
    """Whether a segmentation read ``obsm["X_pca"]`` as it was."""
    if str(given.get("use_rep", "")) == _keys.X_PCA:
        return True
    if "representation" in given:
        return str(given["representation"]) == _keys.X_PCA
    return "layer" not in given and there and not given.get("pretrained", False)


def _put_pca(adata: AnnData, part: AnnData, counts: sparse.csr_matrix, missing: list[str]) -> str:
    """Make ``obsm["X_pca"]`` again from ``part`` of the counts, in the way that makes it from all; return how.

    Of the usual ways the one is taken whose components of all counts explain most of the stored ones. Components are
    those of the part: stored loadings have seen the noise of the other part, too.
    """
    if _keys.X_PCA not in adata.obsm:
        missing.append("`obsm['X_pca']`, which is not there any more")
        return ""
    stored = np.asarray(adata.obsm[_keys.X_PCA], dtype=np.float64)
    stored = stored - stored.mean(axis=0)
    genes, chosen = _genes_of_pca(adata, counts)
    best: tuple[float, float | None, bool] = (-np.inf, None, False)
    for target, scaled in product(_TARGETS, (False, True)):
        found = _pca(counts, genes, stored.shape[1], target, scaled).astype(np.float64)
        left = stored - found @ np.linalg.lstsq(found, stored, rcond=None)[0]
        explained = 1.0 - float(np.square(left).sum()) / max(float(np.square(stored).sum()), 1e-300)
        best = max(best, (explained, target, scaled), key=lambda b: b[0])
    explained, target, scaled = best
    part.obsm[_keys.X_PCA] = _pca(part.X, genes, stored.shape[1], target, scaled)
    if explained < SAME:
        missing.append(
            f"`obsm['X_pca']` as it is: of the usual ways to make it from these counts none explains more than "
            f"{explained:.0%} of it"
        )
    depth = "the median" if target is None else f"{target:g}"
    how = f"{stored.shape[1]} components of {len(genes)} {chosen}, depth {depth}{', z-scores' if scaled else ''}"
    return f"PCA made again: {how}; on all counts it explains {explained:.1%} of `obsm['X_pca']`"


def _genes_of_pca(adata: AnnData, counts: sparse.csr_matrix) -> tuple[NDArray[np.int64], str]:
    """Return the genes that a stored PCA was made of, as far as the AnnData says so, and how they are known."""
    used: dict[str, NDArray[np.bool_]] = {}
    if "PCs" in adata.varm:
        used["genes with loadings"] = np.abs(np.asarray(adata.varm["PCs"], dtype=np.float64)).sum(axis=1) > 0
    if "highly_variable" in adata.var:
        used["variable genes"] = np.asarray(adata.var["highly_variable"], dtype=bool)
    seen = np.asarray((counts > 0).sum(axis=0)).ravel() >= min(3, counts.shape[0])
    for how, some in used.items():
        if (some & seen).sum() > 1:
            return np.flatnonzero(some & seen), how
    return select_genes(counts, "counts"), "variable genes chosen here"


def _pca(
    counts: sparse.csr_matrix, genes: NDArray[np.int64], n_comps: int, target: float | None, scaled: bool
) -> NDArray[np.float32]:
    depth = median_depth(np.asarray(counts.sum(axis=1)).ravel()) if target is None else target
    logged = log_normalize(counts, "counts", target_sum=depth)  # shares indices with the counts, as does what follows
    if len(genes) < counts.shape[1]:
        logged = logged[:, genes]
    logged = sparse.csr_matrix((logged.data.astype(np.float64), logged.indices, logged.indptr), shape=logged.shape)
    if scaled:
        spread = np.sqrt(column_moments(logged)[1])
        logged.data *= (1.0 / np.where(spread > 0, spread, 1.0))[logged.indices]
    mean, axes = principal_axes(logged, min(n_comps, len(genes), counts.shape[0] - 1))
    return np.ascontiguousarray(np.asarray(logged @ axes) - mean @ axes, dtype=np.float32)
