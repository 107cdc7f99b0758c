"""Region graph, embeddings and multi-task predictions on AnnData."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from conftest import ON_CPU, assert_same
from hypothesis import given, settings
from hypothesis import strategies as some
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from scipy.spatial import Delaunay
from sklearn.neighbors import kneighbors_graph

import stxtools as st


def test_regions_are_connected_parts_of_one_segment_and_section(line):
    regions = line.uns["regions"]
    region = line.obs["region_id"]
    assert list(region.cat.categories) == list(regions.obs_names)
    for name, rows in line.obs.groupby("region_id", observed=True).groups.items():
        part = line[rows]
        assert part.n_obs <= 20
        assert part.obs["segment"].nunique() == 1
        assert part.obs["library"].nunique() == 1
        assert str(part.obs["segment"].iloc[0]) == str(regions.obs.loc[name, "segment"])
        near = np.linalg.norm(part.obsm["spatial"][:, None] - part.obsm["spatial"][None], axis=-1) < 110
        assert connected_components(sparse.csr_matrix(near))[0] == 1
        np.testing.assert_allclose(regions[name].obsm["spatial"][0], part.obsm["spatial"].mean(0))
        assert regions.obs.loc[name, "n_obs"] == part.n_obs


def test_region_slots_by_hand(make_section):
    adata = make_section("square", rows=6, cols=6)
    adata.obs["half"] = np.where(adata.obs["array_col"] < 3, "left", "right")
    st.tl.region_graph(adata, "half", max_size=None)
    regions = adata.uns["regions"]
    assert regions.n_obs == 2
    assert regions.obs["segment"].tolist() == ["left", "right"]
    assert regions.obs["area"].tolist() == pytest.approx([18 * 100.0**2] * 2)
    assert regions.obsp["contact_length"].toarray() == pytest.approx(np.array([[0, 600.0], [600.0, 0]]))
    assert regions.obsp["spatial_connectivities"].toarray().tolist() == [[0, 1], [1, 0]]
    assert regions.obsp["spatial_distances"].toarray() == pytest.approx(np.array([[0, 300.0], [300.0, 0]]))
    depth = np.asarray(adata.X.sum(1)).ravel()
    logged = np.log1p(adata.X.toarray() / depth[:, None] * np.median(depth))
    expected = logged[(adata.obs["half"] == "left").to_numpy()].mean(0)
    np.testing.assert_allclose(regions.X.toarray()[0], expected, rtol=1e-4)
    assert sparse.issparse(regions.X)


@pytest.mark.parametrize("kind", ["hex", "scattered"])
def test_regions_do_not_depend_on_the_order_of_rows(make_section, kind):
    adata = make_section(kind, rows=20, cols=20)
    adata.obsm["spatial"] = np.round(adata.obsm["spatial"])  # some on one circle, and two at one place
    adata.obsm["spatial"][3] = adata.obsm["spatial"][40]
    adata.obs_names = np.random.default_rng(1).permutation(adata.obs_names)
    other = adata[np.random.default_rng(0).permutation(adata.n_obs)].copy()
    for one in (adata, other):
        st.tl.region_graph(one, "band", max_size=12)
    assert adata.obs["region_id"].equals(other.obs["region_id"][adata.obs_names])
    for key in ("spatial_connectivities", "contact_length"):
        np.testing.assert_allclose(*(one.uns["regions"].obsp[key].toarray() for one in (adata, other)), atol=1e-9)


def test_triangulation_is_reused_until_coordinates_change(make_section, quick_unet, monkeypatch):
    made = []
    monkeypatch.setattr("stxtools._spatial.triangulation.Delaunay", lambda xy: made.append(len(xy)) or Delaunay(xy))
    adata = make_section("scattered")
    st.tl.segment(adata, 3, params=quick_unet, **ON_CPU)
    st.tl.region_graph(adata)
    assert made == [adata.n_obs]
    adata.obsm["spatial"][:, 0] = np.random.default_rng(0).permutation(adata.obsm["spatial"][:, 0])
    moved = ad.AnnData(adata.X, adata.obs[["segment"]], obsm={"spatial": adata.obsm["spatial"].copy()})
    for one in (adata, moved):
        st.tl.region_graph(one)
    assert len(made) == 3
    assert_same(adata.uns["regions"].obsp["contact_length"], moved.uns["regions"].obsp["contact_length"])


def test_no_edge_crosses_sections(line):
    regions = line.uns["regions"]
    coo = regions.obsp["spatial_connectivities"].tocoo()
    library = regions.obs["library"].astype(str).to_numpy()
    assert coo.nnz > 0
    assert (library[coo.row] == library[coo.col]).all()
    assert (coo != coo.T).nnz == 0
    attention = regions.obsp["attention"].tocoo()
    assert (library[attention.row] == library[attention.col]).all()


def test_own_neighbour_graph_makes_no_edges_between_sections(make_section):
    adata = make_section(libraries=2)
    xy = adata.obsm["spatial"]  # the sections lie on top of each other: edges across them would be easy to make
    adata.obsp["mine"] = kneighbors_graph(xy, 6)
    st.tl.region_graph(adata, "band", connectivity_key="mine", library_key="library", max_size=None)
    library = adata.obs.groupby("region_id", observed=True)["library"].nunique()
    assert (library == 1).all()
    regions = adata.uns["regions"].obs  # numbered by section, then by compartment
    assert regions.sort_values(["library", "segment"], kind="stable").index.tolist() == regions.index.tolist()


def test_own_neighbour_graph_may_be_directed_and_hold_zeros(make_section):
    """Three observations in a row: an edge of one direction joins the first two, a stored 0 no others."""
    adata = make_section()[:12].copy()
    adata.obs["one"] = "x"
    adata.obsp["mine"] = sparse.csr_matrix(([1.0, 0.0, 0.0], ([1, 1, 2], [0, 2, 1])), shape=(12, 12))
    st.tl.region_graph(adata, "one", connectivity_key="mine")
    regions, first = adata.uns["regions"], adata.obs["region_id"].iloc[:3].tolist()
    assert regions.n_obs == 11
    assert first[0] == first[1] != first[2]
    adata.obs["one"] = ["x", "y", *"x" * 10]
    st.tl.region_graph(adata, "one", connectivity_key="mine")
    regions, first = adata.uns["regions"], adata.obs["region_id"].iloc[:2]
    assert regions[first].obsp["spatial_connectivities"].toarray().tolist() == [[0, 1], [1, 0]]
    assert regions.obsp["spatial_connectivities"].nnz == 2


def test_observations_without_a_class_are_in_no_region(make_section):
    adata = make_section()
    adata.obs["part"] = adata.obs["band"].where(adata.obs["band"] != "b")
    st.tl.region_graph(adata, "part")
    assert adata.obs["region_id"].isna().equals(adata.obs["part"].isna())
    st.tl.embed(adata, params={"epochs": 2}, **ON_CPU)
    assert np.isnan(adata.obsm["X_gnn"][adata.obs["region_id"].isna()]).all()
    assert np.isfinite(adata.obsm["X_gnn"][adata.obs["region_id"].notna()]).all()


def test_own_columns_are_kept_and_key_added_names_the_output(make_section):
    adata = make_section()
    adata.obs["region"] = adata.obs["band"]
    st.tl.region_graph(adata, "region")
    assert (adata.obs["region"] == adata.obs["band"]).all()
    st.tl.region_graph(adata, "band", key_added="fine")
    assert set(adata.obs.columns) - set(make_section().obs.columns) == {"region", "region_id", "fine_region"}


@settings(max_examples=25, deadline=None)
@given(n=some.integers(5, 300), max_size=some.integers(1, 60), seed=some.integers(0, 999))
def test_regions_are_connected_and_bounded_by_max_size(n, max_size, seed):
    rng = np.random.default_rng(seed)
    xy = rng.uniform(size=(n, 2))
    edges = np.concatenate([Delaunay(xy).simplices[:, [a, b]] for a, b in ((0, 1), (1, 2), (2, 0))])
    length = np.linalg.norm(xy[edges[:, 0]] - xy[edges[:, 1]], axis=1)
    graph = sparse.csr_matrix((length, edges.T), shape=(n, n))
    graph = graph.maximum(graph.T).tocsr()
    adata = ad.AnnData(np.ones((n, 1), dtype=np.float32), obsm={"spatial": xy}, obsp={"mine": graph})
    adata.obs["one"] = pd.Categorical(["x"] * n)
    st.tl.region_graph(adata, "one", max_size=max_size, connectivity_key="mine")
    part = adata.obs["region_id"].cat.codes.to_numpy()
    assert np.bincount(part).max() <= max_size
    assert set(part) == set(range(part.max() + 1))
    for p in range(part.max() + 1):
        rows = np.flatnonzero(part == p)
        assert connected_components(graph[rows][:, rows], directed=False)[0] == 1


def test_embed_slots_of_observations_are_those_of_their_regions(line):
    regions = line.uns["regions"]
    region = regions.obs_names.get_indexer(line.obs["region_id"].astype(str))
    np.testing.assert_array_equal(line.obsm["X_gnn"], regions.obsm["X_gnn"][region])
    np.testing.assert_array_equal(line.obs["attention"], regions.obs["attention"].to_numpy()[region])
    attention = regions.obsp["attention"].toarray()
    np.testing.assert_allclose(attention.sum(1), 1, atol=1e-5)
    others = attention.copy()
    np.fill_diagonal(others, 0)
    pairs = regions.obsp["spatial_connectivities"].toarray() > 0
    assert (others[~pairs] == 0).all()
    expected = others.sum(0) / np.maximum(pairs.sum(0), 1)
    np.testing.assert_allclose(regions.obs["attention"], expected, atol=1e-5)
    z = line.uns["embed"]["Z"]
    assert list(z.index) == ["lib0", "lib1"]
    assert z.shape[1] == regions.obsm["X_gnn"].shape[1]


@pytest.mark.parametrize(("conv", "alone"), [("gatv2", 1.0), ("sum", 0.0)])
def test_attention_of_a_region_without_neighbours(make_section, quick_net, conv, alone):
    adata = make_section(libraries=2)
    adata.obs["class"] = adata.obs["band"].astype(object).where(adata.obs["library"] == "lib0", "one")
    st.tl.region_graph(adata, "class", max_size=None, library_key="library")
    st.tl.embed(adata, params=quick_net | {"conv": conv}, **ON_CPU)
    regions = adata.uns["regions"]
    degree = np.asarray(regions.obsp["spatial_connectivities"].sum(axis=1)).ravel()
    assert (degree == 0).sum() == 1
    total = np.asarray(regions.obsp["attention"].sum(axis=1)).ravel()
    np.testing.assert_allclose(total, np.where(degree > 0, 1.0, alone), rtol=1e-5)


def test_embed_with_the_same_seed_gives_the_same_bits(line, quick_net):
    assert_same(*(st.tl.embed(line, params=quick_net, copy=True, **ON_CPU) for _ in range(2)))


def test_multitask_predictions_agree_and_transfer_without_labels(line, quick_net, tmp_path):
    line.obs["state"] = np.where(line.obs["band"] == "c", "ill", "well")
    line.obs.loc[line.obs_names[::3], "state"] = np.nan
    path = tmp_path / "t.stx"
    st.tl.multitask(line, "state", "band", params=quick_net | {"epochs": 30}, save_model=path, **ON_CPU)
    for key, names in (("state", ["ill", "well"]), ("band", ["a", "b", "c"])):
        proba = line.obsm[f"{key}_proba"]
        assert list(proba.columns) == names
        np.testing.assert_allclose(proba.sum(axis=1), 1, atol=1e-5)
        assert (proba.idxmax(axis=1) == line.obs[f"{key}_pred"].astype(str)).all()
        at_regions = line.uns["regions"].obsm[f"{key}_proba"]
        assert list(at_regions.columns) == names
        assert (at_regions.idxmax(axis=1) == line.uns["regions"].obs[f"{key}_pred"].astype(str)).all()
    assert (line.obs["band_pred"].astype(str) == line.obs["band"].astype(str)).mean() > 0.7
    assert line.uns["multitask"]["task_weights"] == {"biomarker": 1.0, "classification": 1.0}
    assert {"loss", "val_loss"} <= set(line.uns["multitask"]["history"].columns)
    line.write_h5ad(tmp_path / "a.h5ad")
    new, read = line.copy(), ad.read_h5ad(tmp_path / "a.h5ad")
    for section in (new, read):
        del section.obs["state"], section.obs["band"]
        st.tl.multitask(section, "state", "band", model=path, **ON_CPU)
    pd.testing.assert_frame_equal(new.obsm["state_proba"], read.obsm["state_proba"], atol=1e-5)
    # without labels the members that cross sections decide, with them those of the section
    assert (new.obs["state_pred"].astype(str) == line.obs["state_pred"].astype(str)).mean() > 0.98


def test_calls_in_the_wrong_order_name_the_missing_call(make_section):
    adata = make_section()
    before = adata.copy()
    with pytest.raises(KeyError, match=r"st\.tl\.segment"):
        st.tl.region_graph(adata)
    with pytest.raises(KeyError, match=r"st\.tl\.region_graph"):
        st.tl.embed(adata)
    with pytest.raises(KeyError, match=r"st\.tl\.region_graph"):
        st.tl.multitask(adata, None, "band")
    assert_same(before, adata)


def test_a_subset_needs_a_new_region_graph(line):
    part = line[: line.n_obs // 2].copy()
    with pytest.raises(ValueError, match="do not match"):
        st.tl.embed(part, **ON_CPU)
