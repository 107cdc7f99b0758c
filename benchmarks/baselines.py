"""Simple baselines that several benchmarks share: features, neighbourhood means, classifiers, block folds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anndata as ad
import numpy as np
from scipy.spatial import cKDTree
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

import stxtools as st


def components(adata: ad.AnnData, use_rep: str | None = None) -> np.ndarray:
    """Return the representation given, else the principal components of `st.pp.normalize`, as `st.tl.segment` does."""
    if use_rep is None and "X_pca" not in adata.obsm:
        adata = st.pp.normalize(adata, show_progress=False, copy=True)
    return np.asarray(adata.obsm[use_rep or "X_pca"], dtype=np.float64)


def nearest_mean(x: np.ndarray, xy: np.ndarray, size: int) -> np.ndarray:
    """Return means over the nearest `size` observations, each observation itself included."""
    near = cKDTree(xy).query(xy, k=min(size, len(xy)))[1].reshape(len(xy), -1)
    return np.stack([x[near, c].mean(axis=1) for c in range(x.shape[1])], axis=1)


def neighbourhoods(x: np.ndarray, xy: np.ndarray, library: np.ndarray | None = None) -> np.ndarray:
    """Return means over 19 and 61 observations, centred within each section; no neighbour is of another section."""
    library = np.zeros(len(x)) if library is None else library
    out = np.empty((len(x), 2 * x.shape[1]))
    for name in np.unique(library):
        rows = library == name
        centred = x[rows] - x[rows].mean(axis=0)
        out[rows] = np.concatenate([nearest_mean(centred, xy[rows], size) for size in (19, 61)], axis=1)
    return out


def shrinkage_lda() -> LinearDiscriminantAnalysis:
    return LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")


def probabilities(model: Any, z: np.ndarray, codes: np.ndarray, n_classes: int) -> np.ndarray:
    """Train on the observations whose code is not -1; return probabilities of all, 0 for classes without labels."""
    z = (z - z.mean(axis=0)) / (z.std(axis=0) + 1e-9)
    model.fit(z[codes >= 0], codes[codes >= 0])
    proba = np.zeros((len(z), n_classes))
    proba[:, model.classes_] = model.predict_proba(z)
    return proba


def block_folds(xy: np.ndarray, n_blocks: int, n_folds: int, seed: int | Sequence[int]) -> np.ndarray:
    """Return the fold of each observation: blocks with equal numbers of observations, assigned at random."""
    columns = max(1, int(np.sqrt(n_blocks)))
    column, block = _cut(xy[:, 0], columns), np.empty(len(xy), dtype=np.int64)
    for c in range(columns):
        inside = column == c
        block[inside] = c * -(-n_blocks // columns) + _cut(xy[inside, 1], -(-n_blocks // columns))
    names, block = np.unique(block, return_inverse=True)
    return (np.random.default_rng(seed).permutation(len(names)) % n_folds)[block]


def _cut(values: np.ndarray, parts: int) -> np.ndarray:
    return np.argsort(np.argsort(values, kind="stable"), kind="stable") * parts // max(len(values), 1)
