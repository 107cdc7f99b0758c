"""All genes of a section against one region of it: effect, null distribution, and description."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from ._auroc import aurocs
from ._composition import Nuisance, PartialCorrelation
from ._meta_analysis import Alternative
from ._null_model import LabelModel, RegionDraws
from ._smooth import Metric, SmoothBasis, gene_sums, mean_and_variance
from ._tails import region_statistic, shrunken_kurtosis

Floats = NDArray[np.float64]

MIN_OBS = 3  # on each side; one or two spots have no correlogram
PSEUDO = 1e-3  # expression units; keeps fold changes of absent genes finite
FLATTER = 0.05  # factor on expression before the logarithm
ONE_COUNT = 1.0  # pseudocount under the root: one molecule at median depth


@dataclass(frozen=True)
class Adjustment:
    """What a test adjusts for: whether for composition, with which covariates, in which metric."""

    composition: bool
    nuisance: Nuisance
    metric: Metric


@dataclass(frozen=True)
class RegionEffect:
    """Per gene: mean difference, its moments over random regions, t statistic, effective degrees of freedom.

    A variance of 0 marks a gene without variance in the section; the kurtosis is shrunken.
    """

    effect: Floats
    variance: Floats
    statistic: Floats
    df: Floats
    skewness: Floats
    kurtosis: Floats
    model: LabelModel

    def mirrored(self) -> RegionEffect:
        """Return the effect of the complement."""
        return replace(self, effect=-self.effect, statistic=-self.statistic, skewness=-self.skewness)


@dataclass(frozen=True)
class Description:
    """Per gene: linear means (``mean``: of both sides), shares that express it, AUROC, effect to rank by."""

    mean_group: Floats
    mean_reference: Floats
    mean: Floats
    nonzero_group: Floats
    nonzero_reference: Floats
    auroc: Floats
    effect: Floats


@dataclass(frozen=True)
class Moments:
    """Per gene: mean and variance over the observations, strength of smooth variation."""

    mean: Floats
    variance: Floats
    strength: Floats


class SectionExpression:
    """Log expression (observations x genes) of a section, or of some genes; ``depth``: weights of a region's mean."""

    def __init__(self, matrix: sparse.csr_matrix, depth: Floats | None = None) -> None:
        self.matrix, self.depth = matrix, depth
        self._plain: PartialCorrelation | None = None

    def __len__(self) -> int:
        return int(self.matrix.shape[0])

    @property
    def _flat(self) -> sparse.csr_matrix:
        """Genes on a flatter logarithm, log(1 + x / 20).

        The mean of log(1 + x) depends on depth; few observations dominate the mean of x. Power is best in between.
        """
        matrix = self.matrix
        if matrix.nnz == 0 or matrix.data.min() < 0:
            return matrix
        data = np.expm1(matrix.data, dtype=np.float32)
        data *= np.float32(FLATTER)
        np.log1p(data, out=data)
        return sparse.csr_matrix((data, matrix.indices, matrix.indptr), shape=matrix.shape)

    def moments(self, basis: SmoothBasis) -> Moments:
        """Mean and variance of every gene, and how strong its smooth variation is."""
        return Moments(*mean_and_variance(self.matrix), basis.strengths(self._flat))

    def describe(self, labels: Sequence[NDArray[np.bool_]]) -> list[Description]:
        """Describe every gene inside each label and outside."""
        inside = np.stack(labels, axis=1)
        n1 = inside.sum(axis=0)
        n0 = len(self) - n1
        sides = np.concatenate([inside / n1, ~inside / n0], axis=1)
        mean = np.split(gene_sums(self.matrix, sides, _linear), 2, axis=1)
        nonzero = np.split(gene_sums(self.matrix, sides, _is_expressed), 2, axis=1)
        root = np.split(self.root_means(np.concatenate([inside, ~inside], axis=1)), 2, axis=1)
        both = (mean[0] * n1 + mean[1] * n0) / len(self)
        found = (*mean, both, *nonzero, aurocs(self.matrix, labels), root[0] - root[1])
        return [Description(*(x[:, i].copy() for x in found)) for i in range(len(labels))]

    def root_means(self, labels: NDArray[np.bool_]) -> Floats:
        """Square root of every gene's pooled expression over each label (a column): stabilises the variance."""
        weight = labels * (1.0 if self.depth is None else self.depth[:, None])
        total = weight.sum(axis=0)
        return np.sqrt(gene_sums(self.matrix, weight, _linear) / np.where(total > 0, total, 1.0) + ONE_COUNT)

    def mean_log(self, label: NDArray[np.bool_]) -> Floats:
        """Return mean log expression of every gene over ``label``."""
        return gene_sums(self.matrix, label[:, None].astype(np.float64))[:, 0] / int(label.sum())

    def test_region(
        self, draws: RegionDraws, n_null: int, correlate: PartialCorrelation, alternative: Alternative | None
    ) -> RegionEffect:
        """Test every gene for the region of ``draws`` against its first ``n_null`` random regions.

        Without an ``alternative`` the test is the t-test of a correlation.
        """
        label = draws.side
        n, share = len(self), float(label.mean())
        r, label_ss = (x[:, 0] for x in correlate(label[:, None], share))
        square, cube, fourth = np.zeros((3, len(r)))
        for labels in draws.first(n_null):
            null = correlate(labels, share)[0]
            squares = null * null
            square += squares.sum(axis=1)
            cube += np.einsum("gb,gb->g", squares, null)
            fourth += np.einsum("gb,gb->g", squares, squares)
        known = correlate.known & (square > 0)
        null_variance = np.where(known, square / n_null, 1.0)
        # the correlation has null variance 1 / (n_eff - 1) (Dutilleul 1993), at least that of white noise
        df = np.clip(1.0 / null_variance - 1.0, 1.0, max(n - 2.0 - correlate.n_covariates, 1.0))
        r = np.clip(np.where(known, r, 0.0), -0.999999, 0.999999)
        skewness = np.divide(cube * np.sqrt(n_null), square**1.5, out=np.zeros_like(cube), where=known)
        kurtosis = np.divide(fourth * n_null, square**2, out=np.full_like(fourth, 3.0), where=known)
        kurtosis = shrunken_kurtosis(kurtosis, df, n_null)
        if alternative is None:
            statistic = r * np.sqrt(df / (1.0 - r**2))
        else:
            statistic = region_statistic(r, df, skewness, kurtosis, one_sided=alternative != "two-sided")
        ratio = np.where(known, correlate.residual / label_ss, 0.0)
        return RegionEffect(r * np.sqrt(ratio), null_variance * ratio, statistic, df, skewness, kurtosis, draws.model)

    def correlation(self, test: Adjustment) -> PartialCorrelation:
        """Correlation of genes with centred labels; without covariates the same for all regions."""
        adjusted = test.composition or test.nuisance.scores.shape[1] > 0
        if not adjusted and self._plain is not None:
            return self._plain
        found = PartialCorrelation(self.matrix if test.composition else self._flat, test.nuisance, test.metric)
        self._plain = self._plain if adjusted else found
        return found


def _linear(data: NDArray[Any]) -> NDArray[Any]:
    # negative values (z-scores, residuals) have no linear scale and no meaningful fold change
    return np.expm1(np.maximum(data, 0.0))


def _is_expressed(data: NDArray[Any]) -> NDArray[Any]:
    return (data != 0).astype(np.float32)
