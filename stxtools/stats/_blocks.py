"""Regions tested on genes that are read block by block: never is all expression in memory at once.

A gene's test needs the other genes for three things only, and each is got by reading rows or a sum over blocks: the
depth, the components that stand for the composition, and the genes that a first test calls (they are left out of depth
and components of the second). Random regions depend on the region alone, so that every block meets the same.
Numbers are the same, to the bit, however genes are divided.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from ._combine import adjust_bh, two_sided
from ._composition import (
    Depths,
    ExpressionSpace,
    MatrixRows,
    Nuisance,
    design_matrix,
    join_nuisance,
    n_components,
    rescaled,
)
from ._draws import RegionDraws
from ._expression import Expression, equal_blocks
from ._label_fields import Geometry, geometry
from ._section import Description, Given, RegionEffect, Section

Floats = NDArray[np.float64]
T = TypeVar("T", Description, RegionEffect)

FIRST_PASS_FDR = 0.2


class Ground:
    """Some observations of a section, without their expression: what all blocks of genes share.

    Parameters
    ----------
    expression
        Where expression is read.
    rows
        The observations, in the order in which they are worked on. An order that follows from their positions
        (:func:`stxtools._spatial.order.position_order`) makes results independent of that in which they are stored.
    xy, depth, given
        As in :class:`Section`, of these observations, in this order.
    seed
        Seed of the pairs of observations.
    factor
        What observations are multiplied by on the linear scale, in this order.
    """

    def __init__(
        self,
        expression: Expression,
        rows: NDArray[np.int64],
        xy: Floats,
        seed: int,
        depth: Floats | None = None,
        given: Given | None = None,
        factor: Floats | None = None,
    ) -> None:
        self.expression, self.rows, self.seed = expression, rows, seed
        self.xy = np.asarray(xy, dtype=np.float64)
        self.depth, self.given, self.factor = depth, given, factor
        self.alone = len(expression.slices) == 1
        self.variance: Floats | None = None
        self.mean: Floats | None = None
        self._section: tuple[slice, Section] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def subset(self, chosen: NDArray[np.bool_]) -> Ground:
        """Return this ground, or a new one of the observations ``chosen``."""
        if chosen.all():
            return self
        depth = None if self.depth is None else self.depth[chosen]
        given = None if self.given is None else self.given.subset(chosen)
        return Ground(self.expression, self.rows[chosen], self.xy[chosen], self.seed, depth, given)

    def on_scale(self, factor: Floats) -> Ground:
        """Return the same observations, multiplied by ``factor``."""
        return Ground(self.expression, self.rows, self.xy, self.seed, given=self.given, factor=factor)

    @property
    def composed(self) -> bool:
        """Whether effects are those given the composition."""
        return self.given is not None and self.given.composition

    @cached_property
    def geometry(self) -> Geometry:
        """Spacing and pairs of observations."""
        return geometry(self.xy, np.random.default_rng(self.seed))

    @cached_property
    def fixed(self) -> Nuisance | None:
        """Covariates that were given as columns."""
        if self.given is None or self.given.columns is None:
            return None
        return design_matrix(self.given.columns)

    @cached_property
    def _as_stored(self) -> NDArray[np.int64]:
        """What brings the observations into the order in which they are stored."""
        return np.argsort(self.rows)

    @cached_property
    def _stored(self) -> NDArray[np.int64]:
        return self.rows[self._as_stored]

    def placed(self, values: Floats) -> Floats:
        """Bring values of the observations (last axis) from the order in which they are stored into this ground's."""
        out = np.empty_like(values)
        out[..., self._as_stored] = values
        return out

    def taken(self, piece: sparse.csr_matrix, first: int = 0) -> sparse.csr_matrix:
        """Return this ground's observations among consecutive ones that begin with ``first``, as they are stored."""
        stored = self._stored
        low, high = np.searchsorted(stored, [first, first + piece.shape[0]])
        at = stored[low:high] - first
        out = piece if len(at) == piece.shape[0] else piece[at]
        return out if self.factor is None else rescaled(out, self.factor[self._as_stored[low:high]])

    def section(self, genes: slice, block: sparse.csr_matrix) -> Section:
        """Return the observations with a block of genes; the last one is kept."""
        if self._section is None or self._section[0] != genes:
            as_stored = len(self.rows) == block.shape[0] and bool((np.diff(self.rows) > 0).all())
            own = block if as_stored else block[self.rows]
            own = own if self.factor is None else rescaled(own, self.factor)
            self._section = (genes, Section(own, self.depth, composed=self.composed))
        return self._section[1]

    def forget(self) -> None:
        """Let the last section go, unless it is the only one."""
        if not self.alone:
            self._section = None

    def space(self) -> ExpressionSpace:
        """Second moments of the most variable genes; after :func:`survey`."""
        if self.variance is None or self.mean is None:
            raise RuntimeError("The genes' variances are not known yet.")
        return ExpressionSpace(_GroundRows(self, self.mean), self.variance)

    @cached_property
    def before(self) -> Nuisance | None:
        """Covariates of a first test; after :func:`survey` where there is composition among them."""
        if self.composed:
            return self.nuisance(self.space())
        return None if self.fixed is None else join_nuisance([self.fixed], self.expression.shape[1])

    def nuisance(self, space: ExpressionSpace, without: NDArray[np.int64] | None = None) -> Nuisance:
        """Return components without some genes, and the covariates that were given."""
        parts = [] if self.fixed is None else [self.fixed]
        return join_nuisance([space.components(n_components(len(self)), without), *parts], self.expression.shape[1])


class _GroundRows:
    """Rows of a ground as they are stored, in blocks of one size whatever the chunks in which expression is read."""

    def __init__(self, ground: Ground, mean: Floats) -> None:
        self._ground, self._mean = ground, mean
        self.shape = (len(ground), ground.expression.shape[1])
        self._chosen: MatrixRows | None = None  # in memory: genes are chosen once for all readings

    def mean(self, genes: NDArray[np.int64]) -> Floats:
        return self._mean[genes]

    def blocks(self, genes: NDArray[np.int64], size: int) -> Iterator[sparse.csr_matrix]:
        ground = self._ground
        if ground.alone:
            if self._chosen is None:
                self._chosen = MatrixRows(ground.taken(ground.expression.block(ground.expression.slices[0])))
            yield from self._chosen.blocks(genes, size)
            return
        pieces = (ground.taken(piece, rows.start) for rows, piece in ground.expression.rows(genes))
        yield from equal_blocks(pieces, size)

    def placed(self, values: Floats) -> Floats:
        return self._ground.placed(values.T).T


def survey(grounds: Sequence[Ground]) -> None:
    """Find the variance and the mean of every gene in each ground: one reading of all blocks."""
    wanted = list({id(g): g for g in grounds if g.variance is None}.values())
    if not wanted:
        return
    expression = wanted[0].expression
    found: list[list[tuple[Floats, Floats]]] = [[] for _ in wanted]
    for genes in expression.slices:
        block = expression.block(genes)
        for ground, parts in zip(wanted, found, strict=True):
            section = ground.section(genes, block)
            mean = section.matrix.mean(axis=0, dtype=np.float64) if ground.composed else np.zeros(0)
            parts.append((section.total_variance, np.asarray(mean).ravel()))
            ground.forget()
    for ground, parts in zip(wanted, found, strict=True):
        ground.variance, ground.mean = (np.concatenate(p) for p in zip(*parts, strict=True))


@dataclass
class Contrast:
    """A region of a ground that is to be tested against the rest of it, and, later, what was found."""

    ground: Ground
    label: NDArray[np.bool_]
    n_null: int
    seed: Sequence[int]
    description: Description | None = None
    effect: RegionEffect | None = None

    @property
    def size(self) -> float:
        """Bytes that are held of it from block to block: random regions, sampler, components."""
        composed = self.ground.composed
        return len(self.label) * (self.n_null / 8 * (1.5 if composed else 1.0) + 40 + 160 * composed)


class _Trial:
    """A contrast while it is tested."""

    def __init__(self, contrast: Contrast, limit: float) -> None:
        self.contrast, self.ground = contrast, contrast.ground
        kept = None if self.ground.alone else limit
        self.draws = RegionDraws(self.ground.xy, self.ground.geometry, contrast.label, contrast.seed, kept)
        self.described: list[Description] = []
        self.found: list[RegionEffect] = []
        composed, n_null = self.ground.composed, contrast.n_null
        self.begin(self.ground.before, max(n_null // 2, 50) if composed else n_null)

    def begin(self, nuisance: Nuisance | None, n_null: int) -> None:
        self.nuisance, self.n_null, self.labels = nuisance, n_null, self.draws.labels()
        self.found = []

    def test(self, genes: slice, section: Section) -> None:
        given = None if self.nuisance is None else self.nuisance.of(genes)
        self.found.append(section.tested(self.draws.side, self.labels, self.n_null, self.draws.rng, given))

    def describe(self, genes: slice, section: Section) -> None:
        self.described.append(section.describe(self.contrast.label))
        self.test(genes, section)

    def called(self) -> NDArray[np.int64]:
        """Genes that the test calls, the clearest first, a half of all at most."""
        first = joined(self.found)
        pvals = np.where(first.variance > 0, two_sided(first.statistic, first.df), 1.0)
        called = np.flatnonzero(adjust_bh(pvals) <= FIRST_PASS_FDR)
        return called[np.argsort(pvals[called], kind="stable")][: int((first.variance > 0).sum()) // 2]

    def end(self) -> None:
        self.contrast.description = joined(self.described)
        found = joined(self.found)
        self.contrast.effect = found.mirrored() if self.draws.flipped else found


def joined(parts: Sequence[T]) -> T:
    """Put what was found of blocks of genes together."""
    if len(parts) == 1:
        return parts[0]
    changes: dict[str, Any] = {}
    for each in fields(parts[0]):
        values = [getattr(part, each.name) for part in parts]
        if isinstance(values[0], np.ndarray):
            changes[each.name] = np.concatenate(values)
    return replace(parts[0], **changes)


def compare_regions(
    contrasts: Sequence[Contrast], limit: float = np.inf, *, done: Callable[[int], object] | None = None
) -> None:
    """Describe and test regions, all of one expression; results are left in the contrasts.

    Parameters
    ----------
    contrasts
        What to test. As many as fit into ``limit`` share each reading of expression.
    limit
        Bytes that may be held from block to block.
    done
        Told how many contrasts are done since it was last told.
    """
    group: list[Contrast] = []
    for i, contrast in enumerate(contrasts):
        group.append(contrast)
        last = i + 1 == len(contrasts)
        if last or contrast.ground.alone or sum(c.size for c in [*group, contrasts[i + 1]]) > limit:
            _compare(group, limit)
            if done is not None:
                done(len(group))
            group = []


def _compare(contrasts: Sequence[Contrast], limit: float) -> None:
    composed = contrasts[0].ground.composed
    if composed:
        survey([c.ground for c in contrasts])
    trials = [_Trial(c, limit) for c in contrasts]
    _each_block(trials, _Trial.describe)
    if composed:
        _exclude_called(trials)
        _each_block(trials, _Trial.test)
    for trial in trials:
        trial.end()


def _each_block(trials: Sequence[_Trial], work: Callable[[_Trial, slice, Section], None]) -> None:
    expression = trials[0].ground.expression
    on_ground: dict[int, list[_Trial]] = {}
    for trial in trials:
        on_ground.setdefault(id(trial.ground), []).append(trial)
    for genes in expression.slices:
        block = expression.block(genes)
        for together in on_ground.values():
            for trial in together:
                work(trial, genes, trial.ground.section(genes, block))
            together[0].ground.forget()


def _exclude_called(trials: Sequence[_Trial]) -> None:
    """Prepare the second test given the composition: without the genes that the first test calls.

    Components that hold genes which the region itself changes lend these genes' difference to all that share a
    component with them, and so does the depth by which expression was divided: what a first test calls is left
    out of components and depth of the second (empirical control genes, as in Risso et al. 2014).
    """
    called = [trial.called() for trial in trials]
    for trial, factor in zip(trials, _factors(trials, called), strict=True):
        if factor is not None:
            trial.ground = trial.ground.on_scale(factor)
    survey([trial.ground for trial in trials])
    for trial, genes in zip(trials, called, strict=True):
        given = trial.ground.nuisance(trial.ground.space(), genes) if len(genes) else trial.nuisance
        trial.begin(given, trial.contrast.n_null)


def _factors(trials: Sequence[_Trial], called: Sequence[NDArray[np.int64]]) -> list[Floats | None]:
    """Return what observations are to be multiplied by so that called genes are left out of depth: one reading."""
    out: list[Floats | None] = [None] * len(trials)
    depths = {i: Depths(t.ground.expression.shape[1], [g]) for i, (t, g) in enumerate(zip(trials, called, strict=True))}
    depths = {i: depth for i, depth in depths.items() if len(called[i])}
    if depths:
        for rows, piece in trials[0].ground.expression.rows():
            for i, depth in depths.items():
                depth.add(trials[i].ground.taken(piece, rows.start))
    for i, depth in depths.items():
        factor = depth.factors()[0]
        out[i] = None if factor is None else trials[i].ground.placed(factor)
    return out
