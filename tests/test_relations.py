"""Relations between calls: what must not matter, such as a gene without counts, does not."""

from __future__ import annotations

import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import stxtools as st


@pytest.fixture
def section(make_section):
    adata = make_section(rows=12, cols=10)
    adata.uns["band_colors"] = np.array(["#ff0000", "#00ff00", "#0000ff"], dtype=object)
    return adata


def test_unexpressed_genes_change_no_other_gene(section):
    zeros = sparse.csr_matrix((section.n_obs, 60), dtype=np.float32)
    more = ad.AnnData(sparse.hstack([section.X, zeros], format="csr"), obs=section.obs, obsm=dict(section.obsm))
    more.var_names = [*section.var_names, *(f"zero{i}" for i in range(60))]
    tables, agreements = [], []
    for adata in (section, more):
        st.tl.biomarkers(adata, "band", n_null=60, show_progress=False)
        table = adata.uns["biomarkers"].set_index(["group", "names"]).drop(columns="rank_score")  # a rank of all genes
        tables.append(table[~table.index.get_level_values("names").str.startswith("zero")])
        agreements.append(adata.uns["biomarkers_params"]["attribution_agreement"])
    np.testing.assert_allclose(*agreements)
    pd.testing.assert_frame_equal(*tables, check_like=True, rtol=1e-6)


def test_unused_categories_change_no_region_and_no_colour(section):
    st.tl.region_graph(section, "band", show_progress=False)
    expected = section.uns["regions"]
    section.obs["band"] = section.obs["band"].cat.set_categories(["a", "unused", "b", "c"])
    section.uns["band_colors"] = np.insert(section.uns["band_colors"], 1, "#999999")
    st.tl.region_graph(section, "band", show_progress=False)
    found = section.uns["regions"]
    pd.testing.assert_frame_equal(found.obs, expected.obs)
    assert list(found.uns["segment_colors"]) == list(expected.uns["segment_colors"])


def test_describe_reports_groups_that_were_renamed_since_their_markers_were_found(section):
    st.tl.biomarkers(section, "band", n_null=60, show_progress=False)
    section.obs["band"] = section.obs["band"].cat.rename_categories({"a": "white matter"})
    with pytest.raises(ValueError, match=r"has the groups 'a'.*run `st.tl.biomarkers"):
        st.tl.describe(section, "band", show_progress=False)


@pytest.mark.parametrize("colors", [["tab:red", "C1", "b"], ["red", "no colour", "0.5"]])
def test_files_hold_any_colour_that_plots_accept(section, tmp_path, colors):
    section.uns["band_colors"] = np.array(colors, dtype=object)
    st.io.write_annotations(section, "band", tmp_path / "a.geojson")
    features = json.loads((tmp_path / "a.geojson").read_text())["features"]
    assert all(len(f["properties"]["classification"]["color"]) == 3 for f in features)
    st.io.read_annotations(section, tmp_path / "a.geojson")
    assert list(section.obs["annotation"]) == list(section.obs["band"])


def test_region_graph_of_earlier_segments_is_not_drawn(section):
    st.tl.region_graph(section, "band", show_progress=False)
    section.obs["band"] = section.obs["band"].cat.rename_categories({"a": "white matter"})
    st.pl.region_graph(section, show=False)
    section.obs["band"] = np.where(section.obsm["spatial"][:, 0] > 500, "white matter", "b")
    with pytest.raises(ValueError, match=r"has changed since the region graph was made\. Run `st.tl.region_graph"):
        st.pl.region_graph(section, show=False)


def test_probabilities_have_the_class_names_of_the_last_run(section, quick_unet):
    for name in ("L2/3", "L2_3"):
        section.obs["layer"] = section.obs["band"].cat.rename_categories({"a": name})
        st.tl.segment(section, labels_key="layer", params=quick_unet, accelerator="cpu", show_progress=False)
        assert set(st.get.probabilities(section).columns) == set(section.obs["segment"].cat.categories)


def test_pixel_size_that_a_subset_loses_is_reported(section):
    st.pp.rasterize(section, pixel_size=300.0, library_key="library")
    half = section[: section.n_obs // 2].copy()
    with pytest.warns(UserWarning, match=r"`pixel_size=300`.* is not used; run `st\.pp\.rasterize` again"):
        st.tl.region_graph(half, "band", library_key="library", show_progress=False)


def test_markers_of_sections_that_were_segmented_by_themselves_are_not_protected(section, quick_unet):
    parts = []
    for name in ("one", "two"):
        part = section.copy()
        st.tl.segment(part, 3, params=quick_unet, accelerator="cpu", show_progress=False)
        part.obs["section"] = name
        parts.append(part)
    both = ad.concat(parts, uns_merge="same", index_unique="-")
    with pytest.warns(UserWarning, match="found in single sections.*segment these together with `library_key=`"):
        st.tl.biomarkers(both, "segment", library_key="section", n_null=50, show_progress=False)
