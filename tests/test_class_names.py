"""Class names that files cannot hold as columns survive a round trip; colours of classes."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from conftest import assert_same, read_back

import stxtools as st

HOW = {"show_progress": False, "accelerator": "cpu"}
ODD = {"a": "L2/3", "b": "", "c": "L2_3"}
NAMES = ["", "L2/3", "L2_3"]


def _with_odd_names(adata: ad.AnnData) -> ad.AnnData:
    adata.obs["layer"] = pd.Categorical(adata.obs["band"].astype(str).map(ODD))
    return adata


def test_segment_keeps_class_names_that_files_cannot_hold(make_section, quick_unet, tmp_path):
    adata = _with_odd_names(make_section())
    st.tl.segment(adata, labels_key="layer", params=quick_unet, save_model=tmp_path / "m.stx", **HOW)
    for one in (adata, *read_back(adata, tmp_path)):
        assert_same(adata, one)
        assert list(one.obs["segment"].cat.categories) == NAMES
        proba = st.get.probabilities(one)
        assert list(proba.columns) == NAMES
        assert (proba.idxmax(axis=1) == one.obs["segment"].astype(str)).all()
        assert not any("/" in c or not c for c in one.obsm["segment_proba"].columns)
        assert list(st.get.segments(one)["segment"]) == NAMES
        entries = [t.get_text() for t in st.pl.segment(one).figure.legends[0].get_texts()]
        assert "L2/3" in entries
    again = _with_odd_names(make_section(seed=1))
    st.tl.segment(again, model=tmp_path / "m.stx", **HOW)
    assert list(st.get.probabilities(again).columns) == NAMES
    st.tl.region_graph(adata)
    assert set(st.get.regions(adata)["segment"]) == set(NAMES)
    st.tl.biomarkers(adata, "layer", n_null=50, show_progress=False)
    assert set(st.get.biomarkers(adata)["group"]) == set(NAMES)
    read_back(adata, tmp_path)


def test_multitask_keeps_class_names_that_files_cannot_hold(line, quick_net, tmp_path):
    _with_odd_names(line)
    line.var_names = ["H2/K1", *line.var_names[1:]]
    st.tl.multitask(line, "layer", "band", expression=["H2/K1"], params=quick_net, **HOW)
    for one in (line, *read_back(line, tmp_path)):
        assert list(st.get.probabilities(one, key="layer").columns) == NAMES
        assert list(st.get.probabilities(one.uns["regions"], key="layer").columns) == NAMES
        assert list(one.obs["layer_pred"].cat.categories) == NAMES
        assert list(st.get.probabilities(one, key="band").columns) == ["a", "b", "c"]
        assert list(one.uns["expression_pred_columns"]) == ["H2/K1"]


def test_second_multitask_replaces_the_class_names_of_the_first(line, quick_net):
    _with_odd_names(line)
    st.tl.multitask(line, None, "layer", params=quick_net, **HOW)
    line.obs["layer"] = line.obs["band"]
    st.tl.multitask(line, None, "layer", params=quick_net, **HOW)
    assert list(st.get.probabilities(line, key="layer").columns) == ["a", "b", "c"]


def test_evaluate_accepts_class_names_that_files_cannot_hold(make_section):
    adata = _with_odd_names(make_section())
    st.tl.evaluate(adata, ["nearest_label"], region_key="layer", n_seeds=1, max_folds=1, **HOW)
    assert np.isfinite(adata.uns["evaluation"]["accuracy"]).any()


@pytest.mark.parametrize("n", [20, 28, 102, 130, 300])
def test_default_colors_equal_those_of_scanpy(make_section, n):
    from matplotlib.colors import to_hex
    from scanpy.plotting import palettes

    adata = make_section(rows=20, cols=15)
    adata.obs["many"] = pd.Categorical([f"c{i % n}" for i in range(300)], [f"c{i}" for i in range(n)])
    st.pl.segment(adata, "many", legend=False)
    colors = list(adata.uns["many_colors"])
    assert len(set(colors)) == n
    if n <= 102:
        assert colors == [to_hex(c) for c in getattr(palettes, f"default_{n}")]


def test_segment_writes_colors_and_keeps_those_of_the_user(make_section, quick_unet):
    import scanpy as sc

    adata = make_section()
    st.tl.segment(adata, 3, params=quick_unet, **HOW)
    colors = list(adata.uns["segment_colors"])
    sc.pl.embedding(adata, "spatial", color="segment", show=False)
    st.pl.segment(adata)
    assert list(adata.uns["segment_colors"]) == colors
    adata.uns["segment_colors"] = np.array(["#111111", *colors[1:]], dtype=object)  # a user's choice
    st.tl.segment(adata, 4, params=quick_unet, **HOW)
    assert list(adata.uns["segment_colors"])[:3] == ["#111111", *colors[1:]]
    assert len(set(adata.uns["segment_colors"])) == 4


def test_segments_take_the_colors_of_their_labels(make_section, quick_unet):
    adata = make_section()
    adata.uns["band_colors"] = ["#ff0000", "#00ff00", "#0000ff"]
    st.tl.segment(adata, labels_key="band", params=quick_unet, **HOW)
    assert list(adata.uns["segment_colors"]) == ["#ff0000", "#00ff00", "#0000ff"]
