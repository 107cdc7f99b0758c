"""Calls replace their own earlier output and nothing else; written values are finite."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from conftest import assert_same, read_back

import stxtools as st
from stxtools._slots import Slots, provenance

HOW = {"accelerator": "cpu", "show_progress": False}

UNET = {"pretrain_epochs": 1, "epochs": 1}
LIBRARY = {"library_key": "library"}
# a call, and slots that it writes under that name, by container
CALLS = {
    "pp.rasterize": (st.pp.rasterize, LIBRARY, {"obsm": "{}", "uns": "{}"}),
    "pp.align": (st.pp.align, LIBRARY, {"obsm": "{}", "uns": "{}"}),
    "pp.add_noise": (st.pp.add_noise, {"level": 0.1}, {"layers": "{}", "uns": "{}"}),
    "pp.split_counts": (st.pp.split_counts, {}, {"layers": "{}_test", "uns": "{}"}),
    "tl.segment": (
        st.tl.segment,
        {"n_segments": 3, "params": UNET, **LIBRARY, **HOW},
        {"obs": "{}_confidence", "obsm": "{}_proba", "uns": "{}"},
    ),
    "tl.region_graph": (st.tl.region_graph, {"segment_key": "band", **LIBRARY}, {"obs": "{}_region", "uns": "{}"}),
    "tl.biomarkers": (
        st.tl.biomarkers,
        {"groupby": "band", "n_null": 50, "show_progress": False, **LIBRARY},
        {"var": "{}_score", "uns": "{}_params"},
    ),
    "tl.evaluate": (
        st.tl.evaluate,
        {"models": ["nearest_label"], "region_key": "band", "n_seeds": 1, "max_folds": 1, **LIBRARY, **HOW},
        {"uns": "{}"},
    ),
}


def _put(adata: ad.AnnData, container: str, key: str) -> None:
    shapes = {"obs": adata.n_obs, "var": adata.n_vars, "obsm": (adata.n_obs, 2), "layers": adata.shape}
    getattr(adata, container)[key] = {"mine": 1} if container == "uns" else np.full(shapes[container], 7.0)


@pytest.mark.parametrize(("call", "container"), [(c, s) for c, (_, _, slots) in CALLS.items() for s in slots])
def test_slots_of_other_origin_are_never_replaced(make_section, call, container):
    run, how, slots = CALLS[call]
    adata = make_section(libraries=2)
    _put(adata, container, slots[container].format("mine"))
    before = adata.copy()
    with pytest.raises(ValueError, match=r"exists already.*would be lost.*`key_added=`"):
        run(adata, key_added="mine", **how)
    assert_same(before, adata)


@pytest.mark.parametrize("call", CALLS)
def test_results_survive_files_and_a_second_call_replaces_them(make_section, call, tmp_path):
    run, how, _ = CALLS[call]
    adata = make_section(libraries=2)
    run(adata, key_added="mine", **how)
    from_h5ad, from_zarr = read_back(adata, tmp_path)
    assert_same(adata, from_h5ad)
    assert_same(adata, from_zarr)
    run(from_h5ad, key_added="mine", **how)
    for one in (adata, from_h5ad):  # clocks differ
        if call == "tl.evaluate":
            one.uns["mine"] = one.uns["mine"].select_dtypes(exclude="floating")
    assert_same(adata, from_h5ad)


def test_add_noise_never_replaces_the_counts_layer(make_section):
    adata = make_section()
    adata.layers["counts"] = adata.X.copy()
    with pytest.raises(ValueError, match=r"layers\['counts'\]` exists already.*key_added"):
        st.pp.add_noise(adata, 0.5, key_added="counts")
    st.pp.normalize(adata)
    with pytest.raises(ValueError, match="exists already"):
        st.pp.add_noise(adata, 0.5, key_added="counts")


def test_error_names_the_call_that_wrote_a_slot(line):
    before = line.copy()
    with pytest.raises(ValueError, match=r"`st\.tl\.segment` wrote it"):
        st.tl.multitask(line, None, "segment", params={"epochs": 1}, **HOW)
    assert_same(before, line)


def test_embed_and_multitask_replace_each_other_s_slots(line, quick_net):
    st.tl.embed(line, params=quick_net, **HOW)
    st.tl.multitask(line, None, "band", params=quick_net, **HOW)
    st.tl.embed(line, params=quick_net, **HOW)
    del line.uns["embed"], line.uns["multitask"]
    with pytest.raises(ValueError, match=r"attention.*Rename or delete it first"):
        st.tl.embed(line, params=quick_net, **HOW)


def test_params_list_the_written_slots(line):
    listed = set(line.uns["segment"]["params"]["slots"])
    assert {"obs/segment", "obsm/segment_proba", "uns/segment"} <= listed
    assert line.uns["segment"]["params"]["call"] == "tl.segment"
    assert set(line.uns["regions"].uns["params"]["slots"]) == {"obs/region_id", "uns/regions"}


def test_writing_nan_or_infinite_values_raises(make_section):
    adata = make_section()
    before = adata.copy()
    bad = np.ones(adata.n_obs, dtype=np.float32)
    bad[3] = np.nan
    outside = np.zeros(adata.n_obs, dtype=bool)
    record = {"new": {"params": provenance()}}
    for slots in (
        Slots("tl.x", obs={"new": bad}, uns=record),
        Slots("tl.x", obs={"new": bad}, missing={"obs/new": outside}),
        Slots("tl.x", obs={"new": np.where(outside, 0, np.inf)}, missing={"obs/new": None}),
        Slots("tl.x", obsm={"new": pd.DataFrame({"a": bad}, index=adata.obs_names)}),
        Slots("tl.x", uns={"new": {"value": float("nan")}}),
        Slots("tl.x", uns={"new": pd.DataFrame({"a": [np.inf]})}),
        Slots("tl.x", layers={"new": adata.X * np.nan}),
    ):
        with pytest.raises(ValueError, match="NaN or infinite"):
            slots.write(adata)
    assert_same(before, adata)
    outside[3] = True
    Slots("tl.x", obs={"new": bad}, missing={"obs/new": outside}, uns=record).write(adata)
    Slots("tl.x", obs={"new": bad}, missing={"obs/new": None}).write(adata)
    assert np.isnan(adata.obs["new"].iloc[3])
