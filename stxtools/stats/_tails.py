"""Tails of a correlation over random regions.

The t-test of a correlation r takes r ** 2 as beta distributed, as between normal samples of an effective size. Over
random regions this holds in the middle and not in the tails: a large region is one of few patterns, so that no gene can
follow it far beyond what is usual (a kurtosis of 2.4 to 2.8 where normal samples have 3), and a gene expressed in
a few patches is skewed. Beta distributions matched to moments are how permutation laws of correlations have been
approximated since Pitman (1937); with skewness and kurtosis they are Pearson's type I.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

Floats = NDArray[np.float64]

SPREAD = 0.2  # of genes' kurtoses about the t-test's, on real sections
_NEAR_GAMMA = 5e-3  # below the kurtosis of the gamma distribution of the same skewness, where type I ends


def beta_tails(z: Floats, skewness: Floats, kurtosis: Floats) -> Floats:
    """Return the chance of at least ``|z|`` on either side, of a beta law with mean 0, variance 1 and these moments.

    Kurtoses outside what beta distributions have are moved to the nearest: at least that of an arcsine law, at
    most nearly that of a gamma distribution (3 without skewness: the normal).
    """
    z = np.abs(z)
    square = np.maximum(skewness**2, 1e-12)
    kurtosis = np.clip(kurtosis, 1.5 + square, 3.0 + 1.5 * square - _NEAR_GAMMA)
    total = 6.0 * (kurtosis - square - 1.0) / (6.0 + 3.0 * square - 2.0 * kurtosis)
    apart = 0.5 * total * (total + 2.0) * np.sqrt(square / (square * (total + 2.0) ** 2 + 16.0 * (total + 1.0)))
    a, b = 0.5 * total - apart, 0.5 * total + apart  # a < b: the upper tail is the long one
    middle, spread = a / total, np.sqrt(a * b / (total + 1.0)) / total
    above = special.betaincc(a, b, np.clip(middle + z * spread, 0.0, 1.0))
    return above + special.betainc(a, b, np.clip(middle - z * spread, 0.0, 1.0))


def believed_kurtosis(kurtosis: Floats, df: Floats, n_null: int) -> Floats:
    """Return what is believed of the kurtoses of correlations with ``n_null`` random regions.

    The t-test's kurtosis is 3 (df + 1) / (df + 3). A larger one that is found is believed; a smaller one is drawn
    towards it as its sampling variance, 24 / n, compares with the genes' ``SPREAD``: 0.4 of the difference is believed
    with 400 regions.
    """
    expected = 3.0 * (df + 1.0) / (df + 3.0)
    belief = SPREAD**2 / (SPREAD**2 + 24.0 / n_null)
    return np.maximum(kurtosis, expected + belief * (kurtosis - expected))


def region_statistic(r: Floats, df: Floats, skewness: Floats, kurtosis: Floats) -> Floats:
    """Return t statistics (``df`` degrees of freedom) as far out as correlations are among those with random regions.

    As a beta law ends somewhere and moments are estimates, no p-value is below the square of the t-test's.

    Parameters
    ----------
    r
        Correlations of genes with the tested region.
    df
        Effective degrees of freedom: the null variance of r is 1 / (df + 1).
    skewness, kurtosis
        Of the genes' correlations with random regions, about zero; see :func:`believed_kurtosis`.
    """
    plain = 2.0 * stats.t.sf(np.abs(r) * np.sqrt(df / (1.0 - r**2)), df)
    pvals = beta_tails(r * np.sqrt(df + 1.0), skewness, kurtosis)
    half = 0.5 * np.clip(np.maximum(pvals, plain**2), 1e-300, 1.0)
    return np.sign(r) * np.maximum(stats.t.isf(half, df), 0.0)


def normal_scores(z: Floats, skewness: Floats, kurtosis: Floats) -> Floats:
    """Return the normal quantiles that are as far out as ``z`` is in a beta law of mean 0, variance 1, these moments.

    For sums over sections: their cumulants are the sums of the sections'. No p-value is below the square of the
    normal's.
    """
    plain = 2.0 * stats.norm.sf(np.abs(z))
    half = 0.5 * np.clip(np.maximum(beta_tails(z, skewness, kurtosis), plain**2), 1e-300, 1.0)
    return np.sign(z) * np.maximum(stats.norm.isf(half), 0.0)
