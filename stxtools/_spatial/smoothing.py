"""Means over the nearest observations, plain or edge-preserving."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.spatial import cKDTree

from stxtools._types import Csr, Floats, Floats32, Ints, Reals

from .graph import neighbour_mean
from .threads import in_threads

REACH = 127  # observations in the largest neighbourhood: six rings of a hexagonal lattice
_GUIDE = 6  # components in which edges are detected: later ones are mostly noise
_ADJACENT = 7  # an observation and the ring around it
_CHUNK = 8192
_DENSE_COLUMNS = 256  # at a time, so that they stay in the processor's cache
_DENSE_VALUES = 2**25  # at a time


def averages(near: NDArray[np.integer], n: int, weight: Reals | None = None) -> Csr:
    """Return the matrix (m, n) that averages, equally or by ``weight``, the observations in each row of ``near``."""
    m, size = near.shape
    data = np.full(near.size, 1 / size, np.float32) if weight is None else weight.ravel()
    return sparse.csr_matrix((data, near.ravel(), np.arange(0, near.size + 1, size)), shape=(m, n))


def nearest(xy: Floats, size: int, rows: Ints | None = None) -> NDArray[np.int32]:
    """Return the nearest ``size`` observations of ``rows`` (default: all), themselves included, (m, size)."""
    tree, points, size = cKDTree(xy), xy if rows is None else xy[rows], min(size, len(xy))
    parts = in_threads(
        lambda start: tree.query(points[start : start + _CHUNK], k=size)[1].astype(np.int32),
        range(0, max(len(points), 1), _CHUNK),  # no rows: one empty part
    )
    return np.concatenate(list(parts)).reshape(-1, size)


def dense_means(near: NDArray[np.integer], values: Csr) -> Floats32:
    """Return means of sparse ``values`` (n, d), (m, d): few are 0, so that dense columns are four times as fast."""
    used, index = np.unique(near, return_inverse=True)
    mean, values = averages(index.reshape(near.shape), len(used)), values[used].tocsc()
    out = np.empty((len(near), values.shape[1]), dtype=np.float32)
    step = min(_DENSE_COLUMNS, _DENSE_VALUES // len(used) + 1)
    for start in range(0, values.shape[1], step):
        columns = slice(start, start + step)
        out[:, columns] = mean @ values[:, columns].toarray(order="C")
    return out


class Neighbourhoods:
    """Nearest observations of ``rows`` (default: all), and means of ``features`` (n, d) over them."""

    def __init__(self, features: Floats32, xy: Floats, rows: Ints | None = None) -> None:
        self.features = features
        self.rows = np.arange(len(xy)) if rows is None else rows
        self.near = nearest(xy, REACH, rows)

    def mean(self, size: int) -> Floats32:
        """Mean over the nearest ``size`` observations, itself included, (m, d)."""
        return np.asarray(averages(self.near[:, :size], len(self.features)) @ self.features)

    def edge_preserving_means(self, graph: Csr, tolerances: Sequence[float]) -> dict[float, Floats32]:
        r"""Means over those near observations that are similar in the guide (features averaged on ``graph``), (m, d).

        A joint bilateral filter with a flat spatial kernel (Tomasi and Manduchi 1998; Petschnigg et al. 2004):
        observation :math:`j` has the weight :math:`\exp(-d_{ij}^2 / 2 \tau^2)` with the tolerance :math:`\tau`, where
        :math:`d_{ij}^2` is the mean squared difference of the guide, in units of its median between adjacent
        observations.
        """
        guide = neighbour_mean(graph, self.features[:, :_GUIDE], rounds=2).astype(np.float32)
        near = self.near[:, : max(min(REACH, len(self.features) // 3), 1)]
        sample = slice(None, None, max(1, len(near) // 5000))
        step = guide[near[sample, 1:_ADJACENT]] - guide[self.rows[sample]][:, None]
        noise = np.median(step**2, axis=(0, 1)) + 1e-12 if step.size else np.ones(guide.shape[1])
        guide = guide / np.sqrt(noise).astype(np.float32)
        means = {t: np.empty((len(self.rows), self.features.shape[1]), dtype=np.float32) for t in tolerances}
        for start in range(0, len(near), _CHUNK):
            block = near[start : start + _CHUNK]
            centre = guide[self.rows[start : start + _CHUNK]]
            distance = ((guide[block] - centre[:, None]) ** 2).mean(axis=2)
            for tolerance, out in means.items():
                weight = np.exp(-distance / (2 * tolerance**2))
                weight /= weight.sum(axis=1, keepdims=True)
                out[start : start + _CHUNK] = averages(block, len(self.features), weight) @ self.features
        return means
