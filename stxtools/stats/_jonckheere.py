"""Order alone: the test of Jonckheere (1954) and Terpstra (1952), exact where subjects are few."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]

_EXACT = 50  # subjects, at most


def jonckheere(values: Floats, x: Floats) -> Floats:
    """Two-sided p-values of every feature against no order over ``x``; NaN without two different ``x``.

    All permutations of the subjects are counted; above 50 subjects the statistic is taken as normal. Equal values count
    a half, rounded towards no order. NaN: a subject lacks the feature.
    """
    out = np.full(values.shape[1], np.nan)
    patterns, which = np.unique(np.isfinite(values), axis=1, return_inverse=True)
    for i, known in enumerate(patterns.T):
        here = np.flatnonzero(which.ravel() == i)
        sizes = np.unique(x[known], return_counts=True)[1]
        if len(sizes) >= 2:
            out[here] = _pvals(_statistic(values[np.ix_(known, here)], x[known]), sizes)
    return out


def _statistic(values: Floats, x: Floats) -> Floats:
    """Pairs of subjects in which the one with the larger ``x`` has the larger value."""
    total = np.zeros(values.shape[1])
    for i, one in enumerate(x):
        later = values[x > one]
        total += (later > values[i]).sum(axis=0) + 0.5 * (later == values[i]).sum(axis=0)
    return total


def _pvals(statistic: Floats, sizes: NDArray[np.int64]) -> Floats:
    n = int(sizes.sum())
    most = (n**2 - int((sizes**2).sum())) // 2
    extreme = np.abs(statistic - most / 2)
    if n > _EXACT:
        variance = (n**2 * (2 * n + 3) - (sizes**2 * (2 * sizes + 3)).sum()) / 72
        return np.clip(2 * stats.norm.sf(np.maximum(extreme - 0.5, 0) / np.sqrt(variance)), 0, 1)
    upper = np.cumsum(_null(sizes)[::-1])[::-1]  # of a statistic of at least 0, 1, ...
    return np.minimum(2 * upper[np.floor(most / 2 + extreme).astype(np.int64)], 1.0)


def _null(sizes: NDArray[np.int64]) -> Floats:
    """Probability of 0, 1, ... ordered pairs: the coefficients of a Gaussian multinomial, in whole numbers."""
    n = int(sizes.sum())
    ways = np.zeros((n**2 - int((sizes**2).sum())) // 2 + 1, dtype=object)
    ways[0] = 1
    for i in range(1, n + 1):  # times 1 - q^i
        ways[i:] -= ways[: len(ways) - i].copy() if i < len(ways) else 0
    for size in sizes:
        for i in range(1, int(size) + 1):  # over 1 - q^i
            for start in range(i, len(ways), i):
                ways[start : start + i] += ways[start - i : start - i + len(ways[start : start + i])]
    total = sum(ways.tolist())
    return np.array([float(w / total) for w in ways.tolist()])
