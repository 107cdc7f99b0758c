"""One section's genes against one region of it: effect, what chance makes of it, and description.

The null variance of a gene's mean difference is that of the same statistic over random regions as smooth as the
tested one (:mod:`stxtools.stats._label_fields`), as in tests of correlation between autocorrelated maps:
the effective sample size that follows from it is Clifford, Richardson & Hemon (1989), Dutilleul (1993).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import sparse, stats

from ._auroc import auroc_from_ranks, midranks
from ._label_fields import Geometry, LabelModel, LabelSampler, fit_label_model, geometry

MIN_OBS = 3  # on each side; a region of one or two spots has no shape to draw at random
PSEUDO = 1e-3  # expression units; keeps fold changes of absent genes finite


@dataclass(frozen=True)
class RegionEffect:
    """Per gene: mean difference, its variance over random regions, t statistic, effective degrees of freedom.

    A gene without variance in the section has a variance of 0: nothing could be estimated.
    """

    effect: NDArray[np.float64]
    variance: NDArray[np.float64]
    statistic: NDArray[np.float64]
    df: NDArray[np.float64]
    model: LabelModel


@dataclass(frozen=True)
class Description:
    """Per gene: means on the linear scale, shares of observations that express it, AUROC."""

    mean_group: NDArray[np.float64]
    mean_reference: NDArray[np.float64]
    nonzero_group: NDArray[np.float64]
    nonzero_reference: NDArray[np.float64]
    auroc: NDArray[np.float64]


class Section:
    """Log expression (observations x genes, CSR) and positions of one section; what regions share is kept."""

    def __init__(self, matrix: sparse.csr_matrix, xy: NDArray[np.float64], seed: int = 0) -> None:
        self.matrix = matrix
        self.xy = np.asarray(xy, dtype=np.float64)
        self.seed = seed

    def __len__(self) -> int:
        return int(self.matrix.shape[0])

    def subset(self, rows: NDArray[np.bool_]) -> Section:
        """Return this section, or a new one of the observations ``rows``."""
        return self if rows.all() else Section(self.matrix[rows], self.xy[rows], self.seed)

    @cached_property
    def by_gene(self) -> sparse.csr_matrix:
        """Genes x observations, CSR, no stored zeros."""
        out = sparse.csr_matrix(self.matrix.T, dtype=np.float32)
        out.eliminate_zeros()
        return out

    @cached_property
    def geometry(self) -> Geometry:
        """Spacing and pairs of observations."""
        return geometry(self.xy, np.random.default_rng(self.seed))

    @cached_property
    def _linear(self) -> sparse.csr_matrix:
        genes = self.by_gene
        # data with negative values (z-scores, residuals) have no linear scale: their fold change is of no use
        data = np.expm1(np.maximum(genes.data, 0.0)).astype(np.float32)
        return sparse.csr_matrix((data, genes.indices, genes.indptr), shape=genes.shape)

    @cached_property
    def _pattern(self) -> sparse.csr_matrix:
        genes = self.by_gene
        ones = np.ones(len(genes.data), dtype=np.float32)
        return sparse.csr_matrix((ones, genes.indices, genes.indptr), shape=genes.shape)

    @cached_property
    def _ranks(self) -> tuple[sparse.csr_matrix, NDArray[np.float64]]:
        return midranks(self.by_gene)

    @cached_property
    def total_variance(self) -> NDArray[np.float64]:
        """Variance of every gene over the observations."""
        genes, n = self.by_gene, len(self)
        mean = np.asarray(genes.sum(axis=1), dtype=np.float64).ravel() / n
        square = np.asarray(genes.multiply(genes).sum(axis=1), dtype=np.float64).ravel() / n
        variance = np.maximum(square - mean**2, 0.0)
        return np.where(variance > 1e-6 * square, variance, 0.0)  # float32: below this it is rounding

    def describe(self, label: NDArray[np.bool_]) -> Description:
        """Describe every gene inside ``label`` and outside."""
        n1, n0 = int(label.sum()), int((~label).sum())
        sides = np.stack([label, ~label], axis=1).astype(np.float64) / np.array([n1, n0])
        mean = np.asarray(self._linear @ sides)
        nonzero = np.asarray(self._pattern @ sides)
        auroc = auroc_from_ranks(*self._ranks, label)
        return Description(mean[:, 0], mean[:, 1], nonzero[:, 0], nonzero[:, 1], auroc)

    def mean_log(self, label: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return mean log expression of every gene over ``label``."""
        return np.asarray(self.by_gene @ label.astype(np.float64)) / int(label.sum())

    def region_effect(self, label: NDArray[np.bool_], n_null: int, rng: np.random.Generator) -> RegionEffect:
        """Mean difference of every gene between ``label`` and the rest, and its variance over random regions."""
        n, n1 = len(self), int(label.sum())
        share = n1 / n
        scale = 1.0 / (n * share * (1 - share))
        model = fit_label_model(self.geometry, label)
        effect = np.asarray(self.by_gene @ (label - share)) * scale
        sampler = LabelSampler(self.xy, model, self.geometry.spacing)
        square, cube, fourth = np.zeros((3, self.by_gene.shape[0]))
        for labels in sampler.draw(n_null, rng):
            # labels minus their mean: the sum is a difference of means and small from the start
            differences = self.by_gene @ (labels.astype(np.float32) - np.float32(share))
            square += np.einsum("gb,gb->g", differences, differences, dtype=np.float64)
            squares = differences * differences
            cube += np.einsum("gb,gb->g", squares, differences, dtype=np.float64)
            fourth += np.einsum("gb,gb->g", squares, squares, dtype=np.float64)
        variance = square / n_null * scale**2
        total = self.total_variance
        known = (total > 0) & (variance > 0)
        variance[~known] = 0.0
        effect[~known] = 0.0
        # the point-biserial correlation r of gene and region has null variance 1 / (n_eff - 1) (Dutilleul 1993); its
        # t statistic takes the region's own part out of the gene's variance, which a plain ratio would not
        balance = share * (1 - share)
        n_eff = 1.0 + np.divide(total, variance * balance, out=np.zeros_like(total), where=known)
        df = np.clip(n_eff - 2.0, 1.0, n - 2.0)
        r = np.divide(effect * np.sqrt(balance), np.sqrt(total), out=np.zeros_like(total), where=known)
        r = np.clip(r, -0.999999, 0.999999)
        statistic = r * np.sqrt(df / (1.0 - r**2))
        # a null with tails shorter than the normal's (large regions) needs no allowance, skewed or not
        long = known & (fourth * n_null > 3.0 * square**2)
        skewness = np.divide(cube * np.sqrt(n_null), square**1.5, out=np.zeros_like(cube), where=long)
        return RegionEffect(effect, variance, _lengthen_tail(statistic, df, skewness, 6.0 / n_null), df, model)


def _lengthen_tail(
    statistic: NDArray[np.float64], df: NDArray[np.float64], skewness: NDArray[np.float64], noise: float
) -> NDArray[np.float64]:
    """Return t statistics made smaller where they lie in the long tail of a skewed null.

    A gene that is expressed in a few patches differs much between small random regions that hit a patch and little
    between those that do not. The long tail is taken as that of a gamma distribution with the null's skewness (as for
    permutations: Winkler et al. 2016), from which its sampling variance ``noise`` is taken off first; the short
    tail stays as it is.
    """
    skew = skewness * np.clip(1.0 - noise / np.maximum(skewness**2, 1e-12), 0.0, None)
    far = (skew * statistic > 0) & (np.abs(skew) > 0.02)
    if not far.any():
        return statistic
    out = statistic.copy()
    half = stats.t.sf(np.abs(statistic[far]), df[far])
    z = stats.norm.isf(np.maximum(half, 1e-300))
    shape = 4.0 / skew[far] ** 2
    half = np.maximum(half, stats.gamma.sf(shape + z * np.sqrt(shape), shape))
    out[far] = np.sign(statistic[far]) * np.maximum(stats.t.isf(np.clip(half, 1e-300, 0.5), df[far]), 0.0)
    return out
