"""Extremely randomised trees (Geurts et al. 2006) of scikit-learn, as arrays for model files."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import ExtraTreesClassifier

from stxtools._types import Floats, Floats32, Ints

N_TREES, LEAF = 100, 3
N_HELD_OUT_TREES = 40  # for out-of-fold predictions: the weight of the trees hardly changes with more
_MAX_FEATURES = 0.3  # share of the features among which a split is chosen
_FLOOR = 2e-3  # added to each class's probability: no class is ruled out
_CHUNK = 2000  # observations that are predicted at a time


@dataclass(frozen=True)
class Trees:
    """The nodes of all trees; a leaf is its own child."""

    child: NDArray[np.int32]  # nodes where the feature is at most the threshold, and where it is above, (N, 2)
    feature: NDArray[np.int32]  # (N,)
    threshold: Floats  # (N,)
    share: Floats32  # class shares of a node's training observations, with balanced classes, (N, K)
    roots: Ints  # first node of each tree, (T,)

    def __post_init__(self) -> None:
        after = self.child >= np.arange(len(self.child))[:, None]  # else a walk down might never end
        if not after.all() or self.child.max(initial=0) >= max(len(self.child), 1) or self.roots.min(initial=0) < 0:
            raise ValueError("the nodes of trees are not in the order of walks from the roots to the leaves")

    def __call__(self, z: Floats32) -> Floats:
        """Logits of observations (n, d): logarithm of the mean class shares over the trees, (n, K)."""
        out = np.empty((len(z), self.share.shape[1]))
        for start in range(0, len(z), _CHUNK):
            rows = slice(start, start + _CHUNK)
            leaves = self._leaves(np.ascontiguousarray(z[rows]))
            out[rows] = self.share[leaves].mean(axis=1, dtype=np.float64)
        return np.log((out + _FLOOR) / (1 + _FLOOR * out.shape[1]))

    def _leaves(self, z: Floats32) -> Ints:
        """Leaf of each observation in each tree, (n, T)."""
        n, width = z.shape
        node = np.tile(self.roots, n)
        first = np.repeat(np.arange(n) * width, len(self.roots))  # where each observation's features begin
        values, inner = z.ravel(), np.arange(len(node))
        while len(inner):
            parent = node[inner]
            above = values[first[inner] + self.feature[parent]] > self.threshold[parent]
            child = self.child[parent, above.astype(np.intp)]
            node[inner] = child
            inner = inner[child != parent]
        return node.reshape(n, -1)


def grow_trees(z: Floats32, codes: Ints, n_classes: int, seed: int, n_trees: int = N_TREES) -> Trees:
    """Grow trees on features (n, d) of labelled observations, with balanced classes."""
    forest = ExtraTreesClassifier(
        n_trees, min_samples_leaf=LEAF, max_features=_MAX_FEATURES, class_weight="balanced", random_state=seed
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
    child = [np.where(leaf, np.arange(len(left)), side + np.repeat(roots, count)) for side in (left, right)]
    return Trees(
        np.stack(child, axis=1).astype(np.int32), np.where(leaf, 0, feature).astype(np.int32),
        np.where(leaf, np.inf, threshold), share, roots,
    )  # fmt: skip
