"""Pseudo-labels from a few labels, by co-trained discriminant analyses; they are never a result themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import sparse
from scipy.ndimage import maximum
from scipy.sparse.csgraph import connected_components
from scipy.special import softmax

from stxtools._spatial.smoothing import Neighbourhoods
from stxtools._types import Floats, Floats32, Ints
from stxtools.models._section import Section, group_means
from stxtools.models.ensemble.discriminant import class_shrinkage, shrinkage_lda, standardised

from .calibration import share_offsets

_SCALES = ((7, 19), (19, 61), (37, 127))  # nearest observations whose means form one view
_EDGES = (((19,), 1.5), ((19, 61), 1.0))  # plain means, and the tolerance of the edge-preserving mean beside them
_FINE_SCALES, _FINE_EDGES = ((1, 7),), (((7,), 1.5),)  # further views of small sections
_SMALL = 2000  # observations of a section, on average, below which sections are small
_ROUNDS = 8  # of co-training
_MEMBERS = 24  # classifiers whose mean probability is the confidence of the pseudo-labels
_MAX_PIECES = 100  # of labels of a section that are redrawn as a whole; the labels of others one by one


def label_views(sections: Sequence[Section], rows: Sequence[Ints]) -> list[Floats]:
    """Neighbourhood features of the given rows of all sections, a standardised matrix (n, d) for each view."""
    small = sum(s.n_obs for s in sections) < _SMALL * len(sections)
    scales = _SCALES + _FINE_SCALES if small else _SCALES
    edges = _EDGES + _FINE_EDGES if small else _EDGES
    parts: list[list[Floats32]] = []
    for section, chosen in zip(sections, rows, strict=True):
        near = Neighbourhoods(section.features, section.xy, chosen)
        sharp = near.edge_preserving_means(section.graph, [tolerance for _, tolerance in edges])
        mean = {size: near.mean(size) for size in sorted({size for sizes in scales for size in sizes})}
        views = [[mean[size] for size in sizes] for sizes in scales]
        views += [[*(mean[size] for size in sizes), sharp[tolerance]] for sizes, tolerance in edges]
        parts.append([np.concatenate(means, axis=1) for means in views])
    return [standardised(np.concatenate(views).astype(np.float64)) for views in zip(*parts, strict=True)]


def spread_labels(
    views: Sequence[Floats], labels: Ints, n_classes: int, *, rounds: int = _ROUNDS, class_shares: Floats | None = None
) -> Floats:
    """Class probabilities of all observations from a few labels, by co-trained discriminant analyses.

    Every view has its own discriminant analysis. The first fit sees the labels alone. In each further round the
    unlabelled observations join with the geometric mean of the views' probabilities, weighted by how far the largest
    exceeds a half; together they weigh as much as the labels, and the covariance, now better known, is shrunk half as
    much (co-training; Blum and Mitchell 1998).

    - ``labels``: Class codes, -1 where unlabelled; every class occurs.
    - ``class_shares``: Approximate share of each class, imposed in every round; NaN where unknown.
    """
    known = labels >= 0
    shrinkage = [class_shrinkage(z[known], labels[known], n_classes) for z in views]
    share = np.zeros((len(labels), n_classes))
    for turn in range(rounds + 1):
        share[known] = np.eye(n_classes)[labels[known]]
        certainty = np.clip(2 * share.max(axis=1) - 1, 0, 1)
        weight = np.where(known, 1.0, certainty * min(known.sum() / max(float(certainty[~known].sum()), 1e-9), 1.0))
        logs = np.zeros_like(share)
        for z, s in zip(views, shrinkage, strict=True):
            lda = shrinkage_lda(z, share, weight, s / 2 if turn else s)
            logs += np.log(softmax(lda(z), axis=1).clip(1e-4)) / len(views)
        share = softmax(logs, axis=1)
        if class_shares is not None:
            share = softmax(np.log(share.clip(1e-9)) + share_offsets(share, class_shares), axis=1)
    return share


def redrawn_confidence(
    sections: Sequence[Section], rows: Sequence[Ints], views: Sequence[Floats], labels: Ints, predicted: Ints,
    n_classes: int, rng: np.random.Generator,
) -> Floats:  # fmt: skip
    """Mean class probabilities of classifiers whose labels lie elsewhere, as the confidence in each class.

    How far predictions depend on where labels lie is close to the error. Probabilities of one discriminant analysis are
    far too high.

    - ``labels``, ``predicted``: Class codes at the ``rows`` of the sections, -1 where unlabelled; predicted classes.
    """
    ends = np.cumsum([len(part) for part in rows])[:-1]
    parts = list(zip(sections, rows, np.split(labels, ends), np.split(predicted, ends), strict=True))
    pieces = [_pieces(section, part, codes) for section, part, codes, _ in parts]
    out = np.zeros((len(labels), n_classes))
    for i in range(_MEMBERS):
        moved = [_moved(s.xy[part], p, classes, rng) for (s, part, _, classes), p in zip(parts, pieces, strict=True)]
        out += spread_labels([views[i % len(_SCALES)]], np.concatenate(moved), n_classes, rounds=1) / _MEMBERS
    return out


class _Piece(NamedTuple):
    """Labels of one class that lie together."""

    code: int
    n_labels: int
    squared_radius: float  # infinite: they lie anywhere


def _pieces(section: Section, rows: Ints, labels: Ints) -> list[_Piece]:
    """Connected pieces of labels; single labels of a class, and its pieces beyond the largest, lie anywhere."""
    known = np.flatnonzero(labels >= 0)
    if not known.size:
        return []
    codes, xy, graph = labels[known], section.xy[rows[known]], section.graph[rows[known]][:, rows[known]].tocoo()
    same = codes[graph.row] == codes[graph.col]
    edges = sparse.coo_matrix((same[same], (graph.row[same], graph.col[same])), graph.shape)
    piece = connected_components(edges, directed=False)[1]
    _, first, size = np.unique(piece, return_index=True, return_counts=True)
    from_centre = ((xy - group_means(xy, np.ones(len(xy)), piece)[piece]) ** 2).sum(axis=1)
    radius = maximum(from_centre, piece, np.arange(len(size)))
    large = np.argsort(-size, kind="stable")[:_MAX_PIECES]
    large = large[size[large] > 1]
    out = [_Piece(int(codes[first[i]]), int(size[i]), float(radius[i])) for i in large]
    others = zip(*np.unique(codes[~np.isin(piece, large)], return_counts=True), strict=True)
    return out + [_Piece(int(code), int(count), np.inf) for code, count in others]


def _moved(xy: Floats, pieces: Sequence[_Piece], predicted: Ints, rng: np.random.Generator) -> Ints:
    """Labels (n,) that are as many and lie as close together, around random observations of their predicted class."""
    out = np.full(len(xy), -1)
    members = {p.code: np.flatnonzero(predicted == p.code) for p in pieces}
    for p in pieces:
        rows = members[p.code]
        distance = ((xy[rows] - xy[rng.choice(rows)]) ** 2).sum(axis=1)
        # at the rim of its class, a disc of that radius may hold fewer observations than labels
        n_near = max(p.n_labels, int((distance <= p.squared_radius * (1 + 1e-9)).sum()))
        near = np.argpartition(distance, n_near - 1)[:n_near]
        out[rows[rng.choice(near, p.n_labels, replace=False)]] = p.code
    return out
