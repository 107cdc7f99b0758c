"""Pretraining across sections, image channels, and other gene panels."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
from conftest import ON_CPU, QUICK_UNET, assert_same, sections_read
from scipy import sparse
from sklearn.decomposition import PCA

import stxtools as st
from stxtools.models import GeneProjection, Segmenter


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """Two sections with different panels, and a model pretrained on both."""
    from conftest import _make

    one, two = _make("hex", 14, 12, 40, 0, 1), _make("hex", 12, 14, 40, 1, 1)[:, 8:].copy()
    path = tmp_path_factory.mktemp("models") / "pretrained.stx"
    st.tl.pretrain([one, two], save_model=path, params=QUICK_UNET, **ON_CPU)
    return one, two, path


def test_pretrain_writes_its_history_and_a_model_for_segment(pretrained):
    one, two, path = pretrained
    for adata in (one, two):
        assert adata.uns["pretrain"]["params"]["n_sections"] == 2
        assert list(adata.uns["pretrain"]["history"]["stage"].unique()) == ["pretrain_masked"]
    adata, again = (st.tl.segment(two, 3, pretrained=path, copy=True, **ON_CPU) for _ in range(2))
    assert adata.uns["segment"]["params"]["pretrained"]
    assert set(adata.uns["segment"]["history"]["stage"]) == {"segment"}
    assert adata.obs["segment"].nunique() == 3
    assert_same(adata, again)
    st.tl.segment(again, 2, pretrained=path, params={"epochs": 2}, **ON_CPU)
    assert len(again.uns["segment"]["history"]) == 2


def test_unet_starts_from_the_pretrained_weights(pretrained):
    _, _, path = pretrained
    start = Segmenter.load(path)
    assert start.net is None
    assert start.start is not None
    begun = start.starting_point()
    begun.classes = ["a", "b"]
    for name, weight in begun._new_net().unet.state_dict().items():
        np.testing.assert_array_equal(weight.numpy(), start.start.state_dict()[name].numpy())


@pytest.mark.parametrize(
    ("how", "match"),
    [
        ({"model": True}, "pretrained="),
        ({"params": {"width": 12}}, "`width`"),
        ({"use_rep": "X"}, "drop `use_rep=`"),
        ({"image_key": "hires"}, "without an image"),
    ],
)
def test_pretrained_model_refuses_other_inputs_and_widths(pretrained, how, match):
    _, two, path = pretrained
    how = {"model": path} if "model" in how else {"n_segments": 3, "pretrained": path, **how}
    with pytest.raises(ValueError, match=match):
        st.tl.segment(two.copy(), **how)


def test_pretrain_returns_changed_copies(tmp_path, make_section):
    adata = make_section(rows=10, cols=10)
    before = adata.copy()
    changed = st.tl.pretrain(adata, save_model=tmp_path / "a.stx", params=QUICK_UNET, copy=True, **ON_CPU)
    assert_same(adata, before)
    both = st.tl.pretrain([adata, adata], save_model=tmp_path / "b.stx", params=QUICK_UNET, copy=True, **ON_CPU)
    assert [list(copy.uns) for copy in (changed, *both)] == [["pretrain"]] * 3


def test_wrong_pretraining_arguments_are_reported(make_section, tmp_path):
    one, two = make_section(rows=8, cols=8), make_section(rows=8, cols=8)
    two.var_names = [f"other{i}" for i in range(two.n_vars)]
    with pytest.raises(ValueError, match="share 0 genes"):
        st.tl.pretrain([one, two], save_model=tmp_path / "a.stx", **ON_CPU)
    with pytest.raises(ValueError, match="empty list"):
        st.tl.pretrain([], save_model=tmp_path / "a.stx")
    with pytest.raises(ValueError, match="turn pretraining off"):
        st.tl.pretrain(one, save_model=tmp_path / "a.stx", params={"pretrain": "none"}, **ON_CPU)
    one.obsm["X_a"], two.obsm["X_a"] = np.zeros((64, 3), np.float32), np.zeros((64, 4), np.float32)
    with pytest.raises(ValueError, match="common representation"):
        st.tl.pretrain([one, two], save_model=tmp_path / "a.stx", use_rep="X_a", **ON_CPU)
    assert not (tmp_path / "a.stx").exists()
    assert "pretrain" not in one.uns


def _logged(adata: ad.AnnData, projection: GeneProjection) -> sparse.csr_matrix:
    """Log expression of all genes on the model's scale."""
    out = sc.pp.normalize_total(adata, target_sum=projection.target_sum, copy=True)
    return sc.pp.log1p(out, copy=True).X


def _projection(adata: ad.AnnData, folder: Path) -> GeneProjection:
    st.tl.segment(adata.copy(), 3, params=QUICK_UNET, save_model=folder / "m.stx", **ON_CPU)
    return Segmenter.load(folder / "m.stx").projection


def test_joint_components_equal_a_pca_of_sections_centred_one_by_one(make_section, tmp_path):
    one, two = make_section(rows=10, cols=10, seed=0), make_section(rows=9, cols=11, seed=1)
    two.X = (two.X * 3).astype(np.float32)
    st.tl.pretrain([one, two], save_model=tmp_path / "p.stx", params=QUICK_UNET, **ON_CPU)
    rep = Segmenter.load(tmp_path / "p.stx").projection
    logged = [_logged(a, rep)[:, [list(a.var_names).index(g) for g in rep.genes]].toarray() for a in (one, two)]
    centred = np.concatenate([m - m.mean(0) for m in logged])
    pca = PCA(5, svd_solver="full").fit(centred)
    ours, theirs = rep.components[:, :3], pca.components_[:3].T
    np.testing.assert_allclose(np.abs((ours * theirs).sum(0)), 1, atol=1e-4)
    features = rep.transform(sparse.csr_matrix(logged[0]), rep.genes)
    np.testing.assert_allclose(features, (logged[0] - rep.mean) @ rep.components, atol=1e-3)


def test_features_with_missing_genes_are_the_posterior_mean(make_section, tmp_path):
    """The posterior mean is closer to the features of the whole panel than a projection of what is there."""
    adata = make_section(rows=20, cols=20, n_vars=60)
    model = _projection(adata, tmp_path)
    logged = _logged(adata, model)
    values = model.transform(logged, list(adata.var_names))
    at = [list(adata.var_names).index(g) for g in model.genes]
    np.testing.assert_allclose(values, (logged[:, at].toarray() - model.mean) @ model.components, atol=1e-4)
    kept = np.random.default_rng(0).choice(60, 25, replace=False)
    names = [str(adata.var_names[i]) for i in kept]
    plain = GeneProjection(model.genes, model.mean, model.components, model.target_sum)
    inferred, projected = (m.transform(logged[:, kept], names) for m in (model, plain))
    # by hand: the normal equations of a ridge regression of the genes that are there on the loadings
    w = model.components[[model.genes.index(n) for n in names]]
    x = logged[:, kept].toarray() - model.mean[[model.genes.index(n) for n in names]]
    ridge = np.diag(model.noise / 7 / model.variance)
    np.testing.assert_allclose(inferred, x @ w @ np.linalg.inv(w.T @ w + ridge), atol=1e-3)
    first = slice(0, 3)  # the components that hold the bands; the others are noise
    error, floor = (np.square(f[:, first] - values[:, first]).mean() for f in (inferred, projected))
    assert error < 0.7 * floor


def test_noise_of_the_projection_is_the_residual_variance(make_section, tmp_path):
    adata = make_section(rows=12, cols=12)
    rep = _projection(adata, tmp_path)
    logged = _logged(adata, rep)[:, [list(adata.var_names).index(g) for g in rep.genes]].toarray()
    rest = logged - rep.mean
    rest -= rest @ rep.components @ rep.components.T
    assert rep.noise == pytest.approx(rest.var(0).mean(), rel=1e-3)


def test_normalize_finds_variable_genes_in_shallow_counts():
    """Counts so shallow that thousands of genes have one and the same mean: scanpy's own span fails on them."""
    rng = np.random.default_rng(0)
    rate = rng.choice([0.01, 0.02, 2.0], size=4000, p=[0.6, 0.38, 0.02])
    x = sparse.csr_matrix(rng.poisson(rate, size=(180, 4000)).astype(np.float32))
    x = sparse.vstack([x, sparse.csr_matrix(np.ones((3, 4000), np.float32))]).tocsr()
    adata = ad.AnnData(x)
    st.pp.normalize(adata, n_top_genes=500, n_comps=2)
    assert adata.var["highly_variable"].sum() == 500


# ---------------------------------------------------------------- the image


def _with_image(adata: ad.AnnData) -> ad.AnnData:
    """Paint the left half of the tissue red, the right half blue, at half the resolution of the coordinates."""
    xy = adata.obsm["spatial"]
    height, width = (int(np.ceil(v / 2)) + 2 for v in (xy[:, 1].max(), xy[:, 0].max()))
    image = np.zeros((height, width, 3), dtype=np.uint8)
    image[:, : width // 2, 0], image[:, width // 2 :, 2] = 255, 255
    adata.uns["spatial"] = {"s1": {"images": {"hires": image}, "scalefactors": {"tissue_hires_scalef": 0.5}}}
    return adata


def test_image_channels_are_read_at_the_observations(make_section):
    adata = _with_image(make_section())
    (section,) = sections_read(
        Segmenter, "fit", lambda: st.tl.segment(adata, 3, image_key="hires", params=QUICK_UNET, **ON_CPU)
    )
    found = section.features[:, -6:]
    x, middle = adata.obsm["spatial"][:, 0], adata.obsm["spatial"][:, 0].max() / 2
    far = np.abs(x - middle) > 150
    np.testing.assert_allclose(found[far & (x < middle), 0], 1, atol=1e-6)
    np.testing.assert_allclose(found[far & (x > middle), 2], 1, atol=1e-6)
    np.testing.assert_allclose(found[far, 3:], 0, atol=1e-3)
    assert found[~far, 3:].max() > 0.1


def test_image_separates_tissue_that_expression_does_not(make_section):
    adata = _with_image(make_section(seed=3))
    adata.X = sparse.csr_matrix(np.random.default_rng(0).poisson(1.0, size=adata.shape).astype(np.float32))
    side = np.where(adata.obsm["spatial"][:, 0] < adata.obsm["spatial"][:, 0].max() / 2, "left", "right")
    few = np.full(adata.n_obs, None, dtype=object)
    for name in ("left", "right"):
        few[np.flatnonzero(side == name)[::12][:6]] = name
    adata.obs["few"] = few
    st.tl.segment(adata, labels_key="few", image_key="hires", params=QUICK_UNET, **ON_CPU)
    assert (adata.obs["segment"].astype(str) == side).mean() > 0.9
    assert adata.uns["segment"]["params"]["image_key"] == "hires"


def test_saved_model_reads_the_image_in_any_dtype(make_section, tmp_path):
    adata = _with_image(make_section())
    st.tl.segment(adata, 3, image_key="hires", save_model=tmp_path / "m.stx", params=QUICK_UNET, **ON_CPU)
    same = _with_image(make_section())
    st.tl.segment(same, model=tmp_path / "m.stx")
    np.testing.assert_array_equal(same.obsm["segment_proba"], adata.obsm["segment_proba"])
    for image in (lambda x: x / np.float32(255), lambda x: x.astype(np.float32), lambda x: x * np.uint16(257)):
        other = _with_image(make_section())
        images = other.uns["spatial"]["s1"]["images"]
        images["hires"] = image(images["hires"])
        st.tl.segment(other, model=tmp_path / "m.stx")
        np.testing.assert_allclose(other.obsm["segment_proba"], adata.obsm["segment_proba"], atol=1e-5)
    bare = make_section()
    with pytest.raises(KeyError, match="no such image"):
        st.tl.segment(bare, model=tmp_path / "m.stx")


def test_wrong_images_leave_the_data_unchanged(make_section):
    adata = _with_image(make_section())
    before = adata.copy()
    with pytest.raises(KeyError, match="there: 'hires'"):
        st.tl.segment(adata, 3, image_key="lowres")
    adata.uns["spatial"]["s1"]["scalefactors"]["tissue_hires_scalef"] = 5.0
    with pytest.raises(ValueError, match="outside its image"):
        st.tl.segment(adata, 3, image_key="hires")
    adata.uns["spatial"]["s1"]["scalefactors"]["tissue_hires_scalef"] = 0.5
    assert_same(adata, before)


def test_large_model_needs_20_of_its_genes(make_section, tmp_path):
    adata, path = make_section(n_vars=120), tmp_path / "m.stx"
    st.tl.segment(adata, 3, save_model=path, params=QUICK_UNET, **ON_CPU)
    with pytest.warns(UserWarning, match=r"20 of the model's 120 genes \(17%\)"):
        st.tl.segment(adata[:, :20].copy(), model=path, key_added="few")
    with pytest.raises(ValueError, match="at least 20 are needed"):
        st.tl.segment(adata[:, :19].copy(), model=path, key_added="few")
