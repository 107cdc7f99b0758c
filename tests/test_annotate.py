"""``pl.annotate`` without a browser: what the maps report as drawn is set by hand."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import QUICK_UNET, assert_same
from matplotlib.colors import to_hex

import stxtools as st

pytest.importorskip("jscatter", reason="jupyter-scatter is not installed (extra 'annotate')")

DARK, GREY = "#1d2329", "#d3d3d3"
HOW = {"segment_params": {"params": QUICK_UNET, "accelerator": "cpu"}}


def select(annotator: Any, points: list[int]) -> None:
    """Select points as the lasso does."""
    annotator.maps[0].widget.selection = np.array(points, dtype=np.uint32)


def colors(scatter: Any) -> np.ndarray:
    """Return the colour of every point of a map."""
    return np.array([to_hex(c) for c in scatter.color()["map"]])[scatter.color_data.cat.codes]


def press(annotator: Any, name: str) -> str:
    annotator.buttons[name].click()
    return annotator.status.value


def test_lasso_selections_become_labels(make_section):
    adata = make_section(libraries=2, rows=6, cols=5)
    adata = adata[np.random.default_rng(0).permutation(adata.n_obs)].copy()  # points are in the order of the sections
    annotator = st.pl.annotate(adata, "layer", ["outer", "inner"], library_key="library")
    assert "layer" not in adata.obs
    order = np.concatenate([np.flatnonzero(adata.obs["library"] == name) for name in ("lib0", "lib1")])
    select(annotator, [0, 1, 31])
    assert list(adata.obs_names[adata.obs["layer"] == "outer"]) == list(adata.obs_names[np.sort(order[[0, 1, 31]])])
    assert annotator.status.value == "3 of 60 labelled"
    assert set(np.flatnonzero(colors(annotator.maps[0]) == annotator._colors["outer"])) == {0, 1, 31}
    assert (colors(annotator.maps[0]) == GREY).sum() == 57
    annotator.choice.value = "inner"
    select(annotator, [1, 2])
    assert adata.obs["layer"].value_counts().to_dict() == {"outer": 2, "inner": 2}
    assert list(adata.uns["layer_colors"]) == [annotator._colors[c] for c in ("outer", "inner")]
    annotator.new.value = "vessel"
    select(annotator, [5])
    assert list(adata.obs["layer"].cat.categories) == ["outer", "inner", "vessel"]
    press(annotator, "Undo")
    assert adata.obs["layer"].notna().sum() == 4
    annotator.choice.value = "(erase)"
    select(annotator, [0])
    assert pd.isna(adata.obs["layer"].iloc[order[0]])
    again = st.pl.annotate(adata, "layer", library_key="library")  # goes on with what is there
    again.label(["l0_o3"], "inner")
    assert adata.obs["layer"].notna().sum() == 4
    assert again._colors == annotator._colors


def test_sections_are_those_of_the_segments(make_section):
    adata = make_section(libraries=2, rows=12, cols=6)
    adata.obsm["spatial"][72:] += 1e4
    st.tl.segment(adata, labels_key="band", library_key="library", key_added="segment", params=QUICK_UNET)
    annotator = st.pl.annotate(adata, "band", **HOW)
    press(annotator, "Segment")
    assert adata.uns["segment"]["params"]["library_key"] == "library"
    assert set(adata.uns["segment"]["masks"]) == {"lib0", "lib1"}


def test_segment_button_segments_and_suggests_labels(make_section):
    adata = make_section(rows=12, cols=10)
    annotator = st.pl.annotate(adata, "layer", ["a", "b"], n_suggested=4, **HOW)
    assert "Label some observations first" in press(annotator, "Segment")
    assert annotator.right.layout.display == "none"
    downwards = np.argsort(adata.obsm["spatial"][:, 1], kind="stable")
    annotator.label(downwards[:12], "a")
    annotator.label(downwards[-12:], "b")
    expected = adata.copy()
    assert press(annotator, "Segment") == "24 of 120 labelled"
    st.tl.segment(expected, labels_key="layer", show_progress=False, **HOW["segment_params"])
    st.tl.suggest_labels(expected, 4, labels_key="layer")
    assert_same(expected, adata)
    assert annotator.right.layout.display == ""
    palette = dict(zip(adata.obs["segment"].cat.categories, adata.uns["segment_colors"], strict=True))
    assert list(colors(annotator.maps[1])) == [palette[name] for name in adata.obs["segment"]]
    marked = np.flatnonzero(colors(annotator.maps[0]) == DARK)
    assert set(marked) == set(np.flatnonzero(adata.obs["suggested"].notna()))
    select(annotator, [int(marked[0])])  # a labelled one is marked no more
    assert (colors(annotator.maps[0]) == DARK).sum() == 3


def test_wrong_arguments_of_annotate_raise(make_section, monkeypatch):
    adata = make_section(rows=4, cols=4)
    adata.obs["depth"] = 0.5
    before = adata.copy()
    for arguments, error, match in (
        (("depth",), TypeError, "floating-point"),
        (("layer", "outer"), TypeError, "list of names"),
        (("a/b", ["x"]), ValueError, "a/b"),
        (("layer", ["x", "a\0b"]), ValueError, "layer"),
        (("regions",), ValueError, "`key='regions'` would overwrite"),
    ):
        with pytest.raises(error, match=match):
            st.pl.annotate(adata, *arguments)
    with pytest.raises(ValueError, match="view"):
        st.pl.annotate(adata[:9], "layer")
    annotator = st.pl.annotate(adata, "layer", ["x"])
    for rows, name, match in (
        ([0], "y", "not one of the"),
        ([16], "x", "from 0 to 15"),
        ([-1], "x", "from 0 to 15"),
        ([0.5], "x", "from 0 to 15"),
        ([1j], "x", "from 0 to 15"),
        ([True], "x", "a mask"),
    ):
        with pytest.raises(ValueError, match=match):
            annotator.label(rows, name)
    with pytest.raises(KeyError, match="'nope'"):
        annotator.label(["nope"], "x")
    assert "st.tl.segment" in press(annotator, "Suggest")
    assert_same(before, adata)
    monkeypatch.setitem(sys.modules, "jscatter", None)
    with pytest.raises(ImportError, match=r"stxtools\[annotate\]"):
        st.pl.annotate(adata, "layer")


def test_annotate_on_spatialdata_leaves_no_positions_in_the_table(make_section):
    adata = make_section(rows=12, cols=10)
    sdata = st.io.to_spatialdata(adata)
    table = sdata.tables["table"]
    table.obsm.pop("spatial", None)
    before = "spatial" in table.uns
    annotator = st.pl.annotate(sdata, "layer", ["outer", "inner"], **HOW)
    assert "spatial" not in table.obsm
    for name, band in (("outer", "a"), ("inner", "c")):
        annotator.label(np.flatnonzero(adata.obs["band"] == band)[:8], name)
    annotator.segment()
    assert set(table.obs["segment"]) == {"outer", "inner"}
    assert table.obs["suggested"].notna().any()
    assert ("spatial" in table.obsm, "spatial" in table.uns) == (False, before)
