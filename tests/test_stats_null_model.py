"""Random regions: their distribution, its fit, and the null variance."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import region_effects
from scipy import sparse, stats

from stxtools._spatial.kernels import add_products, label_sums, symmetric
from stxtools.stats._null_model import (
    LabelModel,
    LabelSampler,
    RegionDraws,
    _binary_correlation,
    fit_label_model,
    sample_lag_pairs,
)
from stxtools.stats._smooth import smooth_basis


def _field(xy: np.ndarray, length: float, rng: np.random.Generator) -> np.ndarray:
    """Squared-exponential field exp(-(h / length)^2) by random Fourier features: not the sampler under test."""
    frequency = rng.standard_normal((150, 2)) * np.sqrt(2) / length
    return np.cos(xy @ frequency.T + rng.uniform(0, 2 * np.pi, 150)).sum(axis=1) / np.sqrt(75)


def _drawn(sampler: LabelSampler, n: int, rng: np.random.Generator) -> np.ndarray:
    return np.stack(list(sampler.draw(n, rng)), axis=1)


@pytest.fixture(scope="module")
def xy() -> np.ndarray:
    return np.random.default_rng(3).uniform(0, 40, size=(1600, 2))


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("rho", [0.0, 0.3, 0.9, 1.0])
def test_binary_correlation_equals_the_bivariate_normal(fraction, rho):
    cut = stats.norm.ppf(1 - fraction)
    if rho < 1:
        both = stats.multivariate_normal([0, 0], [[1, rho], [rho, 1]]).cdf([-cut, -cut])
    else:
        both = fraction
    expected = (both - fraction**2) / (fraction * (1 - fraction))
    assert _binary_correlation(np.array([rho]), fraction)[0] == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize("length", [4.0, 9.0])
def test_fit_recovers_the_length_scale(xy, length):
    rng = np.random.default_rng(0)
    geo = sample_lag_pairs(xy, rng)
    found = []
    for _ in range(12):
        value = _field(xy, length, rng)
        model = fit_label_model(geo, value > np.quantile(value, 0.7))
        assert model.fraction == pytest.approx(0.3, abs=0.01)
        # where the correlation of the field falls to one half, whatever the smoothness found
        found.append(model.length * np.log(2) ** (1 / model.power))
    assert np.median(found) == pytest.approx(length * np.sqrt(np.log(2)), rel=0.2)


def test_fit_of_a_random_label_has_little_correlation(xy):
    rng = np.random.default_rng(1)
    geo = sample_lag_pairs(xy, rng)
    model = fit_label_model(geo, rng.random(len(xy)) < 0.3)
    at_twice_the_spacing = (1 - model.nugget) * np.exp(-((2 * geo.spacing / model.length) ** model.power))
    assert at_twice_the_spacing < 0.25


@pytest.mark.parametrize(
    "model", [LabelModel(0.3, 8.0, 2.0, 0.0), LabelModel(0.6, 5.0, 1.0, 0.2), LabelModel(0.2, 7.0, 1.5, 0.0)]
)
def test_sampled_labels_have_size_and_correlation_of_the_model(xy, model):
    rng = np.random.default_rng(2)
    spacing = sample_lag_pairs(xy, rng).spacing
    labels = _drawn(LabelSampler(xy, model, spacing), 1000, rng)
    n_in = round(model.fraction * len(xy))
    assert (labels.sum(axis=0) == n_in).all()
    first = 700
    h = np.hypot(*(xy - xy[first]).T)
    p = n_in / len(xy)
    near = np.flatnonzero((h > 2.0) & (h < 10.0))
    covariance = ((labels[near].astype(float) - p) @ (labels[first] - p)) / labels.shape[1]
    # every label has the same size, which takes the mean correlation over the section away
    rho = (1 - model.nugget) * np.exp(-((h / model.length) ** model.power))
    expected = _binary_correlation(rho, model.fraction)
    d = np.hypot(*(xy[:, None, :] - xy[None, ::20, :]).transpose(2, 0, 1)).ravel()
    mean = _binary_correlation((1 - model.nugget) * np.exp(-((d / model.length) ** model.power)), model.fraction).mean()
    expected = (expected[near] - mean) / (1 - mean)
    error = covariance / (p * (1 - p)) - expected
    assert abs(error.mean()) < 0.06
    assert np.corrcoef(covariance, expected)[0, 1] > 0.9


@pytest.mark.parametrize("power", [2.0, 1.0])
def test_random_regions_do_not_join_opposite_edges_of_a_section(power):
    """Fields are drawn on a torus: a margin keeps its seam from joining edges."""
    rng = np.random.default_rng(0)
    xy = np.stack(np.meshgrid(np.arange(30.0), np.arange(30.0)), axis=-1).reshape(-1, 2)
    model = LabelModel(0.5, 5.0 if power == 2 else 4.0, power, 0.0)
    labels = _drawn(LabelSampler(xy, model, 1.0), 1500, rng).reshape(30, 30, -1) - 0.5
    d = np.hypot(*(xy[:, None] - xy[None]).transpose(2, 0, 1))
    model_correlation = _binary_correlation(np.exp(-((d / model.length) ** power)), 0.5)
    # every label has the same size, which takes the mean over the section away
    centred = model_correlation - model_correlation.mean(axis=0)
    centred = (centred - centred.mean(axis=1, keepdims=True)).reshape(30, 30, 30, 30)
    for field, expected in ((labels, centred), (labels.transpose(1, 0, 2), centred.transpose(1, 0, 3, 2))):
        between_edges = np.diagonal(expected[0, :, -1, :]).mean()
        assert 4 * (field[0] * field[-1]).mean() == pytest.approx(between_edges, abs=0.025)


def test_null_variance_of_a_gene_without_structure_equals_the_textbook_formula(xy):
    rng = np.random.default_rng(0)
    gene = rng.standard_normal((len(xy), 4)).astype(np.float32)
    value = _field(xy, 8.0, rng)
    label = value > np.quantile(value, 0.7)
    (found,) = region_effects(gene, xy, [label], 600, [1])
    n1, n0 = label.sum(), (~label).sum()
    np.testing.assert_allclose(found.effect, gene[label].mean(axis=0) - gene[~label].mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(found.variance, gene.var(axis=0) * (1 / n1 + 1 / n0), rtol=0.6)
    assert np.median(found.variance / (gene.var(axis=0) * (1 / n1 + 1 / n0))) == pytest.approx(1, rel=0.3)


def test_null_variance_of_smooth_genes_equals_that_over_true_regions(xy):
    rng = np.random.default_rng(4)
    gene = np.stack([_field(xy, 8.0, rng) for _ in range(5)], axis=1) + rng.standard_normal((len(xy), 5))
    regions = np.stack([_field(xy, 8.0, rng) for _ in range(60)], axis=1)
    regions = regions > np.quantile(regions, 0.7, axis=0)
    found = region_effects(gene, xy, list(regions.T), 100, range(60))
    truth = np.mean([f.effect**2 for f in found], axis=0)
    expected = np.mean([f.variance for f in found], axis=0)
    np.testing.assert_allclose(np.median(expected / truth), 1.0, rtol=0.2)
    plain = gene.T @ (regions / regions.sum(axis=0) - ~regions / (~regions).sum(axis=0))
    assert np.median(expected / (plain**2).mean(axis=1)) < 0.4  # smooth variation is weighed down


def test_smooth_basis_metric_equals_generalised_least_squares(xy):
    rng = np.random.default_rng(0)
    weight = rng.uniform(0.3, 1.7, 400).astype(np.float32)
    basis = smooth_basis(xy[:400], weight)
    functions = basis.values / weight[:, None]
    k = functions.shape[1]
    np.testing.assert_allclose(functions.T @ basis.values, np.eye(k), atol=1e-5)
    np.testing.assert_allclose(functions[:, 0], functions[0, 0], rtol=1e-5)
    assert k == 41
    assert basis.frequency[0] == 0
    assert (np.diff(basis.frequency) >= 0).all()
    size = np.r_[1e8, 7.0 * basis.frequency[1:] ** -1.5]  # the mean may be anything
    covariance = np.diag(1.0 / weight) + functions @ np.diag(size) @ functions.T
    values = rng.standard_normal((400, 3))
    expected = np.linalg.solve(covariance.astype(float), values)
    metric = basis.metric(np.array([7.0]))
    genes = basis.sums(sparse.csr_matrix(values.astype(np.float32)))
    np.testing.assert_allclose(metric.squares(genes), (values * expected).sum(axis=0), rtol=1e-5)
    smooth = basis.values.T @ values
    found = values.T @ (weight[:, None] * values) - smooth.T @ metric.weighted(smooth)
    np.testing.assert_allclose(found, values.T @ expected, atol=1e-4)
    root = functions[:, 1:] * np.sqrt(30.0 * basis.frequency[1:] ** -1.5)
    noise = rng.standard_normal((400, 200)) / np.sqrt(weight)[:, None]
    genes = (root @ rng.standard_normal((k - 1, 200)) + noise).astype(np.float32)
    found = basis.strengths(basis.sums(sparse.csr_matrix(genes)))
    assert 15 < np.median(found) < 60


def test_one_position_or_one_class_is_an_error():
    with pytest.raises(ValueError, match="position"):
        sample_lag_pairs(np.zeros((10, 2)), np.random.default_rng(0))
    geo = sample_lag_pairs(np.random.default_rng(0).uniform(size=(50, 2)), np.random.default_rng(0))
    with pytest.raises(ValueError, match="both sides"):
        fit_label_model(geo, np.ones(50, dtype=bool))


def test_duplicate_and_collinear_positions_give_finite_statistics():
    rng = np.random.default_rng(0)
    for points in (np.repeat(rng.uniform(0, 9, size=(60, 2)), 2, axis=0), np.c_[np.arange(120.0), np.zeros(120)]):
        label = points[:, 0] > np.median(points[:, 0])
        (found,) = region_effects(rng.poisson(2.0, (120, 5)), points, [label], 100)
        assert np.isfinite(found.statistic).all()
        assert (found.variance > 0).all()


def test_sums_over_random_regions_equal_numpy():
    rng = np.random.default_rng(0)
    xy, values, weight = rng.uniform(0, 20, (400, 2)), rng.standard_normal((400, 3)), rng.random(400, dtype=np.float32)
    label = xy[:, 0] > 12
    geo = sample_lag_pairs(xy, np.random.default_rng(1))
    draws = RegionDraws(xy, geo, label, 70, (3,))
    assert draws.flipped == label[0]
    bits = np.unpackbits(draws.words.view(np.uint8), axis=1, bitorder="little")
    assert bits.shape == (400, 128)
    np.testing.assert_array_equal(bits[:, 0], label ^ label[0])
    assert (bits[:, :71].sum(axis=0) == bits[:, 0].sum()).all()
    assert not bits[:, 71:].any()
    assert np.unique(bits[:, :71], axis=1).shape[1] == 71
    for n, n_bits in ((71, 128), (64, 64)):
        expected = (weight[:, None] * values).T @ (bits[:, :n_bits] - draws.share)
        np.testing.assert_allclose(draws.sums(values, n, weight), expected, atol=1e-4)
    sparsely = sparse.csc_matrix(np.where(values > 0, values, 0).astype(np.float32))
    found = label_sums(sparsely.indptr, sparsely.indices, sparsely.data, weight, draws.words, draws.share)
    np.testing.assert_allclose(found, sparsely.T @ (weight[:, None] * (bits - draws.share)), atol=1e-12)


def _labels(xy: np.ndarray, label: np.ndarray, n: int) -> np.ndarray:
    draws = RegionDraws(xy, sample_lag_pairs(xy, np.random.default_rng(1)), label, n, (3,))
    bits = np.unpackbits(draws.words.view(np.uint8), axis=1, bitorder="little")[:, 1 : 1 + n] > 0
    return ~bits if draws.flipped else bits


def _diameters(xy: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.array([np.hypot(*np.ptp(xy[one], axis=0)) for one in labels.T])


def test_random_regions_of_a_small_one_are_copies_of_it(xy):
    near = np.argsort(np.argsort(np.hypot(*(xy - xy[7]).T)))
    for label in (near < 30, near >= 30):
        drawn = _labels(xy, label, 300)
        inside = drawn if label.sum() == 30 else ~drawn
        assert (inside.sum(axis=0) == 30).all()
        assert np.unique(inside, axis=1).shape[1] > 290
        assert inside.any(axis=1).mean() > 0.9  # they reach all of the tissue
        diameters = _diameters(xy, inside)
        assert np.median(diameters) == pytest.approx(_diameters(xy, near[:, None] < 30)[0], rel=0.25)
        assert diameters.max() < 1.5 * np.median(diameters)
    grid = np.stack(np.meshgrid(np.arange(70), np.arange(70)), axis=-1).reshape(-1, 2).astype(float)
    large = np.argsort(np.argsort(np.hypot(*(grid - 30).T))) < 300
    assert _diameters(grid, _labels(grid, large, 20)).max() < 1.5 * _diameters(grid, large[:, None])[0]
    pieces = (near < 15) | (np.argsort(np.argsort(np.hypot(*(xy - xy[near.argmax()]).T))) < 15)
    assert np.ptp(_diameters(xy, _labels(xy, pieces, 50))) > 5.0  # far apart: random fields
    line = xy[near < 30] * [1.0, 0.0] + [100.0, 0.0]  # apart from the others, whose shape it has not
    assert (_labels(np.concatenate([xy, line]), np.arange(1630) >= 1600, 20).sum(axis=0) == 30).all()


def test_products_of_sparse_rows_equal_dense_ones():
    for fill in (0.1, 0.6):
        matrix, out = sparse.random(50, 20, fill, format="csr", random_state=0), np.zeros((20, 20))
        add_products(matrix[:30], out)
        add_products(matrix[30:], out)
        np.testing.assert_allclose(symmetric(out), (matrix.T @ matrix).toarray(), atol=1e-12)


def test_rare_genes_do_not_calibrate_common_ones():
    rng = np.random.default_rng(2)
    xy = np.stack(np.meshgrid(np.arange(30), np.arange(30)), axis=-1).reshape(-1, 2).astype(float)
    region = np.argsort(np.argsort(np.hypot(*(xy - 15.2).T))) < 12
    common, rare = rng.poisson(3.0, (900, 400)), rng.poisson(0.004, (900, 400))
    common[region, 0] = rng.poisson(7.0, 12)
    alone, mixed = (region_effects(np.log1p(v), xy, [region], 400)[0] for v in (common, np.hstack([common, rare])))
    p_alone, p_mixed = (2 * stats.t.sf(e.statistic[0], e.df[0]) for e in (alone, mixed))
    assert p_alone < 1e-4
    assert p_mixed < 3 * p_alone
    assert (mixed.shrinkage[400:] < 1).any()  # rare genes are calibrated


def test_equal_genes_between_rare_and_common_ones_are_calibrated_alike():
    rng = np.random.default_rng(2)
    xy = np.stack(np.meshgrid(np.arange(30), np.arange(30)), axis=-1).reshape(-1, 2).astype(float)
    region = np.argsort(np.argsort(np.hypot(*(xy - 15.2).T))) < 12
    common, rare, marker = rng.poisson(3.0, (900, 200)), rng.poisson(0.004, (900, 200)), rng.poisson(0.1, (900, 1))
    marker[region, 0] = rng.poisson(2.0, 12)
    rare[np.arange(200), np.arange(200)] += 1  # all are tested
    effect = region_effects(np.log1p(np.hstack([common, marker, rare, marker])), xy, [region], 400)[0]
    assert effect.statistic[200] > 3
    assert effect.statistic[200] == effect.statistic[401]


def test_negative_values_decide_the_scale_of_all_blocks():
    rng = np.random.default_rng(5)
    xy, values = rng.uniform(0, 20, (200, 2)), np.log1p(rng.poisson(2.0, (200, 12)))
    values[:2, 7] = -1.0
    whole, parts = (region_effects(values, xy, [xy[:, 0] < 6], 100, n_blocks=n)[0] for n in (1, 4))
    np.testing.assert_array_equal(parts.statistic, whole.statistic)
