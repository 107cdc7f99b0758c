"""Classifiers that decide beside the U-Net on the sections whose labels they learned from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

FloatArray = NDArray[np.float64]

LEAST_LABELLED = 0.1  # share of the observations: fewer do not teach trees
WEIGHTS = {"network": 1.0, "discriminants": 1.0, "trees": 1.0}
_TREES, _LEAF = 100, 3
_MOST = 10_000  # labelled observations that trees learn from
_LEAST = 1e-2  # of a probability: a member that is sure does not outvote two that are not


@dataclass(frozen=True)
class Members:
    """Class probabilities by the members, (n, K) each: of one section, or of several, one after the other.

    - ``discriminants``: The vote of discriminant analyses on random subspaces.
    - ``trees``: Extremely randomised trees.
    """

    discriminants: FloatArray
    trees: FloatArray

    def taken(self, rows: NDArray[np.int64] | slice) -> Members:
        """Return what they say of some observations."""
        return Members(self.discriminants[rows], self.trees[rows])

    def split(self, sizes: Sequence[int]) -> list[Members]:
        """Cut them by section."""
        return [self.taken(slice(*ends)) for ends in pairwise(np.cumsum([0, *sizes]))]

    def joined(self, network: NDArray[np.float32]) -> NDArray[np.float32]:
        """Geometric mean of the members' probabilities and those of the U-Net."""
        found = (network, self.discriminants, self.trees)
        logs = np.mean([np.log(p.astype(np.float64).clip(_LEAST)) for p in found], axis=0)
        return softmax(logs, axis=1).astype(np.float32)


def tree_proba(views: Sequence[FloatArray], labels: NDArray[np.int64], n_classes: int, seed: int) -> FloatArray:
    """Class probabilities of all observations, features ``views`` (n, d), by trees that learn from the labelled ones.

    Classes that fold back on each other in expression are not separated by planes; trees cut them out (Geurts et al.
    2006).
    """
    known = np.flatnonzero(labels >= 0)
    known = known[np.unique(np.linspace(0, len(known) - 1, min(len(known), _MOST)).astype(np.int64))]
    z = np.concatenate(list(views), axis=1, dtype=np.float32)
    from sklearn.ensemble import ExtraTreesClassifier

    forest = ExtraTreesClassifier(_TREES, min_samples_leaf=_LEAF, random_state=seed).fit(z[known], labels[known])
    out = np.zeros((len(z), n_classes))
    out[:, forest.classes_] = forest.predict_proba(z)
    return out
