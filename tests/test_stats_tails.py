"""Tails of correlations with random regions, against known distributions."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import grid_positions, region_effects
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from stxtools.stats._meta_analysis import adjust_bh, combine_sections, t_pvals
from stxtools.stats._tails import beta_tails, normal_scores, region_statistic, shrunken_kurtosis


def _statistic(r, df, skewness, kurtosis, n_null):
    return region_statistic(r, df, skewness, shrunken_kurtosis(kurtosis, df, n_null))


def _direction(rng: np.random.Generator, d: int, n: int) -> np.ndarray:
    """Correlations with a random direction among ``d``, variance 1: a region that is one of few patterns."""
    direction = rng.standard_normal((n, d))
    return direction[:, 0] / np.linalg.norm(direction, axis=1) * np.sqrt(d)


@pytest.mark.parametrize(("a", "b"), [(2.0, 5.0), (5.0, 2.0), (3.5, 3.5), (1.0, 1.0), (0.8, 30.0), (40.0, 60.0)])
def test_beta_tails_recover_beta_distributions_from_their_moments(a, b):
    law = stats.beta(a, b)
    mean, variance, skewness, excess = law.stats("mvsk")
    z = np.linspace(-4, 4, 81)
    away = np.abs(z) * np.sqrt(variance)
    expected = law.sf(mean + away) + law.cdf(mean - away)
    found = beta_tails(z, np.full(81, skewness), np.full(81, excess + 3.0))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-12)
    at = mean + z * np.sqrt(variance)
    expected = 2 * np.where(z > 0, law.sf(at), law.cdf(at))
    found = beta_tails(z, np.full(81, skewness), np.full(81, excess + 3.0), one_sided=True)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-12)


def test_beta_tails_approach_the_normal_and_gamma_distributions():
    z = np.array([0.5, 2.0, 3.0])
    flat = beta_tails(z, np.zeros(3), np.full(3, 9.0))  # a kurtosis that no beta distribution has
    np.testing.assert_allclose(flat, 2 * stats.norm.sf(z), rtol=0.02)
    shape = 9.0  # skewness 2 / 3
    expected = stats.gamma.sf(shape + z * 3, shape) + stats.gamma.cdf(shape - z * 3, shape)
    found = beta_tails(z, np.full(3, 2 / 3), np.full(3, 9.0))
    np.testing.assert_allclose(found, expected, rtol=0.03)


@pytest.mark.parametrize("df", [4.0, 17.0, 300.0])
def test_statistic_with_normal_moments_equals_the_t_test(df):
    r = np.linspace(-0.95, 0.95, 39) if df < 100 else np.linspace(-0.25, 0.25, 39)
    full = np.full(39, df)
    kurtosis = 3 * (full + 1) / (full + 3)
    found = _statistic(r, full, np.zeros(39), kurtosis, 400)
    np.testing.assert_allclose(found, r * np.sqrt(df / (1 - r**2)), rtol=1e-4, atol=1e-7)


@given(
    st.floats(2.0, 5000.0), st.floats(-1.5, 1.5), st.floats(1.0, 9.0),
)  # fmt: skip
def test_statistic_is_an_increasing_odd_function_of_the_correlation(df, skewness, kurtosis):
    r = np.linspace(0.0, 0.999, 60)
    args = [np.full(60, x) for x in (df, skewness, kurtosis)]
    found = _statistic(r, *args, 400)
    assert np.isfinite(found).all()
    assert (np.diff(found) >= 0).all()
    np.testing.assert_array_equal(_statistic(-r, *args, 400), -found)
    plain = 2 * stats.t.sf(r * np.sqrt(df / (1 - r**2)), df)
    assert (t_pvals(found, args[0]) >= plain**2 * (1 - 1e-6) - 1e-299).all()


def test_short_tails_of_a_null_of_few_patterns_are_used():
    """Correlation of a fixed vector with a random direction among 12, and noise that no direction has."""
    d, n = 12, 100_000
    variance = 0.09 / d
    r = _direction(np.random.default_rng(0), d, n) * np.sqrt(variance)  # r ** 2 / 0.09 is beta(1 / 2, 11 / 2)
    df = np.full(n, 1 / variance - 1)
    plain = 2 * stats.t.sf(np.abs(r) * np.sqrt(df / (1 - r**2)), df)
    moments = (np.zeros(n), np.full(n, 3 * d / (d + 2)))
    pvals = t_pvals(_statistic(r, df, *moments, 400), df)
    for level in (0.01, 0.001):
        assert np.mean(plain < level) < 0.65 * level
        assert np.mean(plain < level) < np.mean(pvals < level) <= level
    few, many = (t_pvals(_statistic(r, df, *moments, k), df) for k in (50, 10**6))
    assert np.mean(few < 0.001) < np.mean(pvals < 0.001)  # a kurtosis from few regions has little weight
    assert np.mean(many < 0.001) == pytest.approx(0.001, rel=0.35)


def test_long_tail_of_a_skewed_null_is_corrected():
    rng = np.random.default_rng(0)
    null = (rng.gamma(6.0, size=100_000) - 6.0) / np.sqrt(6.0)  # skewness 2 / sqrt(6), kurtosis 4
    df = np.full(len(null), 1e5)
    moments = (np.full(len(null), 2 / np.sqrt(6)), np.full(len(null), 4.0))
    p = t_pvals(_statistic(null / np.sqrt(1e5 + 1), df, *moments, 400), df)
    assert np.mean(2 * stats.norm.sf(np.abs(null)) < 0.001) > 0.003
    assert np.mean(p < 0.001) < 0.0015


@pytest.mark.parametrize("n_libraries", [1, 2])
def test_one_sided_p_values_of_a_skewed_null_are_uniform(n_libraries):
    n = 100_000
    null = (np.random.default_rng(0).gamma(4.0, size=(n_libraries, n)) - 4.0) / 2.0  # skewness 1, kurtosis 4.5
    df, skewness, kurtosis = np.full((n_libraries, n), 1e5), np.ones((n_libraries, n)), np.full((n_libraries, n), 4.5)
    if n_libraries == 1:
        r = null[0] / np.sqrt(1e5 + 1)
        statistic = region_statistic(r, df[0], skewness[0], kurtosis[0], one_sided=True)
        greater, less = (t_pvals(statistic, df[0], side) for side in ("greater", "less"))
    else:
        size = np.array([[0.5], [1.5]])
        args = null * size, np.repeat(size**2, n, axis=1), df, skewness, kurtosis
        greater, less = (combine_sections(*args, alternative=side).pvals for side in ("greater", "less"))
    np.testing.assert_allclose(greater + less, 1.0)
    for pvals in (greater, less):
        assert stats.kstest(pvals, "uniform").statistic < 0.02
        assert np.mean(pvals < 0.01) == pytest.approx(0.01, rel=0.2)
        assert np.mean(pvals < 0.001) < 0.002


@pytest.mark.parametrize("df", [6.0, 300.0])
def test_one_sided_p_value_of_a_symmetric_null_is_half_the_two_sided(df):
    r = np.linspace(-0.9, 0.9, 19)
    args = np.full(19, df), np.zeros(19), np.full(19, 3 * (df + 1) / (df + 3))
    both = t_pvals(region_statistic(r, *args), args[0])
    statistic = region_statistic(r, *args, one_sided=True)
    np.testing.assert_allclose(t_pvals(statistic, args[0], "greater"), np.where(r > 0, both / 2, 1 - both / 2), 1e-2)
    np.testing.assert_allclose(t_pvals(statistic, args[0], "less"), np.where(r < 0, both / 2, 1 - both / 2), 1e-2)


def test_p_values_over_true_regions_are_uniform_and_equal_for_the_complement():
    rng = np.random.default_rng(5)
    xy = rng.uniform(0, 30, size=(700, 2))

    def field(length: float) -> np.ndarray:
        frequency = rng.standard_normal((120, 2)) * np.sqrt(2) / length
        return np.cos(xy @ frequency.T + rng.uniform(0, 2 * np.pi, 120)).sum(axis=1)

    smooth = np.stack([field(6.0) / 8 + rng.standard_normal(700) for _ in range(40)], axis=1)
    values = [field(9.0) for _ in range(25)]
    regions = [value > np.quantile(value, 0.7) for value in values]
    *found, complement = region_effects(smooth, xy, [*regions, ~regions[0]], 200, [*range(25), 0])
    pvals = [t_pvals(effect.statistic, effect.df) for effect in found]
    np.testing.assert_array_equal(t_pvals(complement.statistic, complement.df), pvals[0])
    pooled = np.concatenate(pvals)
    assert stats.kstest(pooled, "uniform").statistic < 0.07
    assert np.mean(pooled < 0.01) < 0.02


def test_normal_scores_of_a_gamma_distribution():
    z, shape = np.array([-2.5, -1.0, 2.0, 3.0, 4.0]), 8.0  # two sections whose effects are gamma(4)
    found = normal_scores(z, np.full(5, 2 / np.sqrt(shape)), np.full(5, 3 + 6 / shape))
    at = np.abs(z) * np.sqrt(shape)
    expected = stats.gamma.sf(shape + at, shape) + stats.gamma.cdf(shape - at, shape)
    np.testing.assert_allclose(2 * stats.norm.sf(np.abs(found)), expected, rtol=0.03)
    np.testing.assert_array_equal(np.sign(found), np.sign(z))
    np.testing.assert_allclose(normal_scores(z, np.zeros(5), np.full(5, 3.0)), z, rtol=0.01)


@pytest.mark.parametrize("law", ["skewed", "short"])
def test_two_libraries_are_as_calibrated_as_one(law):
    """Effects of two unequal libraries, skewed (a t-test is anti-conservative) or of few patterns (conservative)."""
    rng, n = np.random.default_rng(0), 100_000
    size = np.array([[0.5], [1.5]])
    variance, df = np.repeat(size**2, n, axis=1), np.full((2, n), 1e5)
    null, skewness, kurtosis = (rng.gamma(4.0, size=(2, n)) - 4.0) / 2.0, 1.0, 4.5
    if law == "short":
        null, skewness, kurtosis = np.stack([_direction(rng, 6, n) for _ in range(2)]), 0.0, 3 * 6 / 8
    plain = combine_sections(null * size, variance, df).pvals
    found = combine_sections(null * size, variance, df, np.full_like(df, skewness), np.full_like(df, kurtosis)).pvals
    if law == "skewed":
        assert np.mean(plain < 0.001) > 0.004
    else:
        assert np.mean(plain < 0.001) == 0
    assert 0.0005 < np.mean(found < 0.001) < 0.0015
    assert 0.005 < np.mean(found < 0.01) < 0.011


def test_patchy_genes_do_not_mark_small_random_regions():
    """300 genes, each in a patch of its own; 20 disks of 8 observations mark none."""
    rng, xy = np.random.default_rng(0), grid_positions(24) + np.random.default_rng(1).uniform(-0.3, 0.3, (576, 2))
    patch = np.hypot(*(xy[:, None] - xy[rng.choice(576, 300)]).transpose(2, 0, 1)) < 2.5
    values = np.log1p(rng.poisson(np.where(patch, 0.5, 0.004)))
    centres = xy[rng.choice(576, 20, replace=False)]
    labels = [np.argsort(np.argsort(np.hypot(*(xy - centre).T))) < 8 for centre in centres]
    found = region_effects(values, xy, labels, 200, seeds=range(20))
    too_small, small, discoveries, powers = [], [], [], []
    for effect in found:
        use = (effect.variance > 0) & (effect.df < 573)  # the null variance is 1 / (df + 1)
        r, df, *moments = (x[use] for x in (effect.effect, effect.df, effect.skewness, effect.kurtosis))
        tails = region_statistic(r / np.sqrt(effect.variance[use] * (df + 1)), df, *moments)
        before, after = (t_pvals(t, df) for t in (tails, effect.statistic[use]))
        assert (after >= before * (1 - 1e-9)).all()
        assert (np.diff(after[np.argsort(before)]) >= -1e-12).all()
        rises = np.log(after[before > 0.01]) / np.log(before[before > 0.01])
        np.testing.assert_allclose(rises, rises[0], rtol=1e-6)  # one power for all
        powers.append(rises[0])
        known = effect.variance > 0
        z = effect.effect[known] / np.sqrt(effect.variance[known])
        too_small.append(np.mean(beta_tails(z, effect.skewness[known], effect.kurtosis[known]) <= 0.001))
        pvals = t_pvals(effect.statistic, effect.df)
        small.append(np.mean(pvals <= 0.001))
        discoveries.append(adjust_bh(pvals).min() <= 0.05)
    assert np.mean(too_small) > 0.004
    assert np.mean(small) < 0.002
    assert np.mean(discoveries) < 0.2
    assert min(powers) < 0.95 < max(powers) <= 1 + 1e-9
