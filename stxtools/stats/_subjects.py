"""Groups of subjects and trends over them: moderated t-tests whose scale comes from permuting the subjects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, product
from math import factorial, prod
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from stxtools._types import Array, Bools, Floats, Ints

from ._meta_analysis import posterior_variance, signed_z, squeeze_variance, t_pvals

Columns = dict[str, Array]  # of a table of features

MIN_SUBJECTS = 3  # a side: with fewer, effects have an interval but no p-value
_MAX_PERMUTATIONS = 200
_MAX_STATISTICS = 4_000_000  # over all permutations
_CONSTANT = 1e-6  # of the median variance: less is rounding
_ROUNDING = 1e-10  # of the largest value: less deviation is rounding
_MAX_EXACT = 50  # subjects whose permutations are all counted
_DEGREE = 4  # of the polynomial trend of the variance
_MIN_TREND = 5  # features for a trend, linear if they are few


def compare_subjects(values: Floats, group: Bools, level: Floats | None, seed: int, *, paired: bool = False) -> Columns:
    """Compare two groups of subjects (rows) feature by feature: :func:`regress_subjects` on a column of 0 and 1.

    ``paired``: the subjects of the group's condition are those of the reference's, in the same order.
    """
    sides = {"group": values[group], "reference": values[~group]}
    if paired:
        difference = sides["group"] - sides["reference"]
        ones = np.ones(len(difference))
        out = regress_subjects(difference, ones, (ones > 0,), level, seed, paired=True)
        sides = {name: np.where(np.isfinite(difference), side, np.nan) for name, side in sides.items()}
    else:
        out = regress_subjects(values, group.astype(float), (group, ~group), level, seed)
    n = {f"n_{name}": np.isfinite(side).sum(axis=0) for name, side in sides.items()}
    for name, side in sides.items():
        total, k = np.where(np.isfinite(side), side, 0.0).sum(axis=0), n[f"n_{name}"]
        out[f"mean_{name}"] = np.where(k > 0, total / np.maximum(k, 1), np.nan)
    return out | n


def regress_subjects(
    values: Floats, x: Floats, sides: Sequence[Bools], level: Floats | None, seed: int, *, paired: bool = False
) -> Columns:
    """Regress every feature on a number per subject: slope, 95 % limits, normal score, p-value.

    The variance of each feature is moderated by that of all others (Smyth 2004), less if they are few (Morris 1983),
    around a trend over ``level`` if given (Law et al. 2014). All permutations of the subjects (a random sample where
    there are many) give the null spread of the statistic, which is divided by it where it is above 1.

    - ``values``: Subjects x features; NaN where a subject lacks the feature.
    - ``sides``: Subjects at either end of ``x``; p-values need :data:`MIN_SUBJECTS` of both.
    - ``paired``: Values are differences: the line goes through 0, and signs are flipped in place of permutations.
    """
    known = np.isfinite(values)
    filled = np.where(known, values, 0.0)
    fit = _fit(filled, known, x, paired)
    df, sxx = fit.df, fit.sxx
    usable = (sxx > 0) & (df >= 1)
    variance = np.divide(fit.residual, df, out=np.zeros_like(fit.residual), where=usable)
    rounding = (_ROUNDING * np.abs(filled).max(initial=0.0)) ** 2
    usable &= variance > max(_CONSTANT * np.median(variance[usable]), rounding) if usable.any() else usable
    trend, degree = np.ones_like(variance), 0
    if level is not None and usable.sum() >= _MIN_TREND:
        degree = _DEGREE if usable.sum() >= 10 * _DEGREE else 1
        order, log_variance = np.sort(level[usable]), np.log(variance[usable])
        rank = np.searchsorted(order, level) / len(order)
        polynomial = np.polynomial.Polynomial.fit(rank[usable], log_variance, degree, domain=[0, 1])
        trend = np.exp(polynomial(rank) - log_variance.mean())
    scale, prior = squeeze_variance((variance / trend)[usable], df[usable])
    prior = _discounted_prior(prior, df[usable], degree + 1)
    tested = usable & np.all([known[side].sum(axis=0) >= MIN_SUBJECTS for side in sides], axis=0)
    most = max(float(df[usable].sum()), 1.0)  # degrees of freedom that all features have together
    spread = max(1.0, _null_spread(filled, known, x, tested, trend * scale, prior, most, seed, paired))

    error = spread * np.sqrt(posterior_variance(variance, df, trend * scale, prior) / np.where(sxx > 0, sxx, 1.0))
    total = np.clip(df + prior, 1.0, most)
    effect = np.where(sxx > 0, fit.slope, np.nan)
    statistic = np.divide(effect, error, out=np.zeros_like(error), where=tested & (error > 0))
    width = np.where(usable, stats.t.ppf(0.975, total) * error, np.nan)
    return {
        "effect": effect, "ci_low": effect - width, "ci_high": effect + width,
        "scores": np.where(tested, signed_z(statistic, total), np.nan),
        "pvals": np.where(tested, t_pvals(statistic, total), np.nan),
    }  # fmt: skip


def _discounted_prior(prior: float, df: Floats, n_fitted: int) -> float:
    """Degrees of freedom of a prior by how certain it is: m features, less those fitted, estimate it (Morris 1983)."""
    own, m = float(df.mean()) if len(df) else 1.0, len(df) - n_fitted
    weight = (1.0 if np.isinf(prior) else prior / (prior + own)) * max(m - 2, 0) / max(m, 1)
    return own * weight / (1.0 - weight)


class _Fit(NamedTuple):
    """Least squares by feature."""

    df: Floats
    sxx: Floats  # sum of squares of the centred x
    slope: Floats
    residual: Floats  # sum of squares
    is_shared: Bools  # no subject decides the slope alone


def _fit(filled: Floats, known: Bools, x: Floats, paired: bool) -> _Fit:
    n = known.sum(axis=0)
    x_mean = 0.0 if paired else x @ known / np.maximum(n, 1)
    centred = known * (x[:, None] - x_mean)
    sxx = (centred**2).sum(axis=0)
    safe = np.where(sxx > 0, sxx, 1.0)
    slope = (centred * filled).sum(axis=0) / safe
    intercept = 0.0 if paired else filled.sum(axis=0) / np.maximum(n, 1)
    residual = (known * (filled - intercept - slope * centred) ** 2).sum(axis=0)
    leverage = (not paired) / np.maximum(n, 1) + (centred**2).max(axis=0) / safe
    return _Fit((n - 2 + paired).astype(float), sxx, slope, residual, (sxx > 0) & (leverage < 1 - 1e-9))


def _null_spread(
    filled: Floats, known: Bools, x: Floats, tested: Bools, expected: Floats, prior: float, most: float, seed: int,
    paired: bool,
) -> float:  # fmt: skip
    """Root mean square of the normal scores under permutations of the subjects, or flips of signs."""
    if not tested.any():
        return 1.0
    filled, known, expected = filled[:, tested], known[:, tested], expected[tested]
    squares = count = 0.0
    n_max = min(max(20, _MAX_STATISTICS // filled.shape[1]), _MAX_PERMUTATIONS)
    for permuted in _flips(len(x), n_max, seed) if paired else _permutations(x, n_max, seed):
        df, sxx, slope, residual, is_shared = _fit(filled, known, permuted, paired)
        error = np.sqrt(posterior_variance(residual / df, df, expected, prior) / np.where(sxx > 0, sxx, 1.0))
        statistic = np.divide(slope, error, out=np.zeros_like(error), where=is_shared & (error > 0))
        score = signed_z(statistic, np.minimum(df + prior, most))[is_shared]
        squares, count = squares + float((score**2).sum()), count + len(score)
    return float(np.sqrt(squares / count)) if count else 1.0


def _permutations(x: Floats, n_max: int, seed: int) -> Iterator[Floats]:
    """Yield permutations of ``x``, except itself and its mirror image: all distinct ones, or random ones."""
    values, counts = np.unique(x, return_counts=True)
    if factorial(len(x)) // prod(factorial(int(c)) for c in counts) <= n_max:
        permutations = _arrangements(values[::-1], counts[::-1], np.arange(len(x)), np.empty(len(x)))
    else:
        ordered, rng = np.sort(x)[::-1], np.random.default_rng(seed)
        permutations = (ordered[np.argsort(rng.permutation(len(x)))] for _ in range(n_max))
    centred = x - x.mean()
    for permuted in permutations:
        if abs((permuted - x.mean()) @ centred) < (1 - 1e-9) * (centred @ centred):
            yield permuted


def _flips(n: int, n_max: int, seed: int) -> Iterator[Floats]:
    """Yield signs of the pairs, up to a common one, except all equal ones: all, or random ones."""
    if 2 ** (n - 1) <= n_max:
        flips: Iterator[Any] = product((1.0,), *[(1.0, -1.0)] * (n - 1))
    else:
        rng = np.random.default_rng(seed)
        flips = (rng.choice((-1.0, 1.0), n) for _ in range(n_max))
    yield from (np.array(signs) for signs in flips if abs(sum(signs)) < n)


def _arrangements(values: Floats, counts: Ints, free: Ints, out: Floats) -> Iterator[Floats]:
    """Yield every way to give each value to its count of the ``free`` subjects."""
    if len(values) == 1:
        out[free] = values[0]
        yield out.copy()
        return
    for chosen in combinations(free.tolist(), int(counts[0])):
        out[list(chosen)] = values[0]
        yield from _arrangements(values[1:], counts[1:], np.setdiff1d(free, chosen), out)


def jonckheere(values: Floats, x: Floats) -> Floats:
    """Two-sided p-values of the test of Jonckheere and Terpstra for an order of every feature over ``x``.

    From all permutations of the subjects up to 50, else from the normal distribution. Ties count a half, rounded
    towards no order. NaN in ``values``: a subject lacks the feature; NaN is returned without two different ``x``.
    """
    out = np.full(values.shape[1], np.nan)
    patterns, which = np.unique(np.isfinite(values), axis=1, return_inverse=True)
    for i, known in enumerate(patterns.T):
        features = np.flatnonzero(which.ravel() == i)
        sizes = np.unique(x[known], return_counts=True)[1]
        if len(sizes) >= 2:
            statistic = _ordered_pairs(values[np.ix_(known, features)], x[known])
            out[features] = _jonckheere_pvals(statistic, sizes)
    return out


def _ordered_pairs(values: Floats, x: Floats) -> Floats:
    """Pairs of subjects in which the one with the larger ``x`` has the larger value."""
    total = np.zeros(values.shape[1])
    for i, subject_x in enumerate(x):
        later = values[x > subject_x]
        total += (later > values[i]).sum(axis=0) + 0.5 * (later == values[i]).sum(axis=0)
    return total


def _jonckheere_pvals(statistic: Floats, sizes: Ints) -> Floats:
    n = int(sizes.sum())
    n_pairs = (n**2 - int((sizes**2).sum())) // 2
    extreme = np.abs(statistic - n_pairs / 2)
    if n > _MAX_EXACT:
        variance = (n**2 * (2 * n + 3) - (sizes**2 * (2 * sizes + 3)).sum()) / 72
        return np.clip(2 * stats.norm.sf(np.maximum(extreme - 0.5, 0) / np.sqrt(variance)), 0, 1)
    upper = np.cumsum(_jonckheere_null(sizes, n_pairs)[::-1])[::-1]  # of a statistic of at least 0, 1, ...
    return np.minimum(2 * upper[np.floor(n_pairs / 2 + extreme).astype(np.int64)], 1.0)


def _jonckheere_null(sizes: Ints, n_pairs: int) -> Floats:
    """Probability of 0, 1, ... ordered pairs: the coefficients of a Gaussian multinomial, in whole numbers."""
    ways = np.zeros(n_pairs + 1, dtype=object)
    ways[0] = 1
    for i in range(1, int(sizes.sum()) + 1):  # times 1 - q^i
        ways[i:] -= ways[: len(ways) - i].copy() if i < len(ways) else 0
    for i in (i for size in sizes for i in range(1, int(size) + 1)):  # over 1 - q^i
        for start in range(i, len(ways)):
            ways[start] += ways[start - i]
    return (ways / ways.sum()).astype(np.float64)
