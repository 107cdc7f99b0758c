"""Simple methods that the segmentation is measured against, and the teachers of its U-Net."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import RandomForestClassifier
from sklearn.mixture import GaussianMixture

from stxtools._spatial.graph import neighbour_mean
from stxtools.models import Section
from stxtools.models.baselines.simple import neighbourhood_means
from stxtools.models.segmenter.pseudo_labels import pseudo_labels_from_clustering, pseudo_labels_from_labels


def nearest_label(section: Section, codes: np.ndarray) -> np.ndarray:
    """The label of the nearest labelled observation: no expression at all."""
    known = codes >= 0
    return codes[known][cKDTree(section.xy[known]).query(section.xy)[1]]


def _standard_means(section: Section) -> np.ndarray:
    z = neighbourhood_means(section.features - section.features.mean(0), section.xy)
    return (z - z.mean(0)) / (z.std(0) + 1e-9)


def lda(section: Section, codes: np.ndarray) -> np.ndarray:
    """scikit-learn's shrinkage LDA on means over the nearest 19 and 61 observations."""
    z, known = _standard_means(section), codes >= 0
    return LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(z[known], codes[known]).predict(z)


def transferred(train: Section, codes: np.ndarray, new: Section, seed: int) -> dict[str, np.ndarray]:
    """LDA and random forest on the same means, trained on one section and applied to another."""
    known = codes >= 0
    z, other = (neighbourhood_means(s.features - s.features.mean(0), s.xy) for s in (train, new))
    discriminant = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(z[known], codes[known])
    forest = RandomForestClassifier(300, min_samples_leaf=3, random_state=seed).fit(z[known], codes[known])
    return {"LDA 19+61": discriminant.predict(other), "random forest 19+61": forest.predict(other)}


def mixture(section: Section, k: int, seed: int) -> np.ndarray:
    """Two rounds of averaging over the neighbours and a tied Gaussian mixture."""
    z = neighbour_mean(section.graph, section.features.astype(np.float64), rounds=2)
    return GaussianMixture(k, covariance_type="tied", random_state=seed, n_init=3).fit_predict(z)


def teacher_with_labels(section: Section, codes: np.ndarray, seed: int) -> np.ndarray:
    """What the U-Net is taught from few labels."""
    classes = [str(c) for c in range(codes.max() + 1)]
    return pseudo_labels_from_labels([section], [codes], classes, np.random.default_rng(seed)).target.argmax(1)


def teacher_without_labels(section: Section, k: int, seed: int) -> np.ndarray:
    """What the U-Net is taught without labels."""
    return pseudo_labels_from_clustering([section], k, np.random.default_rng(seed), False).target.argmax(1)
