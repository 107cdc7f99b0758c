"""tl.multitask: single tasks, predicted genes, predictions for observations, saved models."""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from conftest import ON_CPU, QUICK_NET, assert_same, grid_positions, poisson_section, read_back

import stxtools as st
from stxtools.models import TissueNet


@pytest.mark.parametrize("key", ["biomarker_key", "region_key"])
def test_single_task_writes_its_prediction_only(line, quick_net, key):
    st.tl.multitask(line, **{key: "band"}, params=quick_net, **ON_CPU)
    assert [column for column in line.obs if column.endswith("_pred")] == ["band_pred"]
    assert list(line.uns["multitask"]["task_weights"].values()) == [1.0]


def test_tasks_without_labels_loss_or_model_are_an_error(line, quick_net, tmp_path):
    before = line.copy()
    with pytest.raises(ValueError, match="biomarker_key"):
        st.tl.multitask(line, **ON_CPU)
    with pytest.raises(ValueError, match="nothing would be learned"):
        st.tl.multitask(line, "band", params=quick_net | {"alpha": 0.0}, **ON_CPU)
    region = line.obs["region_id"].cat.categories[0]
    other = line.copy()
    other.obs.loc[other.obs["region_id"] != region, "region_id"] = np.nan  # all else lies outside the only region
    other.uns["regions"] = other.uns["regions"][[region]].copy()
    other.obs["half"] = np.where(other.obs["region_id"] == region, "in", "out")
    with pytest.raises(ValueError, match=r"Within the regions, .*'half'.* labels 'in' of its classes 'in', 'out'"):
        st.tl.multitask(other, "half", params=quick_net, **ON_CPU)
    assert_same(before, line)
    st.tl.multitask(line, "band", params=quick_net, save_model=tmp_path / "n.stx", **ON_CPU)
    with pytest.raises(ValueError, match="drop region_key"):
        st.tl.multitask(line, "band", "library", model=tmp_path / "n.stx", **ON_CPU)


def test_section_outside_all_regions_has_no_predictions(make_section, quick_net):
    adata = make_section(rows=10, libraries=2)
    bare = adata.obs["library"] == "lib1"
    adata.obs["seen"] = adata.obs["band"].mask(bare)
    st.tl.region_graph(adata, "seen", max_size=20, library_key="library")
    st.tl.embed(adata, params=quick_net, **ON_CPU)
    np.testing.assert_array_equal(np.isnan(adata.obsm["X_gnn"]).all(axis=1), bare)
    st.tl.multitask(adata, None, "band", params=quick_net, **ON_CPU)
    np.testing.assert_array_equal(adata.obs["band_pred"].isna(), bare)


def test_observations_of_one_region_may_have_different_predictions(make_section, quick_net):
    adata = make_section(rows=24)
    adata.obs["all"] = pd.Categorical(["x"] * adata.n_obs)
    st.tl.region_graph(adata, "all", max_size=60)  # regions across bands
    adata.obs["seen"] = adata.obs["band"].where(adata.obs["array_col"] % 8 < 4)
    st.tl.multitask(adata, None, "seen", params=quick_net | {"epochs": 10}, **ON_CPU)
    unseen = adata.obs["seen"].isna()
    right = adata.obs["seen_pred"].astype(str) == adata.obs["band"].astype(str)
    purity = adata.obs.groupby("region_id", observed=True)["band"].agg(lambda x: x.value_counts().iloc[0]).sum()
    assert right[unseen].mean() > 0.9 > purity / adata.n_obs
    assert adata.obs.groupby("region_id", observed=True)["seen_pred"].nunique().max() > 1


def test_predicted_gene_is_not_inferred_from_the_depth_of_the_others(line, quick_net):
    """In log expression, too, where all genes together have one depth."""
    line.obs["learn"] = np.arange(line.n_obs) % 2 == 0
    found = []
    for factor in (1, 20):  # of the predicted gene, where it is not learned
        one = line.copy()
        one.X = one.X.toarray()
        one.X[~one.obs["learn"], 3] = factor * (one.X[~one.obs["learn"], 3] + 5)
        sc.pp.normalize_total(one, target_sum=100)
        sc.pp.log1p(one)
        st.tl.multitask(one, None, "band", expression=["gene3"], expression_key="learn", params=quick_net, **ON_CPU)
        found.append(one.obsm["expression_pred"])
    pd.testing.assert_frame_equal(*found, atol=1e-3)


def test_model_that_reads_no_genes_applies_to_scaled_expression(line, quick_net, tmp_path):
    line.obsm["X_own"] = line.to_df().to_numpy()[:, :8]
    params = quick_net | {"genes": False, "ensemble": ("network",)}
    saved = tmp_path / "net.stx"
    st.tl.multitask(
        line, None, "band", expression=["gene3"], use_rep="X_own", params=params, save_model=saved, **ON_CPU
    )  # fmt: skip
    scaled = line.copy()
    scaled.X = line.to_df().to_numpy() - line.to_df().to_numpy().mean(axis=0)
    for adata in (line, scaled):
        st.tl.multitask(adata, None, "band", model=saved, key_added="applied", **ON_CPU)
    np.testing.assert_array_equal(line.obsm["expression_pred"], scaled.obsm["expression_pred"])


@pytest.mark.parametrize("weighting", ["gradnorm", "uncertainty", "famo"])
def test_learned_task_weights_are_recorded(line, quick_net, weighting):
    params = quick_net | {"epochs": 2, "weighting": weighting, "ensemble": ("network",)}
    st.tl.multitask(line, "library", "band", expression=["gene3"], params=params, **ON_CPU)
    history = line.uns["multitask"]["history"]
    for task in ("biomarker", "classification", "expression"):
        assert history[f"weight_{task}"].notna().sum() == history[f"loss_{task}"].notna().sum() > 0
        assert line.uns["multitask"]["task_weights"][task] == pytest.approx(history[f"weight_{task}"].iloc[-1])
    assert len(set(line.uns["multitask"]["task_weights"].values())) == 3  # they are learned


def test_hidden_genes_are_predicted_and_not_read(line, quick_net, tmp_path):
    line.obs["learn"] = np.arange(line.n_obs) % 2 == 0
    genes = ["gene3", "gene20"]
    how = {"params": quick_net | {"epochs": 4}, **ON_CPU}
    st.tl.multitask(line, "library", "band", expression=genes, expression_key="learn", save_model=tmp_path / "n", **how)
    found = line.obsm["expression_pred"]
    assert list(found.columns) == genes
    depth = np.asarray(line.X.sum(1)).ravel()
    logged = np.log1p(line.X.toarray() / depth[:, None] * np.median(depth))[:, [3, 20]]
    rows = ~line.obs["learn"].to_numpy()
    error = np.square(found.to_numpy() - logged)[rows].mean(axis=0)
    assert (error < 0.9 * logged[rows].var(axis=0)).all()
    assert line.uns["regions"].obsm["expression_pred"].shape == (line.uns["regions"].n_obs, 2)
    net = TissueNet.load(tmp_path / "n")
    assert set(genes).isdisjoint(net.genes)
    assert set(genes).isdisjoint(net.projection.genes)
    new = line[:, ~line.var_names.isin(genes)].copy()
    st.tl.multitask(new, "library", "band", model=net, **ON_CPU)
    pd.testing.assert_frame_equal(new.obsm["expression_pred"], found, atol=1e-4)
    for back in read_back(line, tmp_path):
        assert_same(line, back)


def test_model_that_finds_none_of_its_genes_is_an_error(line, quick_net, tmp_path):
    line.obsm["X_own"] = np.log1p(line.X.toarray()[:, :8])
    st.tl.multitask(line, "library", "band", use_rep="X_own", save_model=tmp_path / "n", params=quick_net, **ON_CPU)
    line.var_names = [f"other{i}" for i in range(line.n_vars)]
    before = line.copy()
    with pytest.raises(ValueError, match="0 of the model's"):
        st.tl.multitask(line, "library", "band", model=tmp_path / "n", **ON_CPU)
    assert_same(line, before)


def test_same_seed_gives_the_same_bits(line, quick_net):
    how = {"params": quick_net, "copy": True, **ON_CPU}
    one, two = (st.tl.multitask(line, "library", "band", expression=["gene0"], **how) for _ in range(2))
    assert_same(one, two)
    other = st.tl.multitask(line, "library", "band", expression=["gene0"], random_state=1, **how)
    assert not other.obsm["band_proba"].equals(one.obsm["band_proba"])


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"biomarker_key": "nope"}, KeyError, "nope"),
        ({"biomarker_key": "one"}, ValueError, "1 class"),
        ({"biomarker_key": "band"}, ValueError, "both"),
        ({"expression": ["nope"]}, KeyError, "nope"),
        ({"expression": "gene0"}, TypeError, "list"),
        ({"expression": ["gene0", "gene0"]}, ValueError, "once"),
        ({"expression": []}, ValueError, "0 gene"),
        ({"expression": 3}, TypeError, "`expression` must be a gene or a list"),
        ({"use_rep": pd.Series(["X_pca"])}, TypeError, "`use_rep` must be"),
        ({"expression_key": "band"}, ValueError, "needs `expression`"),
        ({"expression": ["gene0"], "expression_key": "band"}, TypeError, "boolean"),
        ({"params": {"genes": ["gene0", "nope"]}}, KeyError, "nope"),
    ],
)
def test_wrong_arguments_leave_the_data_unchanged(line, kwargs, error, match):
    line.obs["one"] = "x"
    before = line.copy()
    with pytest.raises(error, match=match):
        st.tl.multitask(line, region_key="band", **kwargs, **ON_CPU)
    assert_same(before, line)


def test_genes_beside_the_representation_can_be_named(line, quick_net, tmp_path):
    params = {**quick_net, "genes": ["gene3", "gene1"], "epochs": 1}
    st.tl.multitask(
        line, None, "band", params=params, ensemble=["linear", "genes"], save_model=tmp_path / "n", **ON_CPU
    )
    net = st.models.load(tmp_path / "n")
    assert net.genes == ["gene1", "gene3"]  # beside the representation; the classifier of genes reads all
    assert len(net.read_genes) > 2


# ---------------------------------------------------------------- the ensemble and the sections


def test_library_key_is_checked_against_the_region_graph(line, quick_net):
    how = {"params": quick_net, "ensemble": ["linear"], "copy": True, **ON_CPU}
    without = st.tl.multitask(line, None, "band", **how)
    found = st.tl.multitask(line, None, "band", library_key="library", **how)
    pd.testing.assert_frame_equal(found.obsm["band_proba"], without.obsm["band_proba"])
    before = line.copy()
    with pytest.raises(ValueError, match=r"3 section.*made for 2.*region_graph\(adata, library_key='band'\)"):
        st.tl.multitask(line, None, "band", library_key="band", **how)
    with pytest.raises(KeyError, match="nope"):
        st.tl.multitask(line, None, "band", library_key="nope", **how)
    assert_same(before, line)


def test_recorded_weights_are_those_of_the_chosen_members(line, quick_net, tmp_path):
    line.obs["seen"] = line.obs["band"].where(line.obs["library"] == "lib0")
    how = {"params": quick_net | {"epochs": 8}, **ON_CPU}
    st.tl.multitask(line, None, "seen", ensemble=["network", "linear", "label_propagation"], **how)
    table = line.uns["multitask"]["weights"].set_index("library")
    assert table["network"].tolist() == [0.2, 0.2]
    assert (table["trees"] == 0).all()
    assert table.loc["lib1", "label_propagation"] == 0  # no labels to propagate
    for members in (["network"], ["linear"]):
        st.tl.multitask(line, None, "seen", ensemble=members, **how)
        row = line.uns["multitask"]["weights"].iloc[0]
        assert row["network"] == (members == ["network"])
        assert (row["linear"] > 0) == (members == ["linear"])
    line.write_h5ad(tmp_path / "a.h5ad")
    assert_same(line.uns["multitask"], ad.read_h5ad(tmp_path / "a.h5ad").uns["multitask"])


@pytest.mark.parametrize(
    ("ensemble", "error", "match"),
    [
        ("trees", TypeError, "list of members"),
        (["forest"], ValueError, "label_propagation"),
        ([], ValueError, "at least one member"),
        (["trees", "trees"], ValueError, "each once"),
        (["label_propagation"], ValueError, "without labels"),
    ],
)
def test_wrong_ensembles_are_reported(line, ensemble, error, match):
    before = line.copy()
    with pytest.raises(error, match=match):
        st.tl.multitask(line, None, "band", ensemble=ensemble, **ON_CPU)
    with pytest.raises(ValueError, match="`ensemble`"):
        st.tl.multitask(line, None, "band", ensemble=["trees"], expression=["gene0"], **ON_CPU)
    assert_same(before, line)


def test_members_for_other_subjects_are_chosen_on_held_out_subjects(quick_net, tmp_path):
    """Labels are noise that two sections of each subject share: only sections of one subject predict each other."""
    rng = np.random.default_rng(3)
    xy, parts = grid_positions(14), []

    def fields(n: int) -> np.ndarray:
        phase = xy @ rng.standard_normal((2, n * 60)) / 3 + rng.uniform(0, 2 * np.pi, n * 60)
        return np.cos(phase).reshape(len(xy), n, 60).sum(axis=2) / 30**0.5

    for subject in "abcd":
        labels, rate = np.where(fields(1)[:, 0] > 0, "in", "out"), 2 * np.exp(fields(60) / 2)
        parts += [poisson_section(rate, xy, rng, labels=labels, subject=subject, library=f"{subject}{i}") for i in "01"]
    adata = ad.concat(parts, index_unique="-", keys=range(8))
    known, new = (adata[rows].copy() for rows in (adata.obs["subject"] != "d", adata.obs["subject"] == "d"))
    confidence, path = {}, tmp_path / "net.stx"
    params = quick_net | {"unet": False, "epochs": 1, "ensemble": ("genes",)}
    for one in (known, new):
        one.obs["library"] = pd.Categorical(one.obs["library"])
        st.tl.region_graph(one, "labels", library_key="library")
    for key in (None, "subject"):
        st.tl.multitask(known, None, "labels", subject_key=key, params=params, save_model=path, **ON_CPU)
        st.tl.multitask(new, None, "labels", model=path, **ON_CPU)
        confidence[key] = float(new.obsm["labels_proba"].max(axis=1).mean())
    assert confidence[None] > 0.75  # which at chance is overconfident
    assert confidence["subject"] < 0.65
    with pytest.raises(ValueError, match="several values"):
        st.tl.multitask(known, None, "labels", subject_key="labels", params=params, **ON_CPU)
    with pytest.raises(ValueError, match="subject_key"):
        st.tl.multitask(new, None, "labels", model=path, subject_key="subject", **ON_CPU)


@pytest.mark.parametrize("key", ["subject_key", "expression_key"])
def test_genes_are_learned_from_one_subject_or_one_of_several_sections(make_section, quick_net, key, tmp_path):
    """Without others to hold out, the penalty is fixed."""
    adata = make_section("square", 10, 8, libraries=3)
    adata.obs["donor"], adata.obs["first"] = "p", (adata.obs["library"] == "lib0").to_numpy()
    st.tl.region_graph(adata, "band", library_key="library", max_size=20)
    how = {"params": quick_net | {"unet": False}, "save_model": tmp_path / "net.stx", **ON_CPU}
    columns = {"subject_key": "donor", "expression_key": "first"}
    st.tl.multitask(adata, None, "band", expression=["gene3"], **{key: columns[key]}, **how)
    assert np.isfinite(adata.obsm["expression_pred"].to_numpy()).all()


def test_network_that_has_not_converged_has_no_weight(line):
    untrained = QUICK_NET | {"lr": 1e-12, "epochs": 2, "pretrain": "none"}
    with pytest.warns(UserWarning, match=r"has not converged.*weight in the ensemble is 0"):
        st.tl.multitask(line, None, "band", params=untrained, **ON_CPU)
    assert not line.uns["multitask"]["training"]["converged"]
    assert (line.uns["multitask"]["weights"]["network"] == 0).all()
    with pytest.warns(UserWarning, match=r"has not converged.*keeps the weight"):
        st.tl.multitask(line, None, "band", params=untrained, ensemble=["network", "linear"], **ON_CPU)
    assert (line.uns["multitask"]["weights"]["network"] == 0.2).all()


@pytest.mark.slow
def test_four_labelled_donors_are_predicted_by_a_converged_network(real_section, tmp_path):
    parts = {name: real_section(f"her2st_{name}") for name in ("A1", "B1", "C1", "D1")}
    adata = ad.concat(parts, join="inner", index_unique="-")
    counts = np.asarray(adata.X.sum(axis=0)).ravel()
    adata = adata[:, np.argsort(-counts)[:1000]].copy()  # the time goes with the genes
    adata.obs["truth"] = adata.obs["annotation"].astype("category")
    hidden = np.random.default_rng(0).random(adata.n_obs) < 0.04
    adata.obs["annotation"] = adata.obs["truth"].where(~hidden)
    st.tl.region_graph(adata, "patient", library_key="patient", max_size=20)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        st.tl.multitask(
            adata, None, "annotation", library_key="patient", params={"unet": False, "epochs": 30},
            save_model=tmp_path / "net.stx", **ON_CPU,
        )  # fmt: skip
    mine = [w for w in caught if not issubclass(w.category, DeprecationWarning)]
    assert [str(w.message) for w in mine if "has weight 0 in the sections" not in str(w.message)] == []
    assert len(mine) == 1  # that the network decides nothing in sections to come
    training = adata.uns["multitask"]["training"]
    assert training["converged"]
    assert training["best_epoch"] > 0
    assert training["loss"] < 0.7 * training["uninformed_loss"]
    scored = hidden & adata.obs["truth"].notna().to_numpy()
    right = adata.obs["annotation_pred"].astype(str) == adata.obs["truth"].astype(str)
    assert adata.obs["annotation_pred"].nunique() >= 5
    assert right[scored].mean() > 0.8
    assert (adata.uns["multitask"]["weights"]["network"] == 0.2).all()
    st.tl.multitask(adata, None, "annotation", model=tmp_path / "net.stx", **ON_CPU)
    applied = adata.uns["multitask"]["weights"]
    assert (applied["network"] == 0).all()
    assert (applied["genes"] == 1).all()
