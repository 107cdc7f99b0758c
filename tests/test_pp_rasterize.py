"""pp.rasterize."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pytest

import stxtools as st


def _same(a: dict, b: dict) -> None:
    assert set(a) == set(b)
    for key, value in a.items():
        if isinstance(value, dict):
            _same(value, b[key])
        else:
            np.testing.assert_array_equal(value, b[key])


def test_hexagonal_section(make_section: Callable[..., ad.AnnData]) -> None:
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
def test_without_array_positions(kind: str, make_section: Callable[..., ad.AnnData]) -> None:
    adata = make_section(kind)
    st.pp.rasterize(adata)
    with_array = adata.obsm["raster"].copy()
    adata.obs = adata.obs.drop(columns=["array_row", "array_col"])
    st.pp.rasterize(adata)
    np.testing.assert_array_equal(adata.obsm["raster"], with_array)


def test_text_in_array_columns(make_section: Callable[..., ad.AnnData]) -> None:
    adata = make_section("square")
    adata.obs["array_row"] = [f"r{i}" for i in adata.obs["array_row"]]
    st.pp.rasterize(adata)
    assert adata.uns["raster"]["section"]["lattice"] == "square"


def test_libraries(make_section: Callable[..., ad.AnnData]) -> None:
    adata = make_section("scattered", libraries=3)
    adata.obsm["where"] = adata.obsm.pop("spatial")
    st.pp.rasterize(adata, library_key="library", spatial_key="where", key_added="bins")
    grids = [adata.uns["bins"][f"lib{i}"] for i in range(3)]
    assert len({g["pixel_size"] for g in grids}) == 1
    assert {g["lattice"] for g in grids} == {"scattered"}
    for i, grid in enumerate(grids):
        rows = (adata.obs["library"] == f"lib{i}").to_numpy()
        assert (adata.obsm["bins"][rows] < grid["shape"]).all()


def test_copy_and_view(make_section: Callable[..., ad.AnnData]) -> None:
    adata = make_section("hex")
    out = st.pp.rasterize(adata, copy=True)
    assert "raster" in out.obsm
    assert "raster" not in adata.obsm
    view = adata[:50]
    st.pp.rasterize(view)
    assert view.obsm["raster"].shape == (50, 2)
    assert "raster" not in adata.obsm


def test_pixel_size(make_section: Callable[..., ad.AnnData]) -> None:
    adata = make_section("hex")
    st.pp.rasterize(adata, pixel_size=300)
    assert adata.uns["raster"]["section"]["lattice"] == "scattered"
    assert adata.uns["raster"]["params"]["pixel_size"] == 300.0
    np.testing.assert_array_equal(adata.obsm["raster"], (adata.obsm["spatial"][:, ::-1] // 300).astype(int))


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_round_trip(suffix: str, tmp_path: Path, make_section: Callable[..., ad.AnnData]) -> None:
    adata = make_section("hex", libraries=2)
    st.pp.rasterize(adata, library_key="library")
    path = tmp_path / f"a.{suffix}"
    getattr(adata, f"write_{suffix}")(path)
    back = getattr(ad, f"read_{suffix}")(path)
    np.testing.assert_array_equal(back.obsm["raster"], adata.obsm["raster"])
    _same(back.uns["raster"], adata.uns["raster"])


def test_one_observation(make_section: Callable[..., ad.AnnData]) -> None:
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
        ({"pixel_size": 0}, ValueError, "positive"),
        ({"pixel_size": 1e6}, ValueError, "all observations into one pixel"),
        ({"library_key": "barcode"}, ValueError, "another value for each of the"),
        ({"pixel_size": "10"}, TypeError, "number"),
        ({"key_added": "a/b"}, ValueError, "/"),
        ({"library_key": "reserved"}, ValueError, "params"),
    ],
)
def test_errors_leave_no_trace(kwargs: dict, error: type, message: str, make_section: Callable) -> None:
    adata = make_section("scattered")
    adata.obs["reserved"], adata.obs["barcode"] = "params", adata.obs_names
    with pytest.raises(error, match=message):
        st.pp.rasterize(adata, **kwargs)
    assert list(adata.obsm) == ["spatial"]
    assert not adata.uns


def test_nan_coordinates(make_section: Callable[..., ad.AnnData]) -> None:
    adata = make_section("hex")
    adata.obsm["spatial"][3, 1] = np.nan
    with pytest.raises(ValueError, match="NaN or infinite coordinates"):
        st.pp.rasterize(adata)
