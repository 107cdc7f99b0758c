"""pp.rasterize: pixels of lattices and scattered cells, sections, pixel size, errors."""

from __future__ import annotations

from collections.abc import Callable

import anndata as ad
import numpy as np
import pytest
from conftest import assert_same

import stxtools as st


def test_hexagonal_lattice_has_one_pixel_per_spot(make_section: Callable[..., ad.AnnData]) -> None:
    adata = make_section("hex", rows=16, cols=14)
    assert st.pp.rasterize(adata) is None
    raster = adata.obsm["raster"]
    assert raster.dtype == np.int32
    array = adata.obs[["array_row", "array_col"]].to_numpy()
    np.testing.assert_array_equal(raster, np.c_[array[:, 0], array[:, 1] // 2])
    grid = adata.uns["raster"]["section"]
    assert grid["lattice"] == "hex"
    assert grid["pixel_size"] == pytest.approx(100)
    np.testing.assert_array_equal(grid["shape"], [16, 14])
    np.testing.assert_allclose(grid["origin"], [0, 0], atol=1e-6)


@pytest.mark.parametrize("kind", ["hex", "square"])
def test_lattice_is_found_without_array_columns(kind: str, make_section: Callable[..., ad.AnnData]) -> None:
    adata = make_section(kind)
    st.pp.rasterize(adata)
    with_array = adata.obsm["raster"].copy()
    adata.obs = adata.obs.drop(columns=["array_row", "array_col"])
    st.pp.rasterize(adata)
    np.testing.assert_array_equal(adata.obsm["raster"], with_array)


def test_text_in_array_columns_is_ignored(make_section: Callable[..., ad.AnnData]) -> None:
    adata = make_section("square")
    adata.obs["array_row"] = [f"r{i}" for i in adata.obs["array_row"]]
    st.pp.rasterize(adata)
    assert adata.uns["raster"]["section"]["lattice"] == "square"


def test_sections_share_the_pixel_size(make_section: Callable[..., ad.AnnData]) -> None:
    adata = make_section("scattered", libraries=3)
    adata.obsm["where"] = adata.obsm.pop("spatial")
    st.pp.rasterize(adata, library_key="library", spatial_key="where", key_added="bins")
    grids = [adata.uns["bins"][f"lib{i}"] for i in range(3)]
    assert len({g["pixel_size"] for g in grids}) == 1
    assert {g["lattice"] for g in grids} == {"scattered"}
    for i, grid in enumerate(grids):
        rows = (adata.obs["library"] == f"lib{i}").to_numpy()
        assert (adata.obsm["bins"][rows] < grid["shape"]).all()


def test_copy_and_view_leave_the_original_unchanged(make_section: Callable[..., ad.AnnData]) -> None:
    adata = make_section("hex")
    out = st.pp.rasterize(adata, copy=True)
    assert "raster" in out.obsm
    assert "raster" not in adata.obsm
    view = adata[:50]
    st.pp.rasterize(view)
    assert view.obsm["raster"].shape == (50, 2)
    assert "raster" not in adata.obsm


def test_pixel_size_sets_the_grid(make_section: Callable[..., ad.AnnData]) -> None:
    adata = make_section("hex")
    st.pp.rasterize(adata, pixel_size=300)
    assert adata.uns["raster"]["section"]["lattice"] == "scattered"
    assert adata.uns["raster"]["params"]["pixel_size"] == 300.0
    np.testing.assert_array_equal(adata.obsm["raster"], (adata.obsm["spatial"][:, ::-1] // 300).astype(int))


def test_one_observation_is_one_pixel(make_section: Callable[..., ad.AnnData]) -> None:
    adata = make_section("hex")[:1].copy()
    st.pp.rasterize(adata)
    assert adata.obsm["raster"].tolist() == [[0, 0]]
    assert adata.uns["raster"]["section"]["shape"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"spatial_key": "nowhere"}, KeyError, "nowhere"),
        ({"library_key": "nowhere"}, KeyError, "nowhere"),
        ({"lattice": "hexagon"}, ValueError, "choose one of"),
        ({"lattice": "square"}, ValueError, "do not form"),
        ({"pixel_size": 0}, ValueError, "greater than 0"),
        ({"pixel_size": -1.0}, ValueError, "greater than 0"),
        ({"pixel_size": 1e6}, ValueError, "all observations into one pixel"),
        ({"library_key": "barcode"}, ValueError, "another value for each of the"),
        ({"pixel_size": "10"}, TypeError, "number"),
        ({"key_added": "a/b"}, ValueError, "/"),
        ({"library_key": "reserved"}, ValueError, "params"),
    ],
)
def test_wrong_arguments_raise_and_change_nothing(
    kwargs: dict, error: type, message: str, make_section: Callable
) -> None:
    adata = make_section("scattered")
    adata.obs["reserved"], adata.obs["barcode"] = "params", adata.obs_names
    before = adata.copy()
    with pytest.raises(error, match=message):
        st.pp.rasterize(adata, **kwargs)
    assert_same(before, adata)
