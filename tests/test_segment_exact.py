"""n_segments is honoured exactly, and segments are numbered by size, on all kinds of data."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest

import stxtools as st

HOW = {"show_progress": False, "accelerator": "cpu"}


@pytest.mark.parametrize("kind", ["hex", "scattered"])
@pytest.mark.parametrize("k", [5, 12])
def test_noise_without_any_structure_gets_the_number_asked_for(make_section, quick_unet, kind, k):
    adata = make_section(kind, rows=12, cols=12)
    adata.X = np.random.default_rng(k).poisson(0.05, size=adata.shape).astype(np.float32)
    st.tl.segment(adata, k, params={**quick_unet, "pretrain": "none", "epochs": 2}, **HOW)
    sizes = adata.obs["segment"].value_counts(sort=False).to_numpy()
    assert len(sizes) == k
    assert (sizes > 0).all()
    assert (np.diff(sizes) <= 0).all()


def test_fewer_distinct_observations_than_segments_are_refused(make_section, quick_unet):
    adata = make_section(rows=8, cols=8)
    adata.obsm["X_pca"] = np.repeat(np.eye(2, dtype=np.float32), 32, axis=0) * 0  # all alike
    with pytest.raises(ValueError, match="distinct observations"):
        st.tl.segment(adata, 3, params=quick_unet, **HOW)
    assert "segment" not in adata.obs


def test_batches_without_variation_count_as_one_observation_each(make_section, quick_unet):
    adata = ad.concat([make_section(rows=8, cols=8) for _ in range(2)], label="slide", index_unique="-")
    adata.obsm["X_pca"] = np.repeat(np.eye(2, dtype=np.float32), 64, axis=0)
    with pytest.raises(ValueError, match="`n_segments=9` is more than the 2 distinct observations"):
        st.tl.segment(adata, 9, library_key="slide", params=quick_unet, **HOW)
    st.tl.segment(adata, 2, library_key="slide", params=quick_unet, **HOW)
    assert adata.uns["segment"]["batches"]["batch"].tolist() == [0, 1]
    assert adata.obs["segment"].nunique() == 2


def test_segments_of_cells_are_numbered_by_cells_and_not_by_pixels(make_section, quick_unet):
    adata = make_section("scattered", rows=20, cols=20)
    crowd = adata.obs["band"] == "c"
    xy = adata.obsm["spatial"]
    xy[crowd] = xy[crowd].mean(axis=0) + (xy[crowd] - xy[crowd].mean(axis=0)) * 0.4
    st.tl.segment(adata, 3, params=quick_unet, **HOW)
    assert (np.diff(adata.obs["segment"].value_counts(sort=False)) <= 0).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "share"), [("dlpfc_151673", 0.05), ("xenium_breast_idc", 1.0), ("osmfish_mouse_sscortex", 0.05)]
)
def test_real_sections_at_any_depth(real_section, quick_unet, name, share):
    adata = real_section(name)
    adata = adata[np.asarray(adata.X.sum(axis=1)).ravel() > 0].copy()
    counts = adata.X.copy()
    counts.data = np.random.default_rng(0).binomial(counts.data.astype(int), share).astype(np.float32)
    adata.X = counts
    st.tl.segment(adata, 12, params={**quick_unet, "pretrain": "none", "epochs": 1}, **HOW)
    sizes = adata.obs["segment"].value_counts(sort=False).to_numpy()
    assert len(sizes) == 12
    assert (sizes > 0).all()
    assert (np.diff(sizes) <= 0).all()
