"""Faithfulness of attention where a region's class depends on one neighbour's expression."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from conftest import assert_same, sections_read
from scipy import sparse
from sklearn.metrics import roc_auc_score

import stxtools as st
from stxtools.models import TissueNet
from stxtools.models.explain.edges import RegionAttribution

METHODS = ("attention", "attention_gradient", "occlusion", "gradient", "random")
HOW = {"show_progress": False, "accelerator": "cpu"}
ALONE = {
    "unet": False, "genes": False, "ensemble": ("network",), "neighbours": (1,), "layers": 1, "hidden": 16,
    "out_channels": 16,
    "dropout": 0.0, "input_dropout": 0.0, "region_loss": 1.0, "epochs": 120, "patience": 40, "lr": 0.01,
}  # fmt: skip


def planted(side: int = 16, seed: int = 0) -> tuple[ad.AnnData, np.ndarray]:
    """Regions of 3 x 3 spots. A region is ``told`` where a neighbour expresses gene 0; gene 1 means nothing."""
    rng = np.random.default_rng(seed)
    row, col = (a.ravel() for a in np.mgrid[: 3 * side, : 3 * side])
    block = row // 3 * side + col // 3
    sends, decoy = (rng.random(side**2) < 0.12 for _ in range(2))
    rate = np.ones((side**2, 12))
    rate[sends, 0], rate[decoy, 1] = 12.0, 12.0
    grid = np.pad(sends.reshape(side, side), 1)
    told = (grid[:-2, 1:-1] | grid[2:, 1:-1] | grid[1:-1, :-2] | grid[1:-1, 2:]).ravel()
    adata = ad.AnnData(sparse.csr_matrix(rng.poisson(rate[block]).astype(np.float32)))
    adata.obs_names = [f"o{i}" for i in range(adata.n_obs)]
    adata.var_names = [f"gene{i}" for i in range(12)]
    adata.obs["array_row"], adata.obs["array_col"] = row, col
    adata.obsm["spatial"] = np.c_[col, row] * 100.0
    adata.obs["block"] = pd.Categorical([f"b{b}" for b in block])
    adata.obs["class"] = pd.Categorical(np.where(told, "told", "not")[block])
    st.tl.region_graph(adata, "block", max_size=None)
    first = adata.obs.groupby("region_id", observed=True)["block"].first().astype(str)
    return adata, sends[[int(name[1:]) for name in first[adata.uns["regions"].obs_names]]]


@pytest.fixture(scope="module")
def taught(tmp_path_factory) -> tuple[ad.AnnData, np.ndarray, str]:
    adata, sends = planted()
    path = str(tmp_path_factory.mktemp("net") / "net.stx")
    st.tl.multitask(adata, None, "class", params=ALONE, save_model=path, **HOW)
    return adata, sends, path


def _look(adata: ad.AnnData, path: str) -> RegionAttribution:
    net = TissueNet.load(path)
    (section,) = sections_read(TissueNet, "predict", lambda: st.tl.multitask(adata, model=net, **HOW))
    return RegionAttribution(net, section, "classification")


def test_corrected_attention_finds_the_planted_edges(taught):
    adata, sends, path = taught
    assert (adata.obs["class_pred"].astype(str) == adata.obs["class"].astype(str)).mean() > 0.9
    found = {}
    look = _look(adata, path)
    assert look.proba == pytest.approx(adata.uns["regions"].obsm["class_proba"].to_numpy(), abs=1e-5)
    told = np.flatnonzero(look.predicted == TissueNet.load(path).classes["classification"].index("told"))
    leads = np.isin(look.target, told)
    for method in METHODS:
        scores = look.edge_scores(method, told, np.random.default_rng(0))
        assert np.isfinite(scores[leads]).all()
        assert np.isnan(scores[~leads]).all()
        found[method] = roc_auc_score(sends[look.source[leads]], scores[leads])
    assert found["attention_gradient"] >= 0.85
    assert found["occlusion"] >= 0.85
    assert abs(found["random"] - 0.5) < 0.15


def test_slots_say_that_true_orders_change_more(taught, tmp_path):
    adata, _, path = taught
    one = st.tl.attention_fidelity(adata, path, max_regions=60, show_progress=False, copy=True)
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
    assert (
        (corrected != 0).astype(int) - (one.uns["regions"].obsp["spatial_connectivities"] != 0).astype(int)
    ).max() <= 0
    two = st.tl.attention_fidelity(adata, path, max_regions=60, show_progress=False, copy=True)
    assert_same(one, two)
    one.write_h5ad(tmp_path / "a.h5ad")
    assert_same(one, ad.read_h5ad(tmp_path / "a.h5ad"))


def test_removing_all_edges_is_what_no_graph_gives(taught):
    adata, _, path = taught
    look = _look(adata, path)
    regions = np.arange(look.n)
    everything = look.top_edges(np.zeros(len(look.source)), regions, 1.0)
    assert everything.all()
    half = look.top_edges(np.arange(len(look.source), dtype=float), regions[:1], 0.5)
    incoming = np.flatnonzero(look.target == 0)
    assert np.flatnonzero(half).tolist() == incoming[-int(np.ceil(len(incoming) / 2)) :].tolist()
    assert look.change(look.proba, regions) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"methods": ["nope"]}, "attention_gradient"),
        ({"task": "biomarker"}, "classification"),
        ({"shares": [2.0]}, "shares"),
        ({"methods": []}, "at least"),
    ],
)
def test_wrong_arguments(taught, kwargs, match):
    adata, _, path = taught
    before = adata.copy()
    with pytest.raises(ValueError, match=match):
        st.tl.attention_fidelity(adata, path, **kwargs)
    with pytest.raises(TypeError, match="`shares` must be a finite number"):
        st.tl.attention_fidelity(adata, path, shares=None)
    assert_same(before, adata)


def test_the_prediction_looked_at_is_that_of_the_ensemble(make_section, quick_net, tmp_path):
    adata = make_section(rows=20)
    st.tl.region_graph(adata, "band", max_size=15)
    how = {"params": quick_net, "save_model": tmp_path / "net.stx", **HOW}
    st.tl.multitask(adata, None, "band", ensemble=["network", "linear"], **how)
    st.tl.multitask(adata, None, "band", model=tmp_path / "net.stx", **HOW)
    net, look = TissueNet.load(tmp_path / "net.stx"), _look(adata, tmp_path / "net.stx")
    assert look.proba == pytest.approx(adata.uns["regions"].obsm["band_proba"].to_numpy(), abs=1e-5)
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
