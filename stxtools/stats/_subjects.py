"""Groups of subjects and trends over them: moderated t-tests whose scale comes from permuting the subjects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, product
from math import factorial, prod
from typing import Any

import numpy as np
from scipy import stats

from stxtools._types import Array, Bools, Floats, Ints

from ._meta_analysis import posterior_variance, signed_z, squeeze_variance, t_pvals

Found = dict[str, Array]  # columns of a table of features

MIN_SUBJECTS = 3  # a side: with fewer, effects have an interval but no p-value
_MOST = 200  # permutations
_VALUES = 4_000_000  # permuted statistics in all
_CONSTANT = 1e-6  # of the median variance: less is rounding
_ROUNDING = 1e-10  # of the largest value: less deviation is rounding
_EXACT = 50  # subjects, at most, whose orders are all counted
_KNOTS = 4  # degree of the variance trend, at most


def compare_subjects(values: Floats, group: Bools, level: Floats | None, seed: int, *, paired: bool = False) -> Found:
    """Compare two groups of subjects (rows) feature by feature: :func:`regress_subjects` on a column of 0 and 1.

    ``paired``: the subjects of the group's condition are those of the reference's, in the same order.
    """
    one, two = values[group], values[~group]
    if paired:
        alone, all_of_them = ~np.isfinite(one - two), np.ones(len(one), dtype=bool)
        found = regress_subjects(one - two, np.ones(len(one)), (all_of_them,), level, seed, paired=True)
        one, two = np.where(alone, np.nan, one), np.where(alone, np.nan, two)
    else:
        found = regress_subjects(values, group.astype(float), (group, ~group), level, seed)
    sides = {"group": one, "reference": two}
    n = {f"n_{name}": np.isfinite(side).sum(axis=0) for name, side in sides.items()}
    for name, side in sides.items():
        total, k = np.where(np.isfinite(side), side, 0.0).sum(axis=0), n[f"n_{name}"]
        found[f"mean_{name}"] = np.where(k > 0, total / np.maximum(k, 1), np.nan)
    return found | n


def regress_subjects(
    values: Floats, x: Floats, sides: Sequence[Bools], level: Floats | None, seed: int, *, paired: bool = False
) -> Found:
    """Regress every feature on a number that each subject has: slope, 95 % limits, normal score, p-value.

    The variance of each feature is moderated by that of all others (Smyth 2004), around a trend over ``level``
    where there is one (Law et al. 2014). All permutations of the subjects (a random part where there are many) give
    the spread of the statistic without an effect; where it is above 1 the statistic is divided by it.

    - ``values``: Subjects x features; NaN where a subject lacks the feature.
    - ``sides``: Subjects at either end of ``x``; p-values need :data:`MIN_SUBJECTS` of both.
    - ``paired``: Values are differences: the line goes through 0, and signs are flipped, not subjects permuted.
    """
    known = np.isfinite(values)
    filled = np.where(known, values, 0.0)
    n, sxx, slope, rest, _ = _fit(filled, known, x, paired)
    df = (n - 2 + paired).astype(float)
    usable = (sxx > 0) & (df >= 1)
    variance = np.divide(rest, df, out=np.zeros_like(rest), where=usable)
    least = (_ROUNDING * np.abs(filled).max(initial=0.0)) ** 2
    usable &= variance > max(_CONSTANT * np.median(variance[usable]), least) if usable.any() else usable
    trend = np.ones_like(variance)
    if level is not None and usable.sum() >= 10 * _KNOTS:
        order, log_variance = np.sort(level[usable]), np.log(variance[usable])
        rank, at = (np.searchsorted(order, x) / len(order) for x in (level[usable], level))
        fit = np.polynomial.Polynomial.fit(rank, log_variance, _KNOTS, domain=[0, 1])
        trend = np.exp(fit(at) - log_variance.mean())
    scale, prior = squeeze_variance((variance / trend)[usable], df[usable])
    tested = usable & np.all([known[side].sum(axis=0) >= MIN_SUBJECTS for side in sides], axis=0)
    spread = max(1.0, _null_spread(filled, known, x, tested, trend * scale, prior, seed, paired))

    error = spread * np.sqrt(posterior_variance(variance, df, trend * scale, prior) / np.where(sxx > 0, sxx, 1.0))
    total = np.clip(df + prior, 1.0, 1e6)
    effect = np.where(sxx > 0, slope, np.nan)
    statistic = np.divide(effect, error, out=np.zeros_like(error), where=tested & (error > 0))
    width = np.where(usable, stats.t.ppf(0.975, total) * error, np.nan)
    return {
        "effect": effect, "ci_low": effect - width, "ci_high": effect + width,
        "scores": np.where(tested, signed_z(statistic, total), np.nan),
        "pvals": np.where(tested, t_pvals(statistic, total), np.nan),
    }  # fmt: skip


def _fit(filled: Floats, known: Bools, x: Floats, paired: bool) -> tuple[Ints, Floats, Floats, Floats, Bools]:
    """Least squares by feature: subjects, squares of ``x``, slope, residual sum, whether it fits without any one."""
    n = known.sum(axis=0)
    middle = 0.0 if paired else x @ known / np.maximum(n, 1)
    off = known * (x[:, None] - middle)
    sxx = (off**2).sum(axis=0)
    safe = np.where(sxx > 0, sxx, 1.0)
    slope = (off * filled).sum(axis=0) / safe
    height = 0.0 if paired else filled.sum(axis=0) / np.maximum(n, 1)
    rest = (known * (filled - height - slope * off) ** 2).sum(axis=0)
    leverage = (not paired) / np.maximum(n, 1) + (off**2).max(axis=0) / safe
    return n, sxx, slope, rest, (sxx > 0) & (leverage < 1 - 1e-9)


def _null_spread(
    filled: Floats, known: Bools, x: Floats, tested: Bools, expected: Floats, prior: float, seed: int, paired: bool
) -> float:
    """Root mean square of the normal scores under permutations that mix the subjects, or flips of signs."""
    if not tested.any():
        return 1.0
    filled, known, expected = filled[:, tested], known[:, tested], expected[tested]
    squares = count = 0.0
    most = min(max(20, _VALUES // filled.shape[1]), _MOST)
    for other in _flips(len(x), most, seed) if paired else _permutations(x, most, seed):
        n, sxx, slope, rest, fits = _fit(filled, known, other, paired)
        df = (n - 2 + paired).astype(float)
        error = np.sqrt(posterior_variance(rest / df, df, expected, prior) / np.where(sxx > 0, sxx, 1.0))
        statistic = np.divide(slope, error, out=np.zeros_like(error), where=fits & (error > 0))
        score = signed_z(statistic, np.minimum(df + prior, 1e6))[fits]
        squares, count = squares + float((score**2).sum()), count + len(score)
    return float(np.sqrt(squares / count)) if count else 1.0


def _permutations(x: Floats, most: int, seed: int) -> Iterator[Floats]:
    """Yield arrangements of ``x`` over the subjects, other than it and its mirror image: all, or random ones."""
    values, counts = np.unique(x, return_counts=True)
    ways = factorial(len(x)) // prod(factorial(int(c)) for c in counts)
    if ways <= most:
        found = _arrangements(values[::-1], counts[::-1], np.arange(len(x)), np.empty(len(x)))
    else:
        ordered, rng = np.sort(x)[::-1], np.random.default_rng(seed)
        found = (ordered[np.argsort(rng.permutation(len(x)))] for _ in range(most))
    centred = x - x.mean()
    for other in found:
        if abs((other - x.mean()) @ centred) < (1 - 1e-9) * (centred @ centred):
            yield other


def _flips(n: int, most: int, seed: int) -> Iterator[Floats]:
    """Yield signs of the pairs, up to a common one and other than all equal: all, or random ones."""
    if 2 ** (n - 1) <= most:
        found: Iterator[Any] = product((1.0,), *[(1.0, -1.0)] * (n - 1))
    else:
        rng = np.random.default_rng(seed)
        found = (rng.choice((-1.0, 1.0), n) for _ in range(most))
    for signs in found:
        if abs(sum(signs)) < n:
            yield np.array(signs)


def _arrangements(values: Floats, counts: Ints, free: Ints, out: Floats) -> Iterator[Floats]:
    """Yield every way to give each value to so many of the ``free`` subjects."""
    if len(values) == 1:
        out[free] = values[0]
        yield out.copy()
        return
    for chosen in combinations(free.tolist(), int(counts[0])):
        out[list(chosen)] = values[0]
        yield from _arrangements(values[1:], counts[1:], np.setdiff1d(free, chosen), out)


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


def _pvals(statistic: Floats, sizes: Ints) -> Floats:
    n = int(sizes.sum())
    most = (n**2 - int((sizes**2).sum())) // 2
    extreme = np.abs(statistic - most / 2)
    if n > _EXACT:
        variance = (n**2 * (2 * n + 3) - (sizes**2 * (2 * sizes + 3)).sum()) / 72
        return np.clip(2 * stats.norm.sf(np.maximum(extreme - 0.5, 0) / np.sqrt(variance)), 0, 1)
    upper = np.cumsum(_null(sizes)[::-1])[::-1]  # of a statistic of at least 0, 1, ...
    return np.minimum(2 * upper[np.floor(most / 2 + extreme).astype(np.int64)], 1.0)


def _null(sizes: Ints) -> Floats:
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
