"""Tests of regions on genes read block by block, with results equal to the bit for every division into blocks.

What a gene's test needs of the others comes from rows or from sums over blocks: the depth and the components that stand
for the composition; the final test computes both without the genes significant in a first test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from itertools import chain, pairwise
from typing import Any, Protocol, TypeVar

import numpy as np

from stxtools._spatial.matrices import equal_blocks
from stxtools._types import Bools, Csr, Floats, Floats32, Ints

from ._calibration import calibrated
from ._composition import (
    MAX_GENES,
    Adjustment,
    Covariates,
    Depths,
    ExpressionSpace,
    Nuisance,
    PartialCorrelation,
    n_components,
    rescale,
)
from ._meta_analysis import Alternative, adjust_bh, t_pvals
from ._null_model import LagPairs, RegionDraws, sample_lag_pairs
from ._section import Description, Moments, RegionEffect, SectionExpression, test_region
from ._smooth import N_FUNCTIONS, Metric, SmoothBasis, smooth_basis

FIRST_PASS_FDR = 0.2
MIN_NULL = 50


class ExpressionReader(Protocol):
    """Log expression of observations x genes, read by blocks of genes or by rows; ``signed``: with negative values."""

    shape: tuple[int, int]
    signed: bool
    slices: list[slice]

    def block(self, genes: slice) -> Csr:
        """Return some genes of all observations."""

    def rows(self, genes: Ints | None = None, within: Ints | None = None) -> Iterator[tuple[slice, Csr]]:
        """Yield consecutive observations, all or the sorted ones ``within``, of some genes or of all."""


@dataclass(eq=False)
class SectionView:
    """Observations of one section, read by blocks of genes, with the results that all blocks share.

    - ``rows``: Rows of the observations, in the order of computation and of what follows.
    - ``seed``: Seed of the sampled pairs of observations.
    - ``depth``: Counts before normalisation.
    - ``n_genes``: Genes that each observation expresses.
    - ``unweighted``: Smooth variation counts in full, not weighed down.
    """

    expression: ExpressionReader
    rows: Ints
    xy: Floats
    seed: int
    depth: Floats | None = None
    covariates: Covariates = field(default_factory=Covariates)
    n_genes: Ints | None = None
    unweighted: bool = False
    moments: Moments = field(init=False)  # set once all blocks are described
    residual_strengths: dict[int, Floats] = field(init=False, default_factory=dict)  # given composition, by block

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, chosen: Ints) -> SectionView:
        """Return a view of the observations ``chosen``, in their order."""
        depth = None if self.depth is None else self.depth[chosen]
        n_genes = None if self.n_genes is None else self.n_genes[chosen]
        rows, xy, covariates = self.rows[chosen], self.xy[chosen], self.covariates.take(chosen)
        return replace(self, rows=rows, xy=xy, depth=depth, covariates=covariates, n_genes=n_genes)

    @property
    def size(self) -> float:
        """Bytes that its contrasts share between blocks: smooth functions, components, second moments."""
        return len(self) * (4 * N_FUNCTIONS + 160) + 8 * min(MAX_GENES, self.expression.shape[1]) ** 2

    def release(self) -> None:
        """Drop what can be computed again."""
        for name in ("pairs", "basis", "space", "first_components"):
            self.__dict__.pop(name, None)

    @cached_property
    def pairs(self) -> LagPairs:
        """Pairs of observations at fixed lags."""
        return sample_lag_pairs(self.xy, np.random.default_rng(self.seed))

    @cached_property
    def basis(self) -> SmoothBasis:
        """Smooth functions of position."""
        return smooth_basis(self.xy, self.weight)

    @cached_property
    def weight(self) -> Floats32:
        """Weights of observations, with mean 1: where few genes are seen, expression is noisy."""
        if self.n_genes is None or not self.n_genes.any():
            return np.ones(len(self), dtype=np.float32)
        return (self.n_genes / self.n_genes.mean()).astype(np.float32)

    @cached_property
    def storage_order(self) -> Ints:
        """Indices of the observations in the order in which they are stored."""
        return np.argsort(self.rows)

    def select(self, piece: Csr, first: int) -> Csr:
        """Return this view's observations among the rows of ``piece``, the first of which is ``first``."""
        stored = self.rows[self.storage_order]
        low, high = np.searchsorted(stored, [first, first + piece.shape[0]])
        return piece if high - low == piece.shape[0] else piece[stored[low:high] - first]

    def section(self, block: Csr) -> SectionExpression:
        """Return a block of genes for the observations."""
        return SectionExpression(block[self.rows], self.depth, signed=self.expression.signed)

    def stored(self, genes: Ints, size: int, factor: Floats | None = None) -> Iterator[Csr]:
        """Yield ``size`` observations at a time in storage order, times a ``factor`` on the linear scale."""
        read, start = self.expression.rows(genes, self.rows[self.storage_order]), 0
        for block in equal_blocks((piece for _, piece in read), size):
            rows = self.storage_order[start : start + block.shape[0]]
            yield block if factor is None else rescale(block, factor[rows])
            start += block.shape[0]

    @cached_property
    def space(self) -> ExpressionSpace:
        """Second moments of the most variable genes."""
        return ExpressionSpace(self.stored, len(self), self.moments.mean, self.moments.variance)

    def components(self, without: Ints, factor: Floats | None = None) -> Nuisance:
        """Return the components of the genes that are not in ``without``."""
        read = partial(self.stored, factor=factor)
        return self.space.components(n_components(len(self)), without, read, self.storage_order)

    @cached_property
    def first_components(self) -> Nuisance:
        """Components of all genes."""
        return self.components(np.zeros(0, dtype=np.int64))

    def adjustment(self, *, composition: bool, final: bool, components: Nuisance | None = None) -> Adjustment:
        """Return the covariates of a test: columns and, for the composition, components (by default of all genes).

        Components hold most of the smooth variation; the first test finds what they leave, for the final one.
        """
        nuisance = Nuisance.empty(len(self), self.expression.shape[1])
        if composition:
            nuisance = components or self.first_components
        if self.covariates.columns is not None:
            nuisance = nuisance.with_columns(self.covariates.columns)
        if self.unweighted or (composition and not final):
            return Adjustment(nuisance, Metric(self.basis, np.ones(1)))
        residual = np.concatenate([np.zeros(0), *self.residual_strengths.values()])
        return Adjustment(nuisance, self.basis.metric(residual if composition else self.moments.strength))


@dataclass
class Contrast:
    """A region of a view against the rest of it, and the results once it is tested.

    ``effects`` has one for each of ``questions``: False for the total effect, True for that given composition.
    """

    view: SectionView
    label: Bools
    n_null: int
    seed: Sequence[int]
    questions: tuple[bool, ...] = (False,)
    alternative: Alternative = "two-sided"
    description: Description = field(init=False)  # set before the test
    effects: tuple[RegionEffect, ...] = ()

    @property
    def size(self) -> float:
        """Bytes that it alone holds between blocks: random regions, components."""
        return len(self.label) * (self.n_null / 8 + 40 + 160 * sum(self.questions))


class _RegionTest:
    """The running test of one question of a contrast."""

    def __init__(self, contrast: Contrast, draws: RegionDraws, *, composition: bool) -> None:
        self.contrast, self.draws, self.view, self.composition = contrast, draws, contrast.view, composition
        self.factor: Floats | None = None
        first = self.view.adjustment(composition=composition, final=False)
        self.begin(first, max(contrast.n_null // 4, MIN_NULL), final=False)

    def begin(self, adjustment: Adjustment, n_null: int, *, final: bool) -> None:
        self.adjustment, self.n_null, self.final = adjustment, n_null, final
        self.labels = adjustment.labels(self.draws, 1 + n_null)
        self.blocks: list[RegionEffect] = []

    def __call__(self, genes: slice, section: SectionExpression) -> None:
        if self.factor is not None:
            section = SectionExpression(rescale(section.matrix, self.factor), signed=section.signed)
        sums = section.genes(self.view.basis, flat=not self.composition)
        correlation = PartialCorrelation(sums, genes, self.adjustment, self.labels)
        strengths = self.view.residual_strengths
        if self.composition and not self.view.unweighted and genes.start not in strengths:
            strengths[genes.start] = correlation.strengths()
        alternative = self.contrast.alternative if self.final else None
        block = test_region(correlation, self.n_null, len(section), self.draws.model, alternative)
        block.null_tail[:, 1] += genes.start
        self.blocks.append(block)

    def significant(self) -> Ints:
        """Return the significant genes by p-value, at most half of all."""
        first = concatenated(self.blocks)
        tested = np.flatnonzero(first.variance > 0)  # genes that no observation expresses are no hypotheses
        pvals = t_pvals(first.statistic[tested], first.df[tested])
        by_p = np.argsort(pvals, kind="stable")[: len(tested) // 2]
        return tested[by_p[adjust_bh(pvals)[by_p] <= FIRST_PASS_FDR]]

    def effect(self) -> RegionEffect:
        effect, one_sided = concatenated(self.blocks), self.contrast.alternative != "two-sided"
        mean = np.where(effect.variance > 0, self.contrast.description.mean, np.nan)
        args = effect.statistic, effect.df, mean, effect.null_tail, self.n_null
        statistic = calibrated(*args, one_sided=one_sided)
        changed = statistic != effect.statistic
        shrinkage = np.divide(statistic, effect.statistic, out=effect.shrinkage, where=changed)
        effect = replace(effect, statistic=statistic, shrinkage=shrinkage, null_tail=effect.null_tail[:0].copy())
        if not self.draws.flipped:
            return effect
        return replace(effect, effect=-effect.effect, statistic=-effect.statistic, skewness=-effect.skewness)


P = TypeVar("P", Description, RegionEffect, Moments)


def concatenated(parts: Sequence[P]) -> P:
    """Concatenate results of consecutive blocks of genes."""
    values = {each.name: [getattr(part, each.name) for part in parts] for each in fields(parts[0])}
    joined: dict[str, Any] = {k: np.concatenate(v) for k, v in values.items() if isinstance(v[0], np.ndarray)}
    return replace(parts[0], **joined)


def compare_regions(
    contrasts: Sequence[Contrast], limit: float = np.inf, *, done: Callable[[int], object] = lambda n: None
) -> None:
    """Describe and test regions of one expression; the contrasts get the results, and ``done`` how many are finished.

    As many as fit into ``limit`` bytes, held between blocks, share two passes over the expression. They come view by
    view, and a view whose regions are tested is released.
    """
    members = {view: [c for c in contrasts if c.view is view] for view in dict.fromkeys(c.view for c in contrasts)}
    _describe(members)
    groups: list[list[Contrast]] = []
    for contrast in chain.from_iterable(members.values()):
        if not groups or _size([*groups[-1], contrast]) > limit:
            groups.append([])
        groups[-1].append(contrast)
    for group, following in pairwise([*groups, []]):
        _test(group, done)
        for view in {c.view for c in group} - {c.view for c in following}:
            view.release()


def _size(contrasts: Sequence[Contrast]) -> float:
    return sum(c.size for c in contrasts) + sum(view.size for view in {c.view for c in contrasts})


def _describe(members: Mapping[SectionView, Sequence[Contrast]]) -> None:
    """Describe all contrasts and compute the moments of every gene in their views: one pass over the blocks."""
    views = list(members)
    blocks: dict[SectionView, list[tuple[Any, ...]]] = {view: [] for view in views}
    for _, view, section in _sections(views):
        described = section.describe([c.label for c in members[view]])
        blocks[view].append((section.moments(view.basis), *described))
        del section
    for view in views:
        view.moments, *descriptions = map(concatenated, zip(*blocks[view], strict=True))
        for c, description in zip(members[view], descriptions, strict=True):
            c.description = description


def _sections(views: Sequence[SectionView]) -> Iterator[tuple[slice, SectionView, SectionExpression]]:
    """Read the expression once: every block of genes in every view."""
    for genes in views[0].expression.slices if views else ():
        block = views[0].expression.block(genes)
        for view in views:
            section = view.section(block)
            if view is views[-1]:
                del block  # only the section is held while it is tested
            yield genes, view, section
            del section  # nor is it held while the next block is read


def _test(contrasts: Sequence[Contrast], done: Callable[[int], object]) -> None:
    tests: list[_RegionTest] = []
    for c in contrasts:
        draws = RegionDraws(c.view.xy, c.view.pairs, c.label, c.n_null, c.seed)
        tests += [_RegionTest(c, draws, composition=q) for q in c.questions]
    views = list(dict.fromkeys(c.view for c in contrasts))
    for final in (False, True):
        if final:
            _exclude_significant(tests)
        for genes, view, section in _sections(views):
            for test in tests:
                if test.view is view:
                    test(genes, section)
                    last_one = test.composition == test.contrast.questions[-1]
                    done(int(final and last_one and genes.stop == view.expression.shape[1]))
            del section
    for c in contrasts:
        c.effects = tuple(test.effect() for test in tests if test.contrast is c)


def _exclude_significant(tests: Sequence[_RegionTest]) -> None:
    """Prepare the second test: exclude the genes significant in the first.

    They pass their difference to others through components and depth, which then come from the other genes (empirical
    control genes, as in Risso et al. 2014).
    """
    significant = {test: genes for test in tests if len(genes := test.significant())}
    n_genes = tests[0].view.expression.shape[1]
    depths = {test: Depths(n_genes, genes) for test, genes in significant.items()}
    for rows, piece in tests[0].view.expression.rows() if depths else ():
        for test, depth in depths.items():
            depth.add(test.view.select(piece, rows.start))
    for test in tests:
        view, components = test.view, None
        if test in significant:
            factor = depths[test].factor()
            test.factor = None if factor is None else factor[np.argsort(view.storage_order)]
            if test.composition:
                components = view.components(significant[test], test.factor)
        adjustment = view.adjustment(composition=test.composition, final=True, components=components)
        test.begin(adjustment, test.contrast.n_null, final=True)
