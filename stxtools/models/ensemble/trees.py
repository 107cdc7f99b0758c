"""Extremely randomised trees (Geurts et al. 2006), grown by scikit-learn, as arrays that a model file can keep."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import ExtraTreesClassifier

from stxtools._types import Floats, Floats32, Ints

N_TREES, LEAF = 100, 3
N_HELD_OUT_TREES = 40  # for the predictions of held-out observations: their weight hardly changes with more
_TRIED = 0.3  # share of the features among which a cut is chosen
_FLOOR = 2e-3  # added to each class's probability: trees that never saw a class there do not rule it out
_CHUNK = 2000  # observations that go down all trees at a time


@dataclass(frozen=True)
class Trees:
    """Trees one after another; a leaf is its own child."""

    # numbers of the nodes to go to where the feature is at most the threshold, and where it is above, (N, 2)
    child: NDArray[np.int32]
    feature: NDArray[np.int32]  # feature and threshold of a node, (N,)
    threshold: Floats
    # classes' shares of the training observations of a node, all classes counting alike, (N, K)
    share: Floats32
    roots: Ints  # number of each tree's first node, (T,)

    def __call__(self, z: Floats32) -> Floats:
        """Logits of observations (n, d), (n, K): logarithm of the mean share over the trees."""
        out = np.empty((len(z), self.share.shape[1]))
        for start in range(0, len(z), _CHUNK):
            rows = slice(start, start + _CHUNK)
            leaves = self._leaves(np.ascontiguousarray(z[rows]))
            out[rows] = self.share[leaves].mean(axis=1, dtype=np.float64)
        return np.log((out + _FLOOR) / (1 + _FLOOR * out.shape[1]))

    def _leaves(self, z: Floats32) -> Ints:
        """Leaf of each observation in each tree, (n, T)."""
        n, width = z.shape
        at = np.tile(self.roots, n)
        first = np.repeat(np.arange(n) * width, len(self.roots))  # where each observation's features begin
        values, walking = z.ravel(), np.arange(len(at))
        while len(walking):
            here = at[walking]
            above = values[first[walking] + self.feature[here]] > self.threshold[here]
            there = self.child[here, above.astype(np.intp)]
            at[walking] = there
            walking = walking[there != here]
        return at.reshape(n, -1)


def grow_trees(z: Floats32, codes: Ints, n_classes: int, seed: int, n_trees: int = N_TREES) -> Trees:
    """Grow trees on labelled observations, features (n, d), all classes counting alike."""
    forest = ExtraTreesClassifier(
        n_trees, min_samples_leaf=LEAF, max_features=_TRIED, class_weight="balanced", random_state=seed
    )
    grown = [estimator.tree_ for estimator in forest.fit(z, codes).estimators_]
    left, right, feature, threshold = (
        np.concatenate([getattr(tree, name) for tree in grown])
        for name in ("children_left", "children_right", "feature", "threshold")
    )
    value = np.concatenate([tree.value[:, 0] for tree in grown])
    share = np.zeros((len(left), n_classes), dtype=np.float32)
    share[:, forest.classes_.astype(np.int64)] = value / value.sum(axis=1, keepdims=True)
    count = np.array([tree.node_count for tree in grown])
    roots, leaf = np.cumsum(count) - count, left < 0
    sides = [np.where(leaf, np.arange(len(left)), side + np.repeat(roots, count)) for side in (left, right)]
    return Trees(
        np.stack(sides, axis=1).astype(np.int32), np.where(leaf, 0, feature).astype(np.int32),
        np.where(leaf, np.inf, threshold), share, roots,
    )  # fmt: skip
