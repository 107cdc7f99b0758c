"""Silent mistakes of users are caught, and nothing is lost."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from conftest import QUICK_NET, assert_same

import stxtools as st
from stxtools.models import SegmenterParams, TissueNetParams

HOW = {"show_progress": False, "accelerator": "cpu"}


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


def _renamed(a):
    a.obs["library"] = a.obs["library"].cat.rename_categories({"lib0": "first", "lib1": "second"})


def _swapped(a):
    a.obs["library"] = a.obs["library"].cat.rename_categories({"lib0": "lib1", "lib1": "lib0"})


def _mixed(a):
    a.obs["library"] = pd.Categorical(np.resize(["lib0", "lib1"], a.n_obs))


def _fewer_regions(a):
    a.uns["regions"] = a.uns["regions"][3:].copy()


CHANGES = {"sections renamed": _renamed, "sections swapped": _swapped, "sections mixed": _mixed,
           "regions subset": _fewer_regions}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    "call", ["embed", "multitask", "multitask(model=)", "distill", "attention_fidelity", "biomarkers"]
)
def test_regions_belong_to_the_observations(line, quick_net, tmp_path, call, change, known_net):
    run = {
        "embed": lambda a: st.tl.embed(a, params=quick_net, **HOW),
        "multitask": lambda a: st.tl.multitask(a, None, "band", params=quick_net, **HOW),
        "multitask(model=)": lambda a: st.tl.multitask(a, None, "band", model=known_net, **HOW),
        "distill": lambda a: st.tl.distill(a, known_net, save_model=tmp_path / "s.stx", params={"epochs": 1}, **HOW),
        "attention_fidelity": lambda a: st.tl.attention_fidelity(a, known_net, show_progress=False),
        "biomarkers": lambda a: st.tl.biomarkers(
            a, "band", library_key="library", attribution_model=known_net, n_null=50
        ),
    }[call]
    CHANGES[change](line)
    before = line.copy()
    with pytest.raises(ValueError, match=r"st\.tl\.region_graph\(adata\)` again"):
        run(line)
    assert_same(before, line)


@pytest.fixture(scope="module")
def known_net(_line, tmp_path_factory):
    """Return the file of a net that was trained on the two sections."""
    path = tmp_path_factory.mktemp("net") / "net.stx"
    st.tl.multitask(_line.copy(), None, "band", params=QUICK_NET, save_model=path, **HOW)
    return path


def test_regions_know_reordered_observations(line, quick_net):
    plain = st.tl.embed(line, params=quick_net, copy=True, **HOW)
    order = np.random.default_rng(0).permutation(line.n_obs)
    moved = line[order].copy()
    st.tl.embed(moved, params=quick_net, **HOW)
    assert moved.n_obs == plain.n_obs
    home = moved.uns["regions"].obs["library"].astype(str).reindex(moved.obs["region_id"].astype(str))
    assert (home.to_numpy() == moved.obs["library"].astype(str).to_numpy()).all()


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
