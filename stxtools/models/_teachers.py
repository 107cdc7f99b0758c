"""Classical teachers: soft class targets that the U-Net learns from. Never written as a result themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.cluster.hierarchy import cut_tree, fcluster, linkage
from scipy.spatial import cKDTree
from sklearn.covariance import ledoit_wolf
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture

from stxtools._spatial.graph import neighbour_mean

FloatArray = NDArray[np.float64]

_TREE = 3000  # observations that Ward's tree sees: it needs all their distances
_FIT = 20_000  # observations that a mixture is fitted to


class TiedMixture:
    """Gaussian mixture with one covariance for all classes, started from Ward's tree.

    Mixtures of this kind on spatially averaged principal components stand level with the published
    graph networks on cortex sections. The tree (on whitened data) makes the start deterministic.
    """

    def __init__(self, k: int, *, max_iter: int = 100) -> None:
        self.k, self.max_iter = k, max_iter

    def fit(self, z: FloatArray, rng: np.random.Generator) -> TiedMixture:
        """Fit to observations (n, d); a random part of them where n is large."""
        z = _subsample(z, _FIT, rng)
        start = _subsample(z, _TREE, rng)
        return self._fit_from(z, start, fcluster(linkage(_whiten(start), "ward"), self.k, "maxclust") - 1)

    def _fit_from(self, z: FloatArray, start: FloatArray, labels: NDArray[np.int64]) -> TiedMixture:
        sizes = np.bincount(labels, minlength=self.k)
        if (sizes == 0).any():
            raise ValueError(
                f"The data have only {int((sizes > 0).sum())} distinct groups; `n_segments={self.k}` cannot be reached."
            )
        means = np.stack([start[labels == c].mean(axis=0) for c in range(self.k)])
        scatter = (start - means[labels]).T @ (start - means[labels]) / len(start)
        ridge = 1e-4 * max(float(np.trace(scatter)) / len(scatter), 1e-8)
        self.model_ = GaussianMixture(
            self.k,
            covariance_type="tied",
            means_init=means,
            weights_init=sizes / sizes.sum(),
            precisions_init=np.linalg.inv(scatter + ridge * np.eye(len(scatter))),
            reg_covar=ridge,
            max_iter=self.max_iter,
            tol=1e-3,
            random_state=0,
        ).fit(z)
        return self

    def predict_proba(self, z: FloatArray) -> FloatArray:
        """Class probabilities, (n, k)."""
        return self.model_.predict_proba(z)


def _subsample(z: FloatArray, size: int, rng: np.random.Generator) -> FloatArray:
    return z if len(z) <= size else z[np.sort(rng.choice(len(z), size, replace=False))]


def _whiten(z: FloatArray) -> FloatArray:
    covariance = np.atleast_2d(np.cov(z.T))
    ridge = 1e-6 * max(float(np.trace(covariance)) / len(covariance), 1e-12)
    lower = np.linalg.cholesky(covariance + ridge * np.eye(len(covariance)))
    return np.linalg.solve(lower, (z - z.mean(axis=0)).T).T


def smoothed_views(features: NDArray[np.float32], graph: sparse.csr_matrix) -> list[FloatArray]:
    """Features after one, two and three rounds of averaging over the spatial neighbours, all and 3/4 of them."""
    views, z = [], features.astype(np.float64)
    fewer = max(1, round(0.75 * z.shape[1]))
    for _ in range(3):
        z = neighbour_mean(graph, z)
        views += [z, z[:, :fewer]] if fewer < z.shape[1] else [z]
    return views


def consensus(
    views: Sequence[FloatArray], k: int, rng: np.random.Generator, tick: Callable[[], object] = lambda: None
) -> tuple[FloatArray, FloatArray]:
    """Soft partition into exactly ``k`` classes from many mixtures, and how far they agree.

    Every view is fitted twice, from trees over all and over half of the observations; the
    observations are then clustered by their memberships in all the mixtures (Ward's tree, nearest
    centre). A single mixture can end in a bad optimum; their consensus rarely does.

    Returns
    -------
    Target probabilities (n, k), and the agreement of the mixtures for each observation (n,) in 0..1.
    """
    memberships = []
    for view in views:
        for share in (1.0, 0.5):
            size = max(min(len(view), 10 * k), int(share * len(view)))
            memberships.append(TiedMixture(k).fit(_subsample(view, size, rng), rng).predict_proba(view))
            tick()
    stacked = np.concatenate(memberships, axis=1)
    rows = np.arange(len(stacked))
    if len(rows) > _TREE:
        rows = np.sort(rng.choice(len(rows), _TREE, replace=False))
    labels = fcluster(linkage(stacked[rows], "ward"), k, "maxclust") - 1
    centres = np.stack([stacked[rows][labels == c].mean(axis=0) for c in range(labels.max() + 1)])
    if len(centres) < k:
        raise ValueError(f"The data have only {len(centres)} distinct groups; `n_segments={k}` cannot be reached.")
    # squared distances of membership vectors lie in 0 .. 2 per mixture: the agreement with a centre
    distance = (stacked**2).sum(1)[:, None] - 2 * stacked @ centres.T + (centres**2).sum(1)
    near = np.exp(-distance / (0.1 * len(memberships)))
    target = near / near.sum(axis=1, keepdims=True).clip(1e-300)
    chosen = distance.argmin(axis=1)
    agreement = np.clip(1 - distance[np.arange(len(chosen)), chosen] / (2 * len(memberships)), 0, 1)
    return target, agreement


def stability_curve(
    z: FloatArray, ks: Sequence[int], rng: np.random.Generator, *, resamples: int = 6, size: int = 1500
) -> FloatArray:
    """Mean pairwise adjusted Rand index of mixtures fitted to random halves, for each number of classes.

    Each half is clustered by a tree and a tied mixture; all are compared on the same observations
    (stability of clustering; Ben-Hur, Elisseeff and Guyon 2002).
    """
    judged = _subsample(z, 3000, rng)
    found: list[list[NDArray[np.int64]]] = [[] for _ in ks]
    for _ in range(resamples):
        half = _subsample(z, min(size, max(len(z) // 2, max(ks) + 1)), rng)
        cuts = cut_tree(linkage(_whiten(half), "ward"), list(ks))
        for i, k in enumerate(ks):
            mixture = TiedMixture(k, max_iter=30)._fit_from(half, half, cuts[:, i])
            found[i].append(mixture.model_.predict(judged))
    pairs = [(a, b) for a in range(resamples) for b in range(a)]
    return np.array([np.mean([adjusted_rand_score(f[a], f[b]) for a, b in pairs]) for f in found])


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


class ShrinkageLDA:
    """Linear discriminant analysis with a Ledoit-Wolf pooled covariance.

    The covariance is pooled over the classes before it is shrunk, so that classes with one or two
    labelled observations are allowed.
    """

    def fit(self, z: FloatArray, labels: NDArray[np.int64], n_classes: int) -> ShrinkageLDA:
        """Fit to observations (n, d) with labels 0 .. n_classes - 1, all present."""
        self.centre_, self.scale_ = z.mean(axis=0), z.std(axis=0) + 1e-9
        z = (z - self.centre_) / self.scale_
        means = np.stack([z[labels == c].mean(axis=0) for c in range(n_classes)])
        covariance = ledoit_wolf(z - means[labels], assume_centered=True)[0]
        ridge = 1e-6 * max(float(np.trace(covariance)) / len(covariance), 1e-6)
        self.coef_ = np.linalg.solve(covariance + ridge * np.eye(len(covariance)), means.T)
        share = np.bincount(labels, minlength=n_classes) / len(labels)
        self.intercept_ = -0.5 * np.einsum("kd,dk->k", means, self.coef_) + np.log(share)
        return self

    def predict_proba(self, z: FloatArray) -> FloatArray:
        """Class probabilities, (n, n_classes)."""
        logits = (z - self.centre_) / self.scale_ @ self.coef_ + self.intercept_
        logits -= logits.max(axis=1, keepdims=True)
        proba = np.exp(logits)
        return proba / proba.sum(axis=1, keepdims=True)
