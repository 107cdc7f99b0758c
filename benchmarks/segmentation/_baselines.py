"""Simple baselines of the segmentation: scikit-learn's models, and the nearest label."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree
from sklearn.ensemble import RandomForestClassifier
from sklearn.mixture import GaussianMixture

sys.path.append(str(Path(__file__).resolve().parents[1]))
from baselines import components, nearest_mean, neighbourhoods, probabilities, shrinkage_lda

__all__ = ["components", "lda", "mixture", "nearest_label", "transferred"]


def nearest_label(xy: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Return the label of the nearest labelled observation, without using expression."""
    known = codes >= 0
    return codes[known][cKDTree(xy[known]).query(xy)[1]]


def lda(x: np.ndarray, xy: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Predict by scikit-learn's shrinkage LDA on means over the nearest 19 and 61 observations."""
    return probabilities(shrinkage_lda(), neighbourhoods(x, xy), codes, codes.max() + 1).argmax(1)


def transferred(
    train: tuple[np.ndarray, np.ndarray], codes: np.ndarray, new: tuple[np.ndarray, np.ndarray], seed: int
) -> dict[str, np.ndarray]:
    """Train LDA and random forest on these means of one section and apply them to another."""
    known, z, other = codes >= 0, neighbourhoods(*train), neighbourhoods(*new)
    forest = RandomForestClassifier(300, min_samples_leaf=3, random_state=seed)
    models = {"LDA": shrinkage_lda(), "random forest": forest}
    return {name: model.fit(z[known], codes[known]).predict(other) for name, model in models.items()}


def mixture(x: np.ndarray, xy: np.ndarray, k: int, seed: int) -> np.ndarray:
    """Average twice over the six nearest neighbours and fit a tied Gaussian mixture."""
    z = nearest_mean(nearest_mean(x, xy, 7), xy, 7)
    return GaussianMixture(k, covariance_type="tied", random_state=seed, n_init=3).fit_predict(z)
