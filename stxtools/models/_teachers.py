"""Classical teachers: soft class targets that the U-Net learns from. Never written as a result themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.cluster.hierarchy import cut_tree, fcluster, linkage
from scipy.spatial import cKDTree
from scipy.special import softmax
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
