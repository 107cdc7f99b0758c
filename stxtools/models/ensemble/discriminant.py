"""Linear discriminant analysis with weights and a shrunken covariance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stxtools._types import Floats, Ints, Reals


@dataclass(frozen=True)
class Linear:
    """Logits (or values) z @ coef + intercept; coef (d, K), intercept (K,)."""

    coef: Floats
    intercept: Floats

    def __call__(self, z: Reals) -> Floats:
        """Logits of observations (n, d), (n, K)."""
        return z @ self.coef + self.intercept


def linear_logits(means: Floats, within: Floats, prior: Floats) -> tuple[Floats, Floats]:
    """Coefficients (d, K) and intercepts (K,) of normal classes of these means (K, d), one covariance and shares."""
    coef = np.asarray(np.linalg.solve(within, means.T))
    return coef, -0.5 * np.einsum("kd,dk->k", means, coef) + np.log(prior)


def shrunken(covariance: Floats, shrinkage: float) -> Floats:
    """Draw a covariance to its own diagonal, and add next to nothing that it can be inverted."""
    covariance = (1 - shrinkage) * covariance + shrinkage * np.diag(np.diag(covariance))
    return covariance + 1e-6 * max(float(np.trace(covariance)) / len(covariance), 1e-9) * np.eye(len(covariance))


def standardised(z: Floats) -> Floats:
    """Each column with a mean of 0 and a standard deviation of 1; one that does not vary is 0."""
    return (z - z.mean(axis=0)) / (z.std(axis=0) + 1e-9)


def shrinkage_lda(z: Floats, share: Floats, weight: Floats, shrinkage: float) -> Linear:
    """Linear discriminant analysis of observations (n, d) with class shares (n, K) and weights (n,).

    The pooled covariance is drawn to its own diagonal.
    """
    mass = share * weight[:, None]
    count = mass.sum(axis=0)
    means = (mass.T @ z) / (count[:, None] + 1e-12)
    total = (z * weight[:, None]).T @ z / count.sum()
    within = shrunken(total - (means.T * (count / count.sum())) @ means, shrinkage)
    return Linear(*linear_logits(means, within, (count + 1) / (count + 1).sum()))


def class_shrinkage(z: Floats, labels: Ints, n_classes: int) -> float:
    """Mean Ledoit-Wolf shrinkage of the classes' correlation matrices, weighted by their size."""
    from sklearn.covariance import ledoit_wolf

    found, sizes = [], []
    for c in range(n_classes):
        part = z[labels == c]
        sizes.append(len(part))
        found.append(ledoit_wolf(standardised(part))[1] if len(part) > 2 else 1.0)
    return float(np.average(found, weights=sizes))
