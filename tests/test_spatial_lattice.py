"""Lattices and rasters from array positions or coordinates, at any rotation."""

from __future__ import annotations

import time
from collections.abc import Callable

import anndata as ad
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.spatial import cKDTree

from stxtools._spatial.graph import section_meshes, spatial_graph
from stxtools._spatial.points import typical_spacing, unique_points
from stxtools._spatial.raster import RasterGrid, fit_lattice, rasterize, rasterize_libraries, split_rows


def _graph(xy: np.ndarray, index: np.ndarray, grid: RasterGrid) -> sparse.csr_matrix:
    codes = np.zeros(len(xy), dtype=np.int64)
    return spatial_graph(xy, codes, index, [grid], section_meshes(xy, codes, [grid]))


def _lattice(kind: str, rows: int, cols: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit spacing; the array positions of hexagonal ones are Visium's."""
    r, c = (a.ravel() for a in np.mgrid[:rows, :cols])
    if kind == "hex":
        return np.c_[c + 0.5 * (r % 2), r * np.sqrt(3) / 2], np.c_[r, 2 * c + r % 2]
    return np.c_[c, r].astype(float), np.c_[r, c]


def _moved(xy: np.ndarray, angle: float, scale: float, shift: tuple[float, float]) -> np.ndarray:
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return scale * xy @ turn.T + shift


def _pairs(xy: np.ndarray, radius: float) -> set[tuple[int, int]]:
    return {(int(i), int(j)) for i, j in cKDTree(xy).query_pairs(radius)}


def _graph_pairs(xy: np.ndarray, index: np.ndarray, grid: RasterGrid) -> set[tuple[int, int]]:
    graph = _graph(xy, index, grid).tocoo()
    return {(int(i), int(j)) for i, j in zip(graph.row, graph.col, strict=True) if i < j}


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["hex", "square"]),
    shape=st.tuples(st.integers(5, 14), st.integers(5, 14)),
    angle=st.floats(0, 2 * np.pi),
    scale=st.floats(1e-3, 1e4),
    shift=st.tuples(st.floats(-100, 100), st.floats(-100, 100)),
    missing=st.floats(0, 0.15),
    jitter=st.floats(0, 0.03),
    seed=st.integers(0, 1000),
)
def test_moved_lattice_is_found(kind, shape, angle, scale, shift, missing, jitter, seed) -> None:
    rng = np.random.default_rng(seed)
    xy, _ = _lattice(kind, *shape)
    xy = xy[rng.random(len(xy)) >= missing]
    true = _pairs(xy, 1.2)
    if len(true) < 1.2 * len(xy):  # hardly a lattice any more
        return
    moved = _moved(xy + jitter * rng.standard_normal(xy.shape).clip(-2, 2), angle, scale, shift)
    index, grid = rasterize(moved)
    assert grid.lattice == kind
    assert len(np.unique(index, axis=0)) == len(xy)
    assert _graph_pairs(moved, index, grid) == true
    assert grid.pixel_size == pytest.approx(scale, rel=0.05)
    assert (index.min(axis=0) == 0).all()
    assert tuple(index.max(axis=0) + 1) == grid.shape


@pytest.mark.parametrize("first_row", [0, 1])
@pytest.mark.parametrize("first_col", [0, 3])
@pytest.mark.parametrize("kind", ["hex", "square"])
def test_array_positions_give_the_raster(kind: str, first_row: int, first_col: int) -> None:
    xy, array = _lattice(kind, 6, 7)
    index, grid = rasterize(xy * 50, array=array + np.array([first_row, first_col]))
    assert grid.lattice == kind
    assert grid.pixel_size == pytest.approx(50)
    assert grid.origin == pytest.approx((0, 0), abs=1e-6)
    expected = np.c_[array[:, 0], array[:, 1] // 2] if kind == "hex" else array
    np.testing.assert_array_equal(index, expected)
    assert index.dtype == np.int32


def test_odd_first_row_keeps_neighbours() -> None:
    xy, array = _lattice("hex", 7, 6)
    keep = array[:, 0] >= 1  # the raster now begins with a shifted row
    index, grid = rasterize(xy[keep], array=array[keep])
    assert _graph_pairs(xy[keep], index, grid) == _pairs(xy[keep], 1.2)


def test_square_on_its_corner_is_square() -> None:
    """Row + column is always even here, too, but four neighbours are nearest, not six."""
    r, c = (a.ravel() for a in np.mgrid[:10, :10])
    array = np.c_[r, c][(r + c) % 2 == 0]
    index, grid = rasterize(array[:, ::-1] * 20.0, array=array)
    assert grid.lattice == "square"
    assert grid.pixel_size == pytest.approx(20 * np.sqrt(2))
    assert _graph_pairs(array * 1.0, index, grid) == _pairs(array * 1.0, 1.5)


def test_hexagonal_columns_without_gaps() -> None:
    """Array columns that count every spot of a row: the coordinates show the half step."""
    xy, array = _lattice("hex", 8, 9)
    index, grid = rasterize(xy, array=np.c_[array[:, 0], array[:, 1] // 2])
    assert grid.lattice == "hex"
    assert _graph_pairs(xy, index, grid) == _pairs(xy, 1.2)


def test_every_second_row_and_column() -> None:
    xy, array = _lattice("square", 6, 6)
    index, grid = rasterize(xy, array=array * 2)
    np.testing.assert_array_equal(index, array)
    assert grid.lattice == "square"


@pytest.mark.parametrize("spoil", ["duplicate", "nan", "shuffled", "fraction"])
def test_useless_array_positions_fall_back_to_coordinates(spoil: str) -> None:
    xy, array = _lattice("hex", 10, 10)
    array = array.astype(float)
    if spoil == "duplicate":
        array[1] = array[0]
    elif spoil == "nan":
        array[3, 0] = np.nan
    elif spoil == "fraction":
        array += 0.5
    else:
        array = np.random.default_rng(0).permutation(array)
    index, grid = rasterize(xy, array=array)
    assert grid.lattice == "hex"
    assert _graph_pairs(xy, index, grid) == _pairs(xy, 1.2)


@pytest.mark.parametrize("seed", range(5))
def test_scattered_cells_are_no_lattice(seed: int) -> None:
    xy = np.random.default_rng(seed).uniform(0, 100, size=(2000, 2))
    assert fit_lattice(xy) is None
    index, grid = rasterize(xy)
    assert grid.lattice == "scattered"
    occupied = len(xy) / np.prod(grid.shape)
    assert 1.5 < occupied < 2.5
    centre = np.array(grid.origin) + index[:, ::-1] * grid.pixel_size
    assert np.abs(xy - centre).max() <= grid.pixel_size / 2 + 1e-9


def test_disjoint_pieces_share_one_lattice() -> None:
    xy, _ = _lattice("hex", 14, 14)
    gap = (np.abs(xy[:, 0] - 7) < 2.2) | (np.abs(xy[:, 1] - 6) < 2.2)
    xy = _moved(xy[~gap], 0.4, 30.0, (5, 5))
    index, grid = rasterize(xy)
    assert grid.lattice == "hex"
    place = index[:, ::-1] + np.c_[0.5 * (index[:, 0] % 2), np.zeros(len(xy))]
    place[:, 1] *= np.sqrt(3) / 2
    true = np.linalg.norm(xy[:, None] - xy[None], axis=-1)
    np.testing.assert_allclose(np.linalg.norm(place[:, None] - place[None], axis=-1) * 30, true, atol=0.1)


@pytest.mark.parametrize(
    ("xy", "shape"),
    [
        ([[3.0, 4.0]], (1, 1)),
        ([[3.0, 4.0], [3.0, 4.0]], (1, 1)),
        ([[0.0, 0.0], [10.0, 0.0], [20.0, 0.0]], None),
        ([[0.0, 0.0], [0.0, 1.0]], None),
    ],
)
def test_few_observations(xy: list[list[float]], shape: tuple[int, int] | None) -> None:
    index, grid = rasterize(np.array(xy))
    assert grid.lattice == "scattered"
    assert grid.pixel_size > 0
    assert (index >= 0).all()
    assert (index < grid.shape).all()
    if shape:
        assert grid.shape == shape
        assert grid.pixel_size == 1.0
    else:
        assert min(grid.shape) == 1


def test_line_of_spots() -> None:
    xy = np.c_[np.arange(20) * 5.0, np.full(20, 3.0)]
    index, grid = rasterize(xy)
    assert grid.lattice == "square"
    assert sorted(grid.shape) == [1, 20]
    assert grid.pixel_size == pytest.approx(5)
    assert len(np.unique(index, axis=0)) == 20


def test_pixel_size_asks_for_bins() -> None:
    xy, array = _lattice("square", 8, 8)
    index, grid = rasterize(xy, array=array, pixel_size=2.0)
    assert (grid.lattice, grid.shape, grid.pixel_size) == ("scattered", (4, 4), 2.0)
    np.testing.assert_array_equal(index, array // 2)


def test_scattered_libraries_share_a_pixel_size() -> None:
    rng = np.random.default_rng(0)
    parts = [rng.uniform(0, 50, (400, 2)), rng.uniform(0, 100, (400, 2)), np.array([[7.0, 7.0]])]
    codes = np.repeat([0, 1, 2], [400, 400, 1])
    index, grids = rasterize_libraries(np.concatenate(parts), codes, 3)
    alone = [rasterize(p)[1].pixel_size for p in parts[:2]]
    np.testing.assert_allclose([g.pixel_size for g in grids], np.median(alone))
    for code, grid in enumerate(grids):
        assert (index[codes == code] < grid.shape).all()


def test_split_rows_covers_empty_libraries() -> None:
    rows = split_rows(np.array([2, 0, 2, 0]), 4)
    assert [r.tolist() for r in rows] == [[1, 3], [], [0, 2], []]


def test_grid_survives_uns() -> None:
    grid = RasterGrid((3, 4), 1.5, (0.5, -2.0), "hex")
    assert RasterGrid.from_uns(grid.to_uns()) == grid


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"lattice": "triangle"}, "not understood"),
        ({"lattice": "hex"}, "do not form a hex lattice"),
        ({"pixel_size": -1.0}, "positive"),
        ({"pixel_size": 1e-9}, "larger"),
        ({"pixel_size": 1.0, "lattice": "hex"}, "exclude"),
    ],
)
def test_errors(kwargs: dict, message: str) -> None:
    xy = np.random.default_rng(1).uniform(0, 10, (100, 2))
    with pytest.raises(ValueError, match=message):
        rasterize(xy, **kwargs)


KINDS = {
    "dlpfc_151673": "hex", "dlpfc_151675": "hex", "dlpfc_151508_pcs": "hex", "dlpfc_151670_pcs": "hex",
    "her2st_A1": "square", "her2st_B1": "square", "her2st_C1": "square", "her2st_D1": "square",
    "st_mouse_olfactory_bulb_MOB1": "square", "st_mouse_olfactory_bulb_MOB2": "square",
    "xenium_breast_idc": "scattered", "starmap_mpfc_BZ5": "scattered", "osmfish_mouse_sscortex": "scattered",
    "merfish_hypothalamus": "scattered", "xenium_mouse_brain_subset": "scattered",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(KINDS))
def test_real_sections(name: str, real_section: Callable[[str], ad.AnnData]) -> None:
    adata = real_section(name)
    xy = np.asarray(adata.obsm["spatial"], dtype=np.float64)
    start = time.perf_counter()
    index, grid = rasterize(xy)
    graph = _graph(xy, index, grid)
    assert time.perf_counter() - start < 10  # about one second on a laptop; the rest is a busy machine
    assert grid.lattice == KINDS[name]
    assert (index < grid.shape).all()
    if grid.lattice != "scattered":
        array = adata.obs[["array_row", "array_col"]].to_numpy()
        by_array, array_grid = rasterize(xy, array=array)
        assert array_grid.lattice == grid.lattice
        assert array_grid.pixel_size == pytest.approx(grid.pixel_size, rel=1e-3)
        other = _graph(xy, by_array, array_grid)
        assert (graph != other).nnz == 0


@pytest.mark.parametrize("kind", ["hex", "square", "scattered"])
def test_a_large_section_is_judged_as_if_all_were_looked_at(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    xy = rng.uniform(0, 120, (12_000, 2)) if kind == "scattered" else _lattice(kind, 110, 112)[0]
    xy = _moved(xy + rng.normal(0, 0.04, xy.shape), 0.4, 55.0, (3e4, 2e4))[rng.permutation(len(xy))[:11_000]]
    sampled = fit_lattice(xy)
    monkeypatch.setattr("stxtools._spatial.raster._SAMPLE", 10**9)
    whole = fit_lattice(xy)
    assert (whole is None) == (kind == "scattered")
    if whole is None or sampled is None:
        assert sampled is whole
        return
    np.testing.assert_array_equal(sampled[0], whole[0])
    assert sampled[1] == whole[1]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(*[st.sampled_from([-2.5, -0.0, 0.0, 1.0, 1e-300, 7e8])] * 2), min_size=1, max_size=40))
def test_unique_points_are_those_of_rows(pairs: list[tuple[float, float]]) -> None:
    xy = np.array(pairs)
    points, first, member = unique_points(xy)
    expected = np.unique(xy, axis=0, return_index=True, return_inverse=True)
    for found, wanted in zip((points, first, member), expected, strict=True):
        np.testing.assert_array_equal(found, wanted.reshape(found.shape))


def test_spacing_of_scattered_sections_is_kept_beside_their_grids() -> None:
    rng = np.random.default_rng(5)
    sections = [rng.uniform(0, side, (300, 2)) for side in (50.0, 80.0)]
    codes = np.repeat([0, 1], 300)
    _, grids = rasterize_libraries(np.concatenate(sections), codes, 2)
    assert grids[0].pixel_size == grids[1].pixel_size
    assert [grid.spacing for grid in grids] == [typical_spacing(xy) for xy in sections]
    assert "spacing" not in grids[0].to_uns()
    assert RasterGrid.from_uns(grids[0].to_uns()) == grids[0]


@pytest.mark.parametrize("warp", [0.0, 4.0], ids=["straight", "bent"])
@pytest.mark.parametrize("kind", ["hex", "square"])
def test_a_large_lattice_with_holes_is_found_where_it_does_not_bend(kind: str, warp: float) -> None:
    rng = np.random.default_rng(3)
    row, col = np.divmod(np.flatnonzero(rng.random(260 * 260) < 0.85), 260)
    xy = np.c_[col + (0.5 * (row & 1) if kind == "hex" else 0.0), row * (np.sqrt(0.75) if kind == "hex" else 1.0)]
    xy = xy @ np.array([[0.98, 0.2], [-0.21, 0.98]]) + rng.normal(0, 0.02, xy.shape)
    xy[:, 1] += warp * np.sin(xy[:, 0] / 40)
    found = fit_lattice(xy)
    if warp:
        assert found is None
        return
    assert found is not None
    assert found[1].lattice == kind
    np.testing.assert_array_equal(found[0], np.c_[row, col] - [row.min(), col.min()])
