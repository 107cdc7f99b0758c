"""Pseudo-labels from a few labels, by co-trained discriminant analyses; they are never a result themselves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import softmax

from stxtools._spatial.smoothing import Neighbourhoods
from stxtools._types import Floats, Floats32, Ints
from stxtools.models._section import Section
from stxtools.models.ensemble.discriminant import class_shrinkage, shrinkage_lda, standardised

from .calibration import share_offsets

_SCALES = ((7, 19), (19, 61), (37, 127))  # nearest observations whose means form one view
_EDGES = (((19,), 1.5), ((19, 61), 1.0))  # plain means, and the tolerance of the edge-preserving mean beside them
_FINE_SCALES, _FINE_EDGES = ((1, 7),), (((7,), 1.5),)  # further views of small sections
_SMALL = 2000  # observations of a section, on average, below which sections are small
_ROUNDS = 8  # of co-training
_MEMBERS = 24  # classifiers whose mean probability is the confidence of the pseudo-labels
_SUBSPACE = 0.6  # share of the components that each of them reads


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


def voted_confidence(views: Sequence[Floats], labels: Ints, n_classes: int, rng: np.random.Generator) -> Floats:
    """Mean class probabilities of classifiers on random subspaces (Ho 1998), as the confidence in each class.

    It is close to the accuracy. Probabilities of one discriminant analysis, whose labels lie in few places, are far too
    high.
    """
    out = np.zeros((len(labels), n_classes))
    plain = views[: len(_SCALES)]
    for i in range(_MEMBERS):
        z = plain[i % len(plain)]
        d = z.shape[1] // 2
        columns = np.sort(rng.choice(d, max(min(2, d), round(_SUBSPACE * d)), replace=False))
        out += spread_labels([z[:, np.r_[columns, columns + d]]], labels, n_classes, rounds=1) / _MEMBERS
    return out
