"""Label propagation: the kernel, and its part in the framework."""

from __future__ import annotations

import numpy as np
import pandas as pd

import stxtools as st
from stxtools._spatial.blocks import spatial_blocks
from stxtools.models.ensemble.label_propagation import propagated_logits

QUICK = {"epochs": 2, "pretrain": "none", "unet": False, "hidden": 16, "out_channels": 8}


def test_label_propagation_is_a_kernel_average(labelled_patches):
    xy, codes = labelled_patches(np.random.default_rng(0))
    hidden = np.where(np.random.default_rng(1).random(len(xy)) < 0.5, codes, -1)
    found = propagated_logits(xy, hidden, 3, bandwidth=3.0)
    known = hidden >= 0
    kernel = np.exp(-((xy[:, None] - xy[None, known]) ** 2).sum(-1) / (2 * 3.0**2))
    mass = kernel @ np.eye(3)[hidden[known]]
    share = np.bincount(hidden[known]) / known.sum()
    prior = 0.05 * np.median(mass[known].sum(1))
    expected = np.log((mass + prior * share) / (mass.sum(1, keepdims=True) + prior)) - np.log(share)
    inner = (np.abs(xy - 20) < 18).all(axis=1)
    assert np.abs(found - expected)[inner].mean() < 0.05  # the grid is a third of the kernel
    assert (found.argmax(1) == expected.argmax(1)).mean() > 0.98


def test_far_from_labels_nothing_is_said(labelled_patches):
    xy, codes = labelled_patches(np.random.default_rng(0))
    left = np.where(xy[:, 0] < 10, codes, -1)
    found = propagated_logits(xy, left, 3, bandwidth=1.0)
    assert np.abs(found[xy[:, 0] > 20][:, np.unique(left[left >= 0])]).max() < 1e-6
    assert not propagated_logits(xy, np.full(len(xy), -1), 3, 1.0).any()


def test_framework_propagates_labels_only_where_there_are_some(tmp_path):
    adata = st.datasets.synthetic_tissue(n_obs=1500, random_state=1, show_progress=False)
    adata.X = adata.X[np.random.default_rng(0).permutation(1500)]  # expression that knows no place
    st.tl.region_graph(adata, "compartment", max_size=40)
    hidden = np.isin(spatial_blocks(adata.obsm["spatial"], 25), [2, 6, 12, 18, 24])
    xy = adata.obsm["spatial"]
    truth = np.where(xy.sum(1) > np.median(xy.sum(1)), "in", "out")
    adata.obs["shown"] = pd.Categorical(np.where(hidden, None, truth))
    how = {"show_progress": False}
    right, proba = {}, {}
    members = ["network", "linear", "trees"]
    for place in (True, False):
        ensemble = [*members, "label_propagation"] if place else members
        st.tl.multitask(adata, "shown", ensemble=ensemble, params=QUICK, save_model=tmp_path / f"{place}.stx", **how)
        assert (adata.uns["multitask"]["weights"]["label_propagation"].item() > 0) is place
        right[place] = (adata.obs["shown_pred"].astype(str).to_numpy() == truth)[hidden].mean()
        proba[place] = adata.obsm["shown_proba"].to_numpy()
    assert right[True] > right[False] + 0.01
    st.tl.multitask(adata, "shown", model=tmp_path / "True.stx", show_progress=False)
    np.testing.assert_allclose(adata.obsm["shown_proba"].to_numpy(), proba[False], atol=1e-5)
