"""Pseudo-labels from a few labels: co-trained discriminant analyses. Never written as a result themselves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import softmax

from stxtools._spatial.smoothing import Neighbourhoods
from stxtools._types import Floats, Floats32, Ints
from stxtools.models._section import Section
from stxtools.models.ensemble.discriminant import class_shrinkage, shrinkage_lda, standardised

SCALES = ((7, 19), (19, 61), (37, 127))  # nearest observations whose means are read side by side
EDGES = (((19,), 1.5), ((19, 61), 1.0))  # plain means, and the tolerance of the edge-preserving one beside them
FINE_SCALES, FINE_EDGES = ((1, 7),), (((7,), 1.5),)  # the same, read as well in sections that hold ...
_SMALL = 2000  # ... fewer observations on average: wide means blur what little there is
ROUNDS = 8  # of co-training
MEMBERS = 24  # classifiers whose mean probability is the confidence of the pseudo-labels
SHARE = 0.6  # of the components that each of them sees
SHARES_TRUST = 0.7  # part of the way to the class shares given: they may be 30 % off
_SHARES_STEPS = 60


def label_views(sections: Sequence[Section], rows: Sequence[Ints]) -> list[Floats]:
    """Neighbourhood features of the chosen rows of all sections: a matrix (n, d) for each kind, standardised."""
    small = sum(s.n_obs for s in sections) < _SMALL * len(sections)
    scales = SCALES + FINE_SCALES if small else SCALES
    edges = EDGES + FINE_EDGES if small else EDGES
    parts: list[list[Floats32]] = []
    for section, chosen in zip(sections, rows, strict=True):
        near = Neighbourhoods(section.features, section.xy, chosen)
        sharp = near.edge_preserving_means(section.graph, [tolerance for _, tolerance in edges])
        mean = {size: near.mean(size) for size in sorted({size for plain in scales for size in plain})}
        views = [np.concatenate([mean[size] for size in plain], axis=1) for plain in scales]
        views += [
            np.concatenate([*(mean[size] for size in plain), sharp[tolerance]], axis=1) for plain, tolerance in edges
        ]
        parts.append(views)
    return [standardised(np.concatenate(views).astype(np.float64)) for views in zip(*parts, strict=True)]


def spread_labels(
    views: Sequence[Floats], labels: Ints, n_classes: int, *, rounds: int = ROUNDS, class_shares: Floats | None = None
) -> Floats:
    """Class probabilities of all observations from a few labels, by co-trained discriminant analyses.

    Every view has its own discriminant analysis. The first fit sees the labels. In each further round the
    unlabelled observations join with the probabilities on which the views agree (their geometric mean), weighted
    by how far the larger one exceeds a half; together they weigh as much as the labels, and the covariance, now
    better known, is shrunk half as much (co-training; Blum and Mitchell 1998).

    - ``labels``: Class codes, -1 where unlabelled; every class occurs.
    - ``class_shares``: Approximate share of each class, imposed in every round; NaN where unknown.
    """
    known = labels >= 0
    shrinkage = [class_shrinkage(z[known], labels[known], n_classes) for z in views]
    one_hot = np.eye(n_classes)[labels[known]]
    share, weight = np.zeros((len(labels), n_classes)), known.astype(float)
    share[known] = one_hot
    share = _with_shares(_agreed(views, share, weight, shrinkage), class_shares)
    for _ in range(rounds):
        share[known] = one_hot
        sure = np.clip(2 * share.max(axis=1) - 1, 0, 1)
        weight = np.where(known, 1.0, sure * min(known.sum() / max(float(sure[~known].sum()), 1e-9), 1.0))
        share = _with_shares(_agreed(views, share, weight, [s / 2 for s in shrinkage]), class_shares)
    return share


def share_offsets(proba: Floats, class_shares: Floats) -> Floats:
    """Offsets (K,) of the logits that bring the mean probability of each class towards its share."""
    logits, offsets = np.log(proba.clip(1e-9)), np.zeros(proba.shape[1])
    unknown = np.isnan(class_shares)
    for _ in range(_SHARES_STEPS):
        found = softmax(logits + offsets, axis=1).mean(axis=0).clip(1e-9)
        wanted = np.where(unknown, found, class_shares)
        if unknown.any():
            wanted[unknown] *= max(1 - np.nansum(class_shares), 1e-9) / found[unknown].sum()
        offsets += (np.log(wanted) - np.log(found)) / 2
    return SHARES_TRUST * offsets


def _with_shares(share: Floats, class_shares: Floats | None) -> Floats:
    if class_shares is None:
        return share
    return softmax(np.log(share.clip(1e-9)) + share_offsets(share, class_shares), axis=1)


def voted_confidence(views: Sequence[Floats], labels: Ints, n_classes: int, rng: np.random.Generator) -> Floats:
    """Mean class probabilities of classifiers that see random components each: the confidence in a class.

    Random subspaces (Ho 1998). Where the labels settle a class, whichever components are read, all agree. The mean
    probability is close to the share that is right, where the probabilities of a single discriminant analysis, whose
    labels lie in few places, are far too high.
    """
    out = np.zeros((len(labels), n_classes))
    plain = views[: len(SCALES)]
    for i in range(MEMBERS):
        z = plain[i % len(plain)]
        d = z.shape[1] // 2
        columns = np.sort(rng.choice(d, max(min(2, d), round(SHARE * d)), replace=False))
        out += spread_labels([z[:, np.r_[columns, columns + d]]], labels, n_classes, rounds=1) / MEMBERS
    return out


def _agreed(views: Sequence[Floats], share: Floats, weight: Floats, shrinkage: Sequence[float]) -> Floats:
    """Fit one discriminant analysis a view; return the geometric mean of their probabilities."""
    logs = np.zeros_like(share)
    for z, s in zip(views, shrinkage, strict=True):
        logs += np.log(softmax(shrinkage_lda(z, share, weight, s)(z), axis=1).clip(1e-4)) / len(views)
    return softmax(logs, axis=1)
