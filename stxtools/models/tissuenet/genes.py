"""Expression of many genes, averaged over neighbourhoods, in a few hundred numbers an observation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.spatial import cKDTree
from sklearn.utils.extmath import randomized_svd

from stxtools._spatial.matrices import column_moments
from stxtools._spatial.order import evenly_spread
from stxtools._spatial.smoothing import averages

FloatArray = NDArray[np.float64]

GENE_SIZES = (7, 19, 61, 127)
N_AXES = 200
_LEARN_ROWS = 4000  # observations from which the axes are learned
_CHUNK = 2000  # observations whose smoothed genes are dense at a time
_FLOOR = 0.01  # least standard deviation of a gene: rarely seen ones are not blown up
_SECTION_FLOOR = 0.1  # added to that of a smoothed gene in one section of several (log expression)


def pooling(xy: FloatArray, size: int) -> sparse.csr_matrix:
    """Mean over the nearest ``size`` observations, itself included, as a sparse (n, n) matrix."""
    n = len(xy)
    return averages(cKDTree(xy).query(xy, k=min(size, n))[1].reshape(n, -1), n)


@dataclass(eq=False)
class SmoothedGenes:
    """Principal axes of genes that were centred by section, scaled, and averaged over several neighbourhoods.

    The scores keep their variances: a ridge penalty on them is one on the genes themselves. A gene that a section lacks
    counts as average. Of several sections each one's smoothed genes are also divided by their own spread.
    """

    sizes: Any  # of the neighbourhoods
    by_section: Any = False  # whether there were several sections
    gene_scale: Any = None  # divisors of the genes, (G,), and then of the smoothed ones, (sizes x G,)
    scale: Any = None
    axes: Any = None  # (sizes x G, k)

    def fit(self, sections: Sequence[tuple[sparse.csr_matrix, FloatArray]], rng: np.random.Generator) -> SmoothedGenes:
        """Learn scales and axes from log expression (n, G) and coordinates of the sections."""
        n = np.array([logged.shape[0] for logged, _ in sections])
        self.sizes, self.by_section = np.array(self.sizes, dtype=np.int64), np.array([len(sections) > 1])
        spread = sum(column_moments(logged)[1] * len_ for (logged, _), len_ in zip(sections, n, strict=True)) / n.sum()
        self.gene_scale = (np.sqrt(spread) + _FLOOR).astype(np.float32)
        take = np.maximum(1, (n * min(1.0, _LEARN_ROWS / n.sum())).astype(int))
        self.scale = np.ones(len(self.gene_scale) * len(self.sizes), dtype=np.float32)
        parts = [
            np.concatenate(list(self.chunks(logged, xy, np.sort(rng.permutation(len(xy))[:count]))))
            for (logged, xy), count in zip(sections, take, strict=True)
        ]
        sample = np.concatenate(parts)
        if not self.by_section:
            self.scale = (sample.std(axis=0) + 1e-3).astype(np.float32)
            sample /= self.scale
        k = min(N_AXES, *sample.shape)
        _, _, right = randomized_svd(sample, k, n_iter=3, random_state=int(rng.integers(2**31)))
        self.axes = np.ascontiguousarray(right.T, dtype=np.float32)
        return self

    def transform(
        self, logged: sparse.csr_matrix, xy: FloatArray, rows: NDArray[np.int64] | None = None
    ) -> NDArray[np.float32]:
        """Scores of a section, (n, k), or of some of its ``rows``."""
        rows = np.arange(len(xy)) if rows is None else rows
        parts = [smoothed @ self.axes for smoothed in self.chunks(logged, xy, rows)]
        return np.concatenate(parts) if parts else np.empty((0, self.axes.shape[1]), dtype=np.float32)

    def loadings(
        self, coefficients: NDArray[np.floating], sections: Sequence[tuple[sparse.csr_matrix, FloatArray]]
    ) -> list[NDArray[np.float64]]:
        """Carry a linear map of the scores, (k, m), back to the genes: (G, m) for the means of each size."""
        scale = np.mean([self._scale([pooling(xy, s) for s in self.sizes], g) for g, xy in sections], axis=0)
        whole = (self.axes @ coefficients) / scale[:, None]
        return np.split(whole.astype(np.float64), len(self.sizes))

    def chunks(
        self, logged: sparse.csr_matrix, xy: FloatArray, rows: NDArray[np.int64]
    ) -> Iterator[NDArray[np.float32]]:
        """Yield the smoothed and scaled genes of some of ``rows``, (m, sizes x G), a chunk at a time."""
        mean = np.tile(np.asarray(logged.mean(axis=0)).ravel(), len(self.sizes)).astype(np.float32)
        pools = [pooling(xy, size) for size in self.sizes]
        scale = self._scale(pools, logged)
        for start in range(0, len(rows), _CHUNK):
            yield ((_smoothed(pools, logged, rows[start : start + _CHUNK]) - mean) / scale).astype(np.float32)

    def _scale(self, pools: Sequence[sparse.csr_matrix], logged: sparse.csr_matrix) -> NDArray[np.float32]:
        """Divisor of each smoothed gene, (sizes x G,)."""
        if not self.by_section:
            return np.tile(self.gene_scale, len(self.sizes)) * self.scale
        some = evenly_spread(logged.shape[0], _CHUNK)
        return np.asarray(_smoothed(pools, logged, some).std(axis=0) + _SECTION_FLOOR)


def _smoothed(
    pools: Sequence[sparse.csr_matrix], logged: sparse.csr_matrix, rows: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Means of all genes over each neighbourhood of ``rows``, (rows, sizes x G)."""
    return np.concatenate([(pool[rows] @ logged).toarray() for pool in pools], axis=1)
