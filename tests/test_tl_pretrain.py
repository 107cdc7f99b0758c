"""Pretraining across sections, image channels, and other gene panels."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
from conftest import QUICK_UNET, assert_same, sections_read
from scipy import sparse
from sklearn.decomposition import PCA

import stxtools as st
from stxtools.models import GeneProjection, Segmenter

QUIET = {"show_progress": False, "accelerator": "cpu"}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """Two sections with different panels, and a model pretrained on both."""
    from conftest import _make

    one, two = _make("hex", 14, 12, 40, 0, 1), _make("hex", 12, 14, 40, 1, 1)[:, 8:].copy()
    path = tmp_path_factory.mktemp("models") / "pretrained.stx"
    st.tl.pretrain([one, two], save_model=path, params=QUICK_UNET, **QUIET)
    return one, two, path


def test_pretrain_writes_its_course_and_a_model_that_segment_starts_from(pretrained):
    one, two, path = pretrained
    for adata in (one, two):
        assert adata.uns["pretrain"]["params"]["n_sections"] == 2
        assert list(adata.uns["pretrain"]["history"]["stage"].unique()) == ["pretrain_masked"]
    adata = two.copy()
    st.tl.segment(adata, 3, pretrained=path, **QUIET)
    assert adata.uns["segment"]["params"]["pretrained"]
    assert set(adata.uns["segment"]["history"]["stage"]) == {"segment"}
    assert adata.obs["segment"].nunique() == 3
    again = two.copy()
    st.tl.segment(again, 3, pretrained=path, **QUIET)
    assert_same(adata, again)


def test_the_unet_really_starts_from_the_pretrained_one(pretrained):
    _, _, path = pretrained
    start = Segmenter.load(path)
    assert start.net is None
    assert start.start is not None
    begun = start.starting_point()
    begun.classes = ["a", "b"]
    for name, weight in begun._new_net().unet.state_dict().items():
        np.testing.assert_array_equal(weight.numpy(), start.start[name].numpy())


def test_pretrained_alone_cannot_be_applied(pretrained):
    _, two, path = pretrained
    with pytest.raises(ValueError, match="pretrained="):
        st.tl.segment(two.copy(), model=path)
    with pytest.raises(ValueError, match="`width`"):
        st.tl.segment(two.copy(), 3, pretrained=path, params={"width": 12})
    with pytest.raises(ValueError, match="drop `use_rep=`"):
        st.tl.segment(two.copy(), 3, pretrained=path, use_rep="X")
    with pytest.raises(ValueError, match="without an image"):
        st.tl.segment(two.copy(), 3, pretrained=path, image_key="hires")


def test_training_parameters_may_change_after_pretraining(pretrained):
    _, two, path = pretrained
    adata = two.copy()
    st.tl.segment(adata, 2, pretrained=path, params={"epochs": 2}, **QUIET)
    assert len(adata.uns["segment"]["history"]) == 2


def test_pretrain_survives_h5ad_and_copies(pretrained, tmp_path, make_section):
    adata = make_section(rows=10, cols=10)
    before = adata.copy()
    changed = st.tl.pretrain(adata, save_model=tmp_path / "a.stx", params=QUICK_UNET, copy=True, **QUIET)
    assert_same(adata, before)
    both = st.tl.pretrain([adata, adata], save_model=tmp_path / "b.stx", params=QUICK_UNET, copy=True, **QUIET)
    assert isinstance(both, list)
    changed.write_h5ad(tmp_path / "a.h5ad")
    assert_same(ad.read_h5ad(tmp_path / "a.h5ad"), changed)


def test_pretrain_says_what_is_wrong(make_section, tmp_path):
    one, two = make_section(rows=8, cols=8), make_section(rows=8, cols=8)
    two.var_names = [f"other{i}" for i in range(two.n_vars)]
    with pytest.raises(ValueError, match="share 0 genes"):
        st.tl.pretrain([one, two], save_model=tmp_path / "a.stx", **QUIET)
    with pytest.raises(ValueError, match="empty list"):
        st.tl.pretrain([], save_model=tmp_path / "a.stx")
    with pytest.raises(ValueError, match="name no pretraining"):
        st.tl.pretrain(one, save_model=tmp_path / "a.stx", params={"pretrain": "none"}, **QUIET)
    one.obsm["X_a"], two.obsm["X_a"] = np.zeros((64, 3), np.float32), np.zeros((64, 4), np.float32)
    with pytest.raises(ValueError, match="common representation"):
        st.tl.pretrain([one, two], save_model=tmp_path / "a.stx", use_rep="X_a", **QUIET)
    assert not (tmp_path / "a.stx").exists()
    assert "pretrain" not in one.uns


def _logged(adata: ad.AnnData, projection: GeneProjection) -> sparse.csr_matrix:
    """Log expression of all genes on the model's scale."""
    out = sc.pp.normalize_total(adata, target_sum=projection.target_sum, copy=True)
    return sc.pp.log1p(out, copy=True).X


def _projection(adata: ad.AnnData, folder: Path) -> GeneProjection:
    st.tl.segment(adata.copy(), 3, params=QUICK_UNET, save_model=folder / "m.stx", **QUIET)
    return Segmenter.load(folder / "m.stx").projection


def test_joint_components_are_those_of_data_centred_by_section(make_section, tmp_path):
    one, two = make_section(rows=10, cols=10, seed=0), make_section(rows=9, cols=11, seed=1)
    two.X = (two.X * 3).astype(np.float32)
    st.tl.pretrain([one, two], save_model=tmp_path / "p.stx", params=QUICK_UNET, **QUIET)
    rep = Segmenter.load(tmp_path / "p.stx").projection
    logged = [_logged(a, rep)[:, [list(a.var_names).index(g) for g in rep.genes]].toarray() for a in (one, two)]
    centred = np.concatenate([m - m.mean(0) for m in logged])
    pca = PCA(5, svd_solver="full").fit(centred)
    ours, theirs = rep.components[:, :3], pca.components_[:3].T
    np.testing.assert_allclose(np.abs((ours * theirs).sum(0)), 1, atol=1e-4)
    features = rep.transform(sparse.csr_matrix(logged[0]), rep.genes)
    np.testing.assert_allclose(features, (logged[0] - rep.mean) @ rep.components, atol=1e-3)


def test_a_missing_gene_is_inferred_from_the_others(make_section, tmp_path):
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


def test_residual_variance_by_hand(make_section, tmp_path):
    adata = make_section(rows=12, cols=12)
    rep = _projection(adata, tmp_path)
    logged = _logged(adata, rep)[:, [list(adata.var_names).index(g) for g in rep.genes]].toarray()
    rest = logged - rep.mean
    rest -= rest @ rep.components @ rep.components.T
    assert rep.noise == pytest.approx(rest.var(0).mean(), rel=1e-3)


def test_variable_genes_of_shallow_counts():
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


def test_image_is_read_where_the_observations_lie(make_section):
    adata = _with_image(make_section())
    (section,) = sections_read(
        Segmenter, "fit", lambda: st.tl.segment(adata, 3, image_key="hires", params=QUICK_UNET, **QUIET)
    )
    found = section.features[:, -6:]
    x, middle = adata.obsm["spatial"][:, 0], adata.obsm["spatial"][:, 0].max() / 2
    far = np.abs(x - middle) > 150
    np.testing.assert_allclose(found[far & (x < middle), 0], 1, atol=1e-6)
    np.testing.assert_allclose(found[far & (x > middle), 2], 1, atol=1e-6)
    np.testing.assert_allclose(found[far, 3:], 0, atol=1e-3)
    assert found[~far, 3:].max() > 0.1


def test_image_alone_can_split_what_expression_cannot(make_section):
    adata = _with_image(make_section(seed=3))
    adata.X = sparse.csr_matrix(np.random.default_rng(0).poisson(1.0, size=adata.shape).astype(np.float32))
    side = np.where(adata.obsm["spatial"][:, 0] < adata.obsm["spatial"][:, 0].max() / 2, "left", "right")
    few = np.full(adata.n_obs, None, dtype=object)
    for name in ("left", "right"):
        few[np.flatnonzero(side == name)[::12][:6]] = name
    adata.obs["few"] = few
    st.tl.segment(adata, labels_key="few", image_key="hires", params=QUICK_UNET, **QUIET)
    assert (adata.obs["segment"].astype(str) == side).mean() > 0.9
    assert adata.uns["segment"]["params"]["image_key"] == "hires"


def test_a_model_remembers_that_it_reads_a_image(make_section, tmp_path):
    adata = _with_image(make_section())
    st.tl.segment(adata, 3, image_key="hires", save_model=tmp_path / "m.stx", params=QUICK_UNET, **QUIET)
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


def test_image_errors_leave_the_data_alone(make_section):
    adata = _with_image(make_section())
    before = adata.copy()
    with pytest.raises(KeyError, match="there: 'hires'"):
        st.tl.segment(adata, 3, image_key="lowres")
    adata.uns["spatial"]["s1"]["scalefactors"]["tissue_hires_scalef"] = 5.0
    with pytest.raises(ValueError, match="outside its image"):
        st.tl.segment(adata, 3, image_key="hires")
    adata.uns["spatial"]["s1"]["scalefactors"]["tissue_hires_scalef"] = 0.5
    assert_same(adata, before)


def test_too_few_of_a_model_s_genes_are_an_error_and_few_a_warning(make_section, tmp_path):
    adata = make_section(n_vars=120)
    st.tl.segment(adata, 3, save_model=tmp_path / "m.stx", params=QUICK_UNET, **QUIET)
    few = make_section(n_vars=120)[:, ::4].copy()
    with pytest.warns(UserWarning, match=r"30 of the model's 120 genes \(25%\)"):
        st.tl.segment(few, model=tmp_path / "m.stx")
    fewer = make_section(n_vars=120)[:, :15].copy()
    before = fewer.copy()
    with pytest.raises(ValueError, match="at least 20 are needed"):
        st.tl.segment(fewer, model=tmp_path / "m.stx")
    assert_same(fewer, before)
