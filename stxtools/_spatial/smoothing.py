"""Means over the nearest observations: plain ones, and ones that stop at edges of the tissue."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.spatial import cKDTree

from .graph import neighbour_mean

REACH = 127  # observations in the largest neighbourhood: six rings of a hexagonal lattice
_GUIDE = 6  # components in which edges are looked for: later ones are mostly noise
_CLOSE = 7  # an observation and the ring around it
_CHUNK = 8192


def averages(near: NDArray[np.integer], n: int) -> sparse.csr_matrix:
    """Matrix (m, n) that takes the mean over the observations in each row of ``near`` (m, size)."""
    m, size = near.shape
    return sparse.csr_matrix(
        (np.full(m * size, 1 / size, np.float32), near.ravel(), np.arange(0, m * size + 1, size)), shape=(m, n)
    )


class Neighbourhoods:
    """The nearest observations of some ``rows``, all by default, and means of ``features`` (n, d) over them."""

    def __init__(
        self, features: NDArray[np.float32], xy: NDArray[np.float64], rows: NDArray[np.int64] | None = None
    ) -> None:
        self.features = features
        self.rows = np.arange(len(xy)) if rows is None else rows
        size = min(REACH, len(xy))
        self.near = cKDTree(xy).query(xy[self.rows], k=size, workers=-1)[1].reshape(len(self.rows), size)
        self.near = self.near.astype(np.int32)

    def mean(self, size: int) -> NDArray[np.float32]:
        """Mean over the nearest ``size`` observations, itself included, (m, d)."""
        return np.asarray(averages(self.near[:, :size], len(self.features)) @ self.features)

    def edge_preserving_means(
        self, graph: sparse.csr_matrix, tolerances: Sequence[float]
    ) -> dict[float, NDArray[np.float32]]:
        r"""Means over those of the near observations whose guide (features averaged on ``graph``) is alike, (m, d).

        A joint bilateral filter with a flat spatial kernel (Tomasi and Manduchi 1998; Petschnigg et al. 2004):
        observation :math:`j` counts :math:`\exp(-d_{ij}^2 / 2 \tau^2)` with the tolerance :math:`\tau`, where
        :math:`d_{ij}^2` is the mean squared difference of the guide, in units of its median between touching
        observations.
        """
        guide = neighbour_mean(graph, self.features[:, :_GUIDE], rounds=2).astype(np.float32)
        near = self.near[:, : max(min(REACH, len(self.features) // 3), 1)]
        some = slice(None, None, max(1, len(near) // 5000))
        close = guide[near[some, 1:_CLOSE]] - guide[self.rows[some]][:, None]
        noise = np.median(close**2, axis=(0, 1)) + 1e-12 if close.size else np.ones(guide.shape[1])
        guide = guide / np.sqrt(noise).astype(np.float32)
        found = {t: np.empty((len(self.rows), self.features.shape[1]), dtype=np.float32) for t in tolerances}
        for start in range(0, len(near), _CHUNK):
            block = near[start : start + _CHUNK]
            centre = guide[self.rows[start : start + _CHUNK]]
            distance = ((guide[block] - centre[:, None]) ** 2).mean(axis=2)
            for tolerance, out in found.items():
                weight = np.exp(-distance / (2 * tolerance**2))
                weight /= weight.sum(axis=1, keepdims=True)
                pool = sparse.csr_matrix(
                    (weight.ravel(), block.ravel(), np.arange(0, block.size + 1, block.shape[1])),
                    shape=(len(block), len(self.features)),
                )
                out[start : start + _CHUNK] = pool @ self.features
        return found
