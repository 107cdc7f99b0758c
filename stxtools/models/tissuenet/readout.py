"""Axes of the genes along which a framework's predictions change, for a student to read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse
from sklearn.linear_model import Ridge

from stxtools.models._projection import GeneProjection

from .genes import SmoothedGenes
from .inputs import RegionSection

N_AXES = 16
_ROWS = 10_000  # observations that the axes are learned from
_RIDGE = 1e-2  # penalty, in units of the mean variance of the scores


def with_readout(
    projection: GeneProjection,
    genes: Sequence[str],
    smoothed: SmoothedGenes,
    sections: Sequence[RegionSection],
    logits: Sequence[NDArray[np.floating]],
    rng: np.random.Generator,
) -> GeneProjection:
    """Add to a projection at most ``N_AXES`` axes of the genes along which the predictions change.

    The first components of expression separate tissues, but not always a disease. A ridge regression of the ``logits``
    (NaN: none) on the ``smoothed`` genes, carried back to the genes, gives an axis for each class and size.
    """
    parts = [(s.genes, s.section.xy) for s in sections if s.genes is not None]
    share = _ROWS / max(sum(len(a) for a in logits), 1)
    rows = [np.flatnonzero(np.isfinite(a).all(axis=1) & (rng.random(len(a)) < share)) for a in logits]
    scores = np.concatenate(
        [smoothed.transform(logged, xy, at) for (logged, xy), at in zip(parts, rows, strict=True)]
    ).astype(np.float64)
    wanted = np.concatenate([a[at] for a, at in zip(logits, rows, strict=True)]).astype(np.float64)
    penalty = max(_RIDGE * len(scores) * float(scores.var(axis=0).mean()), 1e-12)
    coefficients = Ridge(penalty).fit(scores, wanted).coef_.T
    loadings = np.concatenate(smoothed.loadings(coefficients, parts), axis=1)
    return _extended(projection, genes, loadings, [logged for logged, _ in parts])


def _extended(
    projection: GeneProjection,
    genes: Sequence[str],
    loadings: NDArray[np.float64],
    logged: Sequence[sparse.csr_matrix],
) -> GeneProjection:
    """Projection with the directions of ``loadings`` (G, m) that its components lack, strongest first."""
    names = [*projection.genes, *(g for g in genes if g not in set(projection.genes))]
    at, known = pd.Index(names).get_indexer(list(genes)), len(projection.genes)
    old = np.zeros((len(names), projection.components.shape[1]))
    old[:known] = projection.components
    new = np.zeros((len(names), loadings.shape[1]))
    new[at] = loadings / np.maximum(np.linalg.norm(loadings, axis=0), 1e-12)
    new -= old @ np.linalg.lstsq(old, new, rcond=None)[0]
    left, strength, _ = np.linalg.svd(new, full_matrices=False)
    axes = left[:, :N_AXES][:, strength[:N_AXES] > 1e-6]
    axes -= old @ np.linalg.lstsq(old, axes, rcond=None)[0]  # to rounding
    mean, scale = np.zeros(len(names)), np.ones(len(names))
    mean[at] = sum(np.asarray(part.sum(axis=0)).ravel() for part in logged) / sum(part.shape[0] for part in logged)
    mean[:known] = projection.mean
    scores = np.concatenate([np.asarray(part @ axes[at]) for part in logged])
    variance = None if projection.variance is None else np.concatenate([projection.variance, scores.var(axis=0)])
    if projection.gene_scale is not None:  # the other genes were not scaled
        scale[:known] = projection.gene_scale
    return replace(
        projection, genes=names, mean=mean, components=np.concatenate([old, axes], axis=1), variance=variance,
        gene_scale=None if projection.gene_scale is None else scale,
    )  # fmt: skip
