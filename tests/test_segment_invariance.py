"""Segments depend on the tissue, and hardly on the order of rows, rotation or the seed."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

import stxtools as st
from stxtools.models import Section

HOW = {"show_progress": False, "accelerator": "cpu"}


def _turned(adata, degrees):
    out, angle = adata.copy(), np.deg2rad(degrees)
    xy = out.obsm["spatial"].astype(float)
    out.obsm["spatial"] = (xy - xy.mean(0)) @ np.array(
        [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]
    ) + xy.mean(0)
    return out


def test_canonical_order_follows_the_observations():
    rng = np.random.default_rng(0)
    features = np.round(rng.normal(size=(50, 3)), 0).astype(np.float32)
    section = Section("s", features, np.zeros((50, 2), np.int32), (1, 1), lambda: None, rng.normal(size=(50, 2)))
    other = rng.permutation(50)
    np.testing.assert_array_equal(other[section.take(other).canonical_order()], section.canonical_order())


def test_permuted_observations_get_the_same_segments(make_section, quick_unet):
    adata = make_section()
    adata.obsm["X_pca"] = st.pp.normalize(adata, n_comps=6, copy=True).obsm["X_pca"]
    shuffled = adata[np.random.default_rng(0).permutation(adata.n_obs)].copy()
    for one in (adata, shuffled):
        st.tl.segment(one, 3, params=quick_unet, **HOW)
    assert (shuffled.obs["segment"].astype(str) == adata.obs["segment"].astype(str)[shuffled.obs_names]).all()


def _otherwise(adata):
    """The same tissue turned, its observations in another order."""
    return _turned(adata, 33)[np.random.default_rng(0).permutation(adata.n_obs)].copy()


@pytest.mark.slow
def test_real_section_permuted_turned_and_with_another_seed(real_section):
    adata = real_section("dlpfc_151673")
    how = {"copy": True, **HOW}
    first = st.tl.segment(adata, 7, **how).obs["segment"].astype(str)
    known = adata.obs["layer"].notna()  # the defaults reached 0.58 when this was written; a worse one is a regression
    assert adjusted_rand_score(adata.obs["layer"][known], first[known]) > 0.5
    found = st.tl.segment(_otherwise(adata), 7, **how).obs["segment"].astype(str)
    assert adjusted_rand_score(first, found[first.index]) >= 0.95
    found = st.tl.segment(adata, 7, random_state=1, **how).obs["segment"].astype(str)
    assert adjusted_rand_score(first, found) >= 0.93


@pytest.mark.slow
def test_number_of_segments_of_a_real_section_permuted_and_turned(real_section):
    adata = real_section("dlpfc_151673")
    first, found = (st.tl.segment(one, copy=True, **HOW).obs["segment"] for one in (adata, _otherwise(adata)))
    assert first.nunique() == found.nunique()
    assert adjusted_rand_score(first, found[first.index]) >= 0.95
