"""All genes of a section against one region of it: effect, null distribution, and description."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from stxtools._spatial.kernels import BITS
from stxtools._spatial.matrices import row_view
from stxtools._types import Array, Bools, Csr, Floats

from ._calibration import PowerSums, null_tail
from ._composition import PartialCorrelation
from ._meta_analysis import Alternative
from ._null_model import LabelModel
from ._smooth import GeneSums, SmoothBasis, gene_sums, mean_and_variance
from ._tails import region_statistic

MIN_OBS = 3  # on each side; one or two spots have no correlogram
PSEUDO = 1e-3  # expression units; keeps fold changes of absent genes finite
FLATTER = 0.05  # factor on expression before the logarithm
_MAX_RANKED = 2_000_000  # values that are ranked at a time
ONE_COUNT = 1.0  # pseudocount under the root: one molecule at median depth


@dataclass(frozen=True)
class RegionEffect:
    """Per gene: mean difference, its moments over random regions, t statistic, effective degrees of freedom.

    Variance 0: the gene is constant in the section. The kurtosis is shrunken. ``shrinkage`` is that of the statistic by
    calibration, with ``null_tail``, the small p-values of random regions.
    """

    effect: Floats
    variance: Floats
    statistic: Floats
    df: Floats
    skewness: Floats
    kurtosis: Floats
    shrinkage: Floats
    null_tail: Floats
    model: LabelModel


@dataclass(frozen=True)
class Description:
    """Per gene: linear means (``mean``: of both sides), shares that express it, AUROC, effect for ranking."""

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
    """Log expression (observations x genes) of a section, or of some genes; ``depth``: weights of a region's mean.

    ``signed``: the values, also those of other genes, are not all logarithms.
    """

    def __init__(self, matrix: Csr, depth: Floats | None = None, *, signed: bool = False) -> None:
        self.matrix, self.depth, self.signed = matrix, depth, signed
        self._genes: dict[bool, GeneSums] = {}

    def __len__(self) -> int:
        return int(self.matrix.shape[0])

    def genes(self, basis: SmoothBasis, *, flat: bool) -> GeneSums:
        """Return the genes as they are, or ``flat``: as log(1 + x / 20), with sums over a view's ``basis``.

        The mean of log(1 + x) depends on depth; few observations dominate the mean of x. Power is best in between.
        """
        if flat not in self._genes:
            matrix = self.matrix
            if flat and not self.signed:
                data = np.expm1(matrix.data, dtype=np.float32)
                data *= np.float32(FLATTER)
                np.log1p(data, out=data)
                matrix = sparse.csr_matrix((data, matrix.indices, matrix.indptr), shape=matrix.shape)
            self._genes[flat] = basis.sums(matrix)
        return self._genes[flat]

    def moments(self, basis: SmoothBasis) -> Moments:
        """Mean, variance and strength of smooth variation of every gene."""
        return Moments(*mean_and_variance(self.matrix), basis.strengths(self.genes(basis, flat=True)))

    def describe(self, labels: Sequence[Bools]) -> list[Description]:
        """Describe every gene inside each label and outside."""
        inside = np.stack(labels, axis=1)
        n1 = inside.sum(axis=0)
        n0 = len(self) - n1
        sides = np.concatenate([inside / n1, ~inside / n0], axis=1)
        mean = np.split(gene_sums(self.matrix, sides, _linear), 2, axis=1)
        nonzero = np.split(gene_sums(self.matrix, sides, lambda x: (x != 0).astype(np.float32)), 2, axis=1)
        root = np.split(self.root_means(np.concatenate([inside, ~inside], axis=1)), 2, axis=1)
        both = (mean[0] * n1 + mean[1] * n0) / len(self)
        columns = (*mean, both, *nonzero, aurocs(self.matrix, labels), root[0] - root[1])
        return [Description(*(x[:, i].copy() for x in columns)) for i in range(len(labels))]

    def root_means(self, labels: Bools) -> Floats:
        """Square root of every gene's pooled expression over each label (a column): stabilises the variance."""
        weight = labels * (1.0 if self.depth is None else self.depth[:, None])
        total = weight.sum(axis=0)
        return np.sqrt(gene_sums(self.matrix, weight, _linear) / np.where(total > 0, total, 1.0) + ONE_COUNT)


def test_region(
    correlation: PartialCorrelation, n_null: int, n_obs: int, model: LabelModel, alternative: Alternative | None
) -> RegionEffect:
    """Test every gene for a region, the first of its labels, against ``n_null`` random regions.

    Without an ``alternative`` the test is the t-test of a correlation.
    """
    sums = PowerSums(0, *np.zeros((3, len(correlation.known))))
    nulls = []
    for first in range(0, n_null + 1, BITS):
        null, residual = correlation(slice(first, min(first + BITS, n_null + 1)))
        if first == 0:
            r, label_ss, null = null[:, 0], residual[:, 0], null[:, 1:]
        sums = sums.add(null)
        nulls.append((null, max(first - 1, 0)))
    known, most = correlation.known & (sums.square > 0), max(n_obs - 2.0 - correlation.n_covariates, 1.0)
    df, skewness, kurtosis = sums.moments(most)
    r = np.clip(np.where(known, r, 0.0), -0.999999, 0.999999)
    one_sided = alternative not in (None, "two-sided")
    tail = np.zeros((0, 3))
    if alternative is None:
        statistic = r * np.sqrt(df / (1.0 - r**2))
    else:
        statistic = region_statistic(r, df, skewness, kurtosis, one_sided=one_sided)
        tail = np.concatenate([null_tail(*null, sums, most, one_sided=one_sided) for null in nulls])
    ratio = np.where(known, correlation.residual / label_ss, 0.0)
    variance = np.where(known, sums.square / n_null, 1.0) * ratio
    return RegionEffect(r * np.sqrt(ratio), variance, statistic, df, skewness, kurtosis, np.ones_like(r), tail, model)


def _linear(data: Array) -> Array:
    # negative values (z-scores, residuals) have no linear scale and no meaningful fold change
    return np.expm1(np.maximum(data, 0.0))


def aurocs(matrix: Csr, labels: Sequence[Bools]) -> Floats:
    """Exact AUROC (Mann-Whitney) of genes (observations x genes) for each label against the rest: genes x labels."""
    inside = np.stack(labels, axis=1).astype(np.float64)
    n1 = inside.sum(axis=0)
    n0 = len(inside) - n1
    if not (n1 * n0).all():
        raise ValueError("An AUROC needs observations on both sides.")
    out = np.empty((matrix.shape[1], len(labels)))
    by_gene = sparse.csr_matrix(matrix.T)
    by_gene.eliminate_zeros()
    ends = by_gene.indptr.astype(np.int64)
    first = 0
    while first < len(out):  # blocks of genes: sorting takes eight times the memory of the values
        last = max(first + 1, int(np.searchsorted(ends, ends[first] + _MAX_RANKED, side="right")) - 1)
        ranks, zero_rank = midranks(row_view(by_gene, slice(first, last)))
        ones = np.broadcast_to(1.0, ranks.data.shape)
        stored = sparse.csr_matrix((ones, ranks.indices, ranks.indptr), shape=ranks.shape) @ inside
        total = ranks @ inside + (n1 - stored) * zero_rank[:, None]  # sums of halves: exact
        out[first:last] = (total - n1 * (n1 + 1) / 2.0) / (n1 * n0)
        first = last
    return out


def midranks(by_gene: Csr) -> tuple[Csr, Floats]:
    """Ranks of stored values (genes x observations, no zeros), ties shared, and the rank of each gene's zeros."""
    n_genes, n_obs = by_gene.shape
    data, per_gene = by_gene.data, np.diff(by_gene.indptr)
    gene = np.repeat(np.arange(n_genes), per_gene)
    ends = np.cumsum(per_gene)
    # gene by gene: several times as fast as a sort by two keys; equal values share a rank in whatever order
    order = np.concatenate([e - n + np.argsort(data[e - n : e]) for n, e in zip(per_gene, ends, strict=True)])
    value = data[order]
    new = np.r_[True, (value[1:] != value[:-1]) | (gene[1:] != gene[:-1])] if len(value) else np.zeros(0, bool)
    start = np.flatnonzero(new)
    size = np.diff(np.r_[start, len(value)])
    position = start.astype(np.float64) + (size + 1) / 2.0  # mean of the 1-based positions of a run of ties
    rank = np.repeat(position, size) - (ends - per_gene)[gene]
    n_zero = n_obs - per_gene
    rank += np.where(value > 0, n_zero[gene], 0)
    ranks = np.empty(len(value))
    ranks[order] = rank
    zero_rank = np.bincount(gene[data < 0], minlength=n_genes) + (n_zero + 1) / 2.0
    return sparse.csr_matrix((ranks, by_gene.indices, by_gene.indptr), shape=by_gene.shape), zero_rank
