"""Input features and validation splits of the framework, on arrays."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from scipy import sparse

from stxtools._spatial.smoothing import averages, dense_means, nearest
from stxtools.models import GeneProjection, RegionSection, Section
from stxtools.models.tissuenet.features import SmoothedGenes
from stxtools.models.tissuenet.inputs import groups_of, held_out, made_for_others, region_means
from stxtools.models.tissuenet.student import with_readout


def _grid(side: int = 20, seed: int = 0) -> tuple[np.ndarray, np.random.Generator]:
    xy = np.stack(np.meshgrid(np.arange(float(side)), np.arange(float(side))), -1).reshape(-1, 2)
    return xy, np.random.default_rng(seed)


def mean_of_nearest(xy: np.ndarray, size: int, largest: int = 19) -> sparse.csr_matrix:
    return averages(nearest(xy, max(size, largest))[:, :size], len(xy))


def test_averages_are_means_over_the_nearest():
    xy, rng = _grid(7)
    values = rng.normal(size=(49, 2))
    inner = 24  # the middle: itself and four neighbours
    expected = values[[24, 17, 31, 23, 25]].mean(axis=0)
    np.testing.assert_allclose((mean_of_nearest(xy, 5) @ values)[inner], expected, rtol=1e-6)
    np.testing.assert_allclose(mean_of_nearest(xy, 99) @ values, np.tile(values.mean(0), (49, 1)), rtol=1e-5)
    genes = sparse.random(49, 300, 0.1, random_state=0, format="csr", dtype=np.float32)
    near = nearest(xy, 9, np.array([3, 40, 8]))
    np.testing.assert_allclose(dense_means(near, genes), genes.toarray()[near].mean(axis=1), atol=1e-6)


def test_gene_scores_preserve_inner_products_of_smoothed_genes():
    xy, rng = _grid()
    rate = 2 + 3 * (xy[:, :1] > 9) * (np.arange(8) < 4)
    logged = sparse.csr_matrix(np.log1p(rng.poisson(rate)).astype("f4"))
    genes = SmoothedGenes.fit((5, 13), [(logged, xy)], np.random.default_rng(0))
    scores = genes.transform(logged, xy)
    dense = (logged.toarray() - logged.toarray().mean(0)) / genes.gene_scale
    full = np.concatenate([mean_of_nearest(xy, s, 13) @ dense for s in (5, 13)], axis=1) / genes.scale
    np.testing.assert_allclose(scores @ scores.T, full @ full.T, atol=1e-2)  # all 16 axes: nothing is lost
    lacking = logged.toarray()
    lacking[:, 7] = 0.0
    assert np.isfinite(genes.transform(sparse.csr_matrix(lacking), xy)).all()


def test_genes_of_several_sections_are_scaled_per_section():
    xy, rng = _grid()
    pattern = 2 + 3 * (xy[:, :1] > 9) * (np.arange(8) < 4)
    first, second = (sparse.csr_matrix(np.log1p(rng.poisson(pattern, (400, 8)))).astype("f4") for _ in range(2))
    genes = SmoothedGenes.fit((5, 13), [(first, xy), (second, xy)], np.random.default_rng(0))
    pooled = np.concatenate([mean_of_nearest(xy, size, 13) @ second.toarray() for size in (5, 13)], axis=1)
    full = (pooled - np.tile(second.toarray().mean(0), 2)) / (pooled.std(0) + 0.1)
    scores = genes.transform(second, xy)
    np.testing.assert_allclose(scores @ scores.T, full @ full.T, atol=2e-2)  # all 16 axes
    louder = genes.transform(second * 50, xy)  # a donor in whom everything varies more reads alike
    assert np.corrcoef(louder.ravel(), scores.ravel())[0, 1] > 0.99
    assert louder.std() < 1.5 * scores.std()


def _sections(n: int, labelled: int) -> list[RegionSection]:
    out = []
    for i in range(n):
        xy, _ = _grid()
        section = Section(f"s{i}", np.zeros((400, 2), "f4"), xy.astype(np.int32), (20, 20), sparse.eye(400).tocsr(), xy)
        codes = (xy[:, 0] > 9).astype(np.int64) if i < labelled else np.full(400, -1)
        region = np.zeros(400, dtype=np.int64)
        out.append(RegionSection(section, region, np.zeros((1, 2), "f4"), sparse.csr_matrix((1, 1)), {"t": codes}))
    return out


def test_early_stopping_holds_out_whole_blocks():
    assert made_for_others(_sections(4, 4))  # nothing is left to predict in these: a model for later ones
    assert not made_for_others(_sections(2, 2))
    halves, strays = _sections(4, 4), _sections(4, 4)
    halves[1].labels["t"][:200] = -1
    assert not made_for_others(halves)
    for s in strays:
        s.labels["t"][::8] = -1
    assert made_for_others(strays)
    assert not made_for_others(_sections(3, 2))
    assert made_for_others(_sections(4, 3))
    sections = _sections(1, 1)
    groups = groups_of(sections, whole=False)
    held = held_out(sections, groups, np.random.default_rng(0))[0]
    assert 0.05 < held.mean() < 0.25
    for g in np.unique(groups[0]):
        assert held[groups[0] == g].all() or not held[groups[0] == g].any()  # whole blocks
    rare = _sections(1, 1)
    rare[0].labels["t"] = np.where(groups[0] == groups[0][held][0], 1, 0)  # a class that lives in one block
    assert not held_out(rare, groups, np.random.default_rng(0))[0][rare[0].labels["t"] == 1].any()


def test_region_means_average_the_selected_observations():
    mean, share = region_means(
        np.array([0, 0, 1, -1]), np.array([[1.0], [3.0], [5.0], [7.0]]), np.array([1, 1, 0, 1], bool), 2
    )
    assert mean.tolist() == [[2.0], [0.0]]
    assert share.tolist() == [1.0, 0.0]
    codes = np.array([0, 1, -1, -1, -1, 1])  # shares of classes
    mean, share = region_means(np.array([0, 0, 0, 1, 1, -1]), np.eye(2)[codes], codes >= 0, 3)
    assert mean.tolist() == [[0.5, 0.5], [0, 0], [0, 0]]
    assert share.tolist() == pytest.approx([2 / 3, 0, 0])


def test_student_axes_span_the_genes_of_the_predictions() -> None:
    rng = np.random.default_rng(0)
    xy = rng.uniform(0, 40, (1600, 2))
    logged = sparse.csr_matrix(rng.poisson(1.0, (1600, 25)).astype(np.float32))
    weight = rng.standard_normal(25)
    names = [f"g{i}" for i in range(25)]
    smoothed = SmoothedGenes.fit((7, 19), [(logged, xy)], rng)
    # what is said of an observation hangs on one direction of the genes around it
    prediction = (mean_of_nearest(xy, 19) @ logged) @ weight
    predictions = np.stack([prediction, -prediction], axis=1)
    predictions[::7] = np.nan
    old = np.linalg.qr(rng.standard_normal((25, 3)))[0]
    before = GeneProjection(names, np.zeros(25), old, 1.0, np.ones(3))
    section = SimpleNamespace(genes=logged, section=SimpleNamespace(xy=xy))
    after = with_readout(before, names, smoothed, [section], [predictions], rng)  # type: ignore[list-item]
    np.testing.assert_array_equal(after.components[:, :3], old)
    gram = after.components.T @ after.components
    np.testing.assert_allclose(gram, np.eye(len(gram)), atol=1e-9)
    lacking = weight - old @ (old.T @ weight)
    seen = after.components[:, 3:].T @ (lacking / np.linalg.norm(lacking))
    assert np.linalg.norm(seen) > 0.95


def test_loadings_express_scores_in_genes() -> None:
    rng = np.random.default_rng(1)
    parts = [(sparse.csr_matrix(rng.poisson(1.0, (n, 12)).astype(np.float32)), rng.uniform(0, 20, (n, 2)))
             for n in (300, 260)]  # fmt: skip
    for sections in (parts[:1], [parts[0], parts[0]]):  # several sections are scaled one by one
        smoothed = SmoothedGenes.fit((7, 19), sections, np.random.default_rng(0))
        coefficients = rng.standard_normal((smoothed.axes.shape[1], 2))
        logged, xy = sections[0]
        direct = smoothed.transform(logged, xy) @ coefficients
        near, far = smoothed.loadings(coefficients, sections)
        carried = mean_of_nearest(xy, 7) @ (logged @ near) + mean_of_nearest(xy, 19) @ (logged @ far)
        np.testing.assert_allclose(direct - direct.mean(axis=0), carried - carried.mean(axis=0), atol=1e-3)
    rows = np.array([4, 9, 250])
    np.testing.assert_allclose(smoothed.transform(logged, xy, rows), smoothed.transform(logged, xy)[rows], atol=1e-5)
