"""Neighbourhood means of genes, each standardised within its section, as they generalise to other donors."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace

import numpy as np
from scipy import sparse

from stxtools._spatial.matrices import column_moments, leading_axes
from stxtools._spatial.points import evenly_spread
from stxtools._spatial.smoothing import averages, dense_means, nearest
from stxtools._types import Floats, Floats32, Ints
from stxtools.models._projection import matched

from .discriminant import standardised

SIZES = (19, 61)  # nearest observations, itself included
READ_GENES = 500  # the best genes of a section: more add noise
_SAMPLE = 8000  # observations in which a section is measured: more do not change a standard deviation
_EXPRESSED = 0.02  # mean log expression below which a gene is noise
_CONSTANT = 1e-5  # standard deviation of a constant gene, by rounding
_MAX_VALUES = 30_000_000  # of a sample, at each size
_MAX_GENES = 10_000  # that a model keeps
_MIN_SAMPLE = 500  # observations of each section: of many sections, fewer genes are kept


@dataclass(frozen=True)
class GeneSection:
    """Log-normalised expression of a section."""

    logged: sparse.csr_matrix  # observations x genes
    genes: Sequence[str]  # their names
    xy: Floats  # coordinates, (n, 2)

    def take(self, rows: Ints) -> GeneSection:
        """Return the section with its observations in another order."""
        return replace(self, logged=self.logged[rows], xy=self.xy[rows])


class GeneMeans:
    """Means over the nearest observations of some genes (columns) of a section, standardised within it.

    A dense matrix observations x genes is made for the ``sample`` alone.
    """

    def __init__(self, section: GeneSection, genes: Ints, max_values: int = _MAX_VALUES) -> None:
        self.logged = section.logged[:, genes].astype(np.float32)
        self._near = nearest(section.xy, max(SIZES))
        self.sample = evenly_spread(self.n_obs, min(_SAMPLE, max(max_values // max(len(genes), 1), 1)))
        self._centred = [dense_means(self._near[self.sample, :size], self.logged) for size in SIZES]
        self.centre, self.scale = [], []
        for means in self._centred:
            self.centre.append(means.mean(axis=0, dtype=np.float64))
            means -= self.centre[-1].astype(np.float32)
            spread = np.sqrt(np.einsum("ij,ij->j", means, means, dtype=np.float64) / len(means))
            self.scale.append(np.where(spread > _CONSTANT, spread, np.inf))  # a constant gene becomes 0

    def leading(self, count: int) -> GeneMeans:
        """Select the first ``count`` genes."""
        out = copy(self)
        out.logged, out._centred = self.logged[:, :count], [m[:, :count] for m in self._centred]
        out.centre, out.scale = [c[:count] for c in self.centre], [c[:count] for c in self.scale]
        return out

    @property
    def n_obs(self) -> int:
        """Number of observations."""
        return len(self._near)

    def standardised(self) -> Floats32:
        """Features of the sample: all genes' means at the first size, then at the second, (m, 2 g)."""
        parts = [m / s.astype(np.float32) for m, s in zip(self._centred, self.scale, strict=True)]
        return np.concatenate(parts, axis=1)

    def projected(self, coef: Sequence[Floats]) -> list[Floats]:
        """Products of the standardised means at each size with its ``coef`` (g, k)."""
        out = []
        for size, centre, scale, w in zip(SIZES, self.centre, self.scale, coef, strict=True):
            part = np.asarray(self.logged @ (w / scale[:, None]).astype(np.float32))
            out.append(averages(self._near[:, :size], self.n_obs).dot(part).astype(np.float64) - (centre / scale) @ w)
        return out

    def parts(self, coef: Sequence[Floats], at: Floats) -> Floats:
        """Part of each gene, (g,), in the sum of :meth:`projected` at both sizes times ``at`` (n, k)."""
        out = np.zeros(self.logged.shape[1])
        for size, centre, scale, w in zip(SIZES, self.centre, self.scale, coef, strict=True):
            summed = self.logged.T @ averages(self._near[:, :size], self.n_obs).T.dot(at)
            out += ((summed - np.outer(centre, at.sum(axis=0))) / scale[:, None] * w).sum(axis=1)
        return out

    def components(self, axes: Floats) -> Floats:
        """Standardised components at both sizes, (n, 2 k)."""
        return standardised(np.hstack(self.projected([axes, axes])))

    def axes(self, n_comps: int) -> Floats:
        """Principal axes of the section's own standardised means at the smaller size, (g, k)."""
        z = self._centred[0] / self.scale[0]
        return leading_axes(z.T @ z / len(z), n_comps)


def spatial_scores(section: GeneSection) -> Floats:
    """Share of each gene's variance that averaging over neighbours keeps, (n_genes,).

    It is less by 1 for genes that are hardly expressed, and -1 for constant ones.
    """
    n = len(section.xy)
    rows = evenly_spread(n, _SAMPLE)
    mean, variance = column_moments(section.logged[rows])
    kept = column_moments(averages(nearest(section.xy, SIZES[0], rows), n).dot(section.logged))[1]
    share = np.clip(kept / np.maximum(variance, 1e-9), 0.0, 1.0)
    return np.where(variance > _CONSTANT**2, share - (mean <= _EXPRESSED), -1.0)


def select_genes(expression: Sequence[GeneSection]) -> tuple[list[str], list[GeneMeans]]:
    """Genes that all sections have, highest mean of :func:`spatial_scores` first, and their means in each section."""
    others = [set(e.genes) for e in expression[1:]]
    shared = [g for g in expression[0].genes if all(g in other for other in others)]
    score = np.zeros(len(shared))
    for e in expression:
        score += spatial_scores(e)[matched(shared, e.genes)[1]] / len(expression)
    max_values = _MAX_VALUES // len(expression)
    order = np.argsort(-score, kind="stable")[: min(_MAX_GENES, max(max_values // _MIN_SAMPLE, READ_GENES))]
    order = order[score[order] > -1]
    genes = [shared[i] for i in order]
    return genes, [GeneMeans(e, matched(genes, e.genes)[1], max_values) for e in expression]
