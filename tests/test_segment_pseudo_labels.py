"""Pseudo-labels: edge-preserving smoothing, views of labels, co-training, confidence."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import grid_positions
from scipy.special import softmax
from sklearn.datasets import make_blobs
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import kneighbors_graph

import stxtools as st
from stxtools._spatial.smoothing import Neighbourhoods
from stxtools.models import Section
from stxtools.models.ensemble.discriminant import shrinkage_lda
from stxtools.models.segmenter.calibration import (
    centring_offsets,
    class_sizes,
    matching_temperature,
    offsets_for_all,
    tempered,
)
from stxtools.models.segmenter.discriminants import label_views, redrawn_confidence, spread_labels
from stxtools.models.segmenter.mixtures import consensus, cotrain, fit_mixtures, with_all_classes
from stxtools.models.segmenter.number import choose_number
from stxtools.models.segmenter.pseudo_labels import PseudoLabels, pseudo_labels_from_labels


def _section(x: np.ndarray, xy: np.ndarray) -> Section:
    """A section of a square grid."""
    shape = tuple(int(n) + 1 for n in xy.max(axis=0))
    return Section("s", x.astype(np.float32), xy.astype(np.int32), shape, kneighbors_graph(xy, 4), xy)


def _few(y: np.ndarray, n: int, among: np.ndarray | bool = True) -> np.ndarray:
    """Keep the first ``n`` labels of every class; -1 elsewhere."""
    labels = np.full(len(y), -1)
    for c in range(y.max() + 1):
        labels[np.flatnonzero((y == c) & among)[:n]] = c
    return labels


def test_neighbourhood_means_equal_brute_force():
    rng = np.random.default_rng(0)
    xy, x = rng.uniform(size=(50, 2)), rng.normal(size=(50, 3)).astype(np.float32)
    near = np.argsort(((xy[:, None] - xy[None]) ** 2).sum(-1), axis=1)
    rows = np.array([3, 17, 40])
    found = Neighbourhoods(x, xy, rows)
    for size in (1, 5, 50, 500):  # the last is that of all
        np.testing.assert_allclose(found.mean(size), x[near[rows, :size]].mean(1), atol=1e-6)


def test_edge_preserving_mean_keeps_the_border_that_a_plain_mean_blurs():
    xy = grid_positions(24)
    truth = (xy[:, 0] >= 12).astype(np.float32)[:, None] * 4
    x = truth + np.random.default_rng(0).normal(size=truth.shape).astype(np.float32)
    near = Neighbourhoods(x, xy)
    plain, kept = near.mean(61), near.edge_preserving_means(kneighbors_graph(xy, 8), [1.5])[1.5]
    border = np.abs(xy[:, 0] - 11.5) < 2
    assert np.abs(kept - truth)[border].mean() < 0.6 * np.abs(plain - truth)[border].mean()
    inside = np.abs(xy[:, 0] - 11.5) > 6
    assert np.abs(kept - truth)[inside].mean() < 0.4 * np.abs(x - truth)[inside].mean()


def test_edge_preserving_mean_without_edges_is_the_plain_mean():
    xy = grid_positions(20)
    x = np.zeros((400, 8), dtype=np.float32)
    x[:, 6:] = np.random.default_rng(1).normal(size=(400, 2))  # edges are looked for in the first six components
    near = Neighbourhoods(x, xy)
    np.testing.assert_allclose(
        near.edge_preserving_means(kneighbors_graph(xy, 8), [1.0])[1.0], near.mean(127), atol=1e-5
    )


def _standard(z: np.ndarray) -> np.ndarray:
    return (z - z.mean(0)) / z.std(0)


def _views(y: np.ndarray, n_views: int, rng: np.random.Generator, noise: float) -> list[np.ndarray]:
    centres = rng.normal(size=(n_views, y.max() + 1, 6))
    return [_standard(centre[y] + rng.normal(scale=noise, size=(len(y), 6))) for centre in centres]


def test_several_views_spread_labels_better_than_one():
    rng = np.random.default_rng(0)
    y = rng.integers(3, size=900)
    views, labels = _views(y, 4, rng, 1.6), _few(y, 6)
    rest = labels < 0
    together = (spread_labels(views, labels, 3).argmax(1) == y)[rest].mean()
    alone = [(spread_labels([v], labels, 3).argmax(1) == y)[rest].mean() for v in views]
    assert together > max(alone) + 0.03


def test_cotraining_keeps_the_classes_of_the_consensus():
    z, y = make_blobs(600, 5, centers=4, cluster_std=2.2, random_state=5)
    views = [z + np.random.default_rng(i).normal(scale=1.5, size=z.shape) for i in range(4)]
    rng = np.random.default_rng(0)
    start = consensus(views, 4, rng)
    end = cotrain(views, start, rng)
    np.testing.assert_allclose(end.sum(1), 1)
    assert adjusted_rand_score(y, end.argmax(1)) >= adjusted_rand_score(y, start.argmax(1)) - 0.01
    assert set(end.argmax(1)) == set(range(4))


def test_cotraining_that_loses_a_class_returns_its_start():
    z = np.random.default_rng(0).normal(size=(300, 4))
    start = np.tile([0.6, 0.4], (300, 1))
    start[0] = [0.0, 1.0]  # one observation alone cannot hold a class
    assert cotrain([z], start, np.random.default_rng(0)) is start


def test_labels_elsewhere_show_that_one_patch_does_not_represent_its_class():
    """Classes are columns whose expression changes along y; one patch of each is labelled."""
    xy, rows, gaps = grid_positions(30), np.arange(900), []
    y = (xy[:, 0] // 10).astype(int)
    for seed in range(3):
        rng, labels = np.random.default_rng(seed), np.full(900, -1)
        centres = 0.3 * rng.normal(size=(3, 1, 20)) + 1.2 * rng.normal(size=(3, 4, 20))
        section = _section(centres[y, (xy[:, 1] // 8).astype(int)] + rng.normal(size=(900, 20)), xy)
        for c in range(3):
            members = np.flatnonzero(y == c)
            distance = ((xy[members] - xy[rng.choice(members)]) ** 2).sum(axis=1)
            labels[members[np.argsort(distance, kind="stable")[:20]]] = c
        views, rest = label_views([section], [rows]), labels < 0
        share = spread_labels(views, labels, 3)
        predicted = np.where(rest, share.argmax(1), labels)
        confidence = redrawn_confidence([section], [rows], views, labels, predicted, 3, rng)[rows, predicted]
        accuracy = (predicted == y)[rest].mean()
        gaps.append([share.max(1)[rest].mean() - accuracy, confidence[rest].mean() - accuracy])
    claimed, estimated = np.mean(gaps, axis=0)
    assert claimed > 0.4
    assert abs(estimated) < 0.16  # random subspaces of the same labels: 0.25


@pytest.mark.parametrize("accuracy", [0.5, 0.75, 0.9])
def test_temperature_brings_the_mean_confidence_to_the_accuracy(accuracy: float):
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=3, size=(400, 4))
    proba = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    after = tempered(proba, matching_temperature(proba, accuracy))
    assert after.max(1).mean() == pytest.approx(accuracy, abs=1e-3)
    assert (after.argmax(1) == proba.argmax(1)).all()
    np.testing.assert_allclose(after.sum(1), 1, atol=1e-6)


def test_temperature_of_one_class_or_none_is_one():
    assert matching_temperature(np.ones((5, 1)), 1.0) == 1.0
    assert matching_temperature(np.empty((0, 3)), 0.5) == 1.0
    proba = np.array([[0.2, 0.8]], dtype=np.float32)
    np.testing.assert_array_equal(tempered(proba, 1.0), proba)


@pytest.mark.parametrize("angle", [0.0, 0.7])
def test_labels_drawn_along_the_middle_correct_a_border_midway_between_them(angle: float):
    """A thin stripe beside two thick ones; the expression changes evenly, so that nothing else shows the borders."""
    xy = grid_positions(40)
    y = np.digitize(xy[:, 0], [15.5, 20.5])
    middle = np.array([8, 18, 30])
    labels = np.where(xy[:, 0] == middle[y], y, -1)
    turned = xy @ np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    logits = -((xy[:, :1] - middle) ** 2) / 16
    proba = softmax(logits, axis=1)
    offsets = centring_offsets([turned], [labels], proba)
    after = (logits + offsets).argmax(axis=1)
    assert (proba.argmax(axis=1) == y).mean() < 0.86
    assert (after == y).mean() > 0.94
    halves = xy[:, 1] < 20  # the same labels in two sections
    parts = [np.flatnonzero(halves), np.flatnonzero(~halves)]
    xys, of_parts, order = [turned[p] for p in parts], [labels[p] for p in parts], np.concatenate(parts)
    apart = centring_offsets(xys, of_parts, proba[order])
    assert ((logits + apart).argmax(axis=1) == y).mean() > 0.94
    beside = centring_offsets([xy, *xys], [np.full(len(y), -1), *of_parts], proba[np.r_[: len(y), order]])
    np.testing.assert_array_equal(beside, apart)  # a section without labels


def test_many_labels_of_one_class_do_not_outweigh_the_line_through_another():
    """More labels than are compared: each counts for several, or the thin stripe's would hardly count."""
    xy = grid_positions(200)
    y, middle = np.digitize(xy[:, 0], [15.5, 20.5]), np.array([8, 18, 30])
    drawn = (abs(xy[:, 0] - 8) < 3) | ((xy[:, 0] == 18) & (xy[:, 1] < 60)) | (abs(xy[:, 0] - 50) < 10)
    logits = -((xy[:, :1] - middle) ** 2) / 16
    offsets = centring_offsets([xy], [np.where(drawn, y, -1)], softmax(logits, axis=1))
    assert ((logits + offsets).argmax(axis=1) == y)[xy[:, 0] < 40].mean() > 0.91  # by the sampled labels alone: 0.90
    x = xy[:, 0] % 40  # the three stripes five times, with 3000 labels
    y, logits = np.digitize(x, [15.5, 20.5]), -((x[:, None] - middle) ** 2) / 16
    offsets = centring_offsets([xy], [np.where(x == middle[y], y, -1)], softmax(logits, axis=1))
    assert ((logits + offsets).argmax(axis=1) == y).mean() > 0.9  # each counted in full: 0.875


def test_pseudo_labels_are_centred_on_labels_in_smooth_expression():
    xy, rng = grid_positions(60, 40), np.random.default_rng(0)
    y = np.digitize(xy[:, 0], [21.5, 27.5])
    labels = np.where(xy[:, 0] == np.array([10, 24, 43])[y], y, -1)
    x = rng.normal(size=(len(xy), 8))
    x[:, 0] += xy[:, 0] / 8
    found = pseudo_labels_from_labels([_section(x, xy)], [labels], ["a", "b", "c"], 0).target.argmax(axis=1)
    assert (found == y).mean() > 0.81  # the middle of both labels as border: 0.79


def test_a_compact_patch_of_labels_need_not_lie_in_the_middle():
    xy = grid_positions(40)
    y = (xy[:, 0] >= 15).astype(int)
    labels = np.where((abs(xy[:, 1] - 20) < 3) & np.isin(xy[:, 0], [1, 2, 3, 4, 16, 17, 18]), y, -1)
    proba = softmax(np.c_[10 - xy[:, 0], np.zeros(len(xy))], axis=1)
    np.testing.assert_array_equal(centring_offsets([xy], [labels], proba), [0, 0])


def test_single_labels_need_not_lie_in_the_middle():
    xy = grid_positions(40)
    y = (xy[:, 0] >= 15).astype(int)
    labels = np.where((xy % 4 == 0).all(axis=1), y, -1)
    proba = softmax(np.c_[10 - xy[:, 0], np.zeros(len(xy))], axis=1)
    np.testing.assert_array_equal(centring_offsets([xy], [labels], proba), [0, 0])


def test_tied_mixture_agrees_with_sklearn():
    z, y = make_blobs(900, 5, centers=4, cluster_std=1.0, random_state=0)
    mixtures = fit_mixtures(z, 4, np.random.default_rng(0))
    ours = mixtures.memberships(z)[:, 0].argmax(1)
    theirs = GaussianMixture(4, covariance_type="tied", random_state=0, n_init=5).fit_predict(z)
    assert adjusted_rand_score(y, ours) > 0.99
    assert adjusted_rand_score(theirs, ours) > 0.99


def test_consensus_has_k_classes_and_is_less_confident_where_wrong():
    z, y = make_blobs(600, 4, centers=[[0] * 4, [6] * 4, [9] * 4], cluster_std=1.3, random_state=0)
    target = consensus([z, z[:, :3]], 3, np.random.default_rng(0))
    assert target.shape == (600, 3)
    np.testing.assert_allclose(target.sum(1), 1)
    assert adjusted_rand_score(y, target.argmax(1)) > 0.9
    wrong = np.array([np.bincount(y[target.argmax(1) == c]).argmax() for c in range(3)])[target.argmax(1)] != y
    assert wrong.any()
    assert target[wrong].max(axis=1).mean() < target[~wrong].max(axis=1).mean()


@pytest.mark.parametrize("k", [2, 4, 7])
def test_choose_number_finds_the_number_of_stripes(k):
    rng, xy = np.random.default_rng(k), grid_positions(48, 40)
    stripe = (xy[:, 0] * k // 48).astype(int)
    x = (rng.normal(size=(k, 10)) * 1.5)[stripe] + rng.normal(size=(len(xy), 10))
    found, curve = choose_number([_section(x, xy)], rng)
    assert abs(found - k) <= 1
    assert curve["n_segments"] == list(range(1, 13))


def test_mixtures_from_other_starts_agree_at_the_chosen_number():
    rng, xy = np.random.default_rng(0), grid_positions(36, 30)
    x = rng.normal(size=(7, 8))[(xy[:, 0] * 7 // 36).astype(int)] + 3 * rng.normal(size=(len(xy), 8))
    (found, curve), (again, _) = (choose_number([_section(x, xy)], np.random.default_rng(seed)) for seed in (0, 1))
    assert found == again
    assert curve["stability"][found - 1] > 0.9


def test_choose_number_ignores_smooth_noise():
    """Two stripes in smooth noise, whose patches of correlated neighbours are no segments."""
    rng, xy = np.random.default_rng(0), grid_positions(48, 40)
    noise = kneighbors_graph(xy, 61, include_self=True) @ rng.normal(size=(len(xy), 6))
    x = (rng.normal(size=(2, 6)) * 3)[(xy[:, 0] >= 24).astype(int)] + 3 * noise / noise.std(axis=0)
    x += rng.normal(size=x.shape) / 2
    assert choose_number([_section(x, xy)], rng)[0] == 2


def test_shrinkage_lda_without_shrinkage_equals_sklearn():
    z, y = make_blobs(400, 6, centers=3, cluster_std=4.0, random_state=1)
    ours = softmax(shrinkage_lda(z, np.eye(3)[y], np.ones(400), 0.0)(z), axis=1)
    theirs = LinearDiscriminantAnalysis(solver="lsqr", priors=(np.bincount(y) + 1) / 403).fit(z, y).predict_proba(z)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_unlabelled_observations_improve_spread_labels():
    z, y = make_blobs(900, 12, centers=3, cluster_std=5.0, center_box=(-4, 4), random_state=4)
    labels = _few(y, 8)
    alone, helped = (spread_labels([_standard(z)], labels, 3, rounds=r).argmax(1) for r in (0, 3))
    rest = labels < 0
    assert (helped == y)[rest].mean() > (alone == y)[rest].mean()
    assert (helped == y)[rest].mean() > 0.8


def test_fine_views_separate_narrow_stripes():
    xy = grid_positions(18)
    y = (xy[:, 0] // 2).astype(int) % 3
    labels = np.where((np.abs(xy[:, 1] - 9) < 3.5) & (xy[:, 0] < 6), y, -1)
    gain = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(3, 8))[y] + rng.normal(size=(len(xy), 8))
        views = label_views([_section(x, xy)], [np.arange(len(xy))])
        coarse = [view for i, view in enumerate(views) if i not in (3, 6)]
        found, without = ((spread_labels(v, labels, 3).argmax(1) == y)[labels < 0].mean() for v in (views, coarse))
        gain.append(found - without)
    assert np.mean(gain) > 0.05


def test_spread_labels_from_one_example_of_a_class():
    z, y = make_blobs(60, 4, centers=3, cluster_std=0.5, random_state=2)
    labels = np.where(y < 2, y, -1)
    labels[np.flatnonzero(y == 2)[0]] = 2
    assert (spread_labels([_standard(z)], labels, 3).argmax(1) == y).mean() > 0.95


def test_missing_class_takes_half_of_the_widest_class():
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


def test_missing_classes_split_distinct_observations_only():
    z = np.array([[0.0], [0.0], [1.0], [2.0]])
    assert (class_sizes(with_all_classes(np.full((4, 3), 1 / 3), [z])) > 0).all()
    with pytest.raises(ValueError, match="3 distinct observations"):
        with_all_classes(np.full((4, 4), 1 / 4), [z])
    assert (class_sizes(with_all_classes(np.full((4, 4), 1 / 4), [z, np.arange(4.0)[:, None]])) > 0).all()


@pytest.mark.parametrize("seed", range(5))
def test_offsets_restore_lost_classes(seed):
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


def test_offsets_allow_at_most_one_class_per_distinct_pixel():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(8, 8)) + np.r_[30.0, np.zeros(7)]
    np.testing.assert_array_equal(class_sizes(logits + offsets_for_all(logits, np.ones(8))), 1)
    with pytest.raises(ValueError, match="1 distinct pixels"):
        offsets_for_all(np.repeat(logits[:1], 8, axis=0), np.ones(8))


def test_mixtures_of_fewer_distinct_values_than_classes():
    z = np.repeat(np.eye(3), 20, axis=0)
    memberships = fit_mixtures(z, 5, np.random.default_rng(0)).memberships(z)
    np.testing.assert_allclose(memberships.sum(axis=2), 1, atol=1e-6)
    for found in np.moveaxis(memberships.argmax(axis=2), 1, 0):  # equal values stay together
        assert adjusted_rand_score(np.repeat(np.arange(3), 20), found) == 1


def test_sparse_labels_weigh_as_much_as_their_pseudo_labels():
    """Of ten observations two or eight are labelled: where most are, the others have no weight."""
    labelled = np.repeat([True, False, True, False], [2, 8, 8, 2])
    sure = np.random.default_rng(0).uniform(0.5, 1, 20)
    pseudo = PseudoLabels(["a", "b"], np.full((20, 2), 0.5), np.where(labelled, 2, sure), np.zeros((20, 2)), labelled)
    xy, pixels = np.zeros((10, 2)), np.zeros((10, 2), np.int32)
    sections = [Section(str(i), xy.astype(np.float32), pixels, (1, 1), lambda: None, xy) for i in range(2)]
    few, most = pseudo.by_section(sections)[1]
    np.testing.assert_allclose(few, np.r_[[sure[2:10].sum() / 2] * 2, sure[2:10]])
    np.testing.assert_array_equal(most, labelled[10:])


@pytest.mark.parametrize(("side", "tiles"), [(8, 1), (20, 4)])
def test_small_tissue_is_trained_until_the_unet_agrees_with_pseudo_labels(make_section, side, tiles):
    """Of 8 x 8 cells few can be held out for early stopping; of 16 tiles each step must show all."""
    adata = make_section("scattered", rows=side, cols=side)
    bands = np.eye(3)[adata.obs["band"].cat.codes]
    adata.obsm["X_pca"] = np.random.default_rng(0).normal(bands, 0.3).astype(np.float32)
    at = adata.obsm["spatial"] - adata.obsm["spatial"].min(axis=0)
    adata.obs["tile"] = [f"{x}{y}" for x, y in np.minimum(at / at.max(axis=0) * tiles, tiles - 1).astype(int)]
    st.tl.segment(adata, 3, library_key="tile", show_progress=False, accelerator="cpu")
    assert adjusted_rand_score(adata.obs["band"], adata.obs["segment"]) > 0.6  # was below 0.1


def test_training_continues_while_agreement_rises(make_section):
    """With small steps each round of ten epochs adds some per cent."""
    adata = make_section("hex")
    params = {"lr": 1e-4, "steps_per_epoch": 1}
    st.tl.segment(adata, labels_key="band", params=params, show_progress=False, accelerator="cpu")
    assert adjusted_rand_score(adata.obs["band"], adata.obs["segment"]) > 0.5  # was 0.18 after five rounds
