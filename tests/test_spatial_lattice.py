"""Lattices and rasters from array positions or coordinates, at any rotation."""

from __future__ import annotations

from collections.abc import Callable

import anndata as ad
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.spatial import cKDTree

from stxtools._spatial.graph import section_meshes, spatial_graph
from stxtools._spatial.points import typical_spacing, unique_points
from stxtools._spatial.raster import RasterGrid, fit_lattice, rasterize, rasterize_libraries, split_rows


def _graph(xy: np.ndarray, index: np.ndarray, grid: RasterGrid) -> sparse.csr_matrix:
    codes = np.zeros(len(xy), dtype=np.int64)
    return spatial_graph(xy, codes, index, [grid], section_meshes(xy, codes, [grid]))


def _assert_neighbours(xy: np.ndarray, index: np.ndarray, grid: RasterGrid, radius: float = 1.2) -> None:
    """Check that the graph joins the pairs closer than ``radius``."""
    graph = _graph(xy, index, grid).tocoo()
    found = {(int(i), int(j)) for i, j in zip(graph.row, graph.col, strict=True) if i < j}
    assert found == cKDTree(xy).query_pairs(radius)


def _lattice(kind: str, rows: int, cols: int) -> tuple[np.ndarray, np.ndarray]:
    """A lattice of unit spacing and its array positions, Visium's if hexagonal."""
    r, c = (a.ravel() for a in np.mgrid[:rows, :cols])
    if kind == "hex":
        return np.c_[c + 0.5 * (r % 2), r * np.sqrt(3) / 2], np.c_[r, 2 * c + r % 2]
    return np.c_[c, r].astype(float), np.c_[r, c]


def _moved(xy: np.ndarray, angle: float, scale: float, shift: tuple[float, float]) -> np.ndarray:
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return scale * xy @ turn.T + shift


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
def test_lattice_is_found_at_any_rotation_scale_and_shift(
    kind, shape, angle, scale, shift, missing, jitter, seed
) -> None:
    rng = np.random.default_rng(seed)
    xy, _ = _lattice(kind, *shape)
    xy = xy[rng.random(len(xy)) >= missing]
    assume(len(cKDTree(xy).query_pairs(1.2)) >= 1.2 * len(xy))  # less is hardly a lattice
    index, grid = rasterize(_moved(xy + jitter * rng.standard_normal(xy.shape).clip(-2, 2), angle, scale, shift))
    assert grid.lattice == kind
    assert len(np.unique(index, axis=0)) == len(xy)
    _assert_neighbours(xy, index, grid)
    assert grid.pixel_size == pytest.approx(scale, rel=0.05)
    assert (index.min(axis=0) == 0).all()
    assert tuple(index.max(axis=0) + 1) == grid.shape


@pytest.mark.parametrize("first", [(0, 0), (0, 3), (1, 0), (1, 3)])
@pytest.mark.parametrize(("kind", "step"), [("hex", 1), ("square", 1), ("square", 2)])
def test_array_positions_give_the_raster(kind: str, step: int, first: tuple[int, int]) -> None:
    xy, array = _lattice(kind, 6, 7)
    index, grid = rasterize(xy * 50, array=array * step + np.array(first))
    assert grid.lattice == kind
    assert grid.pixel_size == pytest.approx(50)
    assert grid.origin == pytest.approx((0, 0), abs=1e-6)
    expected = np.c_[array[:, 0], array[:, 1] // 2] if kind == "hex" else array
    np.testing.assert_array_equal(index, expected)
    assert index.dtype == np.int32


def test_square_lattice_rotated_by_45_degrees_is_square() -> None:
    """Row + column is always even here, too, but four neighbours are nearest, not six."""
    r, c = (a.ravel() for a in np.mgrid[:10, :10])
    array = np.c_[r, c][(r + c) % 2 == 0]
    index, grid = rasterize(array[:, ::-1] * 20.0, array=array)
    assert grid.lattice == "square"
    assert grid.pixel_size == pytest.approx(20 * np.sqrt(2))
    _assert_neighbours(array * 1.0, index, grid, 1.5)


@pytest.mark.parametrize("case", ["first row shifted", "no gaps", "duplicate", "nan", "shuffled", "fraction"])
def test_hexagonal_neighbours_with_any_array_positions(case: str) -> None:
    """Where columns have no gaps, or positions are unusable, the coordinates give the lattice."""
    xy, array = _lattice("hex", 10, 10)
    array = array.astype(float)
    if case == "first row shifted":
        xy, array = xy[10:], array[10:]
    elif case == "no gaps":
        array[:, 1] //= 2
    elif case == "duplicate":
        array[1] = array[0]
    elif case == "nan":
        array[3, 0] = np.nan
    elif case == "fraction":
        array += 0.5
    else:
        array = np.random.default_rng(0).permutation(array)
    index, grid = rasterize(xy, array=array)
    assert grid.lattice == "hex"
    _assert_neighbours(xy, index, grid)


@pytest.mark.parametrize("seed", range(5))
def test_scattered_cells_form_no_lattice(seed: int) -> None:
    xy = np.random.default_rng(seed).uniform(0, 100, size=(2000, 2))
    assert fit_lattice(xy) is None
    index, grid = rasterize(xy)
    assert grid.lattice == "scattered"
    occupied = len(xy) / np.prod(grid.shape)
    assert 1.5 < occupied < 2.5
    centre = np.array(grid.origin) + index[:, ::-1] * grid.pixel_size
    assert np.abs(xy - centre).max() <= grid.pixel_size / 2 + 1e-9


def test_separate_pieces_of_tissue_share_one_lattice() -> None:
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
def test_up_to_three_observations_have_a_raster(xy: list[list[float]], shape: tuple[int, int] | None) -> None:
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


def test_spots_in_a_line_are_a_square_lattice_of_one_row() -> None:
    xy = np.c_[np.arange(20) * 5.0, np.full(20, 3.0)]
    index, grid = rasterize(xy)
    assert grid.lattice == "square"
    assert sorted(grid.shape) == [1, 20]
    assert grid.pixel_size == pytest.approx(5)
    assert len(np.unique(index, axis=0)) == 20


def test_pixel_size_bins_a_lattice() -> None:
    xy, array = _lattice("square", 8, 8)
    index, grid = rasterize(xy, array=array, pixel_size=2.0)
    assert (grid.lattice, grid.shape, grid.pixel_size) == ("scattered", (4, 4), 2.0)
    np.testing.assert_array_equal(index, array // 2)


def test_scattered_libraries_share_a_pixel_size_and_keep_their_spacing() -> None:
    rng = np.random.default_rng(0)
    parts = [rng.uniform(0, 50, (400, 2)), rng.uniform(0, 100, (400, 2)), np.array([[7.0, 7.0]])]
    codes = np.repeat([0, 1, 2], [400, 400, 1])
    index, grids = rasterize_libraries(np.concatenate(parts), codes, 3)
    alone = [rasterize(p)[1].pixel_size for p in parts[:2]]
    np.testing.assert_allclose([g.pixel_size for g in grids], np.median(alone))
    for code, grid in enumerate(grids):
        assert (index[codes == code] < grid.shape).all()
    assert [grid.spacing for grid in grids[:2]] == [typical_spacing(xy) for xy in parts[:2]]
    assert "spacing" not in grids[0].to_uns()
    for grid in (*grids, RasterGrid((3, 4), 1.5, (0.5, -2.0), "hex")):
        assert RasterGrid.from_uns(grid.to_uns()) == grid


def test_split_rows_lists_the_rows_of_every_library() -> None:
    rows = split_rows(np.array([2, 0, 2, 0]), 4)
    assert [r.tolist() for r in rows] == [[1, 3], [], [0, 2], []]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"lattice": "triangle"}, "is not valid"),
        ({"lattice": "hex"}, "do not form a hex lattice"),
        ({"pixel_size": 1e-9}, "larger"),
        ({"pixel_size": 1.0, "lattice": "hex"}, "cannot be combined"),
    ],
)
def test_wrong_lattice_and_pixel_size_are_reported(kwargs: dict, message: str) -> None:
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
def test_real_sections_have_their_lattice_by_coordinates_and_array(
    name: str, real_section: Callable[[str], ad.AnnData]
) -> None:
    adata = real_section(name)
    xy = np.asarray(adata.obsm["spatial"], dtype=np.float64)
    index, grid = rasterize(xy)
    graph = _graph(xy, index, grid)
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
def test_sample_of_a_large_section_gives_the_lattice_of_the_whole(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_unique_points_equal_numpy_unique_rows(pairs: list[tuple[float, float]]) -> None:
    xy = np.array(pairs)
    expected = np.unique(xy, axis=0, return_index=True, return_inverse=True)
    for found, wanted in zip(unique_points(xy), expected, strict=True):
        np.testing.assert_array_equal(found, wanted.reshape(found.shape))


@pytest.mark.parametrize("warp", [0.0, 4.0], ids=["straight", "bent"])
@pytest.mark.parametrize("kind", ["hex", "square"])
def test_large_lattice_with_holes_is_found_unless_it_bends(kind: str, warp: float) -> None:
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
