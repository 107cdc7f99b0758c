"""Pseudo-labels without labels: a consensus of Gaussian mixtures. Never written as a result themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.cluster.hierarchy import cut_tree, fcluster, linkage
from scipy.optimize import linear_sum_assignment
from scipy.sparse.csgraph import reverse_cuthill_mckee

from stxtools._spatial.graph import averaging_matrix
from stxtools._spatial.smoothing import Neighbourhoods
from stxtools._types import Floats, Floats32, Ints, Reals
from stxtools.models._section import Section
from stxtools.models.ensemble.discriminant import Linear, normal_logits

from .calibration import class_sizes

STARTS = 3  # mixtures for each view
_TREE = 800  # observations of a tree: few, so that starts differ and cost little
_FIT = 20_000  # observations that a mixture is fitted to
_COMPARED = 3000  # observations on which partitions are compared
_PAIRS = ((1, 3), (1, 5), (2, 5), (2, 8))  # rounds of averaging whose means form one view
_SINGLE = (2, 4)
_TOLERANCES = (1.0, 1.5)  # of the edge-preserving means
_COTRAINING = 10  # rounds
_DISTINCT = 1e-9  # scatter, relative to that of all observations, below which values count as equal
_CHANGE = 1e-3  # share of the memberships that moves, below which a mixture has converged


@dataclass(frozen=True)
class View:
    """Spatial means of several scales side by side, for the given rows."""

    means: tuple[Floats32, ...]

    def __len__(self) -> int:
        return len(self.means[0])

    def __getitem__(self, rows: Any) -> Floats:
        return np.concatenate([m[rows] for m in self.means], axis=1, dtype=np.float64)

    def take(self, rows: Ints) -> View:
        """Select rows."""
        return View(tuple(m[rows] for m in self.means))

    def minus(self, offset: Floats) -> View:
        """Subtract an ``offset`` of the features, (n, d)."""
        return View(tuple(m - offset[:, : m.shape[1]].astype(m.dtype) for m in self.means))


@dataclass(frozen=True)
class Mixtures:
    """Tied Gaussian mixtures of one view."""

    logits: Linear  # of all classes of all mixtures, (n, m * k)
    k: int
    complete: list[bool]  # whether each mixture keeps its classes apart on its sample

    def memberships(self, z: Floats) -> Floats32:
        """Memberships of observations (n, d) in the classes of every mixture, (n, m, k)."""
        logits = self.logits(z).reshape(len(z), -1, self.k)
        share = np.exp((logits - logits.max(axis=2, keepdims=True)).astype(np.float32))
        return share / share.sum(axis=2, keepdims=True)


def spatial_views(sections: Sequence[Section], rows: Sequence[Ints]) -> tuple[list[View], list[View]]:
    """Views of plain and of edge-preserving spatial means, for the given rows of all sections."""
    n_obs = sum(s.n_obs for s in sections) // len(sections)
    # the window of the last round (of a hexagonal lattice) holds at most a tenth of a section
    rounds = range(1, max(max(pair) for pair in _PAIRS) + 1)
    most = max([r for r in rounds if 1 + 3 * r * (r + 1) <= n_obs / 10], default=1)
    plain = [_multiscale_views(s, part, most) for s, part in zip(sections, rows, strict=True)]
    edges = [_edge_views(s, part) for s, part in zip(sections, rows, strict=True)]
    return _stacked(plain), _stacked(edges)


def _multiscale_views(section: Section, rows: Ints, most: int) -> list[View]:
    """Spatial means of at most ``most`` rounds, in pairs of scales and alone; of all and of 3/4 of the components."""
    features, graph = section.features, section.graph
    mean, d = averaging_matrix(graph), features.shape[1]
    order = reverse_cuthill_mckee(graph, symmetric_mode=True)  # neighbours in space lie near each other in memory
    position, mean = np.argsort(order).astype(mean.indices.dtype), mean[order]
    mean.indices = position[mean.indices]  # not sorted: sums keep their order, and so their last bits
    means, x = {}, features[order].astype(np.float64)
    for r in range(1, most + 1):
        x = mean @ x
        means[r] = x[position[rows]].astype(np.float32)
    widths = sorted({d, max(1, round(0.75 * d))}, reverse=True)
    single = sorted({min(r, most) for r in _SINGLE} | {1 for r in _SINGLE if r > most})  # finer ones in small sections
    pairs = sorted({(min(a, most), min(b, most)) for a, b in _PAIRS if min(a, most) < min(b, most)})
    views = [(q, pair) for q in widths for pair in pairs] + [(q, (r,)) for r in single for q in widths]
    return [View(tuple(means[r][:, :q] for r in rounds)) for q, rounds in views]


def _edge_views(section: Section, rows: Ints) -> list[View]:
    """Edge-preserving means alone, with means over 19, and with means over 19 and 61 observations."""
    near = Neighbourhoods(section.features, section.xy, rows)
    fine, coarse = near.mean(19), near.mean(61)
    sharp = near.edge_preserving_means(section.graph, _TOLERANCES)
    return [View((*plain, mean)) for mean in sharp.values() for plain in ((), (fine,), (fine, coarse))]


def _stacked(parts: Sequence[Sequence[View]]) -> list[View]:
    """Concatenate the views of several sections."""
    if len(parts) == 1:  # no copies
        return list(parts[0])
    means = ([view.means for view in views] for views in zip(*parts, strict=True))
    return [View(tuple(np.concatenate(m) for m in zip(*of_view, strict=True))) for of_view in means]


def consensus(
    views: Sequence[View | Floats], k: int, rng: np.random.Generator, tick: Callable[[], object] = lambda: None
) -> Floats:
    """Soft partition into ``k`` classes (n, k): the mean of many mixtures, matched to the one most like the others.

    The reference is the medoid under the adjusted Rand index. The classes of each mixture are matched to it (Hungarian
    method), and their mean, weighted by how much a mixture is like the others, is the next reference, five times
    (voting; Dimitriadou, Weingessel and Hornik 2002). A single mixture can end in a bad optimum; their consensus rarely
    does. Mixtures are fitted, compared and matched on samples. If none keeps all classes apart, some class may be the
    most probable one of no observation.
    """
    fitted: list[Mixtures] = []
    for view in views:
        fitted.append(fit_mixtures(view, k, rng))
        tick()
    rows = some_rows(len(views[0]), _COMPARED, rng)
    of_views = [mixtures.memberships(view[rows]) for mixtures, view in zip(fitted, views, strict=True)]
    memberships = np.ascontiguousarray(np.concatenate(of_views, axis=1).transpose(1, 0, 2), dtype=np.float64)
    likeness = pairwise_rand_index(list(memberships.argmax(axis=2))).mean(axis=1).clip(1e-3)
    complete = np.concatenate([mixtures.complete for mixtures in fitted])
    medoid = int(np.where(complete, likeness, 0.0).argmax()) if complete.any() else int(likeness.argmax())
    reference = memberships[medoid]
    for _ in range(5):
        order = np.stack([linear_sum_assignment(-(reference.T @ share))[1] for share in memberships])
        matched = np.take_along_axis(memberships, order[:, None, :], axis=2)
        reference = np.einsum("m,mnk->nk", likeness, matched) / likeness.sum()
    target = _weighted_mean(views, fitted, order, likeness)
    if (class_sizes(target) == 0).any():  # a class on which the mixtures differ too much is outvoted
        target = _weighted_mean(views, fitted, order, np.eye(len(likeness))[medoid])
    return target


def pairwise_rand_index(partitions: Sequence[Ints]) -> Floats:
    """Adjusted Rand index of every pair of partitions (Hubert and Arabie 1985), (m, m), by one matrix product."""
    n, m = len(partitions[0]), len(partitions)
    n_classes = [int(p.max()) + 1 for p in partitions]
    start = np.r_[0, np.cumsum(n_classes)]
    member = np.zeros((n, start[-1]), dtype=np.float32)  # counts below 2**24 are exact
    for i, p in enumerate(partitions):
        member[np.arange(n), start[i] + p] = 1.0
    table = (member.T @ member).astype(np.float64) if n < 2**24 else member.T.astype(np.float64) @ member
    same = np.add.reduceat(np.add.reduceat(table**2, start[:-1], axis=0), start[:-1], axis=1)
    within = np.diag(same)  # sum of squared class sizes
    only_first, only_second = within[:, None] - same, within[None, :] - same
    neither = float(n) ** 2 - only_first - only_second - same
    both = same - n
    below = (both + only_first) * (only_first + neither) + (both + only_second) * (only_second + neither)
    out = np.ones((m, m))
    np.divide(2.0 * (both * neither - only_first * only_second), below, out=out, where=(only_first + only_second) > 0)
    return out


def _weighted_mean(views: Sequence[View | Floats], fitted: Sequence[Mixtures], order: Ints, weight: Floats) -> Floats:
    """Weighted mean of the memberships, with the classes of each mixture in its ``order``."""
    total, per_view = np.zeros((len(views[0]), order.shape[1])), np.split(np.arange(len(order)), len(views))
    for view, mixtures, members in zip(views, fitted, per_view, strict=True):
        if weight[members].any():
            share = mixtures.memberships(view[:])
            for j, m in enumerate(members):
                total += weight[m] * share[:, j, order[m]]
    return total / weight.sum()


def cotrain(views: Sequence[View | Floats], target: Floats, rng: np.random.Generator) -> Floats:
    """Refit the mixtures of all views to common memberships (n, k), starting from ``target``.

    An EM whose E-step is shared: ten times, the parameters of every view's tied mixture are computed from the
    common memberships, and the mean of the memberships that they predict is the next (co-EM; Nigam and Ghani 2000).
    Returns ``target`` itself if a class is lost.
    """
    rows = some_rows(len(target), _FIT, rng)
    whitened, share = [], target[rows]
    for view in views:
        part = view[rows]
        whiten = Whitening.of(part)
        whitened.append((whiten(part).astype(np.float32), whiten))
    for _ in range(_COTRAINING):
        models = [_tied_logits(z, share) for z, _ in whitened]
        share = np.zeros(share.shape, dtype=np.float32)
        for (z, _), logits in zip(whitened, models, strict=True):
            share += _softmax(logits(z)) / len(views)
    out = np.zeros_like(target)
    for view, (_, whiten), logits in zip(views, whitened, models, strict=True):
        out += _softmax(logits(whiten(view[:]))) / len(views)
    return out if (class_sizes(out) > 0).all() else target


def with_all_classes(target: Floats, spaces: Sequence[Reals], *, or_fewer: bool = False) -> Floats:
    """Change memberships (n, K) so that every class is the most probable one of some observation.

    An empty class takes over half of the class with the largest scatter, cut across its first principal axis in the
    first of the ``spaces`` where it varies; there the memberships of both are exchanged. With fewer distinct
    observations than classes, empty ones are dropped (``or_fewer``) or an error is raised.
    """
    sizes = class_sizes(target)
    if (sizes > 0).all():
        return target
    target, k = target.copy(), target.shape[1]
    while (missing := np.flatnonzero(sizes == 0)).size:
        labels = target.argmax(axis=1)
        halves = (_half_of_widest(np.asarray(z, dtype=np.float64), labels) for z in spaces)
        half = next((h for h in halves if h is not None), None)
        if half is None:
            if or_fewer:
                return target[:, sizes > 0] / target[:, sizes > 0].sum(axis=1, keepdims=True)
            raise ValueError(
                f"`n_segments={k}` is more than the {int((sizes > 0).sum())} distinct observations there are; choose a "
                "smaller number."
            )
        old, new = int(labels[half[0]]), int(missing[0])
        target[half, old], target[half, new] = target[half, new], target[half, old]
        target[half] /= 2  # equal memberships would leave the old class in place
        target[half, new] += 0.5
        sizes = class_sizes(target)
    return target


def _half_of_widest(z: Floats, labels: Ints) -> Ints | None:
    """Rows of the smaller side of the class with the largest scatter, cut at its mean; None if no class varies."""
    total = float(np.square(z - z.mean(axis=0)).sum())
    scatter = np.array([np.square(z[labels == c] - z[labels == c].mean(axis=0)).sum() if (labels == c).any() else 0.0
                        for c in range(int(labels.max()) + 1)])  # fmt: skip
    widest = int(scatter.argmax())
    if scatter[widest] <= _DISTINCT * total:
        return None
    rows = np.flatnonzero(labels == widest)
    part = z[rows] - z[rows].mean(axis=0)
    along = part @ np.linalg.eigh(part.T @ part)[1][:, -1]
    upper = along > 0
    return rows[upper] if 2 * int(upper.sum()) <= len(rows) else rows[~upper]


def _softmax(logits: Floats) -> Floats:
    """Softmax over few columns; taking the maximum by column and the sum by a product is faster than scipy's."""
    top = logits[:, 0].copy()
    for column in logits.T[1:]:
        np.maximum(top, column, out=top)
    out = np.exp(logits - top[:, None])
    return np.asarray(out / (out @ np.ones(out.shape[1], out.dtype))[:, None])


def _tied_logits(z: Reals, share: Reals) -> Linear:
    """M-step of a tied Gaussian mixture on whitened ``z``."""
    mass, means, covariance = tied_moments(z, share)
    return normal_logits(means, covariance, (mass + 1) / (len(z) + len(mass))).astype(z.dtype)


def tied_moments(z: Reals, share: Reals) -> tuple[Floats, Floats, Floats]:
    """Sizes and means of the classes of whitened ``z``, and the covariance within them."""
    mass = (np.ones(len(z), share.dtype) @ share).astype(np.float64)
    means = (share.T @ z) / (mass[:, None] + 1e-9)
    return mass, means, np.asarray((1 + 1e-3) * np.eye(z.shape[1]) - (means.T * (mass / len(z))) @ means)


def fit_mixtures(z: View | Floats, k: int, rng: np.random.Generator) -> Mixtures:
    """Fit ``STARTS`` tied mixtures of ``k`` classes to a sample."""
    part = z[some_rows(len(z), _FIT, rng)]
    whiten = Whitening.of(part)
    part = whiten(part).astype(np.float32)
    coefs, intercepts, complete = [], [], []
    for _ in range(STARTS):
        sample = part[some_rows(len(part), max(_TREE, 10 * k), rng)]
        tree = linkage(sample, "ward")
        labels = fcluster(tree, k, "maxclust") - 1
        if labels.max() + 1 < k:  # ties between the tree's heights
            labels = cut_tree(tree, k)[:, 0]
        logits = fit_tied(part, logits_of_labels(sample, labels, k))
        complete.append(bool((class_sizes(logits(part)) > 0).all()))
        coefs.append(whiten.matrix @ logits.coef)
        intercepts.append(logits.intercept - whiten.centre @ coefs[-1])
    return Mixtures(Linear(np.concatenate(coefs, axis=1), np.concatenate(intercepts)), k, complete)


def fit_tied(z: Floats, start: Linear | Floats, *, max_iter: int = 100) -> Linear:
    """EM of a tied Gaussian mixture from its logits or memberships; ``z`` must be whitened by its own moments."""
    share = _softmax(start.astype(z.dtype)(z)) if isinstance(start, Linear) else start
    for _ in range(max_iter):
        logits = _tied_logits(z, share)
        new = _softmax(logits(z))
        change, share = float(np.abs(new - share).sum(dtype=np.float64)) / (2 * len(z)), new
        if change < _CHANGE:
            break
    return logits


def some_rows(n: int, size: int, rng: np.random.Generator) -> Ints:
    """At most ``size`` of ``n`` rows, drawn at random, ascending."""
    return np.arange(n) if n <= size else np.sort(rng.choice(n, size, replace=False))


class Whitening(NamedTuple):
    """Linear map that makes the total covariance of its data the identity."""

    centre: Floats
    matrix: Floats

    @classmethod
    def of(cls, z: Floats) -> Whitening:
        """Measure mean and covariance of ``z``."""
        covariance = np.atleast_2d(np.cov(z.T, bias=True))
        ridge = 1e-4 * max(float(np.trace(covariance)) / len(covariance), 1e-12)
        lower = np.linalg.cholesky(covariance + ridge * np.eye(len(covariance)))
        return cls(z.mean(axis=0), np.linalg.inv(lower).T)

    def __call__(self, z: Floats) -> Floats:
        """Whiten ``z``."""
        return (z - self.centre) @ self.matrix


def logits_of_labels(z: Floats, labels: Ints, k: int) -> Linear:
    """Logits of normal classes with one covariance, from the class codes of whitened observations."""
    means = np.stack([z[labels == c].mean(axis=0) for c in range(k)])
    rest = z - means[labels]
    within = rest.T @ rest / len(z) + 1e-3 * np.eye(z.shape[1])
    return normal_logits(means, within, np.bincount(labels, minlength=k) / len(labels))
