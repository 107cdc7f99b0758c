"""Conversion to SpatialData and back through zarr; calls on SpatialData of other programs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
from anndata.tests.helpers import assert_equal
from shapely import Point, contains
from spatialdata.models import Image2DModel, Labels2DModel, ShapesModel, TableModel
from spatialdata.transformations import Affine, Scale, get_transformation

import stxtools as st

QUICK = {"epochs": 1, "pretrain": "none"}


def _with_results(adata: ad.AnnData, library_key: str | None = None) -> ad.AnnData:
    st.tl.segment(adata, n_segments=3, library_key=library_key, params=QUICK)
    st.tl.region_graph(adata, max_size=None)
    return adata


def _through_zarr(adata: ad.AnnData, folder: Path, library_key: str | None = None) -> ad.AnnData:
    st.io.to_spatialdata(adata, library_key).write(folder / "section.zarr")
    return st.io.from_spatialdata(sd.read_zarr(folder / "section.zarr"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dlpfc_151673", "xenium_breast_idc"])
def test_real_section_survives_zarr(name: str, real_section: Callable[[str], ad.AnnData], tmp_path: Path) -> None:
    whole = real_section(name)
    part = np.argsort(whole.obsm["spatial"][:, 1])[:900]  # connected
    adata = _with_results(whole[part].copy())
    assert_equal(_through_zarr(adata, tmp_path), adata)


@pytest.fixture
def two_sections(make_section: Callable[..., ad.AnnData]) -> ad.AnnData:
    adata = make_section("hex", 12, 10, libraries=2)
    image = np.random.default_rng(0).integers(0, 255, (60, 70, 3), dtype=np.uint8)
    factors = {"tissue_hires_scalef": 0.05, "spot_diameter_fullres": 55.0}
    adata.uns["spatial"] = {"lib0": {"images": {"hires": image}, "scalefactors": factors}, "lib1": {}}
    return _with_results(adata, "library")


def test_two_sections_survive_spatialdata(two_sections: ad.AnnData, tmp_path: Path) -> None:
    before = two_sections.copy()
    assert_equal(_through_zarr(two_sections, tmp_path), two_sections)
    assert_equal(two_sections, before)


def test_subset_of_segmented_sections_is_converted(two_sections: ad.AnnData) -> None:
    one = two_sections[two_sections.obs["library"] == "lib0"].copy()
    sdata = st.io.to_spatialdata(one)
    mask = two_sections.uns["segment"]["masks"]["lib0"]["image"]
    np.testing.assert_array_equal(sdata.labels["segment"].to_numpy(), mask)
    assert sorted(sdata.tables["regions"].obs_names) == sorted(one.obs["region_id"].unique())
    assert {"segment_lib0", "segment_lib1"} <= set(st.io.to_spatialdata(two_sections, False).labels), "all in one"


def test_elements_of_equal_names_raise(two_sections: ad.AnnData) -> None:
    two_sections.uns["observations"] = two_sections.uns.pop("segment")
    with pytest.raises(ValueError, match="Two elements would have the name 'observations_lib0'"):
        st.io.to_spatialdata(two_sections, "library")


def test_labels_and_shapes_lie_at_the_observations(two_sections: ad.AnnData) -> None:
    sdata = st.io.to_spatialdata(two_sections)
    assert {"segment_lib0", "segment_lib1"} <= set(sdata.labels)
    assert {"observations_lib0", "segment_regions_lib0"} <= set(sdata.shapes)
    assert {"global", "lib0", "lib1"} == set(sdata.coordinate_systems)
    regions = sdata["regions"]
    assert regions.n_obs == two_sections.uns["regions"].n_obs
    for name in ("lib0", "lib1"):
        rows = np.flatnonzero(two_sections.obs["library"] == name)
        xy = two_sections.obsm["spatial"][rows]
        labels = sdata[f"segment_{name}"]
        matrix = get_transformation(labels, "global").to_affine_matrix(("x", "y"), ("x", "y"))
        pixel = np.floor(np.c_[xy, np.ones(len(xy))] @ np.linalg.inv(matrix)[:2].T).astype(int)
        found = np.asarray(labels)[pixel[:, 1], pixel[:, 0]]
        assert (found == two_sections.obs["segment_id"].to_numpy()[rows]).mean() > 0.99
        shapes = sdata[f"segment_regions_{name}"]
        of = two_sections.obs["region_id"].astype(str).iloc[rows]
        assert contains(shapes.geometry.loc[of].to_numpy(), [Point(*at) for at in xy]).all()
        assert list(shapes["segment"].loc[of]) == list(two_sections.obs["segment"].astype(str).iloc[rows])
        assert isinstance(shapes["segment"].dtype, pd.CategoricalDtype)  # spatialdata-plot takes "1" for a number
        inside = regions.obs["annotated_element"] == f"segment_regions_{name}"
        assert set(regions.obs["annotated_instance"][inside]) == set(shapes.index)
    assert shapes.geometry.union_all().area == pytest.approx(shapes.geometry.area.sum())  # nothing overlaps


def test_converter_of_spatialdata_io_accepts_results(two_sections: ad.AnnData) -> None:
    from spatialdata_io.experimental import from_legacy_anndata

    sdata = from_legacy_anndata(two_sections)
    assert list(sdata["table"].obs["segment"]) == list(two_sections.obs["segment"])
    assert "lib0_hires" in sdata.images


def _scaled_by(factor: float) -> dict[str, Scale]:
    return {"global": Scale([factor, factor], axes=("x", "y"))}


def _of_another_program(adata: ad.AnnData, *, by_labels: bool = False) -> sd.SpatialData:
    """Lay a section out as another program might: cells in another unit and order, images that fit and others."""
    xy, cells = adata.obsm["spatial"], np.arange(adata.n_obs)[::-1] + 1
    table = ad.AnnData(adata.X.copy(), obs=adata.obs[["band"]].copy(), var=adata.var.copy())
    table.obs["region"], table.obs["cell"] = pd.Categorical(["cells"] * adata.n_obs), cells
    pixels = np.random.default_rng(0).integers(0, 255, (3, 40, 50), dtype=np.uint8)
    turn = {"global": Affine([[0, -1, 0], [1, 0, 0], [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y"))}
    empty = np.zeros((5, 8, 8))
    images = {"he_hires": (pixels, _scaled_by(10)), "turned": (pixels, turn), "channels": (empty, _scaled_by(1))}
    out = sd.SpatialData(
        images={k: Image2DModel.parse(v, dims=("c", "y", "x"), transformations=t) for k, (v, t) in images.items()},
        tables={"cells_table": TableModel.parse(table, region="cells", region_key="region", instance_key="cell")},
    )
    if by_labels:
        mask = np.zeros((400, 500), dtype=np.int32)
        mask[tuple(np.rint(xy[:, ::-1] / 4).astype(int).T)] = cells
        out["cells"] = Labels2DModel.parse(mask, dims=("y", "x"), transformations=_scaled_by(4))
    else:
        out["cells"] = ShapesModel.parse(
            xy[::-1] / 2, geometry=0, radius=3.0, index=pd.Index(cells[::-1]), transformations=_scaled_by(2)
        )
    return out


def test_elements_that_overlap_are_sections(make_section: Callable[..., ad.AnnData]) -> None:
    sdata = _of_another_program(make_section("square", 12, 12))
    table, shapes = sdata["cells_table"], sdata["cells"]
    for name in list(sdata.images):
        del sdata[name]
    table.obs["region"] = pd.Categorical(np.where(np.arange(table.n_obs) % 2, "a", "b"))
    for name in ("a", "b"):
        sdata[name] = ShapesModel.parse(shapes.loc[table.obs["cell"][table.obs["region"] == name]])
    table.uns["spatialdata_attrs"]["region"] = ["a", "b"]
    with pytest.raises(ValueError, match="library_key='region'"):
        st.pp.rasterize(sdata, table_key="cells_table")
    st.pp.rasterize(sdata, table_key="cells_table", library_key="region")
    assert {"a", "b"} <= set(table.uns["raster"])


@pytest.mark.parametrize("system", [None, "global"])
@pytest.mark.parametrize("degrees", [0.0, 3.0, 90.0, 180.0])
def test_registered_images_that_are_rotated_and_shifted_fit(
    make_section: Callable[..., ad.AnnData], degrees: float, system: str | None
) -> None:
    sdata = _of_another_program(make_section("square", 9, 9))
    xy = st.io.from_spatialdata(sdata, "cells_table").obsm["spatial"]
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    turn = np.array([[cos, -sin], [sin, cos]])
    corner = (xy @ turn).min(axis=0) - 20  # of the image, whose pixel is 4 units
    where = np.floor(((xy @ turn) - corner) / 4).astype(int)
    pixels = np.full((3, *(where.max(axis=0)[::-1] + 6)), 255, dtype=np.uint8)
    for at in np.ndindex(3, 3):  # a spot of red around each observation
        pixels[1:, where[:, 1] + at[1] - 1, where[:, 0] + at[0] - 1] = 0
    matrix = np.eye(3)
    matrix[:2, :2], matrix[:2, 2] = 4 * turn, turn @ corner
    fit = Affine(matrix, input_axes=("x", "y"), output_axes=("x", "y"))
    sdata["he"] = Image2DModel.parse(pixels, dims=("c", "y", "x"), transformations={"global": fit})
    adata = st.io.from_spatialdata(sdata, "cells_table", coordinate_system=system)
    entry = adata.uns["spatial"]["cells"]
    image = entry["images"]["he"]
    col, row = np.floor(adata.obsm["spatial"] * entry["scalefactors"]["tissue_he_scalef"]).astype(int).T
    is_red = (image > 127) == [True, False, False]
    assert is_red.all(axis=-1)[row, col].all()
    assert is_red.all(axis=-1).mean() < 0.5


def test_from_spatialdata_reads_positions_and_images_of_other_programs(make_section: Callable[..., ad.AnnData]) -> None:
    source = make_section("square", 9, 9)
    sdata = _of_another_program(source)
    adata = st.io.from_spatialdata(sdata, "cells_table")
    np.testing.assert_allclose(adata.obsm["spatial"], source.obsm["spatial"])
    assert set(adata.uns["spatial"]["cells"]["images"]) == {"hires"}
    assert adata.uns["spatial"]["cells"]["scalefactors"]["tissue_hires_scalef"] == pytest.approx(0.1)
    np.testing.assert_array_equal(
        adata.uns["spatial"]["cells"]["images"]["hires"], np.moveaxis(sdata["he_hires"].to_numpy(), 0, -1)
    )
    by_labels = st.io.from_spatialdata(_of_another_program(source, by_labels=True), "cells_table")
    np.testing.assert_allclose(by_labels.obsm["spatial"], source.obsm["spatial"], atol=2.1)  # half a pixel of 4


def test_call_on_spatialdata_writes_only_to_the_table(make_section: Callable[..., ad.AnnData]) -> None:
    sdata = _of_another_program(make_section("square", 9, 9))
    before = sdata["cells_table"].copy()
    out = st.tl.segment(sdata, 2, params=QUICK, table_key="cells_table", copy=True)
    assert_equal(sdata["cells_table"], before)
    assert isinstance(out, sd.SpatialData)
    assert out["cells"] is sdata["cells"]
    st.tl.segment(adata=sdata, n_segments=2, params=QUICK, table_key="cells_table", coordinate_system="global")
    assert_equal(sdata["cells_table"], out["cells_table"])
    assert set(sdata["cells_table"].uns) >= {"segment", "spatialdata_attrs"}
    assert "spatial" not in sdata["cells_table"].obsm
    assert "spatial" not in sdata["cells_table"].uns
    axes = st.pl.segment(sdata, table_key="cells_table", show=False)
    assert axes.images, "the image lies beneath"
    assert list(st.get.segments(sdata, table_key="cells_table").index) == list(
        st.get.segments(sdata["cells_table"]).index
    )


def test_wrong_table_or_coordinate_system_raises(make_section: Callable[..., ad.AnnData]) -> None:
    adata = make_section("square", 9, 9)
    sdata = _of_another_program(adata)
    with pytest.raises(KeyError, match=r"table_key='table'.*'cells_table'"):
        st.tl.segment(sdata)
    with pytest.raises(ValueError, match=r"coordinate_system='microns'.*'global'"):
        st.tl.segment(sdata, table_key="cells_table", coordinate_system="microns")
    with pytest.raises(TypeError, match="table_key"):
        st.tl.segment(adata, table_key="table")
    with pytest.raises(TypeError, match=r"must be spatialdata\.SpatialData, not AnnData"):
        st.io.from_spatialdata(adata)
    del sdata["cells_table"].uns["spatialdata_attrs"]
    with pytest.raises(KeyError, match="annotates no element"):
        st.io.from_spatialdata(sdata, "cells_table")
    adata.obs["a column"] = 1
    with pytest.raises(ValueError, match="a column"):
        st.io.to_spatialdata(adata)
