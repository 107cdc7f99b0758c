"""n_segments is honoured exactly, and segments are numbered by size, whatever the data are like."""

from __future__ import annotations

import numpy as np
import pytest

import stxtools as st
from stxtools.models.segmenter.classes import class_sizes, offsets_for_all, with_all_classes
from stxtools.models.segmenter.mixtures import fit_mixtures

HOW = {"show_progress": False, "accelerator": "cpu"}


def test_a_class_that_pseudo_labels_lack_takes_half_of_the_widest():
    rng = np.random.default_rng(0)
    z = np.concatenate([rng.normal(size=(60, 2)), rng.normal(size=(40, 2)) * [8, 1]])
    target = np.repeat([[0.6, 0.2, 0.2, 0.0], [0.1, 0.9, 0.0, 0.0]], [60, 40], axis=0)
    found = with_all_classes(target, [z])
    assert (class_sizes(found) > 0).all()
    np.testing.assert_allclose(found.sum(axis=1), 1)
    np.testing.assert_array_equal(found[:60], target[:60])  # the narrow class is left alone
    second = z[60:][found[60:].argmax(axis=1) == 1, 0]
    others = z[60:][found[60:].argmax(axis=1) != 1, 0]
    assert second.min() > others.max() or second.max() < others.min() or len(second) < 40
    complete = np.eye(4)[rng.integers(4, size=100)]
    assert with_all_classes(complete, [z]) is complete


def test_equal_memberships_are_split_and_equal_observations_are_not():
    z = np.array([[0.0], [0.0], [1.0], [2.0]])
    assert (class_sizes(with_all_classes(np.full((4, 3), 1 / 3), [z])) > 0).all()
    with pytest.raises(ValueError, match="3 distinct observations"):
        with_all_classes(np.full((4, 4), 1 / 4), [z])
    assert (class_sizes(with_all_classes(np.full((4, 4), 1 / 4), [z, np.arange(4.0)[:, None]])) > 0).all()


@pytest.mark.parametrize("seed", range(5))
def test_lost_classes_come_back_at_the_observations_that_speak_least_against_them(seed):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(200, 6)) - np.array([0.0, 0.0, 0.0, 50.0, 20.0, 20.0])
    wanted = np.array([60, 60, 40, 20, 20, 0])
    offsets = offsets_for_all(logits, wanted)
    sizes = class_sizes(logits + offsets)
    assert (sizes > 0).all()
    assert sizes[3] >= 10
    assert sizes[4] >= 10
    assert (offsets >= 0).all()
    kept = np.eye(6)[np.arange(200) % 6]
    assert not offsets_for_all(kept, np.full(6, 200 / 6)).any()


def test_as_many_classes_as_observations_and_one_more():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(8, 8)) + np.r_[30.0, np.zeros(7)]
    np.testing.assert_array_equal(class_sizes(logits + offsets_for_all(logits, np.ones(8))), 1)
    with pytest.raises(ValueError, match="1 distinct pixels"):
        offsets_for_all(np.repeat(logits[:1], 8, axis=0), np.ones(8))


def test_mixtures_of_few_distinct_values():
    z = np.repeat(np.eye(3), 20, axis=0)
    mixtures, _ = fit_mixtures(z, 5, np.random.default_rng(0))
    assert mixtures.memberships(z).shape == (60, 3, 5)


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


def test_segments_of_cells_are_numbered_by_cells_and_not_by_pixels(make_section, quick_unet):
    adata = make_section("scattered", rows=20, cols=20)
    crowd = adata.obs["band"] == "c"
    xy = adata.obsm["spatial"]
    xy[crowd] = xy[crowd].mean(axis=0) + (xy[crowd] - xy[crowd].mean(axis=0)) * 0.4
    st.tl.segment(adata, 3, params=quick_unet, **HOW)
    assert (np.diff(adata.obs["segment"].value_counts(sort=False)) <= 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dlpfc_151673", "xenium_breast_idc", "osmfish_mouse_sscortex"])
@pytest.mark.parametrize("share", [1.0, 0.05])
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
