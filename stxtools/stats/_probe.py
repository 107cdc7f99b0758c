"""What a linear probe of a region looks at: exact integrated gradients on genes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def contrast(label: NDArray[np.bool_], blocks: NDArray[np.int64] | None = None) -> Floats:
    """Weights of the observations whose weighted sum is a mean difference, free of differences between blocks.

    Parameters
    ----------
    label
        Group (True) against reference.
    blocks
        Section of every observation; sections' means are taken out.

    Returns
    -------
    One weight per observation.
    """
    weight = np.where(label, 1.0 / max(int(label.sum()), 1), -1.0 / max(int((~label).sum()), 1))
    return weight if blocks is None else _centre(weight[:, None], blocks)[:, 0]


def linear_attribution(
    values: NDArray[Any],
    components: Floats,
    difference: Floats,
    label: NDArray[np.bool_],
    blocks: NDArray[np.int64] | None = None,
    shrinkage: float = 0.1,
) -> Floats:
    """Integrated gradients (Sundararajan et al. 2017) of a discriminant on principal components, per gene.

    For a linear score ``w . x`` the path integral from the reference's mean to the group's mean is exact:
    gene j gets ``w_j (mean_group,j - mean_reference,j)``, and the genes' parts add up to the distance of the two
    classes' mean scores.

    Parameters
    ----------
    values
        Observations x components.
    components
        Genes x components, orthonormal.
    difference
        Mean difference of every gene, as the weights of :func:`contrast` make it.
    label
        Group (True) against reference.
    blocks
        Section of every observation; sections' means are taken out first.
    shrinkage
        Share of the pooled covariance that is replaced by a multiple of the identity.

    Returns
    -------
    One number per gene; absolute values sum to 1 (all 0 where the classes' means agree).
    """
    x = np.asarray(values, dtype=np.float64)
    if blocks is not None:
        x = _centre(x, blocks)
    centred = np.where(label[:, None], x - x[label].mean(axis=0), x - x[~label].mean(axis=0))
    pooled = centred.T @ centred / max(len(x) - 2, 1)
    ridge = float(np.trace(pooled)) / len(pooled)
    if ridge <= 0:
        return np.zeros(len(components))
    weight = np.linalg.solve(
        (1 - shrinkage) * pooled + shrinkage * ridge * np.eye(len(pooled)), components.T @ difference
    )
    out = (components @ weight) * difference
    norm = float(np.abs(out).sum())
    return out / norm if norm > 0 else np.zeros(len(components))


def _centre(x: Floats, blocks: NDArray[np.int64]) -> Floats:
    _, codes = np.unique(blocks, return_inverse=True)
    total = np.zeros((codes.max() + 1, x.shape[1]))
    np.add.at(total, codes, x)
    return x - (total / np.bincount(codes)[:, None])[codes]
