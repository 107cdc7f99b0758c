"""Consensus of Gaussian mixtures: the teacher without labels. Never written as a result itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.cluster.hierarchy import cut_tree, fcluster, linkage
from scipy.optimize import linear_sum_assignment
from scipy.special import softmax
from sklearn.metrics import adjusted_rand_score

from stxtools._spatial.graph import neighbour_mean

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

STARTS = 6  # mixtures for each view; with three, one seed in five ended in a bad consensus on a cortex section
_TREE = 800  # observations of a tree: few, so that starts differ and cost little
_FIT = 20_000  # observations that a mixture is fitted to
_JUDGE = 3000  # observations on which partitions are compared
_PAIRS = ((1, 3), (1, 5), (2, 5), (2, 8))  # rounds of averaging that are read side by side
_SINGLE = (2, 4)


def most_rounds(n_obs: int) -> int:
    """Rounds of averaging whose window (of a hexagonal lattice) holds at most a tenth of a section."""
    longest = max(max(pair) for pair in _PAIRS)
    return max([r for r in range(1, longest + 1) if 1 + 3 * r * (r + 1) <= n_obs / 10], default=1)


def multiscale_views(
    features: NDArray[np.float32], graph: sparse.csr_matrix, rounds: int | None = None
) -> list[FloatArray]:
    """Fine and coarse spatial means side by side, and single scales; of all and of 3/4 of the components.

    ``rounds`` bounds the averaging; by default :func:`most_rounds` of the number of observations.
    """
    cap = most_rounds(len(features)) if rounds is None else rounds
    x = features.astype(np.float64)
    means: dict[int, FloatArray] = {}
    for r in range(1, cap + 1):
        x = neighbour_mean(graph, x)
        means[r] = x
    d = x.shape[1]
    widths = sorted({d, max(1, round(0.75 * d))}, reverse=True)
    single = sorted({min(r, cap) for r in _SINGLE})
    pairs = sorted({(min(a, cap), min(b, cap)) for a, b in _PAIRS if min(a, cap) < min(b, cap)})
    joint = [np.concatenate([means[r][:, :q] for r in pair], axis=1) for q in widths for pair in pairs]
    return joint + [means[r][:, :q] for r in single for q in widths]


def steady_view(features: NDArray[np.float32], graph: sparse.csr_matrix) -> FloatArray:
    """Features on which the number of classes is judged: 3/4 of the components, averaged twice."""
    fewer = max(1, round(0.75 * features.shape[1]))
    return neighbour_mean(graph, features[:, :fewer].astype(np.float64), rounds=2)


def consensus(
    views: Sequence[FloatArray], k: int, rng: np.random.Generator, tick: Callable[[], object] = lambda: None
) -> tuple[FloatArray, FloatArray]:
    """Soft partition into ``k`` classes: the mean of many mixtures, matched to the one most like the others.

    The reference is the medoid under the adjusted Rand index. The classes of each mixture are matched to
    it (Hungarian method), and their mean, weighted by how much a mixture is like the others, is the next
    reference, five times (voting; Dimitriadou, Weingessel and Hornik 2002). A single mixture can end in a
    bad optimum; their consensus rarely does.

    Returns
    -------
    Target probabilities (n, k), and the share of the mixtures that agree with the chosen class (n,) in 0..1.

    Raises
    ------
    ValueError
        If the data do not hold ``k`` distinct groups.
    """
    memberships: list[FloatArray] = []
    for view in views:
        memberships += tied_memberships(view, k, rng)
        tick()
    rows = _some(len(memberships[0]), _JUDGE, rng)
    hard = [m[rows].argmax(axis=1) for m in memberships]
    alike = np.eye(len(hard))
    for a in range(len(hard)):
        for b in range(a):
            alike[a, b] = alike[b, a] = adjusted_rand_score(hard[a], hard[b])
    complete = np.array([len(set(m.argmax(axis=1).tolist())) == k for m in memberships])
    if not complete.any():
        raise ValueError(f"No mixture kept {k} groups apart; `n_segments={k}` cannot be reached on these data.")
    standing = alike.mean(axis=1).clip(1e-3)
    medoid = memberships[int(np.where(complete, standing, 0).argmax())]
    target = medoid
    for _ in range(5):
        mean = np.zeros_like(target)
        for m, weight in zip(memberships, standing, strict=True):
            mean += weight * m[:, linear_sum_assignment(-(target[rows].T @ m[rows]))[1]]
        target = mean / standing.sum()
    if len(set(target.argmax(axis=1).tolist())) < k:  # a class on which the mixtures differ too much is voted away
        target = medoid
    return target, target.max(axis=1)


def tied_memberships(z: FloatArray, k: int, rng: np.random.Generator, *, starts: int = STARTS) -> list[FloatArray]:
    """Memberships (n, k) in Gaussian mixtures with one covariance for all classes, from ``starts`` trees.

    Mixtures of this kind on spatially averaged principal components stand level with the published graph
    networks on cortex sections.
    """
    rows = _some(len(z), _FIT, rng)
    centre, white = _whitening(z[rows])
    z = (z - centre) @ white
    part = z[rows]
    out = []
    for _ in range(starts):
        sample = part[_some(len(part), max(_TREE, 10 * k), rng)]
        labels = fcluster(linkage(sample, "ward"), k, "maxclust") - 1
        if labels.max() + 1 < k:
            raise ValueError(
                f"The data have only {labels.max() + 1} distinct groups; `n_segments={k}` cannot be reached."
            )
        coef, intercept = fit_tied(part, _from_tree(sample, labels, k))
        out.append(softmax(z @ coef + intercept, axis=1))
    return out


def fit_tied(
    z: FloatArray, logits: tuple[FloatArray, FloatArray], *, max_iter: int = 100, tol: float = 1e-3
) -> tuple[FloatArray, FloatArray]:
    """EM of a tied Gaussian mixture, as linear logits (coefficients, intercept).

    ``z`` must be whitened by its own mean and covariance. The total covariance being the identity, the one
    within classes is the identity less the one between them, so that a step costs n * d * k and no pass
    over (n, d, d).
    """
    coef, intercept = logits
    share = softmax(z @ coef + intercept, axis=1)
    for _ in range(max_iter):
        mass = share.sum(axis=0)
        prior = (mass + 1) / (len(z) + len(mass))
        means = (share.T @ z) / (mass[:, None] + 1e-9)
        within = (1 + 1e-3) * np.eye(z.shape[1]) - (means.T * (mass / len(z))) @ means
        coef = np.linalg.solve(within, means.T)
        intercept = -0.5 * np.einsum("kd,dk->k", means, coef) + np.log(prior)
        new = softmax(z @ coef + intercept, axis=1)
        change, share = float(np.abs(new - share).sum()) / (2 * len(z)), new
        if change < tol:
            break
    return coef, intercept


def stability_curve(
    z: FloatArray, ks: Sequence[int], rng: np.random.Generator, *, resamples: int = 6, size: int = 1500
) -> FloatArray:
    """Mean pairwise adjusted Rand index of mixtures fitted to random halves, for each number of classes.

    Each half is clustered by a tree and a tied mixture; all are compared on the same observations
    (stability of clustering; Ben-Hur, Elisseeff and Guyon 2002).
    """
    judged = z[_some(len(z), _JUDGE, rng)]
    found: list[list[IntArray]] = [[] for _ in ks]
    for _ in range(resamples):
        half = z[_some(len(z), min(size, max(len(z) // 2, max(ks) + 1)), rng)]
        centre, white = _whitening(half)
        half, seen = (half - centre) @ white, (judged - centre) @ white
        cuts = cut_tree(linkage(half, "ward"), list(ks))
        for i, k in enumerate(ks):
            coef, intercept = fit_tied(half, _from_tree(half, cuts[:, i], k), max_iter=30)
            found[i].append((seen @ coef + intercept).argmax(axis=1))
    pairs = [(a, b) for a in range(resamples) for b in range(a)]
    return np.array([np.mean([adjusted_rand_score(f[a], f[b]) for a, b in pairs]) for f in found])


def _some(n: int, size: int, rng: np.random.Generator) -> IntArray:
    return np.arange(n) if n <= size else np.sort(rng.choice(n, size, replace=False))


def _whitening(z: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Mean of ``z``, and the matrix that makes its total covariance the identity."""
    covariance = np.atleast_2d(np.cov(z.T, bias=True))
    ridge = 1e-4 * max(float(np.trace(covariance)) / len(covariance), 1e-12)
    lower = np.linalg.cholesky(covariance + ridge * np.eye(len(covariance)))
    return z.mean(axis=0), np.linalg.inv(lower).T


def _from_tree(z: FloatArray, labels: IntArray, k: int) -> tuple[FloatArray, FloatArray]:
    """Linear logits of the classes of a tree over whitened observations."""
    means = np.stack([z[labels == c].mean(axis=0) for c in range(k)])
    rest = z - means[labels]
    coef = np.linalg.solve(rest.T @ rest / len(z) + 1e-3 * np.eye(z.shape[1]), means.T)
    prior = np.bincount(labels, minlength=k) / len(labels)
    return coef, -0.5 * np.einsum("kd,dk->k", means, coef) + np.log(prior)
