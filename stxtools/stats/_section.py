"""One section's genes against one region of it: effect, what chance makes of it, and description.

The null variance of a gene's mean difference is that of the same statistic over random regions as smooth as the
tested one (:mod:`stxtools.stats._label_fields`), as in tests of correlation between autocorrelated maps:
the effective sample size that follows from it is Clifford, Richardson & Hemon (1989), Dutilleul (1993).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import sparse, stats

from ._auroc import auroc_from_ranks, midranks
from ._combine import adjust_bh, two_sided
from ._composition import (
    ExpressionSpace,
    Nuisance,
    PartialCorrelation,
    design_matrix,
    join_nuisance,
    n_components,
    without_depth_of,
)
from ._label_fields import Geometry, LabelModel, LabelSampler, fit_label_model, geometry

Floats = NDArray[np.float64]

MIN_OBS = 3  # on each side; a region of one or two spots has no shape to draw at random
PSEUDO = 1e-3  # expression units; keeps fold changes of absent genes finite
FLATTER = 0.05
ONE_COUNT = 1.0  # added under the root: one molecule in an observation of median depth
_FIRST_PASS_FDR = 0.2


@dataclass(frozen=True)
class RegionEffect:
    """Per gene: mean difference, its variance over random regions, t statistic, effective degrees of freedom.

    A gene without variance in the section has a variance of 0: nothing could be estimated.
    """

    effect: Floats
    variance: Floats
    statistic: Floats
    df: Floats
    model: LabelModel

    def mirrored(self) -> RegionEffect:
        """Return what the other side of the region shows."""
        return replace(self, effect=-self.effect, statistic=-self.statistic)


@dataclass(frozen=True)
class Description:
    """Per gene: means on the linear scale, shares of observations that express it, AUROC, effect to rank by."""

    mean_group: Floats
    mean_reference: Floats
    nonzero_group: Floats
    nonzero_reference: Floats
    auroc: Floats
    effect: Floats


@dataclass(frozen=True)
class Given:
    """What effects are adjusted for: the section's composition, and columns (observations x covariates)."""

    composition: bool = False
    columns: Floats | None = None

    def subset(self, rows: NDArray[np.bool_]) -> Given:
        """Return this for the observations ``rows``."""
        return self if self.columns is None else replace(self, columns=self.columns[rows])


class Section:
    """Log expression (observations x genes, CSR) and positions of one section; what regions share is kept.

    Parameters
    ----------
    matrix
        Log-normalised expression.
    xy
        Positions.
    seed
        Seed of the pairs of observations that correlograms are made of.
    depth
        Counts of every observation before normalisation: deep ones tell more of a region's mean.
    given
        What effects are adjusted for.
    """

    def __init__(
        self,
        matrix: sparse.csr_matrix,
        xy: Floats,
        seed: int = 0,
        depth: Floats | None = None,
        given: Given | None = None,
    ) -> None:
        self.matrix = matrix
        self.xy = np.asarray(xy, dtype=np.float64)
        self.seed = seed
        self.depth = depth
        self.given = given

    def __len__(self) -> int:
        return int(self.matrix.shape[0])

    def subset(self, rows: NDArray[np.bool_]) -> Section:
        """Return this section, or a new one of the observations ``rows``."""
        if rows.all():
            return self
        depth = None if self.depth is None else self.depth[rows]
        given = None if self.given is None else self.given.subset(rows)
        return Section(self.matrix[rows], self.xy[rows], self.seed, depth, given)

    @cached_property
    def by_gene(self) -> sparse.csr_matrix:
        """Genes x observations, CSR, no stored zeros."""
        out = sparse.csr_matrix(self.matrix.T, dtype=np.float32)
        out.eliminate_zeros()
        return out

    @property
    def _columns(self) -> sparse.csc_matrix:
        """Genes x observations by column, without a copy: products with many labels read these in order (7x faster)."""
        return sparse.csr_matrix(self.matrix, dtype=np.float32).T

    @cached_property
    def _flat(self) -> sparse.csr_matrix:
        """Genes on a flatter logarithm, log(1 + x / 20).

        The mean of log(1 + x) falls with an observation's depth, which makes differences where there are none; that of
        x does not, but a few observations rule it. Measured power is best between the two.
        """
        genes = self.by_gene
        if genes.nnz == 0 or genes.data.min() < 0:
            return genes
        data = np.log1p(FLATTER * np.expm1(genes.data)).astype(np.float32)
        return sparse.csr_matrix((data, genes.indices, genes.indptr), shape=genes.shape)

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
        return Description(mean[:, 0], mean[:, 1], nonzero[:, 0], nonzero[:, 1], auroc, effect)

    def root_mean(self, label: NDArray[np.bool_]) -> Floats:
        """Square root of every gene's pooled expression over ``label``: its variance no longer grows with the mean."""
        weight = label.astype(np.float64) if self.depth is None else np.where(label, self.depth, 0.0)
        total = float(weight.sum())
        pooled = np.asarray(self._linear @ weight) / total if total > 0 else np.zeros(self.matrix.shape[1])
        return np.sqrt(pooled + ONE_COUNT)

    def mean_log(self, label: NDArray[np.bool_]) -> Floats:
        """Return mean log expression of every gene over ``label``."""
        return np.asarray(self.by_gene @ label.astype(np.float64)) / int(label.sum())

    @cached_property
    def _space(self) -> ExpressionSpace:
        return ExpressionSpace(self.matrix, self.total_variance)

    def region_effect(self, label: NDArray[np.bool_], n_null: int, seed: Sequence[int] = (0,)) -> RegionEffect:
        """Mean difference of every gene between ``label`` and the rest, and its variance over random regions.

        A region and its complement are compared with the same random regions: their p-values are equal.
        """
        flipped = bool(label[0])
        side = ~label if flipped else label
        rng = np.random.default_rng([*seed, zlib.crc32(np.packbits(side).tobytes())])
        model = fit_label_model(self.geometry, side)
        sampler = LabelSampler(self.xy, model, self.geometry.spacing)
        if self.given is not None and self.given.composition:
            found = self._given_composition(side, sampler, n_null, rng)
        else:
            fixed = self._fixed
            nuisance = None if fixed is None else join_nuisance([fixed], self.matrix.shape[1])
            found = self._tested(side, sampler, n_null, rng, nuisance)
        return found.mirrored() if flipped else found

    @cached_property
    def _fixed(self) -> Nuisance | None:
        """Covariates that were given as columns."""
        if self.given is None or self.given.columns is None:
            return None
        return design_matrix(self.given.columns)

    def _given_composition(
        self, label: NDArray[np.bool_], sampler: LabelSampler, n_null: int, rng: np.random.Generator
    ) -> RegionEffect:
        """Test given the section's composition; its components are made twice.

        Components that hold genes which the region itself changes lend these genes' difference to all that share a
        component with them, and so does the depth by which expression was divided: what a first test calls is left
        out of components and depth of the second (empirical control genes, as in Risso et al. 2014).
        """
        n_genes = self.matrix.shape[1]
        parts = [] if self._fixed is None else [self._fixed]
        n_comps = n_components(len(self))
        nuisance = join_nuisance([self._space.components(n_comps), *parts], n_genes)
        first = self._tested(label, sampler, max(n_null // 2, 50), rng, nuisance)
        pvals = np.where(first.variance > 0, two_sided(first.statistic, first.df), 1.0)
        called = np.flatnonzero(adjust_bh(pvals) <= _FIRST_PASS_FDR)
        called = called[np.argsort(pvals[called], kind="stable")][: int((first.variance > 0).sum()) // 2]
        if not len(called):
            return self._tested(label, sampler, n_null, rng, nuisance)
        rest = Section(without_depth_of(self.matrix, called), self.xy, self.seed, given=self.given)
        nuisance = join_nuisance([rest._space.components(n_comps, without=called), *parts], n_genes)
        return rest._tested(label, sampler, n_null, rng, nuisance)

    def _tested(
        self,
        label: NDArray[np.bool_],
        sampler: LabelSampler,
        n_null: int,
        rng: np.random.Generator,
        nuisance: Nuisance | None,
    ) -> RegionEffect:
        n, q = len(self), 0 if nuisance is None else nuisance.scores.shape[1]
        share = float(label.mean())
        correlate, known, residual = self._correlation(nuisance)
        r, left = (x[:, 0] for x in correlate((label - share)[:, None]))
        square, cube, fourth = np.zeros((3, len(r)))
        for labels in sampler.draw(n_null, rng):
            null = correlate(labels.astype(np.float32) - np.float32(share))[0]
            squares = null * null
            square += squares.sum(axis=1)
            cube += np.einsum("gb,gb->g", squares, null)
            fourth += np.einsum("gb,gb->g", squares, squares)
        known = known & (square > 0)
        null_variance = np.where(known, square / n_null, 1.0)
        # the correlation r of gene and region has null variance 1 / (n_eff - 1) (Dutilleul 1993); its t statistic takes
        # the region's own part out of the gene's variance, which a plain ratio would not
        df = np.clip(1.0 / null_variance - 1.0, 1.0, max(n - 2.0 - q, 1.0))
        r = np.clip(np.where(known, r, 0.0), -0.999999, 0.999999)
        statistic = r * np.sqrt(df / (1.0 - r**2))
        # a null with tails shorter than the normal's (large regions) needs no allowance, skewed or not
        long = known & (fourth * n_null > 3.0 * square**2)
        skewness = np.divide(cube * np.sqrt(n_null), square**1.5, out=np.zeros_like(cube), where=long)
        ratio = np.where(known, residual / left, 0.0)
        return RegionEffect(
            r * np.sqrt(ratio), null_variance * ratio,
            _lengthen_tail(statistic, df, skewness, 6.0 / n_null), df, sampler.model,
        )  # fmt: skip

    def _correlation(
        self, nuisance: Nuisance | None
    ) -> tuple[Callable[[NDArray[np.floating]], tuple[Floats, Floats]], NDArray[np.bool_], Floats]:
        """Return what correlates genes with centred labels, which genes vary, and their sums of squares."""
        composed = self.given is not None and self.given.composition
        genes = self.by_gene if composed else self._flat
        squares = _variance(genes) * len(self)
        if nuisance is not None:
            partial = PartialCorrelation(genes, nuisance)
            return partial, partial.known & (squares > 0), partial.residual
        known = squares > 0
        size = np.sqrt(np.where(known, squares, 1.0))

        def correlate(labels: NDArray[np.floating]) -> tuple[Floats, Floats]:
            spread = np.einsum("nb,nb->b", labels, labels, dtype=np.float64)
            # labels minus their mean: the sum is a difference of means and small from the start
            sums = np.asarray(genes @ labels.astype(np.float32))
            r = np.where(known[:, None], sums / (size[:, None] * np.sqrt(spread)), 0.0)
            return r, np.broadcast_to(spread, r.shape)

        return correlate, known, squares


def _variance(genes: sparse.csr_matrix) -> Floats:
    n = genes.shape[1]
    mean = np.asarray(genes.sum(axis=1), dtype=np.float64).ravel() / n
    square = np.asarray(genes.multiply(genes).sum(axis=1), dtype=np.float64).ravel() / n
    variance = np.maximum(square - mean**2, 0.0)
    return np.where(variance > 1e-6 * square, variance, 0.0)  # float32: below this it is rounding


def _lengthen_tail(statistic: Floats, df: Floats, skewness: Floats, noise: float) -> Floats:
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
