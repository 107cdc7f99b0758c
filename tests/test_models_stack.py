"""Trees as arrays, and the weights by which classifiers and the labels around are put together."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.special import log_softmax
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

import stxtools as st
from stxtools._spatial.blocks import spatial_blocks
from stxtools.models._anchor import Linear
from stxtools.models._place import label_logits
from stxtools.models._stack import LeftOut, Told, Weights, ask_left_out
from stxtools.models._trees import LEAF, N_TREES, Trees, grow_trees

QUICK = {"epochs": 2, "pretrain": "none", "unet": False, "hidden": 16, "out_channels": 8}


def _rings(rng, n=900, n_classes=3):
    z = rng.normal(size=(n, 5)).astype(np.float32)
    return z, np.minimum((np.hypot(z[:, 0], z[:, 1]) / 0.8).astype(np.int64), n_classes - 1)


def test_trees_say_what_those_of_scikit_learn_say():
    z, codes = _rings(np.random.default_rng(0))
    codes[codes == 2] = 3  # a class that nobody has
    found = grow_trees(z[:600], codes[:600], 4, seed=1)(z[600:])
    grown = ExtraTreesClassifier(
        N_TREES, min_samples_leaf=LEAF, max_features=0.3, class_weight="balanced", random_state=1
    ).fit(z[:600], codes[:600])
    share = np.zeros((300, 4))
    share[:, [0, 1, 3]] = grown.predict_proba(z[600:])
    np.testing.assert_allclose(found, np.log((share + 2e-3) / (1 + 4 * 2e-3)), rtol=1e-4, atol=1e-5)
    assert (found.argmax(1) == codes[600:]).mean() > 0.8 > LogisticRegression().fit(z, codes).score(z, codes)


def test_trees_come_back_from_arrays():
    z, codes = _rings(np.random.default_rng(0), n=300)
    trees = grow_trees(z, codes, 3, seed=0)
    again = Trees.from_file(trees.to_file("t"), "t")
    assert again is not None
    np.testing.assert_array_equal(again(z), trees(z))
    assert Trees.from_file({}, "t") is None


def test_weights_are_those_of_a_regression():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 4000)
    linear, trees = (np.stack([-v, v], axis=1) for v in truth - 0.5 + rng.normal(size=(2, 4000)) * [[1.0], [0.7]])
    apart, around = LeftOut(linear, trees, {}, truth).weights()
    known = LogisticRegression(C=1e6, fit_intercept=False).fit(np.stack([linear[:, 1], trees[:, 1]], 1), truth).coef_[0]
    np.testing.assert_allclose([apart.linear, apart.trees], known / 2, rtol=0.02)
    assert around is None


def test_weights_make_sure_logits_less_sure():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 2000)
    honest = np.eye(3)[truth] * 2 + rng.normal(size=(2000, 3))
    best = LeftOut(honest, None, {}, truth).weights()[0].linear
    apart, _ = LeftOut(honest * 5, None, {}, truth).weights()
    assert apart.linear == pytest.approx(best / 5, rel=1e-3)
    assert apart.trees == 0


def test_labels_around_count_where_they_help(labelled_patches):
    rng = np.random.default_rng(0)
    xy, codes = labelled_patches(rng)
    fold = spatial_blocks(xy, 36) % 4
    vague = np.eye(3)[codes] * 1.7 + rng.normal(size=(len(xy), 3))
    said = ask_left_out([(xy, codes)], [fold], lambda seen, left: vague[left], None, 3, around=True)
    assert said is not None
    apart, around = said.weights()
    assert apart.place == 0
    assert around is not None
    own, linear = vague.astype(np.float32), Linear(np.eye(3), np.zeros(3))
    both, nearest = [], []
    for test in (fold == k for k in range(4)):
        seen = np.where(test, -1, codes)
        logits = Told(linear, None, apart, around)(own, 3, xy, seen, np.ones(len(xy), bool))
        expected = around.linear * vague + around.place * label_logits(xy, seen, 3, around.reach)
        np.testing.assert_allclose(logits, expected, atol=1e-5)
        both.append((logits.argmax(1) == codes)[test].mean())
        nearest.append(KNeighborsClassifier(1).fit(xy[~test], codes[~test]).score(xy[test], codes[test]))
    assert np.mean(both) > max((vague.argmax(1) == codes).mean() + 0.1, np.mean(nearest))
    np.testing.assert_allclose(Told(linear, None, apart, around)(own, 3), apart.linear * vague, atol=1e-5)


def test_labels_around_are_left_out_where_they_heed_no_place(labelled_patches):
    rng = np.random.default_rng(0)
    xy, _ = labelled_patches(rng)
    scattered = rng.integers(0, 3, len(xy))
    told = np.eye(3)[scattered] * 2 + rng.normal(size=(len(xy), 3))
    fold = spatial_blocks(xy, 36) % 4
    said = ask_left_out([(xy, scattered)], [fold], lambda seen, left: told[left], None, 3, around=True)
    assert said is not None
    _, around = said.weights()
    assert around is None or around.place < 0.1 * around.linear


def test_without_blocks_to_leave_out_nothing_is_weighed(labelled_patches):
    xy, codes = labelled_patches(np.random.default_rng(0))
    fold = np.zeros(len(xy), dtype=np.int64)
    assert (
        ask_left_out([(xy, codes)], [fold], lambda seen, left: np.zeros((left.sum(), 3)), None, 3, around=True) is None
    )


def test_who_is_asked_has_not_seen_the_answer(labelled_patches):
    xy, codes = labelled_patches(np.random.default_rng(0))
    fold = spatial_blocks(xy, 36) % 4

    def strict(seen, left):
        assert not (seen & left).any()
        assert (seen | left).all()
        return np.zeros((left.sum(), 3))

    said = ask_left_out([(xy, codes)], [fold, spatial_blocks(xy, 9) % 3], strict, strict, 3, around=False)
    assert said is not None
    assert len(said.truth) == 2 * len(xy)
    assert said.place == {}


def test_told_comes_back_without_the_labels_around():
    z, codes = _rings(np.random.default_rng(0), n=300)
    linear = Linear(np.random.default_rng(1).normal(size=(5, 3)), np.zeros(3))
    told = Told(linear, grow_trees(z, codes, 3, 0), Weights(0.3, 0.9), Weights(0.3, 0.8, 0.5, 2.0))
    again = Told.from_file(told.to_file("x"), "x")
    np.testing.assert_array_equal(again(z, 5), told(z, 5))
    assert again.around is None


def test_framework_asks_trees_where_planes_do_not_do(tmp_path):
    adata = st.datasets.synthetic_tissue(n_obs=1500, random_state=1, show_progress=False)
    xy = adata.obsm["spatial"]
    rng = np.random.default_rng(0)
    side = (np.floor(xy[:, 0] / np.ptp(xy[:, 0]) * 12) % 2) * 2 - 1.0
    other = (np.floor(xy[:, 1] / np.ptp(xy[:, 1]) * 12) % 2) * 2 - 1.0
    truth = np.where(side * other > 0, "same", "unlike")  # XOR: neither axis tells the class
    rep = np.stack([side, other], axis=1) + rng.normal(size=(1500, 2)) * 0.3
    adata.obsm["X_xor"] = np.concatenate([rep, rng.normal(size=(1500, 4))], axis=1)
    hidden = np.isin(spatial_blocks(xy, 25), [2, 6, 12, 18, 24])
    adata.obs["shown"] = pd.Categorical(np.where(hidden, None, truth))
    st.tl.region_graph(adata, "compartment", max_size=40)
    right, proba = {}, {}
    for trees in (True, False):
        st.tl.multitask(
            adata, "shown", use_rep="X_xor", params=QUICK | {"trees": trees, "place": False, "neighbours": (1, 7)},
            save_model=tmp_path / f"{trees}.stx", show_progress=False,
        )  # fmt: skip
        right[trees] = (adata.obs["shown_pred"].astype(str).to_numpy() == truth)[hidden].mean()
        proba[trees] = adata.obsm["shown_proba"].to_numpy()
    assert right[True] > max(right[False] + 0.2, 0.85)
    st.tl.multitask(adata, "shown", model=tmp_path / "True.stx", show_progress=False)
    np.testing.assert_allclose(adata.obsm["shown_proba"].to_numpy(), proba[True], atol=1e-6)
    assert np.isfinite(log_softmax(np.log(proba[True] + 1e-9), axis=1)).all()
