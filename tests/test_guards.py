"""Stale rasters and region graphs, slots of the user, and hyperparameters out of range."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from conftest import QUICK_NET, assert_same

import stxtools as st
from stxtools.models import SegmenterParams, TissueNetParams

HOW = {"show_progress": False, "accelerator": "cpu"}


def test_raster_of_earlier_coordinates_is_not_used(make_section, quick_unet):
    adata, plain = make_section(), make_section()
    st.pp.rasterize(adata)
    order = np.random.default_rng(0).permutation(adata.n_obs)
    for a in (adata, plain):
        a.obsm["spatial"] = a.obsm["spatial"][order]
        del a.obs["array_row"], a.obs["array_col"]
        st.tl.segment(a, 3, params=quick_unet, **HOW)
    pd.testing.assert_frame_equal(adata.obsm["segment_proba"], plain.obsm["segment_proba"])


def test_raster_with_the_user_s_pixel_size_is_used(make_section, quick_unet):
    adata = make_section("scattered")
    st.pp.rasterize(adata, pixel_size=400.0)
    st.tl.segment(adata, 2, params=quick_unet, **HOW)
    pixel = pd.Series([tuple(p) for p in adata.obsm["raster"]])
    proba = pd.Series(adata.obsm["segment_proba"]["0"].to_numpy())
    assert proba.groupby(pixel).nunique().max() == 1


def _rename(names):
    return lambda a: a.obs["library"].cat.rename_categories(names)


# a column of ``obs``, and its new values; or fewer regions
CHANGES = {
    "sections renamed": ("library", _rename({"lib0": "first", "lib1": "second"})),
    "sections swapped": ("library", _rename({"lib0": "lib1", "lib1": "lib0"})),
    "sections mixed": ("library", lambda a: pd.Categorical(np.resize(["lib0", "lib1"], a.n_obs))),
    "segments shuffled": ("segment", lambda a: np.random.default_rng(0).permutation(a.obs["segment"].astype(str))),
    "regions subset": ("regions", lambda a: a.uns["regions"][3:].copy()),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    "call", ["embed", "multitask", "multitask(model=)", "distill", "attention_fidelity", "biomarkers"]
)
def test_regions_that_do_not_match_the_observations_raise(line, quick_net, tmp_path, call, change, known_net):
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
    key, values = CHANGES[change]
    (line.uns if key == "regions" else line.obs)[key] = values(line)
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


def test_embed_follows_reordered_observations(line, quick_net):
    plain = st.tl.embed(line, params=quick_net, copy=True, **HOW)
    order = np.random.default_rng(0).permutation(line.n_obs)
    moved = line[order].copy()
    st.tl.embed(moved, params=quick_net, **HOW)
    np.testing.assert_allclose(moved.obsm["X_gnn"], plain.obsm["X_gnn"][order], atol=1e-5)


def test_segment_never_overwrites_labels(make_section, quick_unet):
    adata = make_section()
    adata.obs["segment"] = adata.obs["band"]
    with pytest.raises(ValueError, match="key_added"):
        st.tl.segment(adata, labels_key="segment", params=quick_unet, **HOW)
    assert (adata.obs["segment"] == adata.obs["band"]).all()


def test_key_added_of_another_call_raises(make_section):
    for key in ("spatial", "regions", "X_pca", "log1p"):
        with pytest.raises(ValueError, match="overwrite"):
            st.tl.segment(make_section(), 3, key_added=key, **HOW)


def test_suggested_dtype_for_integer_labels_keeps_missing_ones(make_section):
    adata = make_section()
    adata.obs["number"] = adata.obs["band"].cat.codes.astype(float).where(np.arange(adata.n_obs) % 2 == 0)
    with pytest.raises(TypeError, match="Int64"):
        st.tl.segment(adata, labels_key="number", **HOW)
    adata.obs["number"] = adata.obs["number"].astype("Int64").astype("category")
    assert adata.obs["number"].isna().sum() == adata.n_obs // 2
    assert adata.obs["number"].nunique() == 3


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
        (TissueNetParams, {"max_nodes": 0}, "max_nodes"),
    ],
)
def test_hyperparameters_out_of_range_raise(kind, params, match):
    with pytest.raises((ValueError, TypeError), match=match):
        kind(**params)


def test_colors_of_a_string_column_follow_its_classes(make_section):
    adata = make_section()
    adata.obs["kind"] = adata.obs["band"].astype(str)
    st.pl.segment(adata, key="kind")
    part = adata[adata.obs["kind"] != "a"].copy()
    st.pl.segment(part, key="kind")
    assert len(part.uns["kind_colors"]) == 2
