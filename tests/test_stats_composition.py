"""Tests given composition: rank-one updates, components and depth against direct computation."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from conftest import InMemory, region_effects
from hypothesis import given, settings
from hypothesis import strategies as some
from scipy import sparse
from sklearn.decomposition import PCA

from stxtools._spatial.matrices import equal_blocks
from stxtools.stats._composition import (
    Adjustment,
    Covariates,
    Depths,
    ExpressionSpace,
    Nuisance,
    PartialCorrelation,
    n_components,
    panel_product,
    rescale,
)
from stxtools.stats._null_model import PackedLabels
from stxtools.stats._region_test import SectionView
from stxtools.stats._smooth import Metric, smooth_basis


def _expression(n: int = 120, genes: int = 25, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    latent = rng.standard_normal((n, 3))
    rate = np.exp(0.6 * latent @ rng.standard_normal((3, genes)))
    return np.log1p(rng.poisson(rate)).astype(np.float32)


def _space(y: np.ndarray, **kwargs: int) -> ExpressionSpace:
    view = SectionView(InMemory(sparse.csr_matrix(y)), np.arange(len(y)), np.zeros((len(y), 2)), 0)
    return ExpressionSpace(view.stored, len(y), y.mean(axis=0, dtype=float), y.var(axis=0), **kwargs)


def _correlation(
    y: np.ndarray, nuisance: Nuisance, labels: np.ndarray, xy: np.ndarray | None = None, weight: Any = None
) -> PartialCorrelation:
    """Correlate genes with labels (columns), with centring alone for a metric."""
    weight = np.ones(len(y), dtype=np.float32) if weight is None else weight
    basis = smooth_basis(np.zeros((len(y), 2)) if xy is None else xy, weight)
    test = Adjustment(nuisance, Metric(basis, np.ones(1)))
    packed = test.labels(PackedLabels(iter(labels.T.astype(bool)), *labels.shape), labels.shape[1])
    return PartialCorrelation(basis.sums(sparse.csr_matrix(y)), slice(None), test, packed)


def _partial(y: np.ndarray, label: np.ndarray, z: np.ndarray) -> tuple[float, float]:
    """Correlation of the residuals of ``y`` and ``label`` on ``z`` (and a constant), by least squares."""
    design = np.c_[np.ones(len(y)), z]
    left = [v - design @ np.linalg.lstsq(design, v, rcond=None)[0] for v in (y, label)]
    return float(left[0] @ left[1] / np.sqrt((left[0] ** 2).sum() * (left[1] ** 2).sum())), float((left[1] ** 2).sum())


@pytest.mark.parametrize("n_comps", [0, 4])
def test_partial_correlations_equal_least_squares_gene_by_gene(n_comps):
    y = _expression()
    components = _space(y).components(n_comps) if n_comps else Nuisance.empty(*y.shape)
    nuisance = components.with_columns(np.random.default_rng(1).standard_normal((len(y), 2)))
    labels = (np.random.default_rng(2).random((len(y), 3)) < 0.4).astype(float)
    r, left = _correlation(y, nuisance, labels)(slice(0, 3))
    centred = y.astype(float) - y.mean(axis=0)
    for j in range(y.shape[1]):
        others = nuisance.scores - centred[:, [j]] * nuisance.loadings[[j]]
        for b in range(3):
            expected, spread = _partial(centred[:, j], labels[:, b], others)
            assert r[j, b] == pytest.approx(expected, abs=2e-4)
            assert left[j, b] == pytest.approx(spread, rel=1e-3)


def test_smooth_variation_given_composition_equals_that_of_residuals():
    rng = np.random.default_rng(0)
    xy, weight = rng.uniform(0, 1, (300, 2)), rng.uniform(0.5, 1.5, 300).astype(np.float32)
    basis = smooth_basis(xy, weight)
    waves = np.sin(4 * xy[:, :1] * np.linspace(0, 3, 25))
    y = (_expression(300) + waves).astype(np.float32)
    nuisance = _space(y).components(4)
    found = _correlation(y, nuisance, xy[:, :1] > 0.5, xy, weight).strengths()
    root = np.sqrt(weight)[:, None]
    rest = np.empty_like(y)
    for j in range(25):
        others = np.c_[np.ones(300), nuisance.scores - (y - y.mean(axis=0))[:, [j]] * nuisance.loadings[[j]]]
        rest[:, j] = y[:, j] - others @ np.linalg.lstsq(root * others, root[:, 0] * y[:, j], rcond=None)[0]
    expected = basis.fit_strengths(rest.T @ basis.values[:, 1:], (weight[:, None] * rest**2).sum(axis=0), 4)
    np.testing.assert_array_equal(found, expected)
    assert len(np.unique(found)) > 3


def test_components_equal_those_of_a_pca_with_and_without_some_genes():
    y = _expression(n=300, genes=40)
    for omitted in ([], [0, 5]):
        found = _space(y).components(3, without=np.array(omitted, dtype=int))
        assert (found.loadings[omitted] == 0).all()
        expected = PCA(3, svd_solver="full").fit_transform(np.delete(y, omitted, axis=1).astype(float))
        for k in range(3):
            assert abs(np.corrcoef(found.scores[:, k], expected[:, k])[0, 1]) == pytest.approx(1, abs=1e-5)
    variable = np.abs(_space(y, max_genes=10).components(2).loadings).sum(axis=1) > 0
    np.testing.assert_array_equal(np.flatnonzero(variable), np.sort(np.argsort(y.var(axis=0))[-10:]))


def test_depth_can_be_computed_without_some_genes():
    rng = np.random.default_rng(0)
    counts = rng.poisson(3.0, (60, 20)).astype(float)
    counts[:20, :5] *= 6  # genes that make a difference in depth move all others the other way
    depth = counts.sum(axis=1)
    logged = np.log1p(counts / depth[:, None] * np.median(depth))
    matrix = sparse.csr_matrix(logged)
    factor = Depths(20, np.arange(5)).add(matrix).factor()
    out = rescale(matrix, factor).toarray()
    kept = counts[:, 5:].sum(axis=1)
    linear = counts / kept[:, None]
    np.testing.assert_allclose(np.expm1(out) / np.expm1(out)[0, 6], linear / linear[0, 6], rtol=1e-4)
    assert abs(np.expm1(logged[:20, 5:]).mean() / np.expm1(logged[20:, 5:]).mean() - 1) > 0.3
    assert abs(np.expm1(out[:20, 5:]).mean() / np.expm1(out[20:, 5:]).mean() - 1) < 0.01
    raw = sparse.csr_matrix(np.log1p(counts))
    assert Depths(20, np.arange(5)).add(raw).factor() is None  # was never normalised by depth


def test_constant_and_repeated_covariates_are_dropped():
    assert Nuisance.empty(10, 4).with_columns(np.ones((10, 2))).scores.shape == (10, 0)
    twice = np.random.default_rng(0).standard_normal((30, 1)).repeat(2, axis=1)
    assert Nuisance.empty(30, 4).with_columns(twice).scores.shape == (30, 1)
    assert [n_components(n) for n in (60, 500, 10**6)] == [2, 10, 20]


def test_components_of_a_test_exclude_the_tested_gene():
    """With its own share left in, a gene of large variance would be its own component and have no residual."""
    rng = np.random.default_rng(0)
    xy = np.stack(np.meshgrid(np.arange(25.0), np.arange(25.0)), -1).reshape(-1, 2)
    y = rng.poisson(1.0, (625, 30)).astype(np.float32)
    label = (xy[:, 0] > 8) & (xy[:, 0] < 15)
    y[:, 0] = rng.poisson(np.where(label, 40.0, 20.0))
    logged = np.log1p(y)
    logged[:, 0] *= 5
    (found,) = region_effects(logged, xy, [label], 400, covariates=Covariates(composition=True))
    assert found.statistic[0] > 8
    assert np.abs(found.statistic[1:]).max() < 8
    own = _space(logged).components(3)
    blind = Nuisance(own.scores, np.zeros_like(own.loadings))
    with_itself, without = (_correlation(logged, given, label[:, None]) for given in (blind, own))
    assert with_itself.residual[0] < 0.1 * without.residual[0]
    assert abs(without()[0][0, 0]) > 0.5


def test_effect_given_covariates_equals_generalised_least_squares():
    rng = np.random.default_rng(0)
    xy = rng.uniform(0, 10, (300, 2))
    label = xy[:, 0] > 6
    covariate = rng.standard_normal(300) + label
    y = np.outer(label, np.linspace(0, 1, 6)) + covariate[:, None] + rng.normal(0, 0.3, (300, 6)) - 5
    y = y.astype(np.float32)
    n_genes = rng.integers(20, 900, 300)
    given_one = Covariates(columns=covariate[:, None])
    found, mirror = region_effects(y, xy, [label, ~label], 100, covariates=given_one, n_genes=n_genes)
    weight = n_genes / n_genes.mean()  # where many genes are seen, expression is precise
    basis = smooth_basis(xy, weight.astype(np.float32))
    strength = np.median(basis.strengths(basis.sums(sparse.csr_matrix(y))))
    functions = basis.values[:, 1:] / weight[:, None]
    covariance = np.diag(1 / weight) + functions @ np.diag(strength * basis.frequency[1:] ** -1.5) @ functions.T
    design = np.c_[np.ones(300), label, covariate]
    weighted = np.linalg.solve(covariance, design)
    expected = np.linalg.solve(weighted.T @ design, weighted.T @ y.astype(float))[1]
    np.testing.assert_allclose(found.effect, expected, atol=2e-3)
    np.testing.assert_array_equal(found.statistic, -mirror.statistic)
    np.testing.assert_array_equal(found.variance, mirror.variance)


@pytest.mark.parametrize(
    ("composition", "n_columns", "lost"), [(False, 0, 2), (True, 0, 6), (False, 7, 9), (True, 3, 9)]
)
def test_covariates_and_components_take_degrees_of_freedom(composition, n_columns, lost):
    """Without structure most genes have those of a partial correlation: 200 observations give four components."""
    rng = np.random.default_rng(0)
    xy, y = rng.uniform(0, 10, (200, 2)), rng.normal(5, 1, (200, 30))
    given = Covariates(composition, rng.standard_normal((200, n_columns)) if n_columns else None)
    (found,) = region_effects(y, xy, [rng.random(200) < 0.5], 200, covariates=given)
    assert found.df.max() == 200 - lost
    assert np.median(found.df) > 200 - lost - 20


def test_covariates_do_not_inflate_the_smooth_variation_of_noise():
    """The variance that covariates explain is not subtracted from the noise."""
    rng = np.random.default_rng(0)
    basis = smooth_basis(rng.uniform(0, 1, (300, 2)), np.ones(300, dtype=np.float32))
    n_smooth, n_covariates = len(basis.frequency) - 1, 150
    smooth = rng.standard_normal((200, n_smooth))
    square = (smooth**2).sum(axis=1) + rng.chisquare(300 - n_smooth - 1 - n_covariates, 200)
    strengths = basis.fit_strengths(smooth, square, n_covariates)
    assert np.median(strengths) < np.median(basis.fit_strengths(smooth, square)) / 3


@given(some.lists(some.integers(0, 9), max_size=8), some.integers(1, 7))
@settings(max_examples=50)
def test_equal_blocks_regroup_rows_without_changing_them(sizes, size):
    whole = sparse.random(sum(sizes), 3, 0.5, format="csr", random_state=0)
    ends = np.cumsum([0, *sizes])
    blocks = list(equal_blocks((whole[a:b] for a, b in pairwise(ends)), size))
    assert all(b.shape[0] == size for b in blocks[:-1])
    if blocks:
        np.testing.assert_array_equal(sparse.vstack(blocks).toarray(), whole.toarray())
    assert sum(b.shape[0] for b in blocks) == sum(sizes)


@given(some.integers(0, 299), some.integers(1, 300), some.sampled_from([1, 2, 17, 64]), some.sampled_from([4, 20, 400]))
@settings(max_examples=60, deadline=None)
def test_panel_product_rows_do_not_depend_on_their_position(start, length, labels, width):
    rng = np.random.default_rng(0)
    genes, other = rng.normal(size=(300, width)), rng.normal(size=(width, labels))
    whole, some_rows = panel_product(genes, other), slice(start, start + length)
    np.testing.assert_array_equal(panel_product(genes[some_rows], other), whole[some_rows])
    np.testing.assert_allclose(whole, genes @ other, atol=1e-10)
