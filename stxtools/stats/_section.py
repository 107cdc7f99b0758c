"""All genes of a section against one region of it: effect, null distribution, and description.

The null variance of a gene's mean difference is the variance of the same statistic over random regions that are as
smooth as the tested one (:mod:`stxtools.stats._null_model`). Tests of correlation between autocorrelated maps do the
same; the effective sample size follows Clifford, Richardson & Hemon (1989) and Dutilleul (1993).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from ._auroc import auroc_from_ranks, complement_auroc, midranks
from ._composition import Nuisance, PartialCorrelation
from ._null_model import LabelModel, RegionDraws
from ._smooth import Metric, SmoothBasis
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
    nuisance: Nuisance | None
    metric: Metric


@dataclass(frozen=True)
class RegionEffect:
    """Per gene: mean difference, its variance over random regions, t statistic, effective degrees of freedom.

    ``skewness`` and ``kurtosis`` are those of the mean difference over random regions, the kurtosis shrunken.
    A variance of 0 marks a gene without variance in the section.
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
    """Per gene: means on the linear scale, shares of observations that express it, AUROC, effect to rank by.

    ``nonzero`` is the share on both sides together.
    """

    mean_group: Floats
    mean_reference: Floats
    nonzero_group: Floats
    nonzero_reference: Floats
    nonzero: Floats
    auroc: Floats
    effect: Floats

    def mirrored(self, n_group: int, n_reference: int) -> Description:
        """Return the description of the complement."""
        auroc = complement_auroc(self.auroc, n_group, n_reference)
        return Description(
            self.mean_reference, self.mean_group, self.nonzero_reference, self.nonzero_group, self.nonzero, auroc,
            -self.effect,
        )  # fmt: skip


class SectionExpression:
    """Log expression (observations x genes, CSR) of one section, with what the tests of its regions share.

    - ``matrix``: Log-normalised expression.
    - ``depth``: Counts of every observation before normalisation: the weights of a region's mean.
    """

    def __init__(self, matrix: sparse.csr_matrix, depth: Floats | None = None) -> None:
        self.matrix = matrix
        self.depth = depth
        self._plain: PartialCorrelation | None = None

    def __len__(self) -> int:
        return int(self.matrix.shape[0])

    @cached_property
    def by_gene(self) -> sparse.csr_matrix:
        """Genes x observations, CSR, no stored zeros."""
        out = sparse.csr_matrix(self.matrix.T, dtype=np.float32)
        out.eliminate_zeros()
        return out

    def _columns(self, *, composition: bool) -> sparse.csc_matrix:
        """The tested values, genes by column.

        With more observations than genes, products with many labels are nine times faster and equal to the bit.
        """
        matrix = self.matrix
        data = matrix.data.astype(np.float32, copy=False)
        if not composition and data.size and data.min() >= 0:
            data = np.log1p(FLATTER * np.expm1(data)).astype(np.float32)
        return sparse.csr_matrix((data, matrix.indices, matrix.indptr), shape=matrix.shape).T

    @cached_property
    def _flat(self) -> sparse.csr_matrix:
        """Genes on a flatter logarithm, log(1 + x / 20).

        The mean of log(1 + x) depends on depth, which gives false differences. The mean of x does not, but few
        observations dominate it. Measured power is best between the two.
        """
        genes = self.by_gene
        if genes.nnz == 0 or genes.data.min() < 0:
            return genes
        data = np.log1p(FLATTER * np.expm1(genes.data)).astype(np.float32)
        return sparse.csr_matrix((data, genes.indices, genes.indptr), shape=genes.shape)

    @cached_property
    def _linear(self) -> sparse.csr_matrix:
        genes = self.by_gene
        # negative values (z-scores, residuals) have no linear scale and no meaningful fold change
        data = np.expm1(np.maximum(genes.data, 0.0)).astype(np.float32)
        return sparse.csr_matrix((data, genes.indices, genes.indptr), shape=genes.shape)

    @cached_property
    def _pattern(self) -> sparse.csr_matrix:
        genes = self.by_gene
        ones = np.ones(len(genes.data), dtype=np.float32)
        return sparse.csr_matrix((ones, genes.indices, genes.indptr), shape=genes.shape)

    @cached_property
    def _ranks(self) -> tuple[sparse.csr_matrix, Floats]:
        return midranks(self.by_gene)

    @cached_property
    def total_variance(self) -> Floats:
        """Variance of every gene over the observations."""
        return _variance(self.by_gene)

    def describe(self, label: NDArray[np.bool_]) -> Description:
        """Describe every gene inside ``label`` and outside."""
        n1, n0 = int(label.sum()), int((~label).sum())
        sides = np.stack([label, ~label], axis=1).astype(np.float64) / np.array([n1, n0])
        mean = np.asarray(self._linear @ sides)
        nonzero = np.asarray(self._pattern @ sides)
        auroc = auroc_from_ranks(*self._ranks, label)
        effect = self.root_mean(label) - self.root_mean(~label)
        both = (nonzero[:, 0] * n1 + nonzero[:, 1] * n0) / (n1 + n0)
        return Description(mean[:, 0], mean[:, 1], nonzero[:, 0], nonzero[:, 1], both, auroc, effect)

    def root_mean(self, label: NDArray[np.bool_]) -> Floats:
        """Square root of every gene's pooled expression over ``label``: stabilises the variance."""
        weight = label.astype(np.float64) if self.depth is None else np.where(label, self.depth, 0.0)
        total = float(weight.sum())
        pooled = np.asarray(self._linear @ weight) / total if total > 0 else np.zeros(self.matrix.shape[1])
        return np.sqrt(pooled + ONE_COUNT)

    def mean_log(self, label: NDArray[np.bool_]) -> Floats:
        """Return mean log expression of every gene over ``label``."""
        return np.asarray(self.by_gene @ label.astype(np.float64)) / int(label.sum())

    def test_region(self, draws: RegionDraws, n_null: int, test: Adjustment, *, tails: bool = True) -> RegionEffect:
        """Test every gene for the region of ``draws`` against its first ``n_null`` random regions.

        Without ``tails`` the test is the t-test of a correlation.
        """
        label = draws.side
        n, share = len(self), float(label.mean())
        correlate = self._correlation(test)
        r, label_ss = (x[:, 0] for x in correlate((label - share)[:, None]))
        square, cube, fourth = np.zeros((3, len(r)))
        for labels in draws.first(n_null):
            null = correlate(np.subtract(labels, share, dtype=np.float32))[0]
            squares = null * null
            square += squares.sum(axis=1)
            cube += np.einsum("gb,gb->g", squares, null)
            fourth += np.einsum("gb,gb->g", squares, squares)
        known = correlate.known & (square > 0)
        null_variance = np.where(known, square / n_null, 1.0)
        # the correlation has null variance 1 / (n_eff - 1) (Dutilleul 1993), at least that of white noise
        q = 0 if test.nuisance is None else test.nuisance.scores.shape[1]
        df = np.clip(1.0 / null_variance - 1.0, 1.0, max(n - 2.0 - q, 1.0))
        r = np.clip(np.where(known, r, 0.0), -0.999999, 0.999999)
        skewness = np.divide(cube * np.sqrt(n_null), square**1.5, out=np.zeros_like(cube), where=known)
        kurtosis = np.divide(fourth * n_null, square**2, out=np.full_like(fourth, 3.0), where=known)
        kurtosis = shrunken_kurtosis(kurtosis, df, n_null)
        statistic = region_statistic(r, df, skewness, kurtosis) if tails else r * np.sqrt(df / (1.0 - r**2))
        ratio = np.where(known, correlate.residual / label_ss, 0.0)
        return RegionEffect(r * np.sqrt(ratio), null_variance * ratio, statistic, df, skewness, kurtosis, draws.model)

    def strengths(self, basis: SmoothBasis) -> Floats:
        """Return how strong each gene's smooth variation is."""
        return basis.strengths(self._flat, _variance(self._flat))

    def _correlation(self, test: Adjustment) -> PartialCorrelation:
        """Correlation of genes with centred labels; without covariates the same for all regions."""
        if test.nuisance is None and self._plain is not None:
            return self._plain
        genes = self.by_gene if test.composition else self._flat
        products = self._columns(composition=test.composition) if len(self) > genes.shape[0] else genes
        found = PartialCorrelation(genes, test.nuisance, products, test.metric)
        if test.nuisance is None:
            self._plain = found
        return found


def _variance(genes: sparse.csr_matrix) -> Floats:
    n = genes.shape[1]
    mean = np.asarray(genes.sum(axis=1), dtype=np.float64).ravel() / n
    squares = sparse.csr_matrix((np.square(genes.data), genes.indices, genes.indptr), shape=genes.shape)
    square = np.asarray(squares.sum(axis=1), dtype=np.float64).ravel() / n
    variance = np.maximum(square - mean**2, 0.0)
    return np.where(variance > 1e-6 * square, variance, 0.0)  # below this, float32 rounding
