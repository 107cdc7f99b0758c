"""The input of a segmentation, made again from a part of the counts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from stxtools import _keys
from stxtools._data.representation import log_normalize, median_depth, principal_axes, select_genes

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

SAME = 0.9  # share of a stored PCA's variance that one made of the counts must explain to pass for the same
_TARGETS = (None, 1e4)  # depth after normalisation: the median, or scanpy's habit


def same_pca(
    adata: AnnData, counts: sparse.csr_matrix, part: sparse.csr_matrix
) -> tuple[NDArray[np.float32], str, float]:
    """Make ``obsm["X_pca"]`` again from ``part`` of the counts, in the way that makes it from all ``counts``.

    The genes are those of ``varm["PCs"]`` or ``var["highly_variable"]``, the number of components is the same; of the
    usual ways (normalised to the median depth or to 10,000, with z-scores or without) the one is taken whose components
    of all counts explain most of the stored ones. Components are those of the part: stored loadings have seen
    the noise of the other part, too.

    Returns
    -------
    The values, how they were made, and the share of the stored components' variance that is explained.
    """
    stored = np.asarray(adata.obsm[_keys.X_PCA], dtype=np.float64)
    stored = stored - stored.mean(axis=0)
    genes, chosen = _genes(adata, counts)
    best: tuple[float, float | None, bool] = (-np.inf, None, False)
    for target in _TARGETS:
        for scaled in (False, True):
            found = _pca(counts, genes, stored.shape[1], target, scaled).astype(np.float64)
            left = stored - found @ np.linalg.lstsq(found, stored, rcond=None)[0]
            explained = 1.0 - float(np.square(left).sum()) / max(float(np.square(stored).sum()), 1e-300)
            best = max(best, (explained, target, scaled), key=lambda b: b[0])
    explained, target, scaled = best
    depth = "the median" if target is None else f"{target:g}"
    how = f"{stored.shape[1]} components of {len(genes)} {chosen}, depth {depth}{', z-scores' if scaled else ''}"
    return _pca(part, genes, stored.shape[1], target, scaled), how, explained


def _genes(adata: AnnData, counts: sparse.csr_matrix) -> tuple[NDArray[np.int64], str]:
    seen = np.asarray((counts > 0).sum(axis=0)).ravel() >= min(3, adata.n_obs)
    if "PCs" in adata.varm:
        used = np.abs(np.asarray(adata.varm["PCs"], dtype=np.float64)).sum(axis=1) > 0
        if (used & seen).sum() > 1:
            return np.flatnonzero(used & seen), "genes with loadings"
    if "highly_variable" in adata.var:
        used = np.asarray(adata.var["highly_variable"], dtype=bool)
        if (used & seen).sum() > 1:
            return np.flatnonzero(used & seen), "variable genes"
    return select_genes(counts, "counts"), "variable genes chosen here"


def _pca(
    counts: sparse.csr_matrix, genes: NDArray[np.int64], n_comps: int, target: float | None, scaled: bool
) -> NDArray[np.float32]:
    depth = median_depth(np.asarray(counts.sum(axis=1)).ravel()) if target is None else target
    logged = sparse.csr_matrix(log_normalize(counts, "counts", target_sum=depth)[:, genes], dtype=np.float64)
    if scaled:
        mean = np.asarray(logged.mean(axis=0)).ravel()
        spread = np.sqrt(np.maximum(np.asarray(logged.multiply(logged).mean(axis=0)).ravel() - mean**2, 0.0))
        logged = sparse.csr_matrix(logged @ sparse.diags(1.0 / np.where(spread > 0, spread, 1.0)))
    mean, axes = principal_axes(logged, min(n_comps, len(genes), counts.shape[0] - 1))
    return np.ascontiguousarray(np.asarray(logged @ axes) - mean @ axes, dtype=np.float32)


def reads_stored_pca(adata: AnnData, params: Mapping[str, Any]) -> bool:
    """Whether a segmentation read ``obsm["X_pca"]`` as it was."""
    if str(params.get("use_rep", "")) == _keys.X_PCA:
        return True
    if "representation" in params:
        return str(params["representation"]) == _keys.X_PCA
    return "layer" not in params and _keys.X_PCA in adata.obsm and not params.get("pretrained", False)


def same_image(adata: AnnData, params: Mapping[str, Any], missing: list[str]) -> str | None:
    """Return the image that was read, if it is still there."""
    if params.get("image_key") is None:
        return None
    key, spatial = str(params["image_key"]), adata.uns.get(_keys.SPATIAL, {})
    there = isinstance(spatial, Mapping) and any(key in e.get(_keys.IMAGES, {}) for e in spatial.values())
    if not there:
        missing.append(f"the image {key!r}, which is not in `uns['spatial']` any more")
    return key if there else None


def same_start(params: Mapping[str, Any], missing: list[str]) -> str | None:
    """Return the file of the pretrained model that training started from, if it is still there."""
    if not params.get("pretrained", False):
        return None
    path = str(params.get("pretrained_path", ""))
    if not path:
        missing.append("the pretrained model, which was given in memory (name its file as `pretrained=`)")
    elif not os.path.exists(path):
        missing.append(f"the pretrained model, which is not at {path!r} any more")
    else:
        return path
    return None
