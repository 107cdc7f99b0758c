"""Two groups of subjects: moderated t-tests whose scale comes from permuting the subjects."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, islice
from math import comb

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ._meta_analysis import signed_z, squeeze_variance, two_sided

Floats = NDArray[np.float64]

MIN_SUBJECTS = 3  # a side: with fewer, effects have an interval but no p-value
_MOST = 200  # permutations
_VALUES = 4_000_000  # permuted statistics in all
_CONSTANT = 1e-6  # of the median variance: less is rounding
_KNOTS = 4  # degree of the variance trend, at most


@dataclass(frozen=True)
class Difference:
    """Per feature: mean of each side, their difference with 95 % limits, normal score, p-value, subjects."""

    mean: Floats
    mean_reference: Floats
    effect: Floats
    low: Floats
    high: Floats
    score: Floats
    pvals: Floats
    n: NDArray[np.int64]
    n_reference: NDArray[np.int64]


def compare_subjects(values: Floats, group: NDArray[np.bool_], level: Floats | None, seed: int) -> Difference:
    """Compare two groups of subjects feature by feature.

    The variance of each feature is moderated by that of all others (Smyth 2004), around a trend over ``level``
    where there is one (Law et al. 2014). All permutations of the subjects (a random part where there are many) give
    the spread of the statistic without an effect; where it is above 1 the statistic is divided by it.

    - ``values``: Subjects x features; NaN where a subject lacks the feature.
    - ``group``: Which subjects are in the group; the others are the reference.
    - ``level``: Abundance of each feature.
    - ``seed``: Of the permutations, where there are too many for all of them.
    """
    known = np.isfinite(values)
    filled = np.where(known, values, 0.0)
    n1, n0, m1, m0, rest = _sums(filled, known, group[:, None])
    df = (n1 + n0 - 2).astype(float)
    usable = (n1 >= 1) & (n0 >= 1) & (df >= 1)
    variance = np.divide(rest, df, out=np.zeros_like(rest), where=usable)
    usable &= variance > _CONSTANT * np.median(variance[usable]) if usable.any() else usable
    trend = np.ones_like(variance)
    if level is not None and usable.sum() >= 10 * _KNOTS:
        trend = _trend(np.log(variance[usable]), level[usable], level)
    scale, prior = squeeze_variance((variance / trend)[usable], df[usable])
    tested = usable & (n1 >= MIN_SUBJECTS) & (n0 >= MIN_SUBJECTS)
    spread = max(1.0, _null_spread(filled, known, group, tested, trend * scale, prior, seed))

    error = spread * np.sqrt(_moderated(variance, df, trend * scale, prior) * (1 / n1.clip(1) + 1 / n0.clip(1)))
    total = np.minimum(df + prior, 1e6)
    effect = np.where((n1 > 0) & (n0 > 0), m1 - m0, np.nan)
    statistic = np.divide(effect, error, out=np.zeros_like(error), where=tested & (error > 0))
    width = np.where(usable, stats.t.ppf(0.975, np.maximum(total, 1)) * error, np.nan)
    return Difference(
        np.where(n1 > 0, m1, np.nan), np.where(n0 > 0, m0, np.nan), effect, effect - width, effect + width,
        np.where(tested, signed_z(statistic, np.maximum(total, 1)), np.nan),
        np.where(tested, two_sided(statistic, np.maximum(total, 1)), np.nan),
        n1.astype(np.int64), n0.astype(np.int64),
    )  # fmt: skip


def _sums(filled: Floats, known: NDArray[np.bool_], group: NDArray[np.bool_]) -> tuple[Floats, ...]:
    """Counts, means and residual sum of squares of the two sides for one split, (n_features,) each."""
    one, two = known & group, known & ~group
    n1, n0 = one.sum(axis=0), two.sum(axis=0)
    m1 = (filled * one).sum(axis=0) / np.maximum(n1, 1)
    m0 = (filled * two).sum(axis=0) / np.maximum(n0, 1)
    rest = (one * (filled - m1) ** 2 + two * (filled - m0) ** 2).sum(axis=0)
    return n1, n0, m1, m0, rest


def _moderated(variance: Floats, df: Floats, expected: Floats, prior: float) -> Floats:
    if np.isinf(prior):
        return expected
    return (prior * expected + df * variance) / np.maximum(prior + df, 1e-12)


def _trend(log_variance: Floats, level: Floats, at: Floats) -> Floats:
    """Variance expected at each level: a polynomial in the rank of the level, fitted to log variances."""
    order = np.sort(level)
    rank = np.searchsorted(order, level) / len(order)
    fit = np.polynomial.Polynomial.fit(rank, log_variance, _KNOTS, domain=[0, 1])
    return np.exp(fit(np.searchsorted(order, at) / len(order)) - log_variance.mean())


def _null_spread(
    filled: Floats,
    known: NDArray[np.bool_],
    group: NDArray[np.bool_],
    tested: NDArray[np.bool_],
    expected: Floats,
    prior: float,
    seed: int,
) -> float:
    """Root mean square of the normal scores under permutations that mix the groups."""
    if not tested.any():
        return 1.0
    filled, known, expected = filled[:, tested], known[:, tested], expected[tested]
    squares = count = 0.0
    for other in _permutations(group, max(20, _VALUES // filled.shape[1]), seed):
        n1, n0, m1, m0, rest = _sums(filled, known, other[:, None])
        df = (n1 + n0 - 2).astype(float)
        split = (n1 >= 2) & (n0 >= 2)
        error = np.sqrt(_moderated(rest / df, df, expected, prior) * (1 / n1.clip(1) + 1 / n0.clip(1)))
        statistic = np.divide(m1 - m0, error, out=np.zeros_like(error), where=split & (error > 0))
        score = signed_z(statistic, np.minimum(df + prior, 1e6))[split]
        squares, count = squares + float((score**2).sum()), count + len(score)
    return float(np.sqrt(squares / count)) if count else 1.0


def _permutations(group: NDArray[np.bool_], most: int, seed: int) -> Iterator[NDArray[np.bool_]]:
    """Yield splits as large as ``group``'s, other than it and its mirror image: all, or random ones."""
    n, k = len(group), int(group.sum())
    most = min(most, _MOST)
    if comb(n, k) <= most:
        found: Iterator[NDArray[np.int64]] = (np.array(c, dtype=np.int64) for c in combinations(range(n), k))
    else:
        rng = np.random.default_rng(seed)
        found = (rng.permutation(n)[:k] for _ in iter(int, 1))
    for chosen in islice(found, most):
        other = np.zeros(n, dtype=bool)
        other[chosen] = True
        if not np.array_equal(other, group) and not np.array_equal(~other, group):
            yield other
