"""Faithfulness of attention where a region's class depends on one neighbour's expression."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from conftest import ON_CPU, assert_same, sections_read
from scipy import sparse
from sklearn.metrics import roc_auc_score

import stxtools as st
from stxtools.models import TissueNet
from stxtools.models.explain.edges import RegionAttribution

METHODS = ("attention", "attention_gradient", "occlusion", "gradient", "random")
NETWORK_ONLY = {
    "unet": False, "genes": False, "ensemble": ("network",), "neighbours": (1,), "layers": 1, "hidden": 16,
    "out_channels": 16, "dropout": 0.0, "input_dropout": 0.0, "region_loss": 1.0, "epochs": 120, "patience": 40,
    "lr": 0.01,
}  # fmt: skip


def planted(side: int = 16, seed: int = 0) -> tuple[ad.AnnData, np.ndarray]:
    """Regions of 3 x 3 spots of class "near" where a neighbour expresses gene 0, else "far"; gene 1 is a decoy."""
    rng = np.random.default_rng(seed)
    row, col = (a.ravel() for a in np.mgrid[: 3 * side, : 3 * side])
    block = row // 3 * side + col // 3
    sends, decoy = (rng.random(side**2) < 0.12 for _ in range(2))
    rate = np.ones((side**2, 12))
    rate[sends, 0], rate[decoy, 1] = 12.0, 12.0
    grid = np.pad(sends.reshape(side, side), 1)
    near = (grid[:-2, 1:-1] | grid[2:, 1:-1] | grid[1:-1, :-2] | grid[1:-1, 2:]).ravel()
    adata = ad.AnnData(sparse.csr_matrix(rng.poisson(rate[block]).astype(np.float32)))
    adata.obs_names = [f"o{i}" for i in range(adata.n_obs)]
    adata.var_names = [f"gene{i}" for i in range(12)]
    adata.obs["array_row"], adata.obs["array_col"] = row, col
    adata.obsm["spatial"] = np.c_[col, row] * 100.0
    adata.obs["block"] = pd.Categorical([f"b{b}" for b in block])
    adata.obs["class"] = pd.Categorical(np.where(near, "near", "far")[block])
    st.tl.region_graph(adata, "block", max_size=None)
    first = adata.obs.groupby("region_id", observed=True)["block"].first().astype(str)
    return adata, sends[[int(name[1:]) for name in first[adata.uns["regions"].obs_names]]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[ad.AnnData, np.ndarray, str]:
    adata, sends = planted()
    path = str(tmp_path_factory.mktemp("net") / "net.stx")
    st.tl.multitask(adata, None, "class", params=NETWORK_ONLY, save_model=path, **ON_CPU)
    return adata, sends, path


def _attribution(adata: ad.AnnData, path: str) -> RegionAttribution:
    net = TissueNet.load(path)
    (section,) = sections_read(TissueNet, "predict", lambda: st.tl.multitask(adata, model=net, **ON_CPU))
    return RegionAttribution(net, section, "classification")


def test_corrected_attention_finds_the_planted_edges(trained):
    adata, sends, path = trained
    assert (adata.obs["class_pred"].astype(str) == adata.obs["class"].astype(str)).mean() > 0.9
    found, attribution = {}, _attribution(adata, path)
    assert attribution.proba == pytest.approx(adata.uns["regions"].obsm["class_proba"].to_numpy(), abs=1e-5)
    near = np.flatnonzero(attribution.predicted == TissueNet.load(path).classes["classification"].index("near"))
    incoming = np.isin(attribution.target, near)
    for method in METHODS:
        scores = attribution.edge_scores(method, near, np.random.default_rng(0))
        assert np.isfinite(scores[incoming]).all()
        assert np.isnan(scores[~incoming]).all()
        found[method] = roc_auc_score(sends[attribution.source[incoming]], scores[incoming])
    assert found["attention_gradient"] >= 0.85
    assert found["occlusion"] >= 0.85
    assert abs(found["random"] - 0.5) < 0.15


def test_removing_edges_of_high_attention_changes_predictions_most(trained):
    adata, _, path = trained
    one, two = (st.tl.attention_fidelity(adata, path, max_regions=60, show_progress=False, copy=True) for _ in range(2))
    assert_same(one, two)
    assert "attention_fidelity" not in adata.uns
    table = one.uns["attention_fidelity"]["table"]
    assert set(table["method"]) == set(METHODS)
    edges = table[table["unit"] == "edges"].groupby(["mode", "method"])["change"].mean()
    assert edges["remove", "attention_gradient"] > 1.5 * edges["remove", "random"]
    assert edges["keep", "attention_gradient"] < edges["keep", "random"]
    assert table["change"].dropna().between(0, 1).all()
    corrected = one.uns["regions"].obsp["attention_corrected"]
    total = np.asarray(corrected.sum(axis=1)).ravel()
    assert np.all(np.isclose(total, 1, atol=1e-5) | (total == 0))
    assert ((corrected != 0) > (one.uns["regions"].obsp["spatial_connectivities"] != 0)).nnz == 0


def test_top_edges_are_the_given_share_of_incoming_edges(trained):
    adata, _, path = trained
    attribution = _attribution(adata, path)
    regions, n_edges = np.arange(attribution.n), len(attribution.source)
    assert attribution.top_edges(np.zeros(n_edges), regions, 1.0).all()
    half = attribution.top_edges(np.arange(n_edges, dtype=float), regions[:1], 0.5)
    incoming = np.flatnonzero(attribution.target == 0)
    assert np.flatnonzero(half).tolist() == incoming[-int(np.ceil(len(incoming) / 2)) :].tolist()
    assert attribution.change(attribution.proba, regions) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"methods": ["nope"]}, ValueError, "attention_gradient"),
        ({"task": "biomarker"}, ValueError, "classification"),
        ({"shares": [2.0]}, ValueError, "shares"),
        ({"shares": None}, TypeError, "`shares` must be a finite number"),
        ({"accelerator": "warp"}, ValueError, "`accelerator='warp'` is not known"),
        ({"methods": []}, ValueError, "at least"),
    ],
)
def test_wrong_arguments_leave_the_data_unchanged(trained, kwargs, error, match):
    adata, _, path = trained
    before = adata.copy()
    with pytest.raises(error, match=match):
        st.tl.attention_fidelity(adata, path, **kwargs)
    assert_same(before, adata)


def test_fidelity_of_the_ensemble_or_the_network(make_section, quick_net, tmp_path):
    adata = make_section(rows=20)
    st.tl.region_graph(adata, "band", max_size=15)
    how = {"params": quick_net, "save_model": tmp_path / "net.stx", **ON_CPU}
    st.tl.multitask(adata, None, "band", ensemble=["network", "linear"], **how)
    st.tl.multitask(adata, None, "band", model=tmp_path / "net.stx", **ON_CPU)
    net, attribution = TissueNet.load(tmp_path / "net.stx"), _attribution(adata, tmp_path / "net.stx")
    assert attribution.proba == pytest.approx(adata.uns["regions"].obsm["band_proba"].to_numpy(), abs=1e-5)
    changes, saliency = {}, {}
    for of in ("ensemble", "network"):
        st.tl.attention_fidelity(adata, net, of=of, max_regions=5, methods=["attention"], show_progress=False)
        changes[of] = adata.uns["attention_fidelity"]["table"]["change"].max()
        saliency[of] = adata.obs["attention_saliency"].max()
        assert adata.uns["attention_fidelity"]["params"]["of"] == of
        assert adata.uns["attention_fidelity"]["params"]["network_weight"] == (0.2 if of == "ensemble" else 1.0)
    assert saliency["ensemble"] < saliency["network"]
    st.tl.multitask(adata, None, "band", ensemble=["linear"], **how)
    before = adata.copy()
    with pytest.raises(ValueError, match=r"weight 0 .*of='network'"):
        st.tl.attention_fidelity(adata, tmp_path / "net.stx")
    assert_same(before, adata)
