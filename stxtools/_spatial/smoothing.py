"""Means over the nearest observations: plain ones, and ones that stop at edges of the tissue."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.spatial import cKDTree

from stxtools._types import Floats, Floats32, Ints

from .graph import neighbour_mean

REACH = 127  # observations in the largest neighbourhood: six rings of a hexagonal lattice
_GUIDE = 6  # components in which edges are looked for: later ones are mostly noise
_CLOSE = 7  # an observation and the ring around it
_CHUNK = 8192
_COLUMNS = 256  # of a sparse matrix that are dense at a time: what they need stays in the processor's cache
_VALUES = 2**25  # dense at a time


def averages(near: NDArray[np.integer], n: int) -> sparse.csr_matrix:
    """Matrix (m, n) that takes the mean over the observations in each row of ``near`` (m, size)."""
    m, size = near.shape
    return sparse.csr_matrix(
        (np.full(m * size, 1 / size, np.float32), near.ravel(), np.arange(0, m * size + 1, size)), shape=(m, n)
    )


def nearest(xy: Floats, size: int, rows: Ints | None = None) -> NDArray[np.int32]:
    """Nearest ``size`` observations of some ``rows``, all by default, themselves included, (m, size)."""
    tree, at, size = cKDTree(xy), xy if rows is None else xy[rows], min(size, len(xy))
    parts = [
        tree.query(at[start : start + _CHUNK], k=size, workers=-1)[1].astype(np.int32)
        for start in range(0, len(at), _CHUNK)
    ]
    return np.concatenate(parts).reshape(-1, size)


def dense_means(near: NDArray[np.integer], values: sparse.csr_matrix) -> Floats32:
    """Means of sparse ``values`` (n, d), (m, d): few are 0, so that products of dense columns take a quarter."""
    touched, at = np.unique(near, return_inverse=True)
    pool, seen = averages(at.reshape(near.shape), len(touched)), values[touched].tocsc()
    out = np.empty((len(near), values.shape[1]), dtype=np.float32)
    step = min(_COLUMNS, _VALUES // len(touched) + 1)
    for start in range(0, values.shape[1], step):
        columns = slice(start, start + step)
        out[:, columns] = pool @ seen[:, columns].toarray(order="C")
    return out


class Neighbourhoods:
    """The nearest observations of some ``rows``, all by default, and means of ``features`` (n, d) over them."""

    def __init__(self, features: Floats32, xy: Floats, rows: Ints | None = None) -> None:
        self.features = features
        self.rows = np.arange(len(xy)) if rows is None else rows
        self.near = nearest(xy, REACH, rows)

    def mean(self, size: int) -> Floats32:
        """Mean over the nearest ``size`` observations, itself included, (m, d)."""
        return np.asarray(averages(self.near[:, :size], len(self.features)) @ self.features)

    def edge_preserving_means(self, graph: sparse.csr_matrix, tolerances: Sequence[float]) -> dict[float, Floats32]:
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
