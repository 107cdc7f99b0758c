"""From gradients with respect to features to genes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from stxtools._data.expression import Expression, log_chunks

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy import sparse

    from stxtools.models import GeneProjection


def carried_to_genes(
    read: Expression, projection: GeneProjection, gradient: NDArray[np.float64], parts: Sequence[NDArray[np.int64]]
) -> NDArray[np.float64]:
    """Return genes' parts of what features do: each gene's difference from its section's mean, times the gradient.

    Genes make features linearly, so that the parts follow exactly. Expression is read by chunks of rows.
    """
    centred = np.array(gradient)
    for rows in parts:  # (y - mean)' g = y' (g - mean of g)
        centred[rows] -= gradient[rows].mean(axis=0)
    theirs, loadings = projection.loadings(list(read.names))
    total = np.zeros((len(read.names), gradient.shape[1]))
    for part in log_chunks(read, partial(_weighted_sum, centred), projection.target_sum, at_once=None):
        total += part
    out = np.zeros(len(read.names))
    out[theirs] = (total[theirs] * loadings).sum(axis=1)
    return out


def _weighted_sum(weights: NDArray[np.float64], logged: sparse.csr_matrix, rows: slice) -> NDArray[np.float64]:
    return np.asarray(logged.T @ weights[rows], dtype=np.float64)
