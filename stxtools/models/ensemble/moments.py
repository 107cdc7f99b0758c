"""Second moments of standardised genes and labels, from which linear classifiers of any gene panel are solved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stxtools._spatial.matrices import leading_axes
from stxtools._types import Floats, Floats32, Ints
from stxtools.models._projection import matched

from .discriminant import Linear, normal_logits, shrunken
from .gene_means import READ_GENES, GeneMeans

RANK = 192  # rows of the factor; the rest of the covariance is kept as a diagonal
N_COMPS = 20
SHRINKAGE = 0.1  # of the covariance within classes to its diagonal
PENALTY = 0.5  # of the ridge, in units of the variance of a gene
_HALF_MAX = 6e4  # float16 ends at 65504


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
