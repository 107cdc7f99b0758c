"""Adaptation to a section: its own components, co-trained with what is known of its classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax

from stxtools._spatial.order import evenly_spread

from .discriminant import ShrinkageLDA

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

ROUNDS = 6
_SHRINKAGE = 0.1
_MOST = 60_000  # observations that are learned from
_LEAST_WEIGHT = 1e-3


def cotrained(
    logits: FloatArray, views: Sequence[FloatArray], labels: IntArray | None = None, *, prior: float = 1.0
) -> FloatArray:
    """Logits of all observations once the section's own ``views`` have learned from the ``logits`` given, and agreed.

    In each round every view's discriminant analysis is fitted to the class shares (co-training; Blum and Mitchell
    1998), weighted by how far the largest exceeds a half; the shares are then those of the views' mean log
    probabilities plus ``prior`` times the logits given. Labels (-1 none) together weigh as much as the others.
    """
    n, k = logits.shape
    rows = evenly_spread(n, _MOST)
    if labels is not None:
        rows = np.union1d(rows, np.flatnonzero(labels >= 0))
    known = np.zeros(len(rows), dtype=bool) if labels is None else labels[rows] >= 0
    one_hot = None if labels is None else np.eye(k)[labels[rows][known]]
    share = softmax(logits[rows], axis=1)
    fitted: list[ShrinkageLDA] = []
    for _ in range(ROUNDS):
        weight = np.clip(2 * share.max(axis=1) - 1, 0, 1) + _LEAST_WEIGHT
        if one_hot is not None:
            share[known] = one_hot
            weight[known] = max(float(weight[~known].sum()) / max(int(known.sum()), 1), 1.0)
        fitted = [ShrinkageLDA().fit(z[rows], share, weight, _SHRINKAGE) for z in views]
        share = softmax(_agreed(fitted, views, rows) + prior * logits[rows], axis=1)
    return log_softmax(_agreed(fitted, views, np.arange(n)) + prior * logits, axis=1)


def _agreed(fitted: Sequence[ShrinkageLDA], views: Sequence[FloatArray], rows: IntArray) -> FloatArray:
    logs = [np.log(lda.predict_proba(z[rows]).clip(1e-6)) for lda, z in zip(fitted, views, strict=True)]
    return np.mean(logs, axis=0)


def same_class(one: FloatArray, other: FloatArray) -> float:
    """Share of the observations that two logits put into the same class."""
    return float((one.argmax(axis=1) == other.argmax(axis=1)).mean())
