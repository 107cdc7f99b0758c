"""Several sections: which share a batch or a centre, and segments that batches have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import sparse
from scipy.cluster.hierarchy import cut_tree, fcluster, linkage
from scipy.spatial.distance import pdist, squareform

from stxtools._spatial.graph import averaging_matrix
from stxtools._types import Floats, Ints, Reals
from stxtools.models._section import N_BLOCKS, SIMILAR, Section

from .mixtures import View, Whitening, consensus, cotrain, with_all_classes

APART = 5.0  # standard deviations between section means: at most 0.6 % of observations look like the other section's
_MIN_CLUSTER = 10  # observations of a batch for each of its clusters, and from which a cluster's mean counts fully
_MIN_SHARING = 3  # sections that share a centre: each of two shows half of the tissue, and its own mean is safer


def batches(features: Sequence[Reals]) -> tuple[Ints, Floats]:
    """Batch of each section, and its distance to the nearest other one, in standard deviations within sections.

    That is the Mahalanobis distance of section means, less what is due to few observations. Compartments that a section
    lacks move its mean, but not beyond the range of single observations, as the batch effect of patients does.
    """
    if len(features) == 1:
        return np.zeros(1, dtype=np.int64), np.zeros(1)
    n = np.array([len(x) for x in features], dtype=np.float64)
    means = np.stack([x.mean(axis=0, dtype=np.float64) for x in features])
    white = Whitening.of(np.concatenate([x - m for x, m in zip(features, means, strict=True)])).matrix
    chance = squareform(len(white) * (1 / n[:, None] + 1 / n), checks=False)
    distance = np.sqrt(np.maximum(pdist(means @ white, "sqeuclidean") - chance, 0))
    nearest = squareform(distance) + np.diag(np.full(len(n), np.inf))
    codes = fcluster(linkage(distance, "single"), APART, "distance") - 1
    return codes.astype(np.int64), nearest.min(axis=1)


def shared_centres(sections: Sequence[Section], batch: Ints) -> tuple[Ints, Floats | None]:
    """Code of each section's centre, and the directions compared; sections of different ``batch`` share none.

    A batch effect moves means in any direction, another composition only where compartments differ. So means are
    compared in the half of the directions that varies least over space within sections. Their standard error is that of
    the means of blocks, as observations nearby are alike. Single linkage, since tiles of a slide are a chain.
    """
    large = np.flatnonzero([s.n_obs >= 2 * N_BLOCKS for s in sections])
    codes = np.arange(len(sections))
    if len(large) < 2:
        return codes, None
    compared = [sections[i] for i in large.tolist()]
    values = [s.features.astype(np.float64) for s in compared]
    axes = _least_spatial([x - x.mean(axis=0) for x in values], compared)
    error = np.array([s.squared_standard_error(axes) for s in compared])
    difference = squareform(pdist(np.stack([x.mean(axis=0) @ axes for x in values])))
    distance = difference / np.sqrt(error[:, None] + error + 1e-12)
    distance[batch[large, None] != batch[large]] = 2 * SIMILAR
    group = fcluster(linkage(squareform(distance, checks=False), "single"), SIMILAR, "distance")
    _, first, member, size = np.unique(group, return_index=True, return_inverse=True, return_counts=True)
    codes[large] = np.where(size[member] >= _MIN_SHARING, large[first][member], large)
    return np.unique(codes, return_inverse=True)[1], axes


def _least_spatial(centred: Sequence[Floats], sections: Sequence[Section]) -> Floats:
    """Directions (d, d / 2) with the least variance of spatial means, of unit variance within sections."""
    white = Whitening.of(np.concatenate(centred)).matrix
    smooth = []
    for x, section in zip(centred, sections, strict=True):
        mean = averaging_matrix(section.graph)
        smooth.append(mean @ (mean @ (x @ white)))
    axes = np.linalg.eigh(np.atleast_2d(np.cov(np.concatenate(smooth).T)))[1]
    return np.asarray(white @ axes[:, : max(len(axes) // 2, 1)])


def segments_of_batches(
    plain: Sequence[View], edge_preserving: Sequence[View], features: Reals, expression: Any,
    batch: Ints, k: int, rng: np.random.Generator, tick: Callable[[], object],
) -> tuple[Floats, Floats, Floats]:  # fmt: skip
    """Cluster each batch alone, and join the clusters that are alike in ``expression`` (n, G) to ``k`` segments.

    ``batch`` is that of each observation. Returns memberships by the vote of mixtures and after their co-training,
    (n, k) each, and what the batch of each observation adds to its ``features``, (n, d).
    """
    rows = [np.flatnonzero(batch == b) for b in range(batch.max() + 1)]
    voted, cotrained = np.empty((len(batch), k)), np.empty((len(batch), k))
    clusters = [_clusters([v.take(r) for v in plain], [v.take(r) for v in edge_preserving], k, rng, tick)
                for r in rows]  # fmt: skip
    to_segment = _joined([agreed for _, agreed in clusters], [expression[r] for r in rows], k)
    for r, (vote, agreed), segment in zip(rows, clusters, to_segment, strict=True):
        voted[r], cotrained[r] = vote @ segment, agreed @ segment
    offset = _offsets([cotrained[r] for r in rows], [features[r] for r in rows])
    return voted, cotrained, offset[batch]


def _clusters(
    plain: Sequence[View], edge_preserving: Sequence[View], k: int, rng: np.random.Generator, tick: Callable[[], object]
) -> tuple[Floats, Floats]:
    """Memberships in at most ``k`` clusters of a batch, by the vote of mixtures and after their co-training."""
    n = len(plain[0])
    k = min(k, n // _MIN_CLUSTER)
    if k < 2:
        return np.ones((n, 1)), np.ones((n, 1))
    voted = with_all_classes(consensus(plain, k, rng, tick), [plain[0][slice(None)]], or_fewer=True)
    return voted, cotrain([*plain, *edge_preserving], voted, rng)


def _joined(clusters: Sequence[Floats], expression: Sequence[Any], k: int) -> list[Floats]:
    """Segment, of ``k``, of each cluster of each batch, one-hot, (clusters, k).

    A batch that has more of a compartment has another mean: so clusters are centred by the mean of the batch's
    clusters, not of its observations. Those whose mean expression then points the same way are joined (average linkage
    of cosine distances), as programmes of tumours are (Kinker et al. 2020).
    """
    scale = np.sqrt(np.mean([_variance(x) for x in expression], axis=0)) + 1e-6
    centred = []
    for member, x in zip(clusters, expression, strict=True):
        size = member.sum(axis=0)
        means = np.asarray((x.T @ member).T) / (size[:, None] + 1e-9) / scale
        centred.append(means - np.average(means, axis=0, weights=np.minimum(size, _MIN_CLUSTER)))
    directions = np.concatenate(centred)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True) + 1e-9
    group = cut_tree(linkage(directions, "average", "sqeuclidean"), min(k, len(directions)))[:, 0]
    return np.split(np.eye(k)[group], np.cumsum([len(c) for c in centred])[:-1])


def _offsets(segments: Sequence[Floats], features: Sequence[Reals]) -> Floats:
    """Mean difference of the observations of each batch from the means of their segments, (batches, d)."""
    means = [x.mean(axis=0, dtype=np.float64) for x in features]
    mass = sum(s.sum(axis=0) for s in segments)
    total = sum(s.T @ (x - m) for s, x, m in zip(segments, features, means, strict=True))
    segment = total / (mass[:, None] + 1e-9)
    return np.stack([m - s.mean(axis=0) @ segment for s, m in zip(segments, means, strict=True)])


def _variance(x: Any) -> Floats:
    square = x.multiply(x) if sparse.issparse(x) else x**2
    mean = np.asarray(x.mean(axis=0)).ravel()
    return np.maximum(np.asarray(square.mean(axis=0)).ravel() - mean**2, 0)
