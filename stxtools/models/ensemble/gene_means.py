"""Genes standardised within sections, as they generalise to other donors: neighbourhood means and second moments."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from stxtools._spatial.matrices import column_moments, leading_axes
from stxtools._spatial.points import evenly_spread
from stxtools._spatial.smoothing import averages, dense_means, nearest
from stxtools._types import Floats, Floats32, Ints
from stxtools.models._projection import matched

from .discriminant import Linear, normal_logits, shrunken

SIZES = (19, 61)  # nearest observations, itself included
READ_GENES = 500  # the best genes of a section: more add noise
_SAMPLE = 8000  # observations in which a section is measured: more do not change a standard deviation
_EXPRESSED = 0.02  # mean log expression below which a gene is noise
_CONSTANT = 1e-5  # standard deviation of a constant gene, by rounding
_MAX_VALUES = 30_000_000  # of a sample, at each size
_MAX_GENES = 10_000  # that a model keeps
_MIN_SAMPLE = 500  # observations of each section: of many sections, fewer genes are kept
RANK = 192  # rows of the factor; the rest of the covariance is kept as a diagonal
N_COMPS = 20
SHRINKAGE = 0.1  # of the covariance within classes to its diagonal
PENALTY = 0.5  # of the ridge, in units of the variance of a gene
_HALF_MAX = 6e4  # float16 ends at 65504


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

    def best(self) -> GeneMeans:
        """Select the first ``READ_GENES`` genes."""
        out, first = copy(self), slice(READ_GENES)
        out.logged, out._centred = self.logged[:, first], [m[:, first] for m in self._centred]
        out.centre, out.scale = [c[first] for c in self.centre], [c[first] for c in self.scale]
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

    def axes(self) -> Floats:
        """Principal axes of the section's own standardised means at the smaller size, (g, k)."""
        z = self._centred[0] / self.scale[0]
        return leading_axes(z.T @ z / len(z), N_COMPS)


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


class LabelledSection(NamedTuple):
    """Neighbourhood means of a section, and class shares (n, K) and weights (n,) of its observations."""

    means: GeneMeans
    share: Floats
    weight: Floats


@dataclass(frozen=True)
class LinearMembers:
    """Classifiers of standardised neighbourhood means."""

    ridge: Sequence[Floats]  # coefficients for each size, (g, K) each
    ridge_intercept: Floats  # (K,)
    axes: Floats  # components that the discriminant analysis reads, (g, k)
    lda: Linear  # reads the standardised components at both sizes, (n, 2 k)


@dataclass(frozen=True)
class LabelMoments:
    r"""Second moments of features and class shares in labelled sections; no single observation is kept.

    The covariance of the features is :math:`B^T B + D`: a factor of ``RANK`` rows by random projections (Halko,
    Martinsson and Tropp 2011) and the diagonal of the residual.
    """

    genes: list[str]  # names, best first
    factor: NDArray[np.float16]  # B, (r, 2 g)
    rest: Floats32  # diagonal of D, (2 g,)
    mean: Floats32  # weighted mean of the features, (2 g,)
    cross: Floats32  # covariance of features and class shares, (2 g, K)
    prior: Floats  # share of each class, (K,)

    @classmethod
    def of(cls, genes: Sequence[str], z: Floats32, share: Floats, weight: Floats, *, rank: int = RANK) -> LabelMoments:
        """Measure features (n, 2 g), class shares (n, K) and weights (n,)."""
        weight = weight / weight.sum()
        mean, prior = weight.astype(np.float32) @ z, weight @ share
        root = np.sqrt(weight)[:, None].astype(np.float32)
        x = z - mean
        x *= root
        cross = x.T @ ((share - prior) * root).astype(np.float32)
        factor = _row_factor(x, rank).clip(-_HALF_MAX, _HALF_MAX).astype(np.float16)
        kept = np.square(factor.astype(np.float32)).sum(axis=0)
        rest = np.maximum(np.einsum("ij,ij->j", x, x) - kept, 0.0)
        return cls(list(genes), factor, rest, mean, cross, prior)

    def match(self, names: Sequence[str]) -> tuple[Ints, Ints]:
        """Positions in the model and in ``names`` of the best genes that both have."""
        ours, theirs = matched(self.genes, names)
        return ours[:READ_GENES], theirs[:READ_GENES]

    def solve(self, chosen: Ints, penalty: float = PENALTY) -> LinearMembers:
        """Solve classifiers that read the ``chosen`` genes alone."""
        g = len(chosen)
        columns = np.concatenate([chosen, chosen + len(self.genes)])
        b, d = self.factor[:, columns].astype(np.float64), self.rest[columns].astype(np.float64)
        cross, mean = self.cross[columns].astype(np.float64), self.mean[columns].astype(np.float64)
        coef = _ridge(b, d + penalty, 2 * cross)
        if penalty > PENALTY:  # a strong one shrinks the scores: they are rescaled by least squares
            variance = float(((b @ coef) ** 2).sum() + d @ (coef**2).sum(axis=1))
            coef *= 2 * float((coef * cross).sum()) / max(variance, 1e-12)
        axes = leading_axes(b[:, :g].T @ b[:, :g] + np.diag(d[:g]), N_COMPS)
        lda = self._discriminant(axes, b, d, cross, mean)
        return LinearMembers([coef[:g], coef[g:]], 2 * self.prior - 1 - mean @ coef, axes, lda)

    def _discriminant(self, axes: Floats, b: Floats, d: Floats, cross: Floats, mean: Floats) -> Linear:
        """Discriminant analysis of the components at both sizes, each divided by its standard deviation."""
        g, k = axes.shape
        both = np.zeros((2 * g, 2 * k))
        both[:g, :k], both[g:, k:] = axes, axes
        low = b @ both
        total = low.T @ low + (both.T * d) @ both
        unit = np.sqrt(np.maximum(np.diag(total), 1e-12))
        total = total / np.outer(unit, unit)
        means = (both.T @ cross) / unit[:, None] / np.maximum(self.prior, 1e-9)  # less the mean of all, (2 k, K)
        within = shrunken(total - (means * self.prior) @ means.T, SHRINKAGE)
        lda = normal_logits(means.T, within, np.maximum(self.prior, 1e-6))
        return Linear(lda.coef, lda.intercept - (both.T @ mean / unit) @ lda.coef)


def moments_of(genes: Sequence[str], sections: Sequence[LabelledSection], rank: int = RANK) -> LabelMoments:
    """Moments of the observations with a weight in the samples of all sections."""
    parts = []
    for means, share, weight in sections:
        used = weight[means.sample] > 0
        rows = means.sample[used]
        parts.append((means.standardised()[used], share[rows], weight[rows]))
    z, share, weight = (np.concatenate(part) for part in zip(*parts, strict=True))
    return LabelMoments.of(genes, z, share, weight, rank=rank)


def _row_factor(x: Floats32, rank: int) -> Floats32:
    """Factor (r, d) of the leading part of ``x`` (n, d), the whole if n <= rank; its rows are no observations."""
    if len(x) <= rank:
        return np.asarray(np.linalg.qr(x, mode="r"))
    from sklearn.utils.extmath import randomized_range_finder  # here: segmenting needs none of it

    basis = randomized_range_finder(x, size=min(rank, x.shape[1]), n_iter=1, random_state=0)
    return np.asarray(basis.T @ x)


def _ridge(b: Floats, diagonal: Floats, target: Floats) -> Floats:
    """Solve (B'B + diag) W = target by the smaller of two systems (Woodbury)."""
    if len(b) >= b.shape[1]:
        return np.asarray(np.linalg.solve(b.T @ b + np.diag(diagonal), target))
    scaled = b / diagonal
    inner = np.eye(len(b)) + scaled @ b.T
    return np.asarray((target - b.T @ np.linalg.solve(inner, scaled @ target)) / diagonal[:, None])
