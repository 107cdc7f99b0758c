"""Attribution by the segmentation model: planted genes first, completeness, errors for unsuitable models."""

from __future__ import annotations

import warnings
from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import torch
from conftest import grid_positions, poisson_section
from scipy.spatial import cKDTree
from sklearn.metrics import roc_auc_score

import stxtools as st
from stxtools.models.explain.integrated_gradients import SegmenterAttribution

QUICK = {"width": 8, "epochs": 10, "pretrain_epochs": 1, "steps_per_epoch": 6, "sigmas": (0.0, 1.0)}
N_PLANTED = 8


@pytest.fixture(scope="module")
def section() -> ad.AnnData:
    rng = np.random.default_rng(0)
    xy = grid_positions(22)
    region = np.hypot(*(xy - 11).T) < 7
    rate = np.tile(rng.gamma(2.0, 0.8, 50), (len(xy), 1))
    rate[:, :N_PLANTED] *= np.where(region, 4.0, 1.0)[:, None]
    return poisson_section(rate, xy, rng, region=np.where(region, "in", "out"))


@pytest.fixture(scope="module")
def models(section, tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("models")
    paths = []
    for seed in (0, 1):
        work = section.copy()
        work.obs["known"] = work.obs["region"].where(np.arange(work.n_obs) % 4 == 0)
        paths.append(str(folder / f"{seed}.stx"))
        st.tl.segment(
            work, labels_key="known", params=QUICK, save_model=paths[-1], random_state=seed, show_progress=False
        )
    return paths


def _attributed(section: ad.AnnData, model: object, **kwargs: object) -> ad.AnnData:
    how = {"groups": ["in"], "attribution_model": model, "n_null": 60, "copy": True}
    return st.tl.biomarkers(section, "region", **how, **kwargs)


def _table(adata: ad.AnnData) -> pd.DataFrame:
    return adata.uns["biomarkers"].query("group == 'in'").set_index("names").loc[adata.var_names]


def test_planted_genes_come_first(section, models):
    truth = np.arange(50) < N_PLANTED
    single = []
    for model in [*models, models]:
        adata = _attributed(section, model)
        table = _table(adata)
        assert table["attribution"].abs().sum() == pytest.approx(1)
        assert table.loc[truth, "attribution"].sum() > 0.3
        single.append(table["attribution"].to_numpy())
    assert roc_auc_score(truth, np.abs(single[2])) >= 0.9
    mean = single[0] + single[1]
    np.testing.assert_allclose(single[2], mean / np.abs(mean).sum(), atol=1e-9)
    params = adata.uns["biomarkers_params"]
    assert params["attribution"] == "2 model(s)"
    assert params["attribution_agreement"].min() > 0.2


def test_attribution_of_a_model_with_labels_equals_ridge_contributions(section, models):
    """Weight times standardised neighbourhood mean, by NumPy: the log odds of two classes are linear."""
    model = st.models.Segmenter.load(models[0])
    ours, theirs = model.gene_classifier.moments.match(list(section.var_names))
    logged = sc.pp.log1p(sc.pp.normalize_total(section, copy=True), copy=True).X.toarray()[:, theirs]
    near = cKDTree(section.obsm["spatial"]).query(section.obsm["spatial"], k=61)[1]
    inside, at = (section.obs["region"] == "in").to_numpy(), model.classes.index("in")
    parts = np.zeros(section.n_vars)
    for size, coef in zip((19, 61), model.gene_classifier.moments.solve(ours).ridge, strict=True):
        means = np.stack([logged[rows[:size]].mean(axis=0) for rows in near])
        z = (means - means.mean(axis=0)) / means.std(axis=0)
        parts[theirs] += (z[inside].mean(axis=0) - z[~inside].mean(axis=0)) * (coef[:, at] - coef[:, 1 - at])
    found = _table(_attributed(section, models[0]))["attribution"]
    np.testing.assert_allclose(found, parts / np.abs(parts).sum(), atol=1e-5)


def test_attribution_of_a_unet_equals_integrated_gradients(section, models):
    """Contributions of genes in 64 steps of the model's gradient, which sum to F(x) - F(baseline)."""
    model = st.models.Segmenter.load(models[0])
    model.gene_classifier = None  # as without labels
    inside = (section.obs["region"] == "in").to_numpy()
    side = torch.from_numpy(inside / inside.sum() - ~inside / (~inside).sum())
    logged = sc.pp.log1p(sc.pp.normalize_total(section, target_sum=model.projection.target_sum, copy=True), copy=True).X
    features = model.projection.transform(logged, list(section.var_names))
    work = st.pp.rasterize(section, copy=True)
    (shape,) = (grid["shape"] for grid in work.uns["raster"].values() if "shape" in grid)
    one = st.models.Section("s", features, work.obsm["raster"], tuple(shape), lambda: None, section.obsm["spatial"])
    x = torch.from_numpy(one.to_raster((features - features.mean(axis=0)) / model.scaling.scale))[None]
    occupied, at = torch.from_numpy(one.occupied())[None], model.classes.index("in")

    def evidence(share: float) -> tuple[float, np.ndarray]:
        scaled = (share * x).requires_grad_(True)
        logits = model.net.eval()(scaled, occupied)[0][0].flatten(1)[:, one.flat_pixels]
        total = ((logits[at] - logits[1 - at]).double() * side).sum()
        (gradient,) = torch.autograd.grad(total, scaled)
        return float(total), gradient[0].flatten(1)[:, one.flat_pixels].T.numpy()

    mean = np.mean([evidence((step + 0.5) / 64)[1] for step in range(64)], axis=0) / model.scaling.scale
    theirs, loadings = model.projection.loadings(list(section.var_names))
    centred = logged[:, theirs].toarray() - logged[:, theirs].toarray().mean(axis=0)
    parts = ((centred.T @ mean) * loadings).sum(axis=1)
    assert parts.sum() == pytest.approx(evidence(1.0)[0] - evidence(0.0)[0], rel=0.05)
    found = _table(_attributed(section, model))["attribution"].to_numpy()[theirs]
    np.testing.assert_allclose(found, parts / np.abs(parts).sum(), atol=0.02 * np.abs(found).max())


@pytest.mark.parametrize("corner", [0, 252], ids=["whole", "across tiles"])
def test_attribution_of_a_unet_sums_to_what_it_predicts_in_a_section_of_another_mean(section, models, corner):
    model = st.models.Segmenter.load(models[0])
    model.gene_classifier = None  # as without labels
    xy = section.obsm["spatial"]
    part = section[(xy < 9).all(axis=1)]
    logged = sc.pp.log1p(sc.pp.normalize_total(part, target_sum=model.projection.target_sum, copy=True), copy=True).X
    features = model.projection.transform(logged, list(part.var_names)) + 3 * model.scaling.scale
    place = part.obsm["spatial"]
    pixels, shape = place[:, ::-1].astype(np.int32) + corner, (9 + corner, 9 + corner)
    one = st.models.Section("s", features, pixels, shape, lambda: None, place)
    flat = replace(one, features=np.tile(features.mean(axis=0), (len(features), 1)))
    at, inside = model.classes.index("in"), (part.obs["region"] == "in").to_numpy()
    weight = inside / inside.sum() - ~inside / (~inside).sum()

    def log_odds(of: st.models.Section) -> float:
        proba = model.predict([of], accelerator="cpu")[0].proba.astype(np.float64)
        return model.temperature * float(np.log(proba[:, at] / proba[:, 1 - at]) @ weight)

    gradient, _ = SegmenterAttribution(model, one).attribute(at, [1 - at], weight)
    total = ((features - features.mean(axis=0)) * gradient).sum()
    assert total == pytest.approx(log_odds(one) - log_odds(flat), rel=0.03)


def test_model_object_and_file_give_the_same_bits_without_warnings(section, models):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tables = [_table(_attributed(section, model)) for model in (models[0], st.models.Segmenter.load(models[0]))]
        _attributed(section, models[0], reference="out")
    pd.testing.assert_frame_equal(*tables, check_exact=True)


def test_linear_probe_finds_planted_genes_without_a_model(section):
    adata = _attributed(section, None)
    assert adata.uns["biomarkers_params"]["attribution"] == "linear probe"
    assert roc_auc_score(np.arange(50) < N_PLANTED, _table(adata)["attribution"].abs()) >= 0.9


def test_genes_unknown_to_the_model_have_no_attribution(section, models):
    adata = section[:, 4:].copy()
    adata.var_names = ["new", *adata.var_names[1:]]
    found = _table(_attributed(adata, models[0]))["attribution"]
    assert found["new"] == 0
    assert (found.drop("new") != 0).all()


def test_unsuitable_models_are_reported(section, models, tmp_path):
    adata = section.copy()
    adata.obs["other"] = pd.Categorical(np.where(adata.obsm["spatial"][:, 0] < 9, "left", "right"))
    for kwargs, error, match in (
        ({"groupby": "other", "attribution_model": models[0]}, ValueError, "has the classes 'in', 'out'"),
        ({"groupby": "region", "attribution_model": 3}, TypeError, "attribution_model"),
        ({"groupby": "region", "attribution_model": [3]}, TypeError, "attribution_model"),
        ({"groupby": "region", "attribution_model": []}, ValueError, "empty"),
        ({"groupby": "region", "attribution_model": tmp_path / "no.stx"}, FileNotFoundError, "no.stx"),
    ):
        with pytest.raises(error, match=match):
            st.tl.biomarkers(adata, n_null=60, **kwargs)
    blind = st.models.Segmenter(QUICK)
    blind.use_rep = "X_pca"
    with pytest.raises(ValueError, match="save_model"):
        st.tl.biomarkers(adata, "region", attribution_model=blind)
    assert not adata.uns
