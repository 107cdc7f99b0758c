"""The ensemble's linear member: classifiers and regressions of neighbourhood means, in closed form or convex.

A network that learns from a few labelled blocks varies from one seed to the next; these do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax
from sklearn.linear_model import Ridge

from .discriminant import ShrinkageLDA, class_shrinkage
from .logistic import ridge_logistic

FloatArray = NDArray[np.float64]

PAIRS = ((7, 19), (19, 61), (37, 127))
SHARE, PENALTY = 0.5, 1e-2  # of the ridge, against the discriminant analysis; its inverse strength
PENALTIES = (1e-6, 1e-5, 1e-4, 1e-3)
INVERSE_TEMPERATURES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
_FOLDS = 4
_ROWS = 8000  # observations that a fit uses; more add time, not accuracy
_ABSENT = -12.0  # logit of a class without labels


@dataclass(frozen=True)
class Linear:
    """Logits (or values) z @ coef + intercept; coef (d, K), intercept (K,)."""

    coef: FloatArray
    intercept: FloatArray

    def __call__(self, z: NDArray[np.floating]) -> FloatArray:
        """Logits of observations (n, d), (n, K)."""
        return z @ self.coef + self.intercept

    def scaled(self, inverse_temperature: float) -> Linear:
        """The same order of observations, the logits so many times as far from the intercept."""
        return Linear(self.coef * inverse_temperature, self.intercept)

    def mixed(self, other: Linear, share: float) -> Linear:
        """``share`` of ``other`` and the rest of this one."""
        coef = (1 - share) * self.coef + share * other.coef
        return Linear(coef, (1 - share) * self.intercept + share * other.intercept)


@dataclass(frozen=True)
class LinearInput:
    """Input features of the linear member."""

    # standardised features of the observations: neighbourhood means of the representation, a block of columns for
    # each size, then the scores of the smoothed genes, (n, d)
    z: NDArray[np.float32]
    sizes: Sequence[int]  # neighbourhood size of each block
    width: int  # columns of each block
    unit: float  # scale by which the gene scores were divided
    group: NDArray[np.int64]  # block or section of each observation: never split between learning and judging, (n,)
    whole: bool = False  # whether groups are whole sections

    @property
    def genes(self) -> slice:
        """Columns of the gene scores."""
        return slice(self.width * len(self.sizes), self.z.shape[1])

    def pairs(self) -> list[NDArray[np.int64]]:
        """Columns of the pairs of neighbourhood sizes; all blocks where a size of theirs is missing."""
        at = {size: np.arange(i * self.width, (i + 1) * self.width) for i, size in enumerate(self.sizes)}
        found = [np.concatenate([at[a], at[b]]) for a, b in PAIRS if a in at and b in at]
        return found or [np.arange(self.width * len(self.sizes))]


def linear_classifier(inp: LinearInput, codes: NDArray[np.int64], n_classes: int, rng: np.random.Generator) -> Linear:
    """Fit the classifier to class ``codes`` (-1 unlabelled): discriminant analysis and ridge regression together.

    Within sections they count alike and the penalty is fixed: on seven sections, choosing them by cross-validation over
    blocks lost accuracy. Across sections the ridge stands alone, for components may separate donors rather than
    tissue. It needs a far stronger penalty there, which makes its logits small: penalty and inverse temperature are
    those with the lowest cross-entropy on held-out sections.
    """
    known = np.flatnonzero(codes >= 0)
    has_genes = inp.genes.start < inp.genes.stop
    if inp.whole and has_genes:
        penalty, inverse_temperature = _chosen(inp, codes, known, n_classes, rng)
        return _logistic(inp, codes, known, n_classes, penalty).scaled(inverse_temperature)
    linear = _discriminant(inp, codes, known, n_classes)
    return linear.mixed(_logistic(inp, codes, known, n_classes, PENALTY), SHARE) if has_genes else linear


def _chosen(
    inp: LinearInput, codes: NDArray[np.int64], known: NDArray[np.int64], n_classes: int, rng: np.random.Generator
) -> tuple[float, float]:
    """Penalty of the ridge and inverse temperature of its logits: lowest cross-entropy on held-out sections."""
    fold = deal_folds(inp.group[known], rng)
    lost: dict[tuple[float, float], float] = {}
    for k in range(int(fold.max()) + 1):
        seen, left = known[fold != k], known[fold == k]
        if len(np.unique(codes[seen])) < 2:
            continue
        for penalty in PENALTIES:
            ridge = _logistic(inp, codes, seen, n_classes, penalty)
            for scale in INVERSE_TEMPERATURES:
                loss = _cross_entropy(ridge.scaled(scale)(inp.z[left]), codes[left])
                lost[penalty, scale] = lost.get((penalty, scale), 0.0) + loss
    return min(lost, key=lambda at: lost[at]) if lost else (PENALTIES[1], 1.0)


def linear_regression(
    inp: LinearInput, values: FloatArray, known: NDArray[np.bool_], rng: np.random.Generator
) -> Linear:
    """Ridge regression of ``values`` (n, G), its penalty chosen on held-out groups."""
    rows = np.flatnonzero(known)
    fold = deal_folds(inp.group[rows], rng)
    best: tuple[float, float] = (np.inf, 100.0)
    for penalty in (10.0, 100.0, 1000.0, 10000.0):
        error = 0.0
        for k in range(int(fold.max()) + 1):
            seen, left = rows[fold != k], rows[fold == k]
            if len(seen) > 1:
                seen = sampled(seen)
                fitted = Ridge(penalty).fit(inp.z[seen].astype(np.float64), values[seen])
                error += float(np.square(fitted.predict(inp.z[left]).reshape(len(left), -1) - values[left]).sum())
        best = min(best, (error, penalty))
    rows = sampled(rows)
    fitted = Ridge(best[1]).fit(inp.z[rows].astype(np.float64), values[rows])
    coef = np.asarray(fitted.coef_, dtype=np.float64).reshape(values.shape[1], -1).T
    return Linear(coef, np.asarray(fitted.intercept_, dtype=np.float64).reshape(-1))


def deal_folds(group: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Fold of each observation; whole groups, dealt out at random."""
    names, at = np.unique(group, return_inverse=True)
    dealt = np.empty(len(names), dtype=np.int64)
    dealt[rng.permutation(len(names))] = np.arange(len(names)) % min(_FOLDS, len(names))
    return dealt[at.reshape(-1)]


def _discriminant(inp: LinearInput, codes: NDArray[np.int64], rows: NDArray[np.int64], n_classes: int) -> Linear:
    """Mean of the shrinkage discriminant analyses of the pairs of scales."""
    rows = sampled(rows)
    coef, intercept = np.zeros((inp.z.shape[1], n_classes)), np.zeros(n_classes)
    seen = np.bincount(codes[rows], minlength=n_classes) > 0
    share = np.eye(n_classes)[codes[rows]][:, seen]
    local = (np.cumsum(seen) - 1)[codes[rows]]
    pairs = inp.pairs()
    for columns in pairs:
        z = inp.z[np.ix_(rows, columns)].astype(np.float64)
        shrinkage = class_shrinkage(z, local, int(seen.sum()))
        lda = ShrinkageLDA().fit(z, share, np.ones(len(rows)), shrinkage)
        coef[np.ix_(columns, seen)] += lda.coef_ / len(pairs)
        intercept[seen] += lda.intercept_ / len(pairs)
    return _absent(coef, intercept, seen)


def _logistic(inp: LinearInput, codes: NDArray[np.int64], rows: NDArray[np.int64], n_classes: int, c: float) -> Linear:
    """Ridge logistic regression of the gene scores."""
    rows = sampled(rows)
    coef, intercept = np.zeros((inp.z.shape[1], n_classes)), np.zeros(n_classes)
    seen = np.bincount(codes[rows], minlength=n_classes) > 0
    u = inp.z[rows, inp.genes].astype(np.float64) * inp.unit
    local = (np.cumsum(seen) - 1)[codes[rows]]
    found, offset = ridge_logistic(u, local, int(seen.sum()), c)
    coef[np.ix_(np.arange(inp.genes.start, inp.genes.stop), np.flatnonzero(seen))] = found * inp.unit
    intercept[seen] = offset
    return _absent(coef, intercept, seen)


def sampled(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """At most ``_ROWS`` of the rows, evenly spread."""
    if len(rows) <= _ROWS:
        return rows
    return rows[np.linspace(0, len(rows) - 1, _ROWS).astype(np.int64)]


def _absent(coef: FloatArray, intercept: FloatArray, seen: NDArray[np.bool_]) -> Linear:
    """Bring logits to a mean of 0 over the classes that were seen, and put the others far below."""
    coef[:, seen] -= coef[:, seen].mean(axis=1, keepdims=True)
    intercept[seen] -= intercept[seen].mean()
    intercept[~seen] = _ABSENT
    return Linear(coef, intercept)


def _cross_entropy(logits: FloatArray, truth: NDArray[np.int64]) -> float:
    return -float(log_softmax(logits, axis=1)[np.arange(len(truth)), truth].mean())
