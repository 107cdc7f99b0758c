"""Meta-analysis of libraries against formulas, scipy and simulation."""

from __future__ import annotations

from dataclasses import fields
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from stxtools.stats._design import Description, outcome_within
from stxtools.stats._meta_analysis import (
    adjust_bh,
    combine_sections,
    compare_libraries,
    signed_z,
    squeeze_variance,
    t_pvals,
)
from stxtools.tl._biomarkers._probe import ComponentMoments, Design, contrast_weights, explain_discriminant


def test_p_values_and_signed_z_equal_scipy():
    t, df = np.array([0.0, 2.0, -3.0, 50.0]), np.array([5.0, 5.0, 20.0, 1000.0])
    np.testing.assert_allclose(t_pvals(t, df)[:3], 2 * stats.t.sf(np.abs(t[:3]), df[:3]))
    z = signed_z(t, df)
    np.testing.assert_allclose(2 * stats.norm.sf(np.abs(z)), t_pvals(t, df), rtol=1e-6)
    assert (np.sign(z) == np.sign(t)).all()
    assert np.isfinite(signed_z(np.array([1e6]), np.array([1e6]))).all()


def test_benjamini_hochberg_equals_scipy():
    p = np.random.default_rng(0).random(100) ** 2
    np.testing.assert_allclose(adjust_bh(p), stats.false_discovery_control(p))


@pytest.mark.parametrize("prior_df", [4.0, 20.0])
def test_squeeze_variance_recovers_the_prior(prior_df):
    rng = np.random.default_rng(0)
    truth = 0.5 * prior_df / rng.chisquare(prior_df, 20_000)
    observed = truth * rng.chisquare(3, 20_000) / 3
    scale, df = squeeze_variance(observed, np.full(20_000, 3.0))
    assert scale == pytest.approx(0.5, rel=0.05)
    assert df == pytest.approx(prior_df, rel=0.2)


def test_squeeze_variance_of_equal_variances_pools_all():
    rng = np.random.default_rng(0)
    scale, df = squeeze_variance(2.0 * rng.chisquare(3, 5000) / 3, np.full(5000, 3.0))
    assert scale == pytest.approx(2.0, rel=0.05)
    assert df > 100


def test_homogeneous_libraries_give_the_inverse_variance_mean():
    rng = np.random.default_rng(0)
    v = np.repeat(np.array([[0.01], [0.04], [0.09]]), 800, axis=1)
    effects = rng.normal(0.0, np.sqrt(v))
    out = combine_sections(effects, v, np.full(v.shape, 500.0))
    w = 1 / v
    np.testing.assert_allclose(out.effect, (w * effects).sum(0) / w.sum(0), atol=0.02)
    assert (out.n_libraries == 3).all()
    assert stats.kstest(out.pvals, "uniform").statistic < 0.06
    assert (combine_sections(effects, v, np.full(v.shape, 2.0)).df <= 6).all()  # the sections' own, at most


@pytest.mark.parametrize("n_libraries", [3, 6])
def test_null_is_calibrated_when_libraries_disagree(n_libraries):
    """Effects differ between libraries far more than their variances: the library is the replicate."""
    rng = np.random.default_rng(1)
    v = np.full((n_libraries, 4000), 1e-4)
    effects = rng.normal(0, 0.3, size=v.shape)
    out = combine_sections(effects, v, np.full(v.shape, 1000.0))
    assert np.mean(out.pvals < 0.05) < 0.065
    assert np.mean(out.pvals < 0.001) < 0.003


def test_one_precise_library_does_not_dominate():
    rng = np.random.default_rng(2)
    v = np.repeat(np.array([[1e-6], [1e-2], [1e-2]]), 3000, axis=1)
    heterogeneity = rng.normal(0, 0.3, size=v.shape)
    out = combine_sections(heterogeneity + rng.normal(0, np.sqrt(v)), v, np.full(v.shape, 1000.0))
    assert np.mean(out.pvals < 0.05) < 0.09


def test_libraries_without_variance_are_not_counted():
    effects = np.array([[1.0, 1.0, 0.0], [1.0, -0.5, 0.0], [1.0, 1.0, 0.0]])
    variances = np.array([[0.1, 0.1, 0.0], [0.1, 0.1, 0.0], [0.0, 0.1, 0.0]])
    out = combine_sections(effects, variances, np.full((3, 3), 50.0))
    np.testing.assert_array_equal(out.n_libraries, [2, 3, 0])
    np.testing.assert_allclose(out.agreement, [1.0, 2 / 3, 0.0])
    assert out.pvals[2] == 1.0
    assert out.statistic[2] == 0.0


def test_comparison_of_libraries_is_calibrated_and_finds_effects():
    rng = np.random.default_rng(3)
    sd = np.sqrt(0.05 * 6 / rng.chisquare(6, 5000))
    group, reference = rng.normal(0, sd, size=(4, 5000)), rng.normal(0, sd, size=(5, 5000))
    group[:, :50] += 3.0
    out = compare_libraries(group, reference)
    assert stats.kstest(out.pvals[50:], "uniform").statistic < 0.03
    assert (adjust_bh(out.pvals)[:50] < 0.05).mean() > 0.9
    plain = stats.ttest_ind(group, reference)
    assert np.corrcoef(out.statistic, plain.statistic)[0, 1] > 0.9
    assert (out.n_libraries == 9).all()
    # a gene without variance has that of the others; without an effect it is not tested
    group[:, :2], reference[:, :2] = [1, 0.5], [0, 0.5]
    found = compare_libraries(group, reference)
    assert found.n_libraries[:3].tolist() == [9, 0, 9]
    assert 0 < found.pvals[0] < 0.05 < found.pvals[1] == 1


def test_calibration_shrinks_the_statistic_of_several_libraries_and_not_their_effect():
    full, shrunk = np.array([1.0, 0.5]), np.array([0.5, 1.0])
    one, none = np.ones(2), np.zeros(2)
    moments = {"variance": 0.01 * one, "df": 50 * one, "skewness": none, "kurtosis": 3 * one, "statistic": none}
    effect = SimpleNamespace(effect=full, shrinkage=shrunk, model=SimpleNamespace(length=1.0), **moments)
    described = SimpleNamespace(**{each.name: full for each in fields(Description)})
    library = SimpleNamespace(description=described, effects=(effect,), alternative="two-sided")
    tested = outcome_within([library] * 3, Design("in", 1, None, "within", [0, 1, 2])).tested
    np.testing.assert_allclose(tested.effect, full)
    np.testing.assert_allclose(tested.statistic[0], tested.statistic[1])


def test_probe_attribution_equals_numerical_integrated_gradients():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 12))
    label = rng.random(300) < 0.4
    x[label, 3] += 2.0
    mean = x.mean(axis=0)
    _, _, vt = np.linalg.svd(x - mean, full_matrices=False)
    components = vt[:6].T
    values = (x - mean) @ components
    design, data = Design("in", 1, None, "between", [0]), (label.astype(np.int64), np.zeros(300, np.int64))
    difference = contrast_weights(design, *data) @ x
    np.testing.assert_allclose(difference, x[label].mean(0) - x[~label].mean(0))
    moments = ComponentMoments(*data, 6)
    moments.add(slice(0, 300), values)
    found = explain_discriminant(moments.pooled(design), components, difference, shrinkage=0.0)
    # scikit-learn's discriminant, integrated numerically from the reference's mean to the group's
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    w = LinearDiscriminantAnalysis(solver="lsqr").fit(values, label).coef_[0]
    start, end = x[~label].mean(0), x[label].mean(0)
    expected = np.zeros(12)
    for step in (np.arange(50) + 0.5) / 50:
        point, eps = start + step * (end - start), 1e-4
        for j in range(12):
            up = point.copy()
            up[j] += eps
            expected[j] += (
                ((up - mean) @ components @ w - (point - mean) @ components @ w) / eps * (end - start)[j] / 50
            )
    np.testing.assert_allclose(found, expected / np.abs(expected).sum(), atol=1e-6)
    assert np.argmax(np.abs(found)) == 3


def test_contrast_weights_sum_to_zero_in_each_block():
    codes, blocks = np.array([1, 1, 0, 1, 0, 0, 0, 0]), np.array([0, 0, 0, 1, 1, 1, 1, 1])
    weight = contrast_weights(Design("in", 1, None, "within", [0, 1]), codes, blocks)
    np.testing.assert_allclose([weight[blocks == b].sum() for b in (0, 1)], 0, atol=1e-12)
    assert explain_discriminant(np.zeros((2, 2)), np.eye(3)[:, :2], np.zeros(3)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("reference", [None, 2])
@pytest.mark.parametrize("centred", [True, False])
def test_probe_from_moments_equals_probe_from_all_values(reference, centred):
    rng = np.random.default_rng(0)
    codes, blocks = rng.integers(-1, 4, 400), rng.integers(0, 3, 400)
    values = rng.normal(size=(400, 5)) + codes[:, None] * rng.normal(size=5) + blocks[:, None]
    components = np.linalg.qr(rng.normal(size=(9, 5)))[0]
    moments = ComponentMoments(codes, blocks, 5)
    for start in range(0, 400, 70):
        moments.add(slice(start, start + 70), values[start : start + 70])
    among = [0, 2]
    inside = codes == 1
    outside = (codes >= 0) & ~inside if reference is None else codes == reference
    used = (inside | outside) & np.isin(blocks, among)
    design = Design("in", 1, reference, "within" if centred else "between", among)
    difference = components @ (contrast_weights(design, codes, blocks) @ values) + rng.normal(size=9) / 10
    x, label = values[used].copy(), inside[used]
    for b in among if centred else ():
        x[blocks[used] == b] -= x[blocks[used] == b].mean(axis=0)
    within = np.where(label[:, None], x - x[label].mean(axis=0), x - x[~label].mean(axis=0))
    expected = within.T @ within / (len(x) - 2)
    pooled = moments.pooled(design)
    np.testing.assert_allclose(pooled, expected, atol=1e-12)
    shrunken = 0.9 * expected + 0.1 * np.trace(expected) / 5 * np.eye(5)
    parts = components @ np.linalg.solve(shrunken, components.T @ difference) * difference
    np.testing.assert_allclose(explain_discriminant(pooled, components, difference), parts / np.abs(parts).sum())
