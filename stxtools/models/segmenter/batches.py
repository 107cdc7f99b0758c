"""Segments that batches have together: each batch, as of a patient, has its own first, and those alike are joined."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import sparse
from scipy.cluster.hierarchy import cut_tree, fcluster, linkage
from scipy.spatial.distance import pdist, squareform

from stxtools._types import Floats, Ints, Reals

from .classes import with_all_classes
from .mixtures import View, consensus, cotrain, stacked, whitening

APART = 5.0  # standard deviations between section means: at most 0.6 % of observations look like the other section's
_LEAST = 10  # observations of a batch that one of its own clusters takes, and from which a cluster's mean counts fully


def batches(features: Sequence[Reals]) -> tuple[Ints, Floats]:
    """Batch of each section, and its distance to the nearest other one, in standard deviations within sections.

    That is the Mahalanobis distance of section means, less what is due to few observations. Compartments that a section
    lacks move its mean, but not beyond the range of single observations, as the batch effect of patients does.
    """
    if len(features) == 1:
        return np.zeros(1, dtype=np.int64), np.zeros(1)
    n = np.array([len(x) for x in features], dtype=np.float64)
    means = np.stack([x.mean(axis=0, dtype=np.float64) for x in features])
    white = whitening(np.concatenate([x - m for x, m in zip(features, means, strict=True)]))[1]
    chance = squareform(len(white) * (1 / n[:, None] + 1 / n), checks=False)
    distance = np.sqrt(np.maximum(pdist(means @ white, "sqeuclidean") - chance, 0))
    nearest = squareform(distance) + np.diag(np.full(len(n), np.inf))
    codes = fcluster(linkage(distance, "single"), APART, "distance") - 1
    return codes.astype(np.int64), nearest.min(axis=1)


def segments_of_batches(
    plain: Sequence[Sequence[View]], sharp: Sequence[Sequence[View]], features: Sequence[Reals],
    expression: Sequence[Any], batch: Ints, k: int, rng: np.random.Generator, tick: Callable[[], object],
) -> tuple[Floats, Floats, list[Floats]]:  # fmt: skip
    """Memberships of all in ``k`` segments (n, k), votes and what was agreed on, and each section's offset (d,).

    All but ``batch`` is given by section. ``expression``, dense or sparse, is what clusters are compared by.
    """
    within: list[list[int]] = [np.flatnonzero(batch == b).tolist() for b in range(batch.max() + 1)]
    order = np.argsort(np.concatenate(within))
    views = [(stacked([plain[i] for i in at]), stacked([sharp[i] for i in at])) for at in within]
    own = [_own_clusters(*both, k, rng, tick) for both in views]
    agreed = [a for _, a in own]
    to = _joined(agreed, [_stack([expression[i] for i in at]) for at in within], k)
    offset = _offsets(agreed, to, [np.concatenate([features[i] for i in at]) for at in within])
    parts = []
    for which in (0, 1):
        by_section = []
        for at, clusters, t in zip(within, own, to, strict=True):
            by_section += np.split(clusters[which] @ t, np.cumsum([len(features[i]) for i in at])[:-1])
        parts.append(np.concatenate([by_section[i] for i in order]))
    return parts[0], parts[1], [offset[b] for b in batch]


def _own_clusters(
    plain: Sequence[View], sharp: Sequence[View], k: int, rng: np.random.Generator, tick: Callable[[], object]
) -> tuple[Floats, Floats]:
    """Clusters of a batch, at most ``k``: the vote of mixtures, and what all views agree on."""
    n = len(plain[0])
    k = min(k, n // _LEAST)
    if k < 2:
        return np.ones((n, 1)), np.ones((n, 1))
    voted = with_all_classes(consensus(plain, k, rng, tick), [plain[0][slice(None)]], or_fewer=True)
    return voted, cotrain([*plain, *sharp], voted, rng)


def _joined(own: Sequence[Floats], expression: Sequence[Any], k: int) -> list[Floats]:
    """Which of ``k`` segments each cluster of each batch belongs to, (clusters, k).

    A batch that has more of a compartment has another mean: so clusters are centred by the mean of the batch's
    clusters, not of its observations. Those whose mean expression then points the same way are joined (average linkage
    of cosine distances), as programmes of tumours are (Kinker et al. 2020).
    """
    spread = np.sqrt(np.mean([_variance(x) for x in expression], axis=0)) + 1e-6
    unit = []
    for member, x in zip(own, expression, strict=True):
        means = _means(member, x) / spread
        unit.append(means - np.average(means, axis=0, weights=np.minimum(member.sum(axis=0), _LEAST)))
    every = np.concatenate(unit)
    every /= np.linalg.norm(every, axis=1, keepdims=True) + 1e-9
    group = cut_tree(linkage(every, "average", "sqeuclidean"), min(k, len(every)))[:, 0]
    return np.split(np.eye(k)[group], np.cumsum([len(u) for u in unit])[:-1])


def _offsets(own: Sequence[Floats], to: Sequence[Floats], features: Sequence[Reals]) -> list[Floats]:
    """What the observations of each batch have beside the mean of their segment, on average, (d,)."""
    means = [x.mean(axis=0, dtype=np.float64) for x in features]
    share = [member @ t for member, t in zip(own, to, strict=True)]
    mass = sum(s.sum(axis=0) for s in share)
    total = sum(s.T @ (x - m) for s, x, m in zip(share, features, means, strict=True))
    segment = total / (mass[:, None] + 1e-9)
    return [m - s.mean(axis=0) @ segment for s, m in zip(share, means, strict=True)]


def _means(member: Floats, x: Any) -> Floats:
    return np.asarray((x.T @ member).T) / (member.sum(axis=0)[:, None] + 1e-9)


def _variance(x: Any) -> Floats:
    square = x.multiply(x) if sparse.issparse(x) else x**2
    mean = np.asarray(x.mean(axis=0)).ravel()
    return np.maximum(np.asarray(square.mean(axis=0)).ravel() - mean**2, 0)


def _stack(parts: Sequence[Any]) -> Any:
    return sparse.vstack(parts, "csr") if sparse.issparse(parts[0]) else np.concatenate(parts)
