"""Attribution by the joint framework: completeness, planted genes first, errors for unsuitable models."""

from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.special import log_softmax, logsumexp
from sklearn.metrics import roc_auc_score

import stxtools as st
from stxtools._data.features import model_features
from stxtools._data.regions import Regions
from stxtools.models import GeneProjection, TissueNet
from stxtools.tl._biomarkers._attribution import ModelExplainer

QUICK = {"epochs": 10, "pretrain_epochs": 1, "unet_width": 8, "hidden": 16, "out_channels": 16}


@pytest.fixture(scope="module")
def tissue() -> ad.AnnData:
    out = st.datasets.synthetic_tissue(1200, 120, random_state=0, show_progress=False)
    st.tl.region_graph(out, "compartment", max_size=30)
    out.obs["disease"] = out.obs["disease"].astype("category")
    return out


@pytest.fixture
def small() -> ad.AnnData:
    out = st.datasets.synthetic_tissue(500, 60, random_state=0, show_progress=False)
    st.tl.region_graph(out, "compartment", max_size=30)
    return out


@pytest.fixture(scope="module")
def nets(tissue, tmp_path_factory) -> list[str]:
    """Two models of all members, the second without a U-Net; and one of the network alone."""
    folder, paths = tmp_path_factory.mktemp("nets"), []
    for seed, changes in enumerate(({}, {"unet": False}, {"unet": False, "ensemble": ("network",)})):
        paths.append(str(folder / f"{seed}.stx"))
        st.tl.multitask(
            tissue.copy(), "disease", "compartment", save_model=paths[-1], random_state=seed,
            params=QUICK | changes,
        )  # fmt: skip
    return paths


def _explainer(adata: ad.AnnData, model: str, task: str) -> ModelExplainer:
    regions = Regions(adata, "regions", "spatial")
    return ModelExplainer(adata, TissueNet.load(model), task, None, regions.where, regions)


def _change(explainer: ModelExplainer, group: str, side: np.ndarray) -> float:
    """Change of the model's log odds from the mean expression to the tissue."""
    at, total = explainer.classes.index(group), 0.0
    others = [i for i in range(len(explainer.classes)) if i != at]
    for ridge, rows in zip(explainer.attributions, explainer.parts, strict=True):
        tissue, mean = (x[:, at] - logsumexp(x[:, others], axis=1) for x in (ridge.logits, ridge.intercept[None]))
        total += float(side[rows] @ (tissue - mean))
    return total


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize(
    ("column", "task", "group"), [("disease", "biomarker", "diseased"), ("compartment", "classification", "layer_2")]
)
def test_gene_contributions_sum_to_the_change_of_the_log_odds(tissue, nets, which, column, task, group):
    explainer = _explainer(tissue, nets[which], task)
    inside = (tissue.obs[column] == group).to_numpy()
    parts = explainer.explain(group, "rest", inside, ~inside)
    side = inside / inside.sum() - ~inside / (~inside).sum()
    change = _change(explainer, group, side)
    assert change > 1
    assert parts.sum() == pytest.approx(change, rel=0.03)


def test_attribution_explains_the_predicting_ridge(tissue, nets):
    """Its log probabilities equal those of the classifier of genes without adaptation and components."""
    net = TissueNet.load(nets[0])
    explainer = _explainer(tissue, nets[0], "classification")
    (section,) = model_features(tissue, None, net).sections(Regions(tissue, "regions", "spatial"))
    genes = net.ensembles["classification"].unlabelled.genes
    components = genes.predict(section.by_name, adapt=False)
    assert components.weights["lda"] == 0
    np.testing.assert_allclose(
        log_softmax(explainer.attributions[0].logits, axis=1), log_softmax(components.logits, axis=1), atol=1e-6
    )


def test_planted_genes_come_first(tissue, nets):
    truth = tissue.var["is_biomarker"].to_numpy()
    tables = []
    for model in (TissueNet.load(nets[0]), nets[0], nets[:2]):
        adata = tissue.copy()
        st.tl.biomarkers(adata, "disease", groups=["diseased"], attribution_model=model, n_null=50, key_added="found")
        tables.append(adata.uns["found"].set_index("names").loc[adata.var_names])
        assert tables[-1]["attribution"].abs().sum() == pytest.approx(1)
        assert roc_auc_score(truth, tables[-1]["attribution"].abs()) >= 0.9
    pd.testing.assert_frame_equal(tables[0], tables[1], check_exact=True)
    assert adata.uns["found_params"]["attribution"] == "2 model(s)"
    assert (tables[0]["attribution"] != tables[2]["attribution"]).any()


def test_attributions_of_two_kinds_of_models_are_averaged(small, tmp_path, quick_unet, quick_net):
    net, unet = tmp_path / "n.stx", tmp_path / "s.stx"
    st.tl.multitask(small, "disease", params=quick_net | {"ensemble": ("genes",)}, save_model=net)
    st.tl.segment(small, labels_key="disease", params=quick_unet, save_model=unet, key_added="s")
    how: dict[str, Any] = {"groups": ["diseased"], "reference": "healthy", "n_null": 50}
    single = []
    for model in (unet, net, [unet, net]):
        st.tl.biomarkers(small, "disease", attribution_model=model, **how)
        single.append(small.uns["biomarkers"].set_index("names").loc[small.var_names, "attribution"].to_numpy())
    mean = single[0] + single[1]
    np.testing.assert_allclose(single[2], mean / np.abs(mean).sum(), atol=1e-9)


def test_predicted_genes_have_no_attribution(small, tmp_path, quick_net):
    adata = small
    hidden = [str(g) for g in adata.var_names[:2]]
    params = quick_net | {"ensemble": ("linear", "genes")}
    st.tl.multitask(adata, "disease", expression=hidden, save_model=tmp_path / "e.stx", params=params)
    st.tl.biomarkers(adata, "disease", attribution_model=tmp_path / "e.stx", n_null=50)
    table = adata.uns["biomarkers"].set_index("names")
    assert (table.loc[hidden, "attribution"] == 0).all()
    assert (table["attribution"] != 0).mean() > 0.9


def test_unsuitable_models_are_reported(tissue, nets):
    adata = tissue.copy()
    adata.obs["half"] = np.where(adata.obs["array_row"] < adata.obs["array_row"].median(), "left", "right")
    before = list(adata.uns)
    with pytest.raises(ValueError, match=r"No task .*'right'.*biomarker: .*classification: "):
        st.tl.biomarkers(adata, "half", attribution_model=nets[0], n_null=50)
    with pytest.raises(ValueError, match=r"without a linear model of genes.*ensemble"):
        st.tl.biomarkers(adata, "disease", attribution_model=nets[2], n_null=50)
    blind = TissueNet(QUICK)
    blind.use_rep = "X_pca"
    with pytest.raises(ValueError, match=r"multitask.*save_model"):
        st.tl.biomarkers(adata, "disease", attribution_model=blind, n_null=50)
    del adata.uns["regions"]
    with pytest.raises(KeyError, match="region_graph"):
        st.tl.biomarkers(adata, "disease", attribution_model=nets[0], n_null=50)
    assert list(adata.uns) == [k for k in before if k != "regions"]


def test_loadings_are_the_contribution_of_each_gene():
    rng = np.random.default_rng(0)
    components = np.linalg.qr(rng.normal(size=(12, 4)))[0]
    names = [f"g{i}" for i in range(12)]
    projection = GeneProjection(names, rng.normal(size=12), components, 1e4, np.arange(4, 0, -1.0), 0.3)
    for seen in (names, names[3:], ["new", *names[:7]]):
        theirs, loadings = projection.loadings(seen)
        none, each = sparse.csr_matrix((1, len(seen))), sparse.eye(len(seen), format="csr")
        zero, one = (projection.transform(y, seen) for y in (none, each))
        expected = np.zeros((len(seen), 4))
        expected[theirs] = loadings
        np.testing.assert_allclose(one - zero, expected, atol=1e-5)
