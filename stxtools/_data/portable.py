"""Loadings of a stored PCA, so that a model trained on it can read other sections."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from stxtools import _keys

from .representation import Representation, expression, log_normalize, median_depth, residual_variance

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

_REPRODUCED = 0.999  # part of the variance of the stored values that the loadings must give again
_TARGET = 1e4  # scanpy's other usual depth


def with_loadings(adata: AnnData, rep: Representation, layer: str | None) -> Representation:
    """Return ``rep`` with the linear map from log expression that gives its values again.

    In a PCA the loadings are the regression of the genes on the scores, so that they are found whichever tool made
    it, with ``varm["PCs"]`` or without, from scaled genes or not. Where no map reproduces the values (they were
    integrated or made by a network, or expression is missing), ``rep`` comes back as it is with a warning.
    """
    centred = rep.values - rep.values.mean(axis=0, dtype=np.float64)
    total = float(np.square(centred).sum())
    for logged, target in _log_candidates(adata, layer):
        for genes in _gene_sets(adata, rep.values.shape[1]):
            part = logged[:, genes].astype(np.float64)
            mean = np.asarray(part.mean(axis=0)).ravel()
            spread = np.sqrt(np.maximum(np.asarray(part.multiply(part).mean(axis=0)).ravel() - mean**2, 0.0))
            shared = np.asarray(part.T @ centred) / np.maximum(np.square(centred).sum(axis=0), 1e-12)
            for scale in (None, np.where(spread > 0, spread, 1.0)):
                components = shared if scale is None else shared / scale[:, None] ** 2
                found = np.asarray(part @ components) - mean @ components
                if np.square(found - centred).sum() <= (1 - _REPRODUCED) * total:
                    # the stored scores of a section may have a mean of their own
                    shift = np.linalg.lstsq(components.T, rep.values.mean(axis=0, dtype=np.float64), rcond=None)[0]
                    names = [str(g) for g in adata.var_names[genes]]
                    noise = (
                        residual_variance(part, mean, found)
                        if scale is None
                        else float(max(len(genes) - np.square(found).mean(axis=0).sum(), 0.0) / len(genes))
                    )
                    return replace(
                        rep, genes=names, mean=mean - shift, components=components, target_sum=target,
                        variance=found.var(axis=0), noise=noise, gene_scale=scale,
                    )  # fmt: skip
    warnings.warn(
        f"`adata.obsm[{rep.name!r}]` cannot be computed from the expression in `adata`, so the saved model reads "
        f"`obsm[{rep.name!r}]` of other sections too: they must hold the same representation. Delete "
        f"`adata.obsm[{rep.name!r}]` to train a model on a PCA that it carries along.",
        UserWarning,
        stacklevel=4,
    )
    return rep


def _log_candidates(adata: AnnData, layer: str | None) -> Iterator[tuple[sparse.csr_matrix, float]]:
    """Log expression as the PCA may have seen it, and the depth to which counts are brought for it."""
    try:
        found = expression(adata, layer)
    except (ValueError, KeyError):  # no expression: the PCA is all there is
        return
    matrix, scale = found.matrix, found.scale
    if scale == "log":
        back = matrix.astype(np.float64, copy=True)
        back.data = np.expm1(np.minimum(back.data, 50.0))
        yield matrix, median_depth(np.asarray(back.sum(axis=1)).ravel())
        return
    depth = median_depth(np.asarray(matrix.sum(axis=1)).ravel())
    for target in dict.fromkeys((*_depth_of_x(adata), depth, _TARGET)):
        yield log_normalize(matrix, scale, target_sum=target), target


def _depth_of_x(adata: AnnData) -> list[float]:
    """Depth to which ``X`` was brought, where it holds log values beside the counts."""
    x = adata.X
    if _keys.COUNTS not in adata.layers or x is None or "log1p" not in adata.uns:
        return []
    data = sparse.csr_matrix(x, dtype=np.float64)
    data.data = np.expm1(np.minimum(data.data, 50.0))
    return [median_depth(np.asarray(data.sum(axis=1)).ravel())]


def _gene_sets(adata: AnnData, width: int) -> Iterator[NDArray[np.int64]]:
    """Genes that the PCA may have been made of: those with loadings, the variable ones, all."""
    loadings = adata.varm.get("PCs")
    if loadings is not None and np.ndim(loadings) == 2 and np.shape(loadings)[1] >= width:
        yield np.flatnonzero(np.asarray(loadings)[:, :width].any(axis=1))
    if "highly_variable" in adata.var:
        yield np.flatnonzero(adata.var["highly_variable"].to_numpy(dtype=bool, na_value=False))
    yield np.arange(adata.n_vars)
