"""Test regions on genes that are read block by block, with results equal to the bit for every division.

What a gene's test needs of the others comes from rows or from a sum over blocks: the depth, the components that stand
for the composition, and the genes significant in a first test, which both of the second test exclude.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from typing import Any, Protocol, TypeVar

import numpy as np
from scipy import sparse

from stxtools._spatial.matrices import equal_blocks
from stxtools._types import Bools, Floats, Floats32, Ints

from ._composition import (
    Adjustment,
    Covariates,
    Depths,
    ExpressionSpace,
    Nuisance,
    PartialCorrelation,
    n_components,
    rescaled,
)
from ._meta_analysis import Alternative, adjust_bh, t_pvals
from ._null_model import LagPairs, RegionDraws, sample_lag_pairs
from ._section import Description, Moments, RegionEffect, SectionExpression, test_region
from ._smooth import N_FUNCTIONS, Metric, SmoothBasis, smooth_basis

FIRST_PASS_FDR = 0.2
MIN_NULL = 50


class ExpressionReader(Protocol):
    """Log expression of observations x genes, read by blocks of genes or by rows."""

    shape: tuple[int, int]
    slices: list[slice]

    def block(self, genes: slice) -> sparse.csr_matrix:
        """Return some genes of all observations."""

    def rows(self, genes: Ints | None = None) -> Iterator[tuple[slice, sparse.csr_matrix]]:
        """Yield consecutive observations, of some genes or of all."""


@dataclass(eq=False)
class SectionView:
    """Observations of one section, read from an expression by blocks of genes, with what all blocks share.

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
    moments: Moments = field(init=False)  # known once all blocks are described
    left: dict[int, Floats] = field(init=False, default_factory=dict)  # by block: strengths given composition

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, chosen: Ints) -> SectionView:
        """Return a view of the observations ``chosen``, in their order."""
        depth = None if self.depth is None else self.depth[chosen]
        n_genes = None if self.n_genes is None else self.n_genes[chosen]
        rows, xy, covariates = self.rows[chosen], self.xy[chosen], self.covariates.take(chosen)
        return replace(self, rows=rows, xy=xy, depth=depth, covariates=covariates, n_genes=n_genes)

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
        """Places of the observations in this view, in the order in which they are stored."""
        return np.argsort(self.rows)

    def select(self, piece: sparse.csr_matrix, first: int, factor: Floats | None = None) -> sparse.csr_matrix:
        """Return this view's observations among the rows of ``piece``, the first of which is ``first``."""
        stored = self.rows[self.storage_order]
        low, high = np.searchsorted(stored, [first, first + piece.shape[0]])
        at = stored[low:high] - first
        out = piece if len(at) == piece.shape[0] else piece[at]
        return out if factor is None else rescaled(out, factor[self.storage_order[low:high]])

    def section(self, block: sparse.csr_matrix) -> SectionExpression:
        """Return a block of genes for the observations."""
        return SectionExpression(block[self.rows], self.depth)

    def stored(self, genes: Ints, size: int, factor: Floats | None = None) -> Iterator[sparse.csr_matrix]:
        """Yield ``size`` observations at a time in the order of storage, times a ``factor`` on the linear scale."""
        pieces = (self.select(piece, rows.start, factor) for rows, piece in self.expression.rows(genes))
        yield from equal_blocks(pieces, size)

    @cached_property
    def space(self) -> ExpressionSpace:
        """Second moments of the most variable genes."""
        return ExpressionSpace(self.stored, len(self), self.moments.mean, self.moments.variance)

    def components(self, without: Ints | None = None, factor: Floats | None = None) -> Nuisance:
        """Return the components of the genes that are not in ``without``."""
        read = partial(self.stored, factor=factor)
        return self.space.components(n_components(len(self)), without, read, self.storage_order)

    @cached_property
    def first_components(self) -> Nuisance:
        """Components of all genes."""
        return self.components()

    def adjustment(self, *, composition: bool, final: bool, components: Nuisance | None = None) -> Adjustment:
        """Return what a test adjusts for: columns and, where asked for, components (by default those of all genes).

        Components hold most of the smooth variation; the first test finds what they leave, for the final one.
        """
        nuisance = Nuisance.empty(len(self), self.expression.shape[1])
        if composition:
            nuisance = self.first_components if components is None else components
        if self.covariates.columns is not None:
            nuisance = nuisance.beside(self.covariates.columns)
        strengths = np.concatenate([np.zeros(0), *self.left.values()]) if composition else self.moments.strength
        unweighted = self.unweighted or (composition and not final)
        metric = Metric(self.basis, np.ones(1)) if unweighted else self.basis.metric(strengths)
        return Adjustment(nuisance, metric)


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
    description: Description | None = None
    effects: tuple[RegionEffect, ...] = ()

    @property
    def size(self) -> float:
        """Bytes that it holds between blocks: random regions, sampler, smooth functions, components."""
        return len(self.label) * (self.n_null / 8 + 40 + 4 * N_FUNCTIONS + 160 * sum(self.questions))


class _RegionTest:
    """The running test of one question of a contrast."""

    def __init__(self, contrast: Contrast, draws: RegionDraws, *, composition: bool) -> None:
        self.contrast, self.draws, self.view, self.composition = contrast, draws, contrast.view, composition
        self.factor: Floats | None = None
        n_null = contrast.n_null
        first = self.view.adjustment(composition=composition, final=False)
        self.begin(first, max(n_null // 4, MIN_NULL), final=False)

    def begin(self, adjustment: Adjustment, n_null: int, *, final: bool) -> None:
        self.adjustment, self.n_null, self.final = adjustment, n_null, final
        self.labels = adjustment.labels(self.draws, 1 + n_null)
        self.found: list[RegionEffect] = []

    def __call__(self, genes: slice, section: SectionExpression) -> None:
        if self.factor is not None:
            section = SectionExpression(rescaled(section.matrix, self.factor))
        of_genes = section.genes(self.view.basis, flat=not self.composition)
        correlate = PartialCorrelation(of_genes, genes, self.adjustment, self.labels)
        if self.composition and not self.view.unweighted and genes.start not in self.view.left:
            self.view.left[genes.start] = correlate.strengths()
        alternative = self.contrast.alternative if self.final else None
        self.found.append(test_region(correlate, self.n_null, len(section), self.draws.model, alternative))

    def significant(self) -> Ints:
        """Return the significant genes by p-value, at most half of all."""
        first = concatenated(self.found)
        pvals = np.where(first.variance > 0, t_pvals(first.statistic, first.df), 1.0)
        significant = np.flatnonzero(adjust_bh(pvals) <= FIRST_PASS_FDR)
        return significant[np.argsort(pvals[significant], kind="stable")][: int((first.variance > 0).sum()) // 2]

    def effect(self) -> RegionEffect:
        found = concatenated(self.found)
        if not self.draws.flipped:
            return found
        return replace(found, effect=-found.effect, statistic=-found.statistic, skewness=-found.skewness)


P = TypeVar("P", Description, RegionEffect, Moments)


def concatenated(parts: Sequence[P]) -> P:
    """Concatenate results of consecutive blocks of genes."""
    if len(parts) == 1:
        return parts[0]
    values = {each.name: [getattr(part, each.name) for part in parts] for each in fields(parts[0])}
    joined: dict[str, Any] = {k: np.concatenate(v) for k, v in values.items() if isinstance(v[0], np.ndarray)}
    return replace(parts[0], **joined)


def compare_regions(
    contrasts: Sequence[Contrast], limit: float = np.inf, *, done: Callable[[int], object] = lambda n: None
) -> None:
    """Describe and test regions of one expression; the contrasts get the results, and ``done`` how many are finished.

    As many as fit into ``limit`` bytes, held between blocks, share two passes over the expression.
    """
    _describe(contrasts)
    group: list[Contrast] = []
    for i, contrast in enumerate(contrasts):
        group.append(contrast)
        if i + 1 == len(contrasts) or sum(c.size for c in [*group, contrasts[i + 1]]) > limit:
            _test(group, done)
            group = []


def _describe(contrasts: Sequence[Contrast]) -> None:
    """Describe all contrasts and compute the moments of every gene in their views: one pass over the blocks."""
    by_view: dict[SectionView, list[Contrast]] = {}
    for c in contrasts:
        by_view.setdefault(c.view, []).append(c)
    moments: dict[SectionView, list[Moments]] = {view: [] for view in by_view}
    described: dict[SectionView, list[list[Description]]] = {view: [] for view in by_view}
    for _, view, section in _sections(list(by_view)):
        moments[view].append(section.moments(view.basis))
        described[view].append(section.describe([c.label for c in by_view[view]]))
        del section
    for view, of_view in by_view.items():
        view.moments = concatenated(moments[view])
        for c, parts in zip(of_view, zip(*described[view], strict=True), strict=True):
            c.description = concatenated(parts)


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

    They pass their difference to others through components and depth, which come from the other genes then (empirical
    control genes, as in Risso et al. 2014).
    """
    significant = [test.significant() for test in tests]
    n_genes = tests[0].view.expression.shape[1]
    depths = {test: Depths(n_genes, genes) for test, genes in zip(tests, significant, strict=True) if len(genes)}
    for rows, piece in tests[0].view.expression.rows() if depths else ():
        for test, depth in depths.items():
            depth.add(test.view.select(piece, rows.start))
    for test, genes in zip(tests, significant, strict=True):
        view, components = test.view, None
        if test in depths:
            factor = depths[test].factor()
            test.factor = None if factor is None else factor[np.argsort(view.storage_order)]
            components = view.components(genes, test.factor) if test.composition else None
        adjustment = view.adjustment(composition=test.composition, final=True, components=components)
        test.begin(adjustment, test.contrast.n_null, final=True)
