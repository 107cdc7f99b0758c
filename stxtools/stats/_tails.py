"""Tails of a correlation over random regions: Pearson's type I, matched to skewness and kurtosis (Pitman 1937).

Those of the t-test hold in the centre only: a large region has few possible patterns, which bounds the correlations,
and a gene expressed in a few patches is skewed.
"""

from __future__ import annotations

import numpy as np
from scipy import special, stats

from stxtools._types import Floats

SPREAD = 0.2  # standard deviation of genes' kurtoses about the t-test's, on real sections
_NEAR_GAMMA = 5e-3  # margin below the gamma distribution's kurtosis, where type I ends


def beta_tails(z: Floats, skewness: Floats, kurtosis: Floats, *, one_sided: bool = False) -> Floats:
    """Return two-sided tail probabilities of ``|z|`` for a beta distribution with mean 0, variance 1, these moments.

    ``one_sided``: twice the tail beyond ``z`` on its own side, which differs where the distribution is skewed.
    """
    is_longer, z = (z > 0) == (skewness > 0), np.abs(z)
    square = np.maximum(skewness**2, 1e-12)
    # from the arcsine distribution's to nearly the gamma distribution's (3 without skewness: the normal)
    kurtosis = np.clip(kurtosis, 1.5 + square, 3.0 + 1.5 * square - _NEAR_GAMMA)
    total = 6.0 * (kurtosis - square - 1.0) / (6.0 + 3.0 * square - 2.0 * kurtosis)
    apart = 0.5 * total * (total + 2.0) * np.sqrt(square / (square * (total + 2.0) ** 2 + 16.0 * (total + 1.0)))
    a, b = 0.5 * total - apart, 0.5 * total + apart  # a < b: the tail above is longer
    middle, spread = a / total, np.sqrt(a * b / (total + 1.0)) / total
    above = special.betaincc(a, b, np.clip(middle + z * spread, 0.0, 1.0))
    below = special.betainc(a, b, np.clip(middle - z * spread, 0.0, 1.0))
    return 2.0 * np.where(is_longer, above, below) if one_sided else above + below


def shrunken_kurtosis(kurtosis: Floats, df: Floats, n_null: int) -> Floats:
    """Shrink kurtoses over ``n_null`` random regions below the t-test's by their sampling variance, 24 / n."""
    expected = 3.0 * (df + 1.0) / (df + 3.0)
    weight = SPREAD**2 / (SPREAD**2 + 24.0 / n_null)
    return np.maximum(kurtosis, expected + weight * (kurtosis - expected))


def region_statistic(r: Floats, df: Floats, skewness: Floats, kurtosis: Floats, *, one_sided: bool = False) -> Floats:
    """Return t statistics (``df`` degrees of freedom) with the p-values of correlations under random regions."""
    half = 0.5 * region_pvals(r, df, skewness, kurtosis, one_sided=one_sided)
    return np.sign(r) * np.maximum(stats.t.isf(half, df), -np.inf if one_sided else 0.0)


def region_pvals(r: Floats, df: Floats, skewness: Floats, kurtosis: Floats, *, one_sided: bool = False) -> Floats:
    """Return p-values of correlations, two-sided or twice those of one side.

    A beta distribution is bounded and its moments are estimates: no p-value is below the square of the t-test's.
    The null variance of r is 1 / (df + 1).
    """
    usual = 2.0 * stats.t.sf(np.abs(r) * np.sqrt(df / (1.0 - r**2)), df)
    return 2.0 * _half_tail(r * np.sqrt(df + 1.0), skewness, kurtosis, usual, one_sided)


def normal_scores(z: Floats, skewness: Floats, kurtosis: Floats, *, one_sided: bool = False) -> Floats:
    """Return the normal quantiles of ``z`` from a beta distribution with mean 0, variance 1 and these moments.

    For sums over sections, whose cumulants are sums of the sections'. No p-value is below the square of the normal's.
    """
    half = _half_tail(z, skewness, kurtosis, 2.0 * stats.norm.sf(np.abs(z)), one_sided)
    return np.sign(z) * np.maximum(stats.norm.isf(half), -np.inf if one_sided else 0.0)


def _half_tail(z: Floats, skewness: Floats, kurtosis: Floats, usual: Floats, one_sided: bool) -> Floats:
    """Half of a p-value that is at least the square of the ``usual`` one."""
    pvals = beta_tails(z, skewness, kurtosis, one_sided=one_sided)
    return 0.5 * np.clip(np.maximum(pvals, usual**2 / (1 + one_sided)), 1e-300, 2.0)
