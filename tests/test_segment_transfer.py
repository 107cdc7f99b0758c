"""Models trained on labels applied to other sections: linear members against references, other genes, labels."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
from conftest import ON_CPU, QUICK_UNET, _make, assert_same
from scipy import sparse
from sklearn.linear_model import RidgeClassifier

import stxtools as st
from stxtools.models import GeneSection, Segmenter
from stxtools.models.ensemble.gene_means import PENALTY, SIZES, GeneMeans, LabelMoments


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Path of a model of two labelled sections."""
    path = tmp_path_factory.mktemp("transfer") / "m.stx"
    adata = _make("hex", 16, 14, 30, 0, 2)
    adata.var["gene_ids"] = [f"ENSG{i:011d}" for i in range(adata.n_vars)]
    st.tl.segment(adata, labels_key="band", library_key="library", params=QUICK_UNET, save_model=path, **ON_CPU)
    return path


def accuracy(adata) -> float:
    return float((adata.obs["segment"].astype(str) == adata.obs["band"].astype(str)).mean())


def test_gene_means_over_neighbours_are_standardised(make_section):
    adata = make_section("scattered")
    logged = adata.X.tocsr()[:, :5].log1p()
    section = GeneSection(logged, list("abcde"), adata.obsm["spatial"])
    means, coef = GeneMeans(section, np.array([4, 0, 2])), np.random.default_rng(0).normal(size=(2, 3, 2))
    xy = adata.obsm["spatial"]
    near = np.argsort(((xy[:, None] - xy[None]) ** 2).sum(-1), axis=1)
    z = [logged.toarray()[:, [4, 0, 2]][near[:, :size]].mean(axis=1) for size in SIZES]
    z = [(part - part.mean(axis=0)) / part.std(axis=0) for part in z]
    np.testing.assert_allclose(means.standardised(), np.hstack(z), atol=2e-3)
    for found, part, w in zip(means.projected(coef), z, coef, strict=True):
        np.testing.assert_allclose(found, part @ w, atol=1e-2)


def test_ridge_from_moments_equals_sklearn_for_any_genes():
    rng = np.random.default_rng(0)
    y, z = rng.integers(3, size=200), rng.normal(size=(200, 12)).astype(np.float32)
    z[:, :3] += np.eye(3)[y]
    moments = LabelMoments.of(list("abcdef"), z, np.eye(3)[y], np.ones(200))
    for chosen in (np.arange(6), np.array([0, 2, 5])):
        columns = np.r_[chosen, chosen + 6]
        members = moments.solve(chosen)
        ours = z[:, columns] @ np.vstack(members.ridge) + members.ridge_intercept
        theirs = RidgeClassifier(PENALTY * 200).fit(z[:, columns], y).decision_function(z[:, columns])
        np.testing.assert_allclose(ours, theirs, atol=5e-3)


def test_low_rank_moments_approximate_the_covariance():
    rng = np.random.default_rng(0)
    z = (rng.normal(size=(900, 5)) @ rng.normal(size=(5, 40)) + 0.1 * rng.normal(size=(900, 40))).astype(np.float32)
    moments = LabelMoments.of([str(i) for i in range(20)], z, np.ones((900, 1)), np.ones(900), rank=8)
    kept = moments.factor.astype(float)
    np.testing.assert_allclose(kept.T @ kept + np.diag(moments.rest), np.cov(z.T, bias=True), atol=0.02)


def test_model_finds_genes_by_symbol_or_ensembl_id_in_any_order(make_section, trained):
    plain = make_section(seed=5)
    assert st.tl.segment(plain, model=trained, **ON_CPU) is None
    assert accuracy(plain) > 0.9
    members = plain.uns["segment"]["members"]
    assert members["library"].tolist() == ["section"]
    assert members["ridge"].tolist() == [1.0]
    other = make_section(seed=5)[:, ::-1].copy()
    other.var_names = [f"ENSG{int(name.removeprefix('gene')):011d}.3" for name in other.var_names]
    st.tl.segment(other, model=Segmenter.load(trained), **ON_CPU)
    np.testing.assert_allclose(other.obsm["segment_proba"], plain.obsm["segment_proba"], atol=1e-3)
    with pytest.warns(UserWarning, match="12 of the model's 30 genes"):
        st.tl.segment(few := plain[:, :12].copy(), model=trained, **ON_CPU)
    assert accuracy(few) > 0.8
    fewer = plain[:, :7].copy()
    before = fewer.copy()
    with pytest.raises(ValueError, match=r"7 of the model's 30 genes \(23%\); at least 8 are needed.*`adata.var`"):
        st.tl.segment(fewer, model=trained, key_added="again", **ON_CPU)
    assert_same(fewer, before)


def test_model_without_labels_finds_genes_by_ensembl_id(make_section, quick_unet, tmp_path):
    adata = make_section()
    ids = [f"ENSG{i:011d}" for i in range(adata.n_vars)]
    adata.var["gene_ids"] = ids
    st.tl.segment(adata, 3, params=quick_unet, save_model=tmp_path / "m.stx", **ON_CPU)
    other = make_section()
    other.var_names = ids
    st.tl.segment(other, model=tmp_path / "m.stx", **ON_CPU)
    np.testing.assert_array_equal(other.obsm["segment_proba"], adata.obsm["segment_proba"])


def test_pretrained_model_finds_genes_by_ensembl_id_and_keeps_their_names(make_section, quick_unet, tmp_path):
    adata, by_id = make_section(), make_section()
    by_id.var_names = [f"ENSG{i:011d}" for i in range(adata.n_vars)]
    named = adata.copy()
    named.var["gene_ids"] = by_id.var_names.to_numpy()
    params = {"pretrain_epochs": 1, "steps_per_epoch": 1}
    st.tl.pretrain(named, params=params, save_model=tmp_path / "p.stx", **ON_CPU)
    training = {"params": {"epochs": quick_unet["epochs"]}, "pretrained": tmp_path / "p.stx"}
    st.tl.segment(by_id, 3, **training, save_model=tmp_path / "m.stx", **ON_CPU)
    st.tl.segment(adata, model=tmp_path / "m.stx", **ON_CPU)
    np.testing.assert_array_equal(adata.obsm["segment_proba"], by_id.obsm["segment_proba"])


def test_confidence_is_lower_where_the_members_disagree(make_section, trained):
    """Out of fold the members are right; on another section with few molecules they are not."""
    adata = make_section(seed=6)
    adata.X.data = np.random.default_rng(0).binomial(adata.X.data.astype(int), 0.02).astype(np.float32)
    adata = adata[np.asarray(adata.X.sum(axis=1)).ravel() > 0].copy()
    st.tl.segment(adata, model=trained, **ON_CPU)
    assert 0.9 < accuracy(adata) < 0.95
    assert abs(adata.obs["segment_confidence"].mean() - accuracy(adata)) < 0.03  # without their agreement 0.05


def test_labels_of_the_new_section_correct_the_model(make_section, trained):
    adata = make_section(seed=6)
    labels = adata.obs["band"].astype(object).where(np.arange(adata.n_obs) % 15 == 0)
    adata.obs["labels"] = labels.replace({"a": "b", "b": "a"})  # against the model, which is right
    st.tl.segment(adata, model=trained, key_added="alone", **ON_CPU)
    st.tl.segment(adata, model=trained, labels_key="labels", keep_labels=True, **ON_CPU)
    known = adata.obs["labels"].notna()
    assert (adata.obs["segment"].astype(object)[known] == adata.obs["labels"][known]).all()
    truth = adata.obs["band"].astype(object).replace({"a": "b", "b": "a"})[~known]
    corrected, alone = ((adata.obs[key].astype(object)[~known] == truth).mean() for key in ("segment", "alone"))
    assert corrected > alone  # unlabelled neighbours follow the labels
    before = list(adata.obs)
    adata.obs["labels"] = labels.replace({"a": "elsewhere"})
    with pytest.raises(ValueError, match="'elsewhere'"):
        st.tl.segment(adata, model=trained, labels_key="labels", key_added="other", **ON_CPU)
    assert list(adata.obs) == before


def patient(seed):
    """Section of a patient, whose genes have other scales."""
    rng, out = np.random.default_rng(seed), _make(n_vars=60, seed=seed)
    scale = 0.1 * np.exp(rng.normal(0, 1.5, out.n_vars))
    out.X = sparse.csr_matrix(rng.poisson(scale * rng.binomial(out.X.toarray().astype(int), 0.5)), dtype=np.float32)
    out.obs_names = [f"p{seed}_{i}" for i in range(out.n_obs)]
    out.obs["patient"] = f"p{seed}"
    return out


@pytest.fixture(scope="module")
def of_patients(tmp_path_factory):
    """Model of three patients, where genes count alone."""
    path = tmp_path_factory.mktemp("patients") / "m.stx"
    sources = ad.concat([patient(seed) for seed in (1, 2, 3)])
    st.tl.segment(sources, labels_key="band", library_key="patient", params=QUICK_UNET, save_model=path, **ON_CPU)
    model = Segmenter.load(path)
    assert model.gene_classifier.alone
    return model


def gain_by_labels(model, adata, **how) -> float:
    """Gain in accuracy on the others by the labels in ``obs["labels"]``."""
    others, right = adata.obs["labels"].isna(), []
    for labels_key in (None, "labels"):
        st.tl.segment(adata, model=model, labels_key=labels_key, **how, **ON_CPU)
        right.append((adata.obs["segment"].astype(str) == adata.obs["band"].astype(str))[others].mean())
    return float(right[1] - right[0])


def test_a_few_labels_correct_a_model_of_several_patients_in_a_small_section(of_patients):
    """Its logits are soft, and components fitted to the labels must not outweigh them."""
    gains = []
    for seed in (11, 12, 13):
        adata, rng = patient(seed), np.random.default_rng(seed)
        labels, xy = np.full(adata.n_obs, None, dtype=object), adata.obsm["spatial"]
        for band, rows in adata.obs.groupby("band", observed=True).indices.items():  # four next to each other
            labels[rows[np.argsort(((xy[rows] - xy[rng.choice(rows)]) ** 2).sum(axis=1))[:4]]] = band
        adata.obs["labels"] = labels
        gains.append(gain_by_labels(of_patients, adata))
    assert np.mean(gains) > 0.07


def test_labels_of_one_class_in_each_library_do_not_drown_the_model(of_patients):
    """Two errors of the model, marked by an expert, say little about its other predictions."""
    gains = []
    for seed in (11, 12, 13):
        adata, rng = ad.concat([patient(seed), patient(seed + 20)]), np.random.default_rng(seed)
        adata.X.data = rng.binomial(adata.X.data.astype(int), 0.2).astype(np.float32)
        adata = adata[np.asarray(adata.X.sum(axis=1)).ravel() > 0].copy()
        found = st.tl.segment(adata, model=of_patients, library_key="patient", copy=True, **ON_CPU).obs["segment"]
        band, labels = adata.obs["band"].astype(str), np.full(adata.n_obs, None, dtype=object)
        for library, marked in ((f"p{seed}", "b"), (f"p{seed + 20}", "c")):
            wrong = (adata.obs["patient"] == library) & (band == marked) & (found.astype(str) != band)
            labels[np.flatnonzero(wrong)[:2]] = marked
        adata.obs["labels"] = labels
        gains.append(gain_by_labels(of_patients, adata, library_key="patient"))
    assert np.mean(gains) > -0.05  # -0.08 if labels of one class measure the model


def test_confidence_rises_with_the_accuracy_that_labels_bring(of_patients):
    """The agreement of the members, which does not know the labels, is 0.16 below the accuracy."""
    gaps = []
    for seed in (11, 12, 13):
        adata, known = patient(seed), np.random.default_rng(seed).random(224) < 0.2
        adata.obs["labels"] = adata.obs["band"].astype(object).where(known)
        st.tl.segment(adata, model=of_patients, labels_key="labels", **ON_CPU)
        gaps.append(accuracy(adata[~known]) - adata.obs["segment_confidence"][~known].mean())
    assert -0.02 < np.mean(gaps) < 0.12


def test_section_labelled_throughout_as_one_class_is_that_class(make_section, trained):
    adata = make_section(seed=6, libraries=2)
    second = (adata.obs["library"] == "lib1").to_numpy()
    adata.obs["labels"] = np.where(second, "c", np.where(np.arange(adata.n_obs) % 9 == 0, adata.obs["band"], None))
    st.tl.segment(adata, model=trained, labels_key="labels", library_key="library", **ON_CPU)
    assert (adata.obs["segment"][second] == "c").all()
    assert (adata.obs["segment"].astype(str) == adata.obs["band"].astype(str))[~second].mean() > 0.9


def test_labels_with_a_model_trained_without_labels_are_an_error(make_section, quick_unet, tmp_path):
    adata = make_section()
    st.tl.segment(adata, 3, params=quick_unet, save_model=tmp_path / "m.stx", **ON_CPU)
    with pytest.raises(ValueError, match="labels_key"):
        st.tl.segment(adata, model=tmp_path / "m.stx", labels_key="band", key_added="again", **ON_CPU)


def test_model_of_two_genes_applies_without_warnings(make_section, quick_unet, tmp_path, recwarn):
    """A large section is adapted by a regression over the genes, of which two are too few."""
    adata = make_section("hex", 30, 30)[:, :2].copy()
    st.tl.segment(adata, labels_key="band", params=quick_unet, save_model=tmp_path / "m.stx", **ON_CPU)
    recwarn.clear()  # two genes do not show class c
    st.tl.segment(adata, model=tmp_path / "m.stx", **ON_CPU)
    assert not [str(w.message) for w in recwarn if not issubclass(w.category, DeprecationWarning)]
    assert np.isfinite(adata.obsm["segment_proba"].to_numpy()).all()
