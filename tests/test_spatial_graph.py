"""Neighbour graphs and statistics along them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anndata as ad
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.spatial import ConvexHull, Delaunay, Voronoi

from stxtools._spatial.graph import contact_lengths, neighbour_mean, observation_area, section_meshes, spatial_graph
from stxtools._spatial.raster import RasterGrid, rasterize, rasterize_libraries


def _measures(xy: np.ndarray, codes: np.ndarray, index: np.ndarray, grids: list[RasterGrid]) -> tuple[Any, ...]:
    """Return the graph of sections, the area of each observation, and the length of each contact."""
    meshes = section_meshes(xy, codes, grids)
    graph = spatial_graph(xy, codes, index, grids, meshes)
    return graph, observation_area(codes, grids, meshes), contact_lengths(graph, codes, grids, meshes)


def _graph(xy: np.ndarray, **kwargs: Any) -> tuple[Any, ...]:
    index, grid = rasterize(xy, **kwargs)
    return _measures(xy, np.zeros(len(xy), dtype=np.int64), index, [grid])


def _assert_valid(graph: sparse.csr_matrix) -> None:
    assert (graph != graph.T).nnz == 0
    assert (graph.data > 0).all()
    assert (graph.diagonal() == 0).all()


def _hex(rows: int, cols: int, s: float = 1.0) -> np.ndarray:
    r, c = (a.ravel() for a in np.mgrid[:rows, :cols])
    return np.c_[(c + 0.5 * (r % 2)) * s, r * s * np.sqrt(3) / 2]


def test_hexagonal_lattice_has_six_neighbours() -> None:
    graph, *_ = _graph(_hex(9, 9, 100.0))
    degree = np.diff(graph.indptr).reshape(9, 9)
    assert (degree[1:-1, 1:-1] == 6).all()
    np.testing.assert_allclose(graph.data, 100.0)
    _assert_valid(graph)


def test_square_lattice_has_four_neighbours_with_area_and_contact() -> None:
    r, c = (a.ravel() for a in np.mgrid[:6, :5])
    graph, area, contact = _graph(np.c_[c, r] * 8.0)
    assert np.diff(graph.indptr).reshape(6, 5)[1:-1, 1:-1].tolist() == [[4] * 3] * 4
    np.testing.assert_allclose(area, 64.0)
    np.testing.assert_allclose(contact.data, 8.0)


def test_hexagonal_cells_have_area_and_perimeter_of_the_hexagon() -> None:
    """Area and perimeter of the regular hexagon whose neighbours are 10 apart."""
    xy = _hex(9, 9, 10.0)
    _, area, contact = _graph(xy)
    np.testing.assert_allclose(area, 50 * np.sqrt(3), rtol=1e-6)
    border = np.asarray(contact.sum(axis=1)).ravel()
    side = 10 / np.sqrt(3)
    np.testing.assert_allclose(border[40], 6 * side, rtol=1e-6)
    np.testing.assert_allclose(area[40], 1.5 * np.sqrt(3) * side**2, rtol=1e-6)


def test_edges_of_uniform_cells_are_delaunay_edges() -> None:
    xy = np.random.default_rng(0).uniform(0, 100, (1500, 2))
    graph, *_ = _graph(xy)
    _assert_valid(graph)
    indptr, indices = Delaunay(xy).vertex_neighbor_vertices
    full = sparse.csr_matrix((np.ones(len(indices)), indices, indptr), shape=graph.shape)
    pattern = sparse.csr_matrix((np.ones(graph.nnz), graph.indices, graph.indptr), shape=graph.shape)
    assert (pattern - full.multiply(pattern)).nnz == 0
    inner = ((xy > 10) & (xy < 90)).all(axis=1)
    dropped = np.asarray((full - pattern).sum(axis=1)).ravel()
    assert dropped[inner].mean() < 0.02 * 6
    coo = graph.tocoo()
    np.testing.assert_allclose(coo.data, np.linalg.norm(xy[coo.row] - xy[coo.col], axis=1))


def test_no_edge_spans_a_gap() -> None:
    rng = np.random.default_rng(1)
    left, right = rng.uniform(0, 100, (800, 2)), rng.uniform(0, 100, (800, 2)) + np.array([180, 0])
    xy = np.concatenate([left, right, [[1000.0, 1000.0]]])
    graph, area, _ = _graph(xy)
    assert graph[:800, 800:].nnz == 0
    assert graph[1600].nnz == 0
    hulls = ConvexHull(left).volume + ConvexHull(right).volume
    assert area[:1600].sum() == pytest.approx(hulls, rel=0.1)


def test_contact_length_is_that_of_the_voronoi_edge() -> None:
    xy = np.random.default_rng(2).uniform(0, 100, (600, 2))
    graph, _, contact = _graph(xy)
    voronoi = Voronoi(xy)
    checked = 0
    for (i, j), ridge in zip(voronoi.ridge_points, voronoi.ridge_vertices, strict=True):
        inside = (xy[[i, j]] > 15).all() and (xy[[i, j]] < 85).all()
        if -1 in ridge or not inside or graph[i, j] == 0:
            continue
        length = np.linalg.norm(np.diff(voronoi.vertices[ridge], axis=0))
        assert contact[i, j] == pytest.approx(length, rel=1e-6, abs=1e-9)
        checked += 1
    assert checked > 500
    np.testing.assert_array_equal(contact.indices, graph.indices)


def test_duplicate_positions_are_joined_and_share_area_and_contact() -> None:
    xy = np.random.default_rng(3).uniform(0, 100, (300, 2))
    plain, area, contact = _graph(xy)
    twice = np.concatenate([xy, xy[:40], xy[:5]])
    graph, twice_area, after = _graph(twice)
    _assert_valid(graph)
    for i in range(40):
        assert 0 < graph[i, 300 + i] < 0.1
        others = set(graph[300 + i].indices) - {i, *range(300, 345)}
        assert others <= set(graph[i].indices)
        assert len(others) >= len(set(graph[i].indices) & set(range(300))) > 0
    np.testing.assert_allclose((graph[:300, :300] != 0).sum(), (plain != 0).sum(), rtol=0.01)
    assert twice_area.sum() == pytest.approx(area.sum(), rel=0.02)
    assert after.sum() == pytest.approx(contact.sum(), rel=0.02)
    assert after.nnz == graph.nnz
    assert after[0, 300] == 0


@pytest.mark.parametrize("n", [1, 2, 3, 5, 30])
def test_collinear_observations_form_a_chain(n: int) -> None:
    xy = np.c_[np.linspace(0, 3, n) ** 2, 2 * np.linspace(0, 3, n) ** 2]
    graph, area, contact = _graph(xy, lattice="scattered")
    _assert_valid(graph)
    coo = sparse.triu(graph).tocoo()
    assert set(zip(coo.row.tolist(), coo.col.tolist(), strict=True)) == {(i, i + 1) for i in range(n - 1)}
    assert (area > 0).all()
    assert np.isfinite(contact.data).all()


def test_observations_at_one_position_are_joined() -> None:
    graph, area, _ = _graph(np.full((4, 2), 3.0))
    _assert_valid(graph)
    assert graph[0].nnz == 3
    np.testing.assert_allclose(area.sum(), 1.0)


def test_no_edge_between_libraries() -> None:
    rng = np.random.default_rng(4)
    xy = np.concatenate([_hex(8, 8), rng.uniform(0, 8, (200, 2)), [[3.0, 3.0]], _hex(8, 8)])
    codes = np.repeat([0, 1, 2, 3], [64, 200, 1, 64])
    order = rng.permutation(len(xy))
    xy, codes = xy[order], codes[order]
    index, grids = rasterize_libraries(xy, codes, 4)
    assert [g.lattice for g in grids] == ["hex", "scattered", "scattered", "hex"]
    graph, area, contact = _measures(xy, codes, index, grids)
    graph, contact = graph.tocoo(), contact.tocoo()
    assert (codes[graph.row] == codes[graph.col]).all()
    np.testing.assert_allclose(contact.data[codes[contact.row] == 0], 1 / np.sqrt(3))
    np.testing.assert_allclose(area[codes == 3], np.sqrt(3) / 2)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=60))
def test_any_points_give_a_valid_graph(points: list[tuple[int, int]]) -> None:
    xy = np.array(points, dtype=float)
    graph, area, contact = _graph(xy, lattice="scattered")
    _assert_valid(graph)
    assert np.isfinite(area).all()
    assert (area > 0).all()
    assert np.isfinite(contact.data).all()
    assert (contact.data >= 0).all()


def test_neighbour_mean_by_hand() -> None:
    graph = sparse.csr_matrix(np.array([[0, 2.0, 0, 0], [2, 0, 3, 0], [0, 3, 0, 0], [0, 0, 0, 0]]))
    values = np.array([[1.0, 0], [2, 0], [6, 3], [5, 5]], dtype=np.float32)
    out = neighbour_mean(graph, values)
    np.testing.assert_allclose(out, [[1.5, 0], [3, 1], [4, 1.5], [5, 5]], rtol=1e-6)
    assert out.dtype == np.float32
    np.testing.assert_allclose(neighbour_mean(graph, values, rounds=2), neighbour_mean(graph, out))
    np.testing.assert_array_equal(neighbour_mean(graph, values, rounds=0), values)


def test_duplicate_positions_of_a_real_section_are_joined(real_section: Callable[[str], ad.AnnData]) -> None:
    adata = real_section("osmfish_mouse_sscortex")
    xy = np.asarray(adata.obsm["spatial"], dtype=np.float64)
    graph, area, _ = _graph(xy)
    _assert_valid(graph)
    assert (np.diff(graph.indptr) > 0).all()
    _, inverse, count = np.unique(xy, axis=0, return_inverse=True, return_counts=True)
    for i in np.flatnonzero(count[inverse.ravel()] > 1)[:50]:
        assert (inverse.ravel()[graph[i].indices] == inverse.ravel()[i]).any()
    assert area.sum() == pytest.approx(ConvexHull(xy).volume, rel=0.3)
