"""Evaluation: leak-free splits, metrics against scikit-learn, resuming, one interface for all models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from conftest import QUICK_NET, QUICK_UNET, assert_same
from hypothesis import given, settings
from hypothesis import strategies as hs
from scipy import sparse
from scipy.spatial import cKDTree
from scipy.stats import mannwhitneyu
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import stxtools as st

FAST = ["lda", "nearest_label"]
Model = Callable[[list[Any], list[np.ndarray], int, int], list[np.ndarray]]
BY_LIBRARY: dict[str, Any] = {"scheme": "library", "library_key": "library", "n_seeds": 1}


@pytest.fixture
def adata(generated: Callable[..., ad.AnnData]) -> ad.AnnData:
    return generated(400, 20, difficulty=0.3, random_state=1)


def _without_time(table: pd.DataFrame) -> pd.DataFrame:
    return table.drop(columns="seconds")


def spying_model(record: Callable[[list[Any], list[np.ndarray]], object]) -> Model:
    """Record what a model is given; predict the same probability for all classes."""

    def model(sections: list[Any], labels: list[np.ndarray], n_classes: int, random_state: int) -> list[np.ndarray]:
        record(sections, labels)
        return [np.full((s.n_obs, n_classes), 1 / n_classes) for s in sections]

    return model


def tissue_at(xy: np.ndarray, library: np.ndarray | None = None) -> ad.AnnData:
    """Observations at given places, every other one of class "a"."""
    adata = ad.AnnData(np.ones((len(xy), 1), dtype=np.float32), obsm={"spatial": xy, "rep": xy})
    adata.obs["half"] = pd.Categorical(np.where(np.arange(len(xy)) // 2 % 2, "a", "b"))
    adata.obs["library"] = pd.Categorical(np.full(len(xy), "one") if library is None else library)
    return adata


def folds_of(adata: ad.AnnData, scheme: str, n_folds: int = 5, seed: int = 0) -> np.ndarray:
    """Fold of every observation: the one in which its label is hidden from the model, exactly one."""
    hidden = []

    def record(sections: list[Any], labels: list[np.ndarray]) -> None:
        hidden.append(np.empty(adata.n_obs, dtype=bool))
        for name, codes in zip(adata.obs["library"].cat.categories, labels, strict=True):
            hidden[-1][(adata.obs["library"] == name).to_numpy()] = codes < 0

    how = BY_LIBRARY | {"scheme": scheme, "n_folds": n_folds, "random_state": seed, "show_progress": False}
    st.tl.evaluate(adata, {"m": spying_model(record)}, region_key="half", use_rep="rep", **how)
    assert len(hidden) == len(adata.uns["evaluation"])
    np.testing.assert_array_equal(np.sum(hidden, axis=0), 1)
    return np.argmax(hidden, axis=0)


# ------------------------------------------------------------------------------------------------- metrics


@settings(max_examples=25, deadline=None)
@given(seed=hs.integers(0, 10_000), n=hs.integers(20, 60), k=hs.integers(2, 5))
def test_scores_are_averages_over_the_classes_of_the_fold(seed: int, n: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.permutation(np.r_[np.arange(k), np.arange(k), rng.integers(k, size=n)])
    proba = rng.integers(1, 5, size=(len(truth), k)) / 10  # with ties
    adata = tissue_at(rng.uniform(size=(len(truth), 2)))
    adata.obs["half"] = pd.Categorical.from_codes(truth, [f"c{i}" for i in range(k)])
    fold = folds_of(adata, "random", 2)
    how: dict[str, Any] = {"scheme": "random", "n_folds": 2, "n_seeds": 1, "use_rep": "rep"}
    st.tl.evaluate(adata, {"m": lambda *_: [proba]}, region_key="half", **how)
    for at, row in enumerate(adata.uns["evaluation"].itertuples()):
        y, p = truth[fold == at], proba[fold == at]
        called = p.argmax(axis=1)
        present = np.unique(y)
        hits = [(y == c) & (called == c) for c in present]
        assert row.accuracy == pytest.approx((y == called).mean())
        assert row.recall == pytest.approx(np.mean([h[y == c].mean() for h, c in zip(hits, present, strict=True)]))
        precision = [h.sum() / max((called == c).sum(), 1) for h, c in zip(hits, present, strict=True)]
        assert row.precision == pytest.approx(np.mean(precision))
        if len(present) == 1:
            assert np.isnan(row.auroc)
            continue
        above = [mannwhitneyu(p[y == c, c], p[y != c, c]).statistic for c in present]
        pairs = [(y == c).sum() * (y != c).sum() for c in present]
        assert row.auroc == pytest.approx(np.mean(np.divide(above, pairs)))


def test_auroc_of_a_fold_with_one_class_is_missing() -> None:
    adata = tissue_at(np.random.default_rng(0).uniform(size=(60, 2)), np.repeat(["x", "y", "z"], 20))
    adata.obs.loc[adata.obs["library"] == "z", "half"] = "a"
    sure = np.tile([0.9, 0.1], (20, 1))
    st.tl.evaluate(adata, {"m": lambda *_: [sure, sure, sure]}, region_key="half", use_rep="rep", **BY_LIBRARY)
    row = adata.uns["evaluation"].set_index("fold").loc["z"]
    assert row["accuracy"] == 1
    assert np.isnan(row["auroc"])


# ------------------------------------------------------------------------------------------------- no leak


def test_models_never_see_a_test_label(adata: ad.AnnData) -> None:
    truth, seen = adata.obs["compartment"].cat.codes.to_numpy(), []
    spy = spying_model(lambda sections, labels: seen.append(labels[0].copy()))
    st.tl.evaluate(adata, {"spy": spy}, region_key="compartment", n_seeds=1)
    table = adata.uns["evaluation"]
    assert len(seen) == len(table) == 5
    for labels, n_test in zip(seen, table["n_test"], strict=True):
        assert (labels < 0).sum() == n_test
        np.testing.assert_array_equal(labels[labels >= 0], truth[labels >= 0])
    hidden = np.stack([labels < 0 for labels in seen])
    np.testing.assert_array_equal(hidden.sum(axis=0), 1)  # each observation is predicted once


@pytest.mark.parametrize("scheme", ["block", "library"])
def test_no_prediction_depends_on_a_test_label(make_section: Callable[..., ad.AnnData], scheme: str) -> None:
    """With the test labels swapped, the same predictions are wrong where they were right, for every model."""
    adata, hidden = make_section(libraries=4, rows=10, cols=10), []
    how: dict[str, Any] = {"n_seeds": 1, "n_folds": 3, "max_folds": 1, "scheme": scheme, "library_key": "library"}
    how |= {"biomarker_key": "noise", "subject_key": "patient" if scheme == "library" else None}
    adata.obs["patient"] = adata.obs["library"].map(dict(zip(["lib0", "lib1", "lib2", "lib3"], "pqqr", strict=True)))
    adata.obs["band"] = pd.Categorical(np.where(adata.obs["band"] == "a", "a", "b"))
    adata.obs["noise"] = pd.Categorical(np.random.default_rng(0).choice(["p", "q"], adata.n_obs))
    spy = spying_model(lambda sections, labels: hidden.append(np.concatenate(labels) < 0))
    st.tl.evaluate(adata, [spy], region_key="band", **how)
    swapped = adata.copy()
    for key, names in {"band": {"a": "b", "b": "a"}, "noise": {"p": "q", "q": "p"}}.items():
        labels = adata.obs[key].astype(object)
        swapped.obs[key] = pd.Categorical(labels.where(~hidden[0], labels.map(names)))
    unet, net = QUICK_UNET | {"epochs": 2, "pretrain": "none"}, dict(QUICK_NET)
    del net["unet_width"]
    params = {
        "framework": {"segment": {"params": unet}, "multitask": {"params": QUICK_NET}}, "unet": unet, "gnn": net,
        "random_forest": {"n_estimators": 5}, "random_forest_means": {"n_estimators": 5},
    }  # fmt: skip
    how |= {"region_key": "band", "params": params, "accelerator": "cpu"}
    found = []
    for data in (adata, swapped):
        st.tl.evaluate(data, [*params, "lda", "logistic", "nearest_label"], **how)
        found.append(data.uns["evaluation"].set_index(["model", "target"])[["accuracy", "auroc"]])
    assert len(found[0]) == 16
    np.testing.assert_allclose(found[0], 1 - found[1], atol=1e-12)


def test_features_of_library_splits_come_from_training_sections(make_section: Callable[..., ad.AnnData]) -> None:
    adata = make_section(libraries=2, rows=12, cols=12)
    other = adata.copy()
    rows = np.flatnonzero(other.obs["library"] == "lib1")
    counts = other.X.toarray()
    counts[rows] = np.random.default_rng(0).poisson(3, size=counts[rows].shape)
    other.X = sparse.csr_matrix(counts.astype(np.float32))
    read: dict[int, list[np.ndarray]] = {0: [], 1: []}

    def record(sections: list[Any], labels: list[np.ndarray]) -> None:
        test = int((labels[1] < 0).all())
        read[test].append(sections[1 - test].features)

    for data in (adata, other):
        st.tl.evaluate(data, {"spy": spying_model(record)}, region_key="band", **BY_LIBRARY)
    np.testing.assert_array_equal(*read[1])  # lib1 is held out: its expression cannot change lib0's features
    assert not np.array_equal(*read[0])


def test_missing_labels_are_neither_trained_on_nor_scored(adata: ad.AnnData) -> None:
    adata.obs.loc[adata.obs_names[::2], "compartment"] = np.nan
    st.tl.evaluate(adata, FAST, region_key="compartment", n_seeds=1)
    table = adata.uns["evaluation"].query("model == 'lda'")
    assert table["n_test"].sum() == 200
    assert (table["n_train"] + table["n_test"] == 200).all()


def test_random_splits_are_marked_as_leaky_and_score_higher() -> None:
    adata = st.datasets.synthetic_tissue(2_000, 8, random_state=0, show_progress=False)
    st.tl.evaluate(adata, "nearest_label", region_key="compartment", scheme=["block", "random"], n_seeds=2)
    table = st.get.evaluation(adata, "accuracy")
    assert dict(zip(table["scheme"], table["leaky"], strict=True)) == {"block": False, "random": True}
    by = table.set_index("scheme")["mean"]
    assert by["random"] > by["block"] + 0.02  # the reason for the mark


# ------------------------------------------------------------------------------------------------- models


@pytest.mark.parametrize("name", ["unet", "gnn", "random_forest", "random_forest_means", "lda", "logistic"])
def test_baselines_learn_easy_tissue(name: str) -> None:
    params = {
        "unet": {"width": 8, "epochs": 8, "pretrain": "none", "sigmas": (0.0, 1.0), "lr": 0.01},
        "gnn": {"hidden": 16, "out_channels": 8, "heads": 2, "epochs": 30, "lr": 0.01},
        "random_forest": {"n_estimators": 20},
        "random_forest_means": {"n_estimators": 20},
    }.get(name)
    adata = st.datasets.synthetic_tissue(250, 20, difficulty=0.0, random_state=0, show_progress=False)
    how: dict[str, Any] = {"n_seeds": 1, "max_folds": 1, "params": {name: params} if params else None}
    st.tl.evaluate(adata, [name], region_key="compartment", biomarker_key="disease", accelerator="cpu", **how)
    by = adata.uns["evaluation"].set_index("target")["auroc"]
    assert by["region"] > 0.8
    assert by["biomarker"] > 0.6


def _nearest(sections: list[Any], labels: list[np.ndarray], n_classes: int, random_state: int) -> list[np.ndarray]:
    """Inverse distances to the nearest label of each class, normalised."""
    (s,), (codes,) = sections, labels
    near = np.stack([1 / (cKDTree(s.xy[codes == c]).query(s.xy)[0] + 1e-9) for c in range(n_classes)], axis=1)
    return [near / near.sum(axis=1, keepdims=True)]


def _lda(sections: list[Any], labels: list[np.ndarray], n_classes: int, random_state: int) -> list[np.ndarray]:
    """Shrinkage LDA on the means over the 19 and 61 nearest observations."""
    (s,), (codes,) = sections, labels
    near = np.argsort(((s.xy[:, None] - s.xy[None]) ** 2).sum(-1), axis=1)
    z = np.concatenate([s.features.astype(float)[near[:, :k]].mean(1) for k in (19, 61)], axis=1)
    lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    return [make_pipeline(StandardScaler(), lda).fit(z[codes >= 0], codes[codes >= 0]).predict_proba(z)]


@pytest.mark.parametrize(("name", "by_hand"), [("nearest_label", _nearest), ("lda", _lda)])
def test_simple_baselines_equal_their_definition(name: str, by_hand: Model) -> None:
    rng = np.random.default_rng(0)
    adata = tissue_at(rng.uniform(size=(150, 2)))
    adata.obs["half"] = pd.Categorical(np.where(adata.obsm["spatial"][:, 0] > 0.5, "a", "b"))
    adata.obsm["rep"] = rng.normal(size=(150, 3)) + (adata.obs["half"] == "a").to_numpy()[:, None]
    st.tl.evaluate(adata, {name: name, "by hand": by_hand}, region_key="half", n_seeds=1, use_rep="rep")
    for metric in ("accuracy", "auroc"):
        found = adata.uns["evaluation"].pivot(index="fold", columns="model", values=metric)
        np.testing.assert_allclose(found[name], found["by hand"], atol=1e-3)


def test_nearest_label_predicts_the_shares_in_a_section_without_labels() -> None:
    adata = tissue_at(np.random.default_rng(0).uniform(size=(400, 2)), np.where(np.arange(400) < 150, "x", "y"))
    adata.obs["half"] = pd.Categorical(np.where(np.arange(400) % 3, "often", "seldom"))
    st.tl.evaluate(adata, "nearest_label", region_key="half", use_rep="rep", **BY_LIBRARY)
    for row in adata.uns["evaluation"].itertuples():
        assert row.accuracy == pytest.approx((adata.obs["half"] == "often")[adata.obs["library"] == row.fold].mean())
        assert row.auroc == 0.5  # the same probabilities everywhere


@pytest.mark.parametrize("name", ["lda", "random_forest"])
def test_classes_without_training_labels_are_never_predicted(name: str) -> None:
    rng = np.random.default_rng(0)
    adata = tissue_at(rng.uniform(size=(90, 2)), np.repeat(["x", "y", "z"], 30))
    adata.obsm["rep"] = rng.normal(size=(90, 4))
    codes = np.where(adata.obs["library"] == "z", 2 + np.arange(90) % 2, np.arange(90) % 2)
    adata.obs["half"] = pd.Categorical.from_codes(codes, ["p", "q", "r", "s"])
    st.tl.evaluate(adata, name, region_key="half", use_rep="rep", **BY_LIBRARY)
    row = adata.uns["evaluation"].set_index("fold").loc["z"]
    assert row[["accuracy", "precision", "recall"]].tolist() == [0, 0, 0]
    assert row["auroc"] == 0.5  # the probability of both classes is 0 throughout


def test_framework_predicts_regions_biomarkers_and_genes(
    adata: ad.AnnData, quick_unet: dict[str, Any], quick_net: dict[str, Any]
) -> None:
    params = {"framework": {"segment": {"params": quick_unet}, "multitask": {"params": quick_net | {"epochs": 30}}}}
    st.tl.evaluate(
        adata, ["framework"], region_key="compartment", biomarker_key="disease", n_seeds=1, max_folds=1, params=params,
        genes=np.int64(2), noise=np.float32(0), accelerator="cpu",
    )  # fmt: skip
    table = adata.uns["evaluation"].set_index("target")
    assert list(table.index) == ["biomarker", "region", "expression"]
    assert table.loc["region", "auroc"] > 0.6
    assert 0.2 < table.loc["expression", "mse"] < 3
    with pytest.raises(ValueError, match="Unknown stage"):
        st.tl.evaluate(adata, ["framework"], region_key="compartment", params={"framework": {"train": {}}})


def test_framework_reads_all_genes_across_sections(tmp_path: Path, quick_unet: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    two = tissue_at(rng.uniform(0, 10, (120, 2)), np.repeat(["a", "b"], 60))
    adata = ad.AnnData(sparse.csr_matrix(rng.poisson(1.0, (120, 2100)).astype(np.float32)), two.obs, obsm=two.obsm)
    adata.obs["side"] = np.where(adata.obsm["spatial"][:, 0] > 5, "left", "right")
    joint = {"params": QUICK_NET, "save_model": tmp_path / "net.stx"}
    params = {"framework": {"segment": {"params": quick_unet}, "multitask": joint}}
    st.tl.evaluate(adata, ["framework"], region_key="side", max_folds=1, params=params, accelerator="cpu", **BY_LIBRARY)
    net = st.models.load(tmp_path / "net.stx")
    assert len(net.genes) == 2000  # the variable ones
    assert len(net.read_genes) > 2000


def test_hidden_genes_are_predicted_from_the_others() -> None:
    adata = st.datasets.synthetic_tissue(500, 30, difficulty=0.0, random_state=0, show_progress=False)
    markers = adata.var_names[(adata.var["marker_of"] == "island_1").to_numpy()][:2].tolist()
    st.tl.evaluate(adata, ["lda", "nearest_label"], region_key="compartment", genes=markers, n_seeds=1)
    mse = st.get.evaluation(adata, "mse").set_index("model")["mean"]
    assert mse["lda"] < 0.6  # predicting the mean stands at 1
    assert mse["lda"] < mse["nearest_label"]


def _independent_gene(scale: str) -> ad.AnnData:
    """Gene 0 has half of all molecules and varies by itself; the others are the same everywhere."""
    rng = np.random.default_rng(8)
    counts = rng.poisson(rng.gamma(2.0, 2.0, 40), (200, 40)).astype(np.float32)
    counts[:, 0] = rng.poisson(150 * np.exp(rng.normal(0, 0.6, 200)))
    adata = ad.AnnData(counts, obsm={"spatial": rng.uniform(0, 100, (200, 2))})
    adata.obs["side"] = pd.Categorical(np.where(adata.obsm["spatial"][:, 0] > 50, "right", "left"))
    if scale != "counts":
        if scale == "layer":
            adata.layers["counts"] = counts.copy()
        sc.pp.normalize_total(adata, target_sum=60 if scale == "linear" else None)
        if scale != "linear":
            sc.pp.log1p(adata)
    return adata


@pytest.mark.parametrize("scale", ["counts", "log", "linear", "layer"])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_hidden_gene_is_not_inferred_from_the_depth_of_the_others(scale: str, noise: float) -> None:
    adata, seen = _independent_gene(scale), []
    spy = spying_model(lambda sections, labels: seen.append(np.expm1(sections[0].logged.toarray()).sum(axis=1)))
    st.tl.evaluate(adata, [spy], region_key="side", genes=["0"], n_seeds=1, n_folds=2, max_folds=1, noise=noise)
    hidden = adata.to_df()["0"]
    assert abs(np.corrcoef(np.log(seen[0]), hidden)[0, 1]) < 0.2 or np.ptp(seen[0]) < 1e-3 * seen[0].mean()


def test_noise_is_added_to_counts_wherever_they_are() -> None:
    how: dict[str, Any] = {"region_key": "side", "genes": ["0"], "n_seeds": 1, "n_folds": 2, "noise": 0.1}
    tables = []
    for scale in ("counts", "layer"):
        adata = _independent_gene(scale)
        st.tl.evaluate(adata, ["lda"], **how)
        tables.append(_without_time(adata.uns["evaluation"]))
    pd.testing.assert_frame_equal(*tables)


# ------------------------------------------------------------------------------------------------- table


def test_same_seed_gives_the_same_table(adata: ad.AnnData) -> None:
    how: dict[str, Any] = {"region_key": "compartment", "biomarker_key": "disease", "n_seeds": 2, "noise": [0.0, 0.2]}
    st.tl.evaluate(adata, FAST, **how)
    again = st.tl.evaluate(adata, FAST, copy=True, key_added="again", **how)
    assert again is not None
    assert "again" not in adata.uns
    pd.testing.assert_frame_equal(_without_time(adata.uns["evaluation"]), _without_time(again.uns["again"]))
    assert len(adata.uns["evaluation"]) == 2 * 2 * 2 * 5 * 2


def test_noise_lowers_the_auroc_of_a_random_forest(adata: ad.AnnData) -> None:
    st.tl.evaluate(
        adata, ["random_forest"], region_key="compartment", n_seeds=2, max_folds=2, noise=[0.0, 1.0],
        params={"random_forest": {"n_estimators": 20}},
    )  # fmt: skip
    by = st.get.evaluation(adata, "auroc").set_index("noise")["mean"]
    assert by[1.0] < by[0.0]


def test_summary_averages_folds_before_seeds(adata: ad.AnnData) -> None:
    st.tl.evaluate(adata, FAST, region_key="compartment", n_seeds=3)
    table = adata.uns["evaluation"]
    by_seed = table[table["model"] == "lda"].groupby("seed")["accuracy"].mean()
    other = table[table["model"] == "nearest_label"].groupby("seed")["accuracy"].mean()
    row = st.get.evaluation(adata, "accuracy", versus="nearest_label").set_index("model").loc["lda"]
    assert row["mean"] == pytest.approx(by_seed.mean())
    assert row["sd"] == pytest.approx(by_seed.std(ddof=1))
    assert row["n"] == 3
    assert row["difference"] == pytest.approx((by_seed - other).mean())
    assert row["se"] == pytest.approx((by_seed - other).std(ddof=1) / np.sqrt(3))
    seeds = st.get.evaluation(adata, "accuracy", per_seed=True).query("model == 'lda'")
    np.testing.assert_allclose(seeds["value"], by_seed)


@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ({}, ValueError, "Name the columns to predict"),
        ({"region_key": "tissue"}, KeyError, "tissue"),
        ({"region_key": "compartment", "models": ["svm"]}, ValueError, "no model 'svm'"),
        ({"region_key": "compartment", "models": 3}, TypeError, "`models` must be names or functions"),
        ({"region_key": "compartment", "models": []}, ValueError, "empty"),
        ({"region_key": "compartment", "models": np.array("lda")}, TypeError, "`models` must be names or functions"),
        ({"region_key": "compartment", "scheme": "spots"}, ValueError, "scheme"),
        ({"region_key": "compartment", "scheme": "library"}, ValueError, "library_key"),
        ({"region_key": "compartment", "scheme": []}, ValueError, "scheme"),
        ({"region_key": "compartment", "genes": True}, TypeError, "`genes` must be"),
        ({"region_key": "compartment", "accelerator": ["cpu"]}, TypeError, "`accelerator`"),
        ({"region_key": "compartment", "models": ["gnn"], "devices": 10**6}, ValueError, "`devices=1000000`"),
        ({"region_key": "compartment", "noise": 2.0}, ValueError, "noise"),
        ({"region_key": "compartment", "genes": 19}, ValueError, "at most 18"),
        ({"region_key": "compartment", "genes": ["none"]}, KeyError, "none"),
        ({"region_key": "compartment", "params": {"gnn": {}}}, ValueError, "params"),
        ({"region_key": "compartment", "checkpoint": "/no/such/folder/x.csv"}, ValueError, "within one that exists"),
        ({"region_key": "compartment", "checkpoint": __file__}, ValueError, "must be a folder"),
        ({"region_key": "disease", "biomarker_key": "disease"}, ValueError, "both"),
        ({"region_key": "compartment", "key_added": "segment"}, ValueError, "overwrite"),
        ({"region_key": "name"}, ValueError, "a class of its own"),
        (
            {"region_key": "compartment", "models": {"m": lambda s, y, k, r: [np.zeros((3, k))]}},
            ValueError,
            "one array",
        ),
    ],
)
def test_wrong_arguments_leave_the_data_unchanged(
    adata: ad.AnnData, how: dict[str, Any], error: type[Exception], words: str
) -> None:
    adata.obs["name"] = adata.obs_names
    before = adata.copy()
    with pytest.raises(error, match=words):
        st.tl.evaluate(adata, how.pop("models", FAST), **how)
    assert_same(before, adata)


def test_training_part_without_two_classes_is_an_error(make_section: Callable[..., ad.AnnData]) -> None:
    adata = make_section(libraries=2)
    adata.obs["state"] = np.where(adata.obs["library"] == "lib0", "a", "b")
    with pytest.raises(ValueError, match="two classes are needed"):
        st.tl.evaluate(adata, FAST, region_key="state", **BY_LIBRARY)
