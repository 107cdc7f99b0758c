"""Principal components of many genes, averaged over neighbourhoods of several sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.utils.extmath import randomized_svd

from stxtools._spatial.matrices import column_moments
from stxtools._spatial.points import evenly_spread
from stxtools._spatial.smoothing import averages, dense_means, nearest
from stxtools._types import Floats, Floats32, Ints, Reals

GENE_SIZES = (7, 19, 61, 127)
_N_AXES = 200
_FIT_ROWS = 4000  # observations from which the axes are learned
_SCALE_ROWS = 2000  # observations in which the standard deviations of a section's genes are measured
_FLOOR = 0.01  # added to the standard deviation of a gene: rarely expressed ones are not blown up
_SECTION_FLOOR = 0.1  # added to that of a smoothed gene in one section of several (log expression)


@dataclass(eq=False)
class SmoothedGenes:
    """Principal axes of genes that were centred by section, scaled, and averaged over several neighbourhoods.

    The scores keep their variances: a ridge penalty on them is one on the genes themselves. A gene that a section lacks
    counts as average. With several sections, smoothed genes are divided by their standard deviations in each section.
    """

    sizes: Any  # of the neighbourhoods
    by_section: Any = False  # whether there were several sections
    gene_scale: Any = None  # divisors of the genes, (G,), and then of the smoothed ones, (sizes x G,)
    scale: Any = None
    axes: Any = None  # (sizes x G, k)

    def fit(self, sections: Sequence[tuple[sparse.csr_matrix, Floats]], rng: np.random.Generator) -> SmoothedGenes:
        """Learn scales and axes from log expression (n, G) and coordinates of the sections."""
        n = np.array([logged.shape[0] for logged, _ in sections])
        self.sizes, self.by_section = np.array(self.sizes, dtype=np.int64), np.array([len(sections) > 1])
        variance = sum(column_moments(logged)[1] * m for (logged, _), m in zip(sections, n, strict=True)) / n.sum()
        self.gene_scale = (np.sqrt(variance) + _FLOOR).astype(np.float32)
        counts = np.maximum(1, (n * min(1.0, _FIT_ROWS / n.sum())).astype(int))
        self.scale = np.ones(len(self.gene_scale) * len(self.sizes), dtype=np.float32)
        parts = []
        for (logged, xy), count in zip(sections, counts, strict=True):
            part = self._smoothed(logged, xy, np.sort(rng.permutation(len(xy))[:count]))
            part -= np.tile(_gene_means(logged), len(self.sizes))
            part /= self._scale(logged, xy)
            parts.append(part)
        sample = np.concatenate(parts)
        if not self.by_section:
            self.scale = (sample.std(axis=0) + 1e-3).astype(np.float32)
            sample /= self.scale
        k = min(_N_AXES, *sample.shape)
        _, _, right = randomized_svd(sample, k, n_iter=3, random_state=int(rng.integers(2**31)))
        self.axes = np.ascontiguousarray(right.T, dtype=np.float32)
        return self

    def transform(self, logged: sparse.csr_matrix, xy: Floats, rows: Ints | None = None) -> Floats32:
        """Scores of a section, (n, k), or of some of its ``rows``."""
        near, mean = nearest(xy, max(self.sizes), rows), _gene_means(logged)
        axes = np.split(self.axes / self._scale(logged, xy)[:, None], len(self.sizes))
        if rows is not None:  # project their neighbours alone
            neighbours, codes = np.unique(near, return_inverse=True)
            logged, near = logged[neighbours], codes.reshape(near.shape).astype(np.int32)
        scores = np.zeros((len(near), self.axes.shape[1]), dtype=np.float32)
        for size, part in zip(self.sizes, axes, strict=True):
            scores += averages(near[:, :size], logged.shape[0]) @ (logged @ part) - mean @ part
        return scores

    def loadings(self, coefficients: Reals, sections: Sequence[tuple[sparse.csr_matrix, Floats]]) -> list[Floats]:
        """Coefficients of the genes' means at each size, (G, m), from those of the scores, (k, m)."""
        scale = np.mean([self._scale(logged, xy) for logged, xy in sections], axis=0)
        return np.split(((self.axes @ coefficients) / scale[:, None]).astype(np.float64), len(self.sizes))

    def _scale(self, logged: sparse.csr_matrix, xy: Floats) -> Floats32:
        """Divisor of each smoothed gene, (sizes x G,)."""
        if not self.by_section:
            return np.tile(self.gene_scale, len(self.sizes)) * self.scale
        rows = evenly_spread(logged.shape[0], _SCALE_ROWS)
        return np.asarray(self._smoothed(logged, xy, rows).std(axis=0) + _SECTION_FLOOR)

    def _smoothed(self, logged: sparse.csr_matrix, xy: Floats, rows: Ints) -> Floats32:
        """Means of all genes over each neighbourhood of ``rows``, (m, sizes x G)."""
        near = nearest(xy, max(self.sizes), rows)
        return np.concatenate([dense_means(near[:, :size], logged) for size in self.sizes], axis=1)


def _gene_means(logged: sparse.csr_matrix) -> Floats32:
    return np.asarray(logged.mean(axis=0), dtype=np.float32).ravel()
