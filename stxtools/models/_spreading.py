"""From a few labels to class probabilities everywhere: the teacher with labels. Never written as a result itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.spatial import cKDTree
from scipy.special import softmax
from sklearn.covariance import ledoit_wolf

FloatArray = NDArray[np.float64]

SCALES = ((7, 19), (19, 61), (37, 127))  # nearest observations whose means are read side by side


def neighbour_features(features: NDArray[np.float32], xy: FloatArray, sizes: Sequence[int] = (19, 61)) -> FloatArray:
    """Means over the nearest 19 and 61 observations (itself included): two rings and four of a hex lattice."""
    n = len(features)
    sizes = [min(s, n) for s in sizes]
    near = cKDTree(xy).query(xy, k=max(sizes))[1].reshape(n, -1)
    out = []
    for size in sizes:
        pool = sparse.csr_matrix(
            (np.full(n * size, 1 / size), near[:, :size].ravel(), np.arange(0, n * size + 1, size)), shape=(n, n)
        )
        out.append(np.asarray(pool @ features.astype(np.float64)))
    return np.concatenate(out, axis=1)


def spread_over_scales(
    sections: Sequence[tuple[NDArray[np.float32], FloatArray]], labels: NDArray[np.int64], n_classes: int
) -> FloatArray:
    """Class probabilities by :func:`spread_labels` at three pairs of scales, their geometric mean.

    No one scale suits all tissue; the mean of three stood at or above a single one on all eleven sections tried.

    Parameters
    ----------
    sections
        Features and coordinates of each section.
    labels
        Class codes of the observations of all sections, -1 where unlabelled.
    n_classes
        Number of classes.
    """
    logs = np.zeros((len(labels), n_classes))
    for sizes in SCALES:
        z = np.concatenate([neighbour_features(features, xy, sizes) for features, xy in sections])
        logs += np.log(spread_labels(z, labels, n_classes).clip(1e-4)) / len(SCALES)
    return softmax(logs, axis=1)


class ShrinkageLDA:
    """Linear discriminant analysis with weights, whose pooled covariance is drawn to its own diagonal.

    How far is the mean, over classes, of what Ledoit and Wolf (2004) find for each class: correlations shrink,
    variances do not. Classes with one or two observations are allowed.
    """

    def fit(
        self,
        z: FloatArray,
        share: FloatArray,
        weight: FloatArray,
        shrinkage: float,
    ) -> ShrinkageLDA:
        """Fit to observations (n, d) with class shares (n, K) and weights (n,)."""
        mass = share * weight[:, None]
        count = mass.sum(axis=0)
        means = (mass.T @ z) / (count[:, None] + 1e-12)
        total = (z * weight[:, None]).T @ z / count.sum()
        within = total - (means.T * (count / count.sum())) @ means
        within = (1 - shrinkage) * within + shrinkage * np.diag(np.diag(within))
        within += 1e-6 * max(float(np.trace(within)) / len(within), 1e-9) * np.eye(len(within))
        self.coef_ = np.linalg.solve(within, means.T)
        prior = (count + 1) / (count + 1).sum()
        self.intercept_ = -0.5 * np.einsum("kd,dk->k", means, self.coef_) + np.log(prior)
        return self

    def predict_proba(self, z: FloatArray) -> FloatArray:
        """Class probabilities, (n, K)."""
        return softmax(z @ self.coef_ + self.intercept_, axis=1)


def class_shrinkage(z: FloatArray, labels: NDArray[np.int64], n_classes: int) -> float:
    """Mean Ledoit-Wolf shrinkage of the classes' correlation matrices, weighted by their size."""
    found, sizes = [], []
    for c in range(n_classes):
        part = z[labels == c]
        sizes.append(len(part))
        scaled = (part - part.mean(axis=0)) / (part.std(axis=0) + 1e-9)
        found.append(ledoit_wolf(scaled)[1] if len(part) > 2 else 1.0)
    return float(np.average(found, weights=sizes))


def spread_labels(z: FloatArray, labels: NDArray[np.int64], n_classes: int, *, rounds: int = 3) -> FloatArray:
    """Class probabilities of all observations from a few labels, by a self-trained discriminant analysis.

    The first fit sees the labels. In each further round the unlabelled observations join with their
    probabilities, weighted by how far the larger one exceeds a half; together they weigh as much as the
    labels, and the covariance, now better known, is shrunk half as much.

    Parameters
    ----------
    z
        Features, (n, d).
    labels
        Class codes, -1 where unlabelled; every class occurs.
    n_classes
        Number of classes.
    rounds
        Rounds of self-training.
    """
    z = (z - z.mean(axis=0)) / (z.std(axis=0) + 1e-9)
    known = labels >= 0
    shrinkage = class_shrinkage(z[known], labels[known], n_classes)
    given = np.eye(n_classes)[labels[known]]
    share = np.zeros((len(z), n_classes))
    share[known] = given
    share = ShrinkageLDA().fit(z, share, known.astype(float), shrinkage).predict_proba(z)
    for _ in range(rounds):
        share[known] = given
        sure = np.clip(2 * share.max(axis=1) - 1, 0, 1)
        weight = np.where(known, 1.0, sure * known.sum() / max(float(sure[~known].sum()), 1e-9))
        share = ShrinkageLDA().fit(z, share, weight, shrinkage / 2).predict_proba(z)
    return share
