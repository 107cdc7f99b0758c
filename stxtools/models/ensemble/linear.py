"""The ensemble's linear member: classifiers and regressions of neighbourhood means, in closed form or convex.

A network that learns from a few labelled blocks varies from one seed to the next; these do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import Ridge

from .discriminant import ShrinkageLDA, class_shrinkage
from .logistic import ridge_logistic

FloatArray = NDArray[np.float64]

PAIRS = ((7, 19), (19, 61), (37, 127))
SHARE, PENALTY = 0.5, 1e-2  # of the ridge, against the discriminant analysis; its inverse strength
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

    @property
    def genes(self) -> slice:
        """Columns of the gene scores."""
        return slice(self.width * len(self.sizes), self.z.shape[1])

    def pairs(self) -> list[NDArray[np.int64]]:
        """Columns of the pairs of neighbourhood sizes; all blocks where a size of theirs is missing."""
        at = {size: np.arange(i * self.width, (i + 1) * self.width) for i, size in enumerate(self.sizes)}
        found = [np.concatenate([at[a], at[b]]) for a, b in PAIRS if a in at and b in at]
        return found or [np.arange(self.width * len(self.sizes))]


def linear_classifier(inp: LinearInput, codes: NDArray[np.int64], n_classes: int) -> Linear:
    """Fit the classifier to class ``codes`` (-1 unlabelled): discriminant analysis and ridge regression together.

    They count alike and the penalty is fixed: on seven sections, choosing them by cross-validation over blocks lost
    accuracy.
    """
    known = np.flatnonzero(codes >= 0)
    linear = _discriminant(inp, codes, known, n_classes)
    if inp.genes.start == inp.genes.stop:
        return linear
    return linear.mixed(_logistic(inp, codes, known, n_classes), SHARE)


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


def _logistic(inp: LinearInput, codes: NDArray[np.int64], rows: NDArray[np.int64], n_classes: int) -> Linear:
    """Ridge logistic regression of the gene scores."""
    rows = sampled(rows)
    coef, intercept = np.zeros((inp.z.shape[1], n_classes)), np.zeros(n_classes)
    seen = np.bincount(codes[rows], minlength=n_classes) > 0
    u = inp.z[rows, inp.genes].astype(np.float64) * inp.unit
    local = (np.cumsum(seen) - 1)[codes[rows]]
    found, offset = ridge_logistic(u, local, int(seen.sum()), PENALTY)
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
