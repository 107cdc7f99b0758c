"""The ensemble's linear member: classifiers and regressions of neighbourhood means and gene scores."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import PredefinedSplit

from stxtools._spatial.blocks import assign_parts
from stxtools._spatial.points import evenly_spread
from stxtools._types import Bools, Floats, Floats32, Ints
from stxtools._warn import warn

from .discriminant import Linear, class_shrinkage, shrinkage_lda

_PAIRS = ((7, 19), (19, 61), (37, 127))
_INVERSE_PENALTY = 1e-2  # of the logistic regression
_FOLDS = 4
_ROWS = 8000  # observations of a fit; more add time, not accuracy
_ABSENT = -12.0  # logit of a class without labels
_TOLERANCE = 1e-6  # largest gradient
_STEPS = 2000  # most problems take some 200


@dataclass(frozen=True)
class LinearInput:
    """Input features of the linear member."""

    z: Floats32  # standardised, (n, d): blocks of neighbourhood means of the representation, then gene scores
    sizes: Sequence[int]  # neighbourhood size of each block
    width: int  # columns of each block
    unit: float  # scale by which the gene scores were divided
    group: Ints  # block or section of each observation, never split between folds, (n,)

    @property
    def genes(self) -> slice:
        """Columns of the gene scores."""
        return slice(self.width * len(self.sizes), self.z.shape[1])

    def pairs(self) -> list[Ints]:
        """Columns of each pair of neighbourhood sizes; all blocks together if there is no complete pair."""
        block = {size: np.arange(i * self.width, (i + 1) * self.width) for i, size in enumerate(self.sizes)}
        pairs = [np.concatenate([block[a], block[b]]) for a, b in _PAIRS if a in block and b in block]
        return pairs or [np.arange(self.width * len(self.sizes))]


def linear_classifier(inp: LinearInput, codes: Ints, n_classes: int) -> Linear:
    """Mean of a discriminant analysis and a ridge logistic regression of class ``codes`` (-1 unlabelled)."""
    rows = sampled(np.flatnonzero(codes >= 0))
    seen = np.bincount(codes[rows], minlength=n_classes) > 0
    local = (np.cumsum(seen) - 1)[codes[rows]]  # among the classes that have labels
    members = [_discriminant(inp, rows, local)]
    if inp.genes.start < inp.genes.stop:
        members.append(_logistic(inp, rows, local))
    coef, intercept = np.zeros((inp.z.shape[1], n_classes)), np.full(n_classes, _ABSENT)
    coef[:, seen] = np.mean([m.coef for m in members], axis=0)
    intercept[seen] = np.mean([m.intercept for m in members], axis=0)
    return Linear(coef, intercept)


def linear_regression(inp: LinearInput, values: Floats, known: Bools, rng: np.random.Generator) -> Linear:
    """Ridge regression of ``values`` (n, G), with its penalty cross-validated over groups."""
    rows = sampled(np.flatnonzero(known))
    folds = PredefinedSplit(deal_folds(inp.group[rows], rng))
    several = folds.get_n_splits() > 1
    penalties = [10.0, 100.0, 1000.0, 10000.0] if several else [100.0]
    model = RidgeCV(penalties, cv=folds if several else None, scoring="neg_mean_squared_error")
    fitted = model.fit(inp.z[rows].astype(np.float64), values[rows])
    coef = np.asarray(fitted.coef_, dtype=np.float64).reshape(values.shape[1], -1).T
    return Linear(coef, np.asarray(fitted.intercept_, dtype=np.float64).reshape(-1))


def deal_folds(group: Ints, rng: np.random.Generator) -> Ints:
    """Assign whole groups to folds at random; the fold of each observation."""
    names, codes = np.unique(group, return_inverse=True)
    return assign_parts(codes.reshape(-1), min(_FOLDS, len(names)), rng)


def _discriminant(inp: LinearInput, rows: Ints, codes: Ints) -> Linear:
    """Mean of the shrinkage discriminant analyses of the pairs of sizes; ``codes`` are those of ``rows``."""
    share = np.eye(int(codes.max()) + 1)[codes]
    coef, intercept = np.zeros((inp.z.shape[1], share.shape[1])), np.zeros(share.shape[1])
    pairs = inp.pairs()
    for columns in pairs:
        z = inp.z[np.ix_(rows, columns)].astype(np.float64)
        lda = shrinkage_lda(z, share, np.ones(len(rows)), class_shrinkage(z, codes, share.shape[1]))
        coef[columns] += lda.coef / len(pairs)
        intercept += lda.intercept / len(pairs)
    return _centred(Linear(coef, intercept))


def _logistic(inp: LinearInput, rows: Ints, codes: Ints) -> Linear:
    """Ridge logistic regression of the gene scores."""
    u = inp.z[rows, inp.genes].astype(np.float64) * inp.unit
    fitted = ridge_logistic(u, codes, int(codes.max()) + 1, _INVERSE_PENALTY)
    coef = np.zeros((inp.z.shape[1], fitted.coef.shape[1]))
    coef[inp.genes] = fitted.coef * inp.unit
    return _centred(Linear(coef, fitted.intercept))


def ridge_logistic(u: Floats, codes: Ints, n_classes: int, c: float) -> Linear:
    """Ridge logistic regression with scikit-learn's inverse penalty ``c``."""
    unit = max(float(u.std(axis=0).max()), 1e-6)  # in units of it the intercept moves as fast as the coefficients
    model = LogisticRegression(C=c * unit**2, tol=_TOLERANCE, max_iter=_STEPS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(u / unit, codes)
    if model.n_iter_.max() >= _STEPS:
        warn(
            f"The linear classifier of the ensemble has not converged after {_STEPS} steps: check the expression for "
            "extreme values.",
        )
    coef, intercept = model.coef_.T / unit, model.intercept_
    if n_classes == 2:  # scikit-learn gives the log odds of the second class alone
        coef, intercept = coef * [-0.5, 0.5], intercept * [-0.5, 0.5]
    return Linear(coef, intercept)


def sampled(rows: Ints) -> Ints:
    """At most 8,000 of the rows, evenly spread."""
    return rows[evenly_spread(len(rows), _ROWS)]


def _centred(fitted: Linear) -> Linear:
    """Logits with a mean of 0 over the classes."""
    return Linear(fitted.coef - fitted.coef.mean(axis=1, keepdims=True), fitted.intercept - fitted.intercept.mean())
