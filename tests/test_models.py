"""Segmenter and tissue net on arrays."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from conftest import QUICK_NET, QUICK_UNET
from scipy import sparse
from sklearn.metrics import adjusted_rand_score
from sklearn.neighbors import kneighbors_graph

import stxtools as st
from stxtools.models import GeneProjection, RegionSection, Section, Segmenter, SegmenterParams, TissueNet
from stxtools.nn import best_device


def as_section(adata) -> Section:
    st.pp.rasterize(adata, library_key=False)
    (shape,) = (grid["shape"] for grid in adata.uns["raster"].values() if "shape" in grid)
    xy = adata.obsm["spatial"]
    near = kneighbors_graph(xy, 6, mode="distance")
    features = np.log1p(adata.X.toarray()).astype(np.float32)
    return Section("s", features, adata.obsm["raster"], tuple(shape), near.maximum(near.T).tocsr(), xy)


def fit(model, sections, **kwargs):
    return model.fit(sections, accelerator="cpu", show_progress=False, **kwargs)


# ---------------------------------------------------------------- sections, parameters, files


def test_to_raster_averages_the_observations_of_a_pixel():
    s = Section(
        "s", np.array([[1.0], [3.0], [7.0]], dtype=np.float32), np.array([[0, 0], [0, 0], [1, 2]], dtype=np.int32),
        (2, 3), sparse.csr_matrix((3, 3)), np.zeros((3, 2)),
    )  # fmt: skip
    raster = s.to_raster(s.features)
    assert raster.shape == (1, 2, 3)
    assert raster[0].tolist() == [[2, 0, 0], [0, 0, 7]]
    assert s.occupied()[0].tolist() == [[1, 0, 0], [0, 0, 1]]


def test_params_may_be_a_mapping_an_instance_or_none():
    assert Segmenter().params == Segmenter(SegmenterParams()).params == SegmenterParams()
    assert Segmenter({"width": 8, "sigmas": [0.0]}).params == SegmenterParams(width=8, sigmas=(0.0,))
    with pytest.raises(ValueError, match="widht"):
        Segmenter({"widht": 8})
    with pytest.raises(TypeError, match="mapping"):
        Segmenter(8)


def test_projection_matches_genes_by_name():
    rng = np.random.default_rng(0)
    projection = GeneProjection(["a", "b", "c"], rng.normal(size=3), rng.normal(size=(3, 2)))
    x = sparse.csr_matrix(rng.normal(size=(4, 3)))
    full = projection.transform(x, ["a", "b", "c"])
    np.testing.assert_allclose(full, (x.toarray() - projection.mean) @ projection.components, atol=1e-6)
    order = [2, 0, 1]
    np.testing.assert_allclose(projection.transform(x[:, order], ["c", "a", "b"]), full, atol=1e-6)
    missing = projection.transform(x[:, [0, 2]], ["a", "c"])
    at_mean = x.toarray()
    at_mean[:, 1] = projection.mean[1]
    np.testing.assert_allclose(missing, (at_mean - projection.mean) @ projection.components, atol=1e-6)


# ---------------------------------------------------------------- segmenter


@pytest.mark.parametrize("pretrain", ["masked", "contrastive", "none"])
def test_segmenter_learns_bands_without_labels(make_section, pretrain):
    adata = make_section(rows=30, cols=24)
    model = fit(Segmenter(QUICK_UNET | {"pretrain": pretrain, "epochs": 25}), [as_section(adata)], n_segments=3)
    result = model.predict([as_section(adata)], accelerator="cpu")[0]
    assert result.proba.shape == (adata.n_obs, 3)
    assert result.features.shape == (adata.n_obs, 8)
    np.testing.assert_allclose(result.proba.sum(1), 1, atol=1e-5)
    found = result.proba.argmax(1)
    assert adjusted_rand_score(adata.obs["band"], found) > 0.8
    sizes = np.bincount(found, minlength=3)
    assert (np.diff(sizes) <= 0).all()
    stages = {row["stage"] for row in model.history}
    assert stages == ({"segment"} if pretrain == "none" else {"segment", f"pretrain_{pretrain}"})


def test_segmenter_learns_from_a_few_labels(make_section):
    adata = make_section("scattered")
    band = adata.obs["band"].cat.codes.to_numpy().astype(np.int64)
    labels = np.full(adata.n_obs, -1)
    for k, few in enumerate((1, 4, 6)):
        labels[np.flatnonzero(band == k)[:few]] = k
    model = fit(Segmenter(QUICK_UNET | {"epochs": 40}), [as_section(adata)], labels=[labels], classes=["x", "y", "z"])
    found = model.predict([as_section(adata)])[0].proba.argmax(1)
    assert (found == band).mean() > 0.8
    assert model.classes == ["x", "y", "z"]


def test_segmenter_with_the_same_seed_or_from_a_file_is_equal_to_the_bit(make_section, tmp_path):
    s = as_section(make_section())
    first = fit(Segmenter(QUICK_UNET), [s], n_segments=3, random_state=4)
    second = fit(Segmenter(QUICK_UNET), [s], n_segments=3, random_state=4)
    other = fit(Segmenter(QUICK_UNET), [s], n_segments=3, random_state=5)
    expected = first.predict([s])[0].proba
    assert np.array_equal(expected, second.predict([s])[0].proba)
    assert not np.array_equal(expected, other.predict([s])[0].proba)
    first.save(tmp_path / "m.stx")
    again = Segmenter.load(tmp_path / "m.stx")
    assert np.array_equal(expected, again.predict([s])[0].proba)
    assert again.params == first.params


def test_untrained_models_raise(tmp_path):
    for model in (Segmenter(), TissueNet()):
        with pytest.raises(ValueError, match="not trained"):
            model.predict([])
        with pytest.raises(ValueError, match="not trained"):
            model.save(tmp_path / "m.stx")


# ---------------------------------------------------------------- tissue net


def region_section(adata, labelled: bool) -> RegionSection:
    s = as_section(adata)
    blocks = (adata.obs["array_row"] // 4 * 4 + adata.obs["array_col"] // 8).to_numpy()
    region = np.unique(blocks, return_inverse=True)[1].astype(np.int64)
    n = region.max() + 1
    member = sparse.csr_matrix((np.ones(len(region)), (region, np.arange(len(region)))), shape=(n, len(region)))
    nodes = np.asarray(sparse.diags(1 / member.sum(1).A1) @ (member @ s.features)).astype(np.float32)
    touch = member @ (s.graph != 0).astype(float) @ member.T
    touch.setdiag(0)
    touch.eliminate_zeros()
    band = adata.obs["band"].cat.codes.to_numpy().astype(np.int64)
    labels = {"biomarker": (band == 2).astype(np.int64), "classification": band} if labelled else {}
    return RegionSection(s, region, nodes, touch.tocsr(), labels)


CLASSES = {"biomarker": ["no", "yes"], "classification": ["a", "b", "c"]}


@pytest.mark.parametrize("conv", ["gatv2", "sum"])
def test_tissue_net_learns_two_tasks(make_section, conv, tmp_path):
    s = region_section(make_section(rows=24, cols=20), labelled=True)
    params = QUICK_NET | {"conv": conv, "epochs": 40, "lr": 0.01, "ensemble": ("network", "linear")}
    model = fit(TissueNet(params), [s], classes=CLASSES)
    out = model.predict([s], accelerator="cpu")[0]
    most = pd.crosstab(s.region, s.labels["classification"]).to_numpy().argmax(1)
    assert (out.regions["classification"].argmax(1) == most).mean() > 0.85
    assert out.states.shape == (len(s.nodes), 8)
    assert out.z.shape == (8,)
    np.testing.assert_allclose(np.asarray(out.attention.sum(1)).ravel(), 1, atol=1e-5)
    model.save(tmp_path / "t.stx")
    again = TissueNet.load(tmp_path / "t.stx").predict([s], accelerator="cpu")[0]
    assert np.array_equal(out.states, again.states)
    assert np.array_equal(out.regions["biomarker"], again.regions["biomarker"])


def test_tissue_net_without_labels_reconstructs_hidden_nodes(make_section):
    s = region_section(make_section(rows=24, cols=20), labelled=False)
    model = fit(TissueNet(QUICK_NET | {"epochs": 40}), [s])
    losses = [row["loss"] for row in model.history]
    assert np.mean(losses[-5:]) < 0.8 * losses[0]
    assert model.predict([s])[0].regions == {}
    again = fit(TissueNet(QUICK_NET | {"epochs": 40}), [s])
    assert np.array_equal(model.predict([s])[0].states, again.predict([s])[0].states)


def test_tissue_net_is_not_fitted_after_a_failed_training(make_section):
    s = region_section(make_section(rows=24, cols=20), labelled=False)
    model = TissueNet(QUICK_NET | {"lr": 1e5})
    with pytest.raises(ValueError, match="diverged"):
        fit(model, [s])
    with pytest.raises(ValueError, match="not trained"):
        model.predict([s])


@pytest.mark.parametrize(("cuda", "apple"), [(False, False), (True, False), (False, True), (True, True)])
def test_best_device_equals_the_choice_of_lightning(monkeypatch, cuda, apple):
    from lightning.fabric.accelerators import MPSAccelerator
    from lightning.fabric.connector import _Connector

    # without its cache
    monkeypatch.setattr(MPSAccelerator, "is_available", staticmethod(MPSAccelerator.is_available.__wrapped__))
    monkeypatch.setattr("torch.cuda.is_available", lambda: cuda)
    monkeypatch.setattr("torch.cuda.device_count", lambda: int(cuda))
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: apple)
    monkeypatch.setattr("platform.processor", lambda: "arm" if apple else "x86_64")
    assert best_device("auto").type == _Connector._choose_auto_accelerator()
    assert best_device("cpu").type == "cpu"
    if cuda or apple:
        assert best_device("gpu").type == _Connector._choose_gpu_accelerator_backend()
    else:
        for absent in ("gpu", "cuda"):
            with pytest.raises(ValueError, match="not available on this machine"):
                best_device(absent)
    with pytest.raises(TypeError, match="accelerator"):
        best_device(None)


def test_shipped_models_load_and_segment_cortex(real_section, tmp_path, monkeypatch):
    cards = st.models.available()
    assert {"tissue", "platform", "classes", "n_genes", "sections", "scores", "limits", "source"} <= set(cards.columns)
    for name, card in cards.iterrows():
        model = st.models.load(name)
        assert model.classes == card["classes"]
    adata = real_section("dlpfc_151673")
    st.tl.segment(adata, model="human_cortex", show_progress=False)
    known = adata.obs["layer"].notna()
    assert (adata.obs["segment"].astype(str) == adata.obs["layer"].astype(str))[known].mean() > 0.8
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no model file 'human_liver'.*available"):
        st.models.load("human_liver")
    (tmp_path / "human_cortex").write_text("a file of the user's")
    with pytest.raises(ValueError, match="not a model file"):
        st.models.load("human_cortex")
