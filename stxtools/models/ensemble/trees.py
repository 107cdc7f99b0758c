"""Extremely randomised trees that a model file can keep: plain arrays, no pickle.

Classes that fold back on each other in expression are not separated by planes; trees cut them out (Geurts et al.
2006). scikit-learn grows them; here they are stored and read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import ExtraTreesClassifier

FloatArray = NDArray[np.float64]

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
    threshold: FloatArray
    # classes' shares of the training observations of a node, all classes counting alike, (N, K)
    share: NDArray[np.float32]
    roots: NDArray[np.int64]  # number of each tree's first node, (T,)

    def __call__(self, z: NDArray[np.float32]) -> FloatArray:
        """Logits of observations (n, d), (n, K): logarithm of the mean share over the trees."""
        out = np.empty((len(z), self.share.shape[1]))
        for start in range(0, len(z), _CHUNK):
            rows = slice(start, start + _CHUNK)
            leaves = self._leaves(np.ascontiguousarray(z[rows]))
            out[rows] = self.share[leaves].mean(axis=1, dtype=np.float64)
        return np.log((out + _FLOOR) / (1 + _FLOOR * out.shape[1]))

    def _leaves(self, z: NDArray[np.float32]) -> NDArray[np.int64]:
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


def grow_trees(
    z: NDArray[np.float32], codes: NDArray[np.int64], n_classes: int, seed: int, n_trees: int = N_TREES
) -> Trees:
    """Grow trees on labelled observations, features (n, d), all classes counting alike."""
    forest = ExtraTreesClassifier(
        n_trees, min_samples_leaf=LEAF, max_features=_TRIED, class_weight="balanced", random_state=seed
    )
    grown = forest.fit(z, codes)
    seen = grown.classes_.astype(np.int64)
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in ("child", "feature", "threshold", "share")}
    roots = np.zeros(n_trees, dtype=np.int64)
    start = 0
    for i, tree in enumerate(estimator.tree_ for estimator in grown.estimators_):
        own, leaf = np.arange(tree.node_count), tree.children_left < 0
        child = np.stack([np.where(leaf, own, side) for side in (tree.children_left, tree.children_right)], axis=1)
        share = np.zeros((tree.node_count, n_classes), dtype=np.float32)
        share[:, seen] = tree.value[:, 0] / tree.value[:, 0].sum(axis=1, keepdims=True)
        parts["child"].append((child + start).astype(np.int32))
        parts["feature"].append(np.where(leaf, 0, tree.feature).astype(np.int32))
        parts["threshold"].append(np.where(leaf, np.inf, tree.threshold))
        parts["share"].append(share)
        roots[i] = start
        start += tree.node_count
    return Trees(**{name: np.concatenate(found) for name, found in parts.items()}, roots=roots)
