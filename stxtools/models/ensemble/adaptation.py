"""Logits of the linear members in a section, and their adaptation to the section's own components."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.special import log_softmax, softmax

from stxtools._spatial.points import evenly_spread
from stxtools._types import Floats, Ints

from .discriminant import shrinkage_lda, standardised
from .gene_means import SIZES, GeneMeans
from .moments import N_COMPS, LinearMembers

RIDGE_SCALE = 6.0  # from scores to logits
ADAPT_FROM = SIZES[0] * 2 * N_COMPS  # observations: an independent neighbourhood for each component
_MIN_LOG_PROBA = -8.0
_MIN_GAIN = 0.05  # of agreement, by a shift of the ridge's logits
_AGREEMENT_FROM = 100  # observations from which the agreement of two classifiers is measured
_ROUNDS, _SHRINKAGE = 6, 0.1  # of the co-training
_MAX_ROWS = 60_000  # observations from which it learns
_MIN_WEIGHT = 1e-3


@dataclass(frozen=True)
class Prediction:
    """Class logits of a section, (n, K), and the weight of each member in them."""

    logits: Floats
    weights: dict[str, float]


@dataclass(frozen=True)
class MemberLogits:
    """Logits of the members in a section."""

    ridge: Floats  # (n, K)
    lda: Floats  # of the discriminant analysis, (n, K)
    components: Floats  # the section's own, standardised, (n, 2 k)

    @classmethod
    def of(cls, members: LinearMembers, means: GeneMeans, own: Floats | None = None) -> MemberLogits:
        """Predict a section, whose components are those along its ``own`` axes (none by default)."""
        own = np.zeros((len(members.axes), 0)) if own is None else own
        ends = np.cumsum([len(members.ridge_intercept), members.axes.shape[1]])
        first, second = means.projected([np.hstack([w, members.axes, own]) for w in members.ridge])
        parts = list(zip(np.split(first, ends, axis=1), np.split(second, ends, axis=1), strict=True))
        scores = parts[0][0] + parts[0][1] + members.ridge_intercept
        z, components = (standardised(np.hstack(pair)) for pair in parts[1:])
        lda = np.maximum(log_softmax(members.lda(z), axis=1), _MIN_LOG_PROBA)
        return cls(log_softmax(RIDGE_SCALE * scores, axis=1), log_softmax(lda, axis=1), components)

    def shifted(self, shift: Floats) -> MemberLogits:
        """Add ``shift`` (K,) to the ridge's logits, if the components then agree with them clearly more."""
        other = replace(self, ridge=log_softmax(self.ridge + shift, axis=1))
        before, after = (agreement(cotrained(m.ridge, m.components, prior=0.0), m.ridge) for m in (self, other))
        return other if after > before + _MIN_GAIN else self

    def combined(self, labels: Ints | None = None, *, with_lda: bool | None = None, adapt: bool = True) -> Prediction:
        """Sum the members, and co-train the sum with the section's own components.

        By default the discriminant analysis takes part if co-training brings the ridge nearer to it. It does not where
        components of another donor mean something else.
        """
        if with_lda is None:
            few = len(self.ridge) < _AGREEMENT_FROM
            refined = self.ridge if few else cotrained(self.ridge, self.components, prior=0.0)
            with_lda = few or agreement(refined, self.lda) > agreement(self.ridge, self.lda)
        logits = log_softmax(self.ridge + self.lda, axis=1) if with_lda else self.ridge
        adapts = labels is not None or (adapt and len(logits) >= ADAPT_FROM)
        if adapts:
            logits = cotrained(logits, self.components, labels)
        return Prediction(logits, {"ridge": 1.0, "lda": float(with_lda), "adaptation": float(adapts)})


def cotrained(logits: Floats, components: Floats, labels: Ints | None = None, *, prior: float = 1.0) -> Floats:
    """Co-train ``logits`` with a discriminant analysis of the section's own ``components`` (Blum and Mitchell 1998).

    In each round the discriminant analysis is fitted to the class shares, weighted by how far the largest exceeds a
    half; the shares are then those of its log probabilities plus ``prior`` times the logits given. Labels (-1 none)
    together weigh as much as the other observations.
    """
    n, k = logits.shape
    labels = np.full(n, -1) if labels is None else labels
    rows = np.union1d(evenly_spread(n, _MAX_ROWS), np.flatnonzero(labels >= 0))
    known = labels[rows] >= 0
    share = softmax(logits[rows], axis=1)
    for _ in range(_ROUNDS):
        weight = np.clip(2 * share.max(axis=1) - 1, 0, 1) + _MIN_WEIGHT
        share[known] = np.eye(k)[labels[rows][known]]
        weight[known] = max(float(weight[~known].sum()) / max(int(known.sum()), 1), 1.0)
        lda = shrinkage_lda(components[rows], share, weight, _SHRINKAGE)
        share = softmax(_log_proba(lda(components[rows])) + prior * logits[rows], axis=1)
    return log_softmax(_log_proba(lda(components)) + prior * logits, axis=1)


def _log_proba(logits: Floats) -> Floats:
    return np.log(softmax(logits, axis=1).clip(1e-6))


def agreement(one: Floats, other: Floats) -> float:
    """Share of the observations for which two logits predict the same class."""
    return float((one.argmax(axis=1) == other.argmax(axis=1)).mean())
