"""Traps that a user can fall into without noticing: each is caught, or nothing is lost."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from conftest import assert_same

import stxtools as st
from stxtools.models import SegmenterParams, TissueNetParams

HOW = {"show_progress": False, "accelerator": "cpu"}


@pytest.mark.parametrize("name", ["L2/3", ""])
def test_class_names_that_no_file_can_hold(make_section, line, name):
    adata = make_section()
    adata.obs["layer"] = adata.obs["band"].cat.rename_categories({"b": name})
    with pytest.raises(ValueError, match="rename_categories"):
        st.tl.segment(adata, labels_key="layer", **HOW)
    line.obs["layer"] = line.obs["band"].cat.rename_categories({"b": name})
    with pytest.raises(ValueError, match="rename_categories"):
        st.tl.multitask(line, "layer", "band", **HOW)


def test_a_raster_of_other_coordinates_is_not_used(make_section, quick_unet):
    adata, plain = make_section(), make_section()
    st.pp.rasterize(adata)
    order = np.random.default_rng(0).permutation(adata.n_obs)
    for a in (adata, plain):
        a.obsm["spatial"] = a.obsm["spatial"][order]
        del a.obs["array_row"], a.obs["array_col"]
        st.tl.segment(a, 3, params=quick_unet, **HOW)
    pd.testing.assert_frame_equal(adata.obsm["segment_proba"], plain.obsm["segment_proba"])


def test_a_raster_of_the_user_is_used(make_section, quick_unet):
    adata = make_section("scattered")
    st.pp.rasterize(adata, pixel_size=400.0)
    st.tl.segment(adata, 2, params=quick_unet, **HOW)
    pixel = pd.Series([tuple(p) for p in adata.obsm["raster"]])
    proba = pd.Series(adata.obsm["segment_proba"]["0"].to_numpy())
    assert proba.groupby(pixel).nunique().max() == 1


def test_a_region_graph_of_other_segments_is_not_used(line, quick_net):
    line.obs["segment"] = np.random.default_rng(0).permutation(line.obs["segment"].astype(str))
    before = line.copy()
    with pytest.raises(ValueError, match="has changed since"):
        st.tl.embed(line, params=quick_net, **HOW)
    assert_same(before, line)


def test_labels_are_never_overwritten(make_section, quick_unet):
    adata = make_section()
    adata.obs["segment"] = adata.obs["band"]
    with pytest.raises(ValueError, match="key_added"):
        st.tl.segment(adata, labels_key="segment", params=quick_unet, **HOW)
    with pytest.raises(ValueError, match=r"would be lost.*key_added"):
        st.tl.segment(adata, 3, params=quick_unet, **HOW)
    assert (adata.obs["segment"] == adata.obs["band"]).all()


def test_key_added_cannot_take_another_call_s_place(make_section):
    for key in ("spatial", "regions", "X_pca", "log1p"):
        with pytest.raises(ValueError, match="overwrite"):
            st.tl.segment(make_section(), 3, key_added=key, **HOW)


def test_the_hint_for_whole_numbers_keeps_missing_labels(make_section):
    adata = make_section()
    adata.obs["number"] = adata.obs["band"].cat.codes.astype(float).where(np.arange(adata.n_obs) % 2 == 0)
    with pytest.raises(TypeError, match="Int64"):
        st.tl.segment(adata, labels_key="number", **HOW)
    adata.obs["number"] = adata.obs["number"].astype("Int64").astype("category")
    assert adata.obs["number"].isna().sum() == adata.n_obs // 2
    assert adata.obs["number"].nunique() == 3


def test_where_a_model_goes_is_checked_before_training(make_section, tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        st.tl.segment(make_section(), 3, save_model=tmp_path / "no" / "m.stx", params={"epochs": 10**9}, **HOW)


@pytest.mark.parametrize(
    ("kind", "params", "match"),
    [
        (SegmenterParams, {"pretrain": "foo"}, "masked"),
        (SegmenterParams, {"sigmas": ()}, "sigmas"),
        (SegmenterParams, {"width": "a"}, "width"),
        (SegmenterParams, {"depth": 9}, "depth"),
        (SegmenterParams, {"epochs": 0}, "epochs"),
        (SegmenterParams, {"kernel_size": 4}, "odd"),
        (SegmenterParams, {"dropout": 1.0}, "dropout"),
        (TissueNetParams, {"conv": "x"}, "gatv2"),
        (TissueNetParams, {"hide": 2.0}, "hide"),
        (TissueNetParams, {"alpha": -1.0}, "alpha"),
        (TissueNetParams, {"alpha": 0.0, "beta": 0.0}, "nothing"),
        (TissueNetParams, {"heads": 0}, "heads"),
        (TissueNetParams, {"heads": 3}, "multiples"),
    ],
)
def test_parameters_are_checked(kind, params, match):
    with pytest.raises((ValueError, TypeError), match=match):
        kind(**params)


def test_a_device_that_is_not_there_is_a_value_error(make_section, quick_unet):
    with pytest.raises(ValueError, match="cannot be used on this machine"):
        st.tl.segment(make_section(), 3, params=quick_unet, show_progress=False, accelerator="tpu")


def test_colours_of_strings_do_not_move_to_other_classes(make_section):
    import matplotlib.pyplot as plt

    adata = make_section()
    adata.obs["kind"] = adata.obs["band"].astype(str)
    st.pl.segment(adata, key="kind")
    part = adata[adata.obs["kind"] != "a"].copy()
    st.pl.segment(part, key="kind")
    assert len(part.uns["kind_colors"]) == 2
    plt.close("all")
