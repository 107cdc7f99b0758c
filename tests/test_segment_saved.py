"""Saving a model changes no result, and a saved model reads other sections."""

from __future__ import annotations

import os
import warnings

import numpy as np
import pytest
import scanpy as sc
from conftest import ON_CPU, assert_same

import stxtools as st


def _normalised(make_section, kind):
    adata = make_section(n_vars=60)
    if kind.startswith("stxtools"):
        st.pp.normalize(adata, n_comps=8, scale=kind == "stxtools scaled")
    elif kind != "counts":
        if kind != "log values alone":
            adata.layers["counts"] = adata.X.copy()
        sc.pp.normalize_total(adata, target_sum=1e4)
        sc.pp.log1p(adata)
        if kind == "variable genes":
            sc.pp.highly_variable_genes(adata, n_top_genes=40)
        sc.pp.pca(adata, n_comps=8)
        if kind == "no loadings":
            del adata.varm["PCs"]
    return adata


@pytest.mark.parametrize(
    "kind", ["counts", "stxtools", "stxtools scaled", "scanpy", "variable genes", "no loadings", "log values alone"]
)
def test_saving_changes_no_result_and_the_model_reproduces_it(make_section, quick_unet, tmp_path, kind):
    adata = _normalised(make_section, kind)
    path = tmp_path / "m.stx"
    plain = st.tl.segment(adata, 3, params=quick_unet, copy=True, **ON_CPU)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        saved = st.tl.segment(adata, 3, params=quick_unet, save_model=path, copy=True, **ON_CPU)
    assert_same(plain, saved)
    new = adata.copy()
    if kind != "log values alone":
        new.obsm.pop("X_pca", None)
        new.varm.pop("PCs", None)
    new = new[:, np.random.default_rng(0).permutation(new.n_vars)].copy()
    st.tl.segment(new, model=path, **ON_CPU)
    np.testing.assert_allclose(new.obsm["segment_proba"], saved.obsm["segment_proba"], atol=2e-2)
    assert (new.obs["segment"] == saved.obs["segment"]).mean() > 0.99


def test_model_with_missing_genes_rescales_its_loadings(make_section, quick_unet, tmp_path):
    adata = _normalised(make_section, "stxtools scaled")
    st.tl.segment(adata, 3, params=quick_unet, save_model=tmp_path / "m.stx", **ON_CPU)
    projection = st.models.Segmenter.load(tmp_path / "m.stx").projection
    assert projection.gene_scale is not None
    few = [str(g) for g in adata.var_names[:45]]
    found = projection.transform(adata[:, few].X, few)
    for column, known in zip(found.T[:2], adata.obsm["X_pca"].T[:2], strict=True):
        assert np.corrcoef(column, known)[0, 1] > 0.9
        assert 0.6 < column.std() / known.std() < 1.1


def test_model_reads_obsm_where_expression_cannot_give_the_representation(make_section, quick_unet, tmp_path):
    adata = _normalised(make_section, "stxtools")
    adata.obsm["X_pca"] = np.random.default_rng(0).normal(size=adata.obsm["X_pca"].shape).astype(np.float32)
    plain = st.tl.segment(adata, 3, params=quick_unet, copy=True, **ON_CPU)
    with pytest.warns(UserWarning, match="reads `obsm\\['X_pca'\\]` of other sections"):
        saved = st.tl.segment(adata, 3, params=quick_unet, save_model=tmp_path / "m.stx", copy=True, **ON_CPU)
    assert_same(plain, saved)
    applied = adata.copy()
    st.tl.segment(applied, model=tmp_path / "m.stx", **ON_CPU)
    np.testing.assert_allclose(applied.obsm["segment_proba"], saved.obsm["segment_proba"], atol=1e-6)
    del applied.obsm["X_pca"], applied.obs["segment"], applied.uns["segment"]
    with pytest.raises(KeyError, match="X_pca"):
        st.tl.segment(applied, model=tmp_path / "m.stx", key_added="again", **ON_CPU)


def test_applying_a_model_does_not_change_its_image_key(make_section, quick_unet, tmp_path):
    adata = make_section()
    size = np.ptp(adata.obsm["spatial"], axis=0).astype(int)[::-1] // 20 + 2
    image = np.random.default_rng(0).integers(0, 255, (*size, 3)).astype(np.uint8)
    adata.uns["spatial"] = {"section": {
        "images": {"lowres": image, "hires": image},
        "scalefactors": {"tissue_lowres_scalef": 0.05, "tissue_hires_scalef": 0.05, "spot_diameter_fullres": 60.0},
    }}  # fmt: skip
    st.tl.segment(adata, 3, image_key="lowres", params=quick_unet, save_model=tmp_path / "m.stx", **ON_CPU)
    model = st.models.Segmenter.load(tmp_path / "m.stx")
    st.tl.segment(adata, model=model, image_key="hires", key_added="again", **ON_CPU)
    assert model.image_key == "lowres"
    assert adata.uns["again"]["params"]["image_key"] == "hires"
    with pytest.raises(ValueError, match="`accelerator='nope'` is not known"):
        st.tl.segment(adata, model=model, key_added="other", accelerator="nope", show_progress=False)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda p: p / "file" / "m", NotADirectoryError),
        (lambda p: p / "none" / "m", FileNotFoundError),
        (lambda p: p, IsADirectoryError),
        (lambda p: p / "pipe", ValueError),
        (lambda p: "a\0b", ValueError),
        (lambda p: 5, TypeError),
    ],
)
def test_unwritable_model_path_raises_before_training(tmp_path, make, error, make_section):
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(error):
        st.tl.segment(make_section(), 2, save_model=make(tmp_path), params={"epochs": 10**9})
