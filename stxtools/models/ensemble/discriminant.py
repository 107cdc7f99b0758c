"""Linear discriminant analysis with weights and a shrunken covariance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from stxtools._types import Floats, Ints, Reals


@dataclass(frozen=True)
class Linear:
    """Linear map of features (n, d) to logits or values (n, K): ``coef`` is (d, K), ``intercept`` (K,)."""

    coef: Floats
    intercept: Floats

    def __call__(self, z: Reals) -> Floats:
        """Apply it to features."""
        return z @ self.coef + self.intercept

    def astype(self, dtype: Any) -> Linear:
        """Convert to another precision."""
        return Linear(self.coef.astype(dtype), self.intercept.astype(dtype))


def normal_logits(means: Floats, within: Floats, prior: Floats) -> Linear:
    """Logits of normal classes with these means (K, d), one covariance ``within`` and class shares ``prior``."""
    coef = np.asarray(np.linalg.solve(within, means.T))
    return Linear(coef, -0.5 * np.einsum("kd,dk->k", means, coef) + np.log(prior))


def shrunken(covariance: Floats, shrinkage: float) -> Floats:
    """Shrink a covariance to its own diagonal, and add a small ridge that makes it invertible."""
    covariance = (1 - shrinkage) * covariance + shrinkage * np.diag(np.diag(covariance))
    return covariance + 1e-6 * max(float(np.trace(covariance)) / len(covariance), 1e-9) * np.eye(len(covariance))


def standardised(z: Floats) -> Floats:
    """Scale each column to a mean of 0 and a standard deviation of 1; a constant one becomes 0."""
    return (z - z.mean(axis=0)) / (z.std(axis=0) + 1e-9)


def shrinkage_lda(z: Floats, share: Floats, weight: Floats, shrinkage: float) -> Linear:
    """Linear discriminant analysis of observations (n, d) with class shares (n, K) and weights (n,)."""
    mass = share * weight[:, None]
    count = mass.sum(axis=0)
    means = (mass.T @ z) / (count[:, None] + 1e-12)
    total = (z * weight[:, None]).T @ z / count.sum()
    within = shrunken(total - (means.T * (count / count.sum())) @ means, shrinkage)
    return normal_logits(means, within, (count + 1) / (count + 1).sum())


def class_shrinkage(z: Floats, labels: Ints, n_classes: int) -> float:
    """Mean Ledoit-Wolf shrinkage of the classes' correlation matrices, weighted by their size."""
    from sklearn.covariance import ledoit_wolf

    shrinkage, sizes = [], []
    for c in range(n_classes):
        part = z[labels == c]
        sizes.append(len(part))
        shrinkage.append(ledoit_wolf(standardised(part))[1] if len(part) > 2 else 1.0)
    return float(np.average(shrinkage, weights=sizes))
