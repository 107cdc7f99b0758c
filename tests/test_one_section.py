"""Overlapping sections and stacks are never treated as one section silently."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from conftest import assert_same

import stxtools as st

HOW = {"show_progress": False, "accelerator": "cpu"}
CALLS = {
    "rasterize": lambda a, **k: st.pp.rasterize(a, **k),
    "segment": lambda a, **k: st.tl.segment(a, 2, **HOW, **k),
    "region_graph": lambda a, **k: st.tl.region_graph(a, "band", **k),
    "biomarkers": lambda a, **k: st.tl.biomarkers(a, "band", n_null=50, show_progress=False, **k),
    "evaluate": lambda a, **k: st.tl.evaluate(a, ["lda"], region_key="band", n_seeds=1, show_progress=False, **k),
}


def _two_copies(adata: ad.AnnData) -> ad.AnnData:
    return ad.concat([adata, adata], label="which", keys=["x", "y"], index_unique="-")


@pytest.mark.parametrize("name", CALLS)
def test_two_copies_of_a_section_in_one_place_raise(make_section, name):
    adata = _two_copies(make_section(rows=8, cols=8))
    before = adata.copy()
    with pytest.raises(ValueError, match=r"library_key='which'"):
        CALLS[name](adata)
    assert_same(before, adata)


def test_overlap_without_a_section_column_says_how_to_make_one(make_section):
    adata = _two_copies(make_section(rows=8, cols=8))
    del adata.obs["which"]
    with pytest.raises(ValueError, match=r"label="):
        st.pp.rasterize(adata)


@pytest.mark.parametrize("column", ["sample", "library_id", "Batch", "patient"])
def test_overlapping_groups_of_a_column_name_it_as_library_key(make_section, column):
    adata = make_section("scattered", rows=12, cols=12, libraries=2)
    adata.obs[column] = adata.obs.pop("library").cat.rename_categories({"lib0": "A", "lib1": "B"})
    with pytest.raises(ValueError, match=f"library_key='{column}'"):
        st.tl.biomarkers(adata, "band")
    st.tl.biomarkers(adata, "band", library_key=column, n_null=50, show_progress=False)


def test_error_names_the_column_of_sections_before_that_of_patients():
    adata = st.datasets.synthetic_tissue(n_obs=800, n_patients=2, sections_per_patient=2, show_progress=False)
    assert list(adata.obs.columns).index("patient") < list(adata.obs.columns).index("section")
    with pytest.raises(ValueError, match="library_key='section'"):
        st.pp.rasterize(adata)


def test_library_key_false_makes_one_section(make_section, quick_unet, tmp_path):
    adata = make_section("scattered", rows=12, cols=12)
    adata.obs["batch"] = pd.Categorical(np.random.default_rng(0).integers(0, 2, adata.n_obs).astype(str))
    with pytest.raises(ValueError, match="library_key=False"):
        st.tl.segment(adata, 2, **HOW)
    adata.obs["known"] = adata.obs["band"].where(np.arange(adata.n_obs) % 4 == 0)
    st.tl.segment(adata, labels_key="known", library_key=False, params=quick_unet, **HOW)
    adata.write_h5ad(tmp_path / "x.h5ad")
    adata = ad.read_h5ad(tmp_path / "x.h5ad")
    st.tl.region_graph(adata)  # inherits it
    assert adata.uns["regions"].uns["params"]["library_key"] == np.False_
    st.tl.suggest_labels(adata, 3)
    with pytest.raises(TypeError, match="True"):
        st.tl.segment(adata, 2, library_key=True, **HOW)


def test_groups_side_by_side_are_one_section(make_section):
    adata = make_section("scattered", rows=30, cols=30)
    x, y = adata.obsm["spatial"].T
    for parts in (2, 5, 8):
        cut = [np.searchsorted(np.quantile(v, np.linspace(0, 1, parts + 1)[1:-1]), v) for v in (x, y)]
        adata.obs["sample"] = pd.Categorical((cut[0] * parts + cut[1]).astype(str))
        st.pp.rasterize(adata)


def test_some_observations_in_one_place_are_one_section(make_section):
    adata = make_section("scattered", rows=20, cols=20)
    adata.obsm["spatial"][:40] = adata.obsm["spatial"][40:80]
    st.pp.rasterize(adata)
    adata.obsm["spatial"][:] = 7.0  # one place: a raster of one pixel
    st.pp.rasterize(adata)


@pytest.mark.parametrize(
    "name",
    ["dlpfc_151508_pcs", "dlpfc_151673", "dlpfc_151675", "her2st_A1", "her2st_B1", "her2st_C1", "her2st_D1",
     "merfish_hypothalamus", "osmfish_mouse_sscortex", "st_mouse_olfactory_bulb_MOB1", "starmap_mpfc_BZ5",
     "xenium_breast_idc", "xenium_mouse_brain_subset"],
)  # fmt: skip
def test_real_section_is_one_section(real_section, name):
    st.pp.rasterize(real_section(name))


@pytest.mark.parametrize(("one", "two"), [("her2st_A1", "her2st_B1"), ("dlpfc_151673", "dlpfc_151675")])
def test_two_real_sections_raise(real_section, one, two):
    adata = ad.concat([real_section(one), real_section(two)], index_unique="-")
    with pytest.raises(ValueError, match="library_key="):
        st.pp.rasterize(adata)


@pytest.mark.parametrize("name", CALLS)
def test_varying_z_raises(make_section, quick_unet, name):
    adata = make_section(rows=8, cols=8)
    flat = adata.obsm["spatial"]
    adata.obsm["spatial"] = np.c_[flat, np.arange(adata.n_obs)]
    before = adata.copy()
    with pytest.raises(ValueError, match=r"z varies.*library_key="):
        CALLS[name](adata)
    assert_same(before, adata)
    adata.obsm["spatial"] = np.c_[flat, np.full(adata.n_obs, 4.0)]
    st.pp.rasterize(adata)


def test_stack_of_sections_needs_a_library_key(make_section):
    adata = make_section(rows=8, cols=8, libraries=2)
    z = adata.obs["library"].cat.codes.to_numpy() * 10.0
    adata.obsm["spatial"] = np.c_[adata.obsm["spatial"], z]
    with pytest.raises(ValueError, match=r"library_key="):
        st.pp.rasterize(adata)
    st.pp.rasterize(adata, library_key="library")
    adata.obsm["spatial"][0, 2] = 3
    with pytest.raises(ValueError, match="within section 'lib0'"):
        st.pp.rasterize(adata, library_key="library")


@pytest.mark.parametrize("foreign", ["text", 5, {"is_single": True, "lib": {}}, {"note": "x", "other": "y"}])
def test_foreign_content_of_uns_spatial_names_no_section(make_section, foreign):
    adata = make_section(rows=8, cols=8)
    adata.uns["spatial"] = foreign
    st.pp.rasterize(adata)
    st.tl.biomarkers(adata, "band", n_null=50, show_progress=False)


@pytest.mark.parametrize(
    "foreign", ["text", {"params": "x"}, {"params": {"coordinates": "many"}}, {"section": 5}, "without a shape"]
)
def test_raster_of_other_origin_is_made_again(make_section, foreign):
    adata, plain = make_section(rows=8, cols=8), make_section(rows=8, cols=8)
    if foreign == "without a shape":
        st.pp.rasterize(adata)
        del adata.uns["raster"]["section"]["shape"]
    else:
        adata.uns["raster"], adata.obsm["raster"] = foreign, np.zeros((adata.n_obs, 3))
    for one in (adata, plain):
        st.tl.region_graph(one, "band")
    assert adata.obs["region_id"].equals(plain.obs["region_id"])
