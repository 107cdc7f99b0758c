"""Linear discriminant analysis with weights and a shrunken covariance."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


class ShrinkageLDA:
    """Linear discriminant analysis with weights, whose pooled covariance is drawn to its own diagonal."""

    def fit(self, z: FloatArray, share: FloatArray, weight: FloatArray, shrinkage: float) -> ShrinkageLDA:
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


def class_shrinkage(z: FloatArray, labels: IntArray, n_classes: int) -> float:
    """Mean Ledoit-Wolf shrinkage of the classes' correlation matrices, weighted by their size."""
    from sklearn.covariance import ledoit_wolf

    found, sizes = [], []
    for c in range(n_classes):
        part = z[labels == c]
        sizes.append(len(part))
        scaled = (part - part.mean(axis=0)) / (part.std(axis=0) + 1e-9)
        found.append(ledoit_wolf(scaled)[1] if len(part) > 2 else 1.0)
    return float(np.average(found, weights=sizes))
