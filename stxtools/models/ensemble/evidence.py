"""What linear members say of a section: which of them count, and how they adapt to its own components."""

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
_LEAST_LOG = -8.0
ADAPT_FROM = SIZES[0] * 2 * N_COMPS  # observations: an independent neighbourhood for each component that is read
_CLEARLY = 0.05  # more of the observations in the same class
_GATE_FROM = 100  # observations from which the agreement of two classifiers is measured
_ROUNDS, _SHRINKAGE = 6, 0.1  # of the co-training
_MOST = 60_000  # observations that it learns from
_LEAST_WEIGHT = 1e-3


@dataclass(frozen=True)
class Evidence:
    """Class logits of a section, (n, K), and the weight of each member in them."""

    logits: Floats
    weights: dict[str, float]


@dataclass(frozen=True)
class Answers:
    """Logits of ridge and discriminant analysis, (n, K) each."""

    ridge: Floats
    lda: Floats

    @classmethod
    def of(cls, members: LinearMembers, means: GeneMeans, own: Floats | None = None) -> tuple[Answers, Floats]:
        """Logits of a section's observations, and their components along its ``own`` axes, standardised, (n, 2 k)."""
        own = np.zeros((len(members.axes), 0)) if own is None else own
        ends = np.cumsum([len(members.ridge_intercept), members.axes.shape[1]])
        first, second = means.projected([np.hstack([w, members.axes, own]) for w in members.ridge])
        parts = list(zip(np.split(first, ends, axis=1), np.split(second, ends, axis=1), strict=True))
        scores = parts[0][0] + parts[0][1] + members.ridge_intercept
        z, components = (standardised(np.hstack(pair)) for pair in parts[1:])
        lda = log_softmax(z @ members.lda + members.lda_intercept, axis=1)
        ridge = log_softmax(RIDGE_SCALE * scores, axis=1)
        return cls(ridge, log_softmax(np.maximum(lda, _LEAST_LOG), axis=1)), components

    def moved(self, shift: Floats, components: Floats) -> Answers:
        """With ``shift`` (K,) of the ridge's logits, if its own components then agree clearly more."""
        other = replace(self, ridge=log_softmax(self.ridge + shift, axis=1))
        now, then = (same_class(cotrained(a.ridge, components, prior=0.0), a.ridge) for a in (self, other))
        return other if then > now + _CLEARLY else self

    def joined(
        self, components: Floats, labels: Ints | None = None, *, with_lda: bool | None = None, adapt: bool = True
    ) -> Evidence:
        """Sum of the members, then co-trained with the section's own ``components``.

        Where ``with_lda`` does not say so, discriminant analysis takes part if these come nearer to it. They do not
        where components of another donor mean something else.
        """
        if with_lda is None:
            few = len(self.ridge) < _GATE_FROM
            refined = self.ridge if few else cotrained(self.ridge, components, prior=0.0)
            with_lda = few or same_class(refined, self.lda) > same_class(self.ridge, self.lda)
        logits = log_softmax(self.ridge + self.lda, axis=1) if with_lda else self.ridge
        adapts = labels is not None or (adapt and len(logits) >= ADAPT_FROM)
        if adapts:
            logits = cotrained(logits, components, labels)
        return Evidence(logits, {"ridge": 1.0, "lda": float(with_lda), "adaptation": float(adapts)})


def cotrained(logits: Floats, own: Floats, labels: Ints | None = None, *, prior: float = 1.0) -> Floats:
    """Logits of all observations once the section's ``own`` components have learned from the ``logits`` given.

    In each round a discriminant analysis is fitted to the class shares (co-training; Blum and Mitchell 1998), weighted
    by how far the largest exceeds a half; the shares are then those of its log probabilities plus ``prior`` times the
    logits given. Labels (-1 none) together weigh as much as the others.
    """
    n, k = logits.shape
    rows = evenly_spread(n, _MOST)
    if labels is not None:
        rows = np.union1d(rows, np.flatnonzero(labels >= 0))
    known = np.zeros(len(rows), dtype=bool) if labels is None else labels[rows] >= 0
    one_hot = None if labels is None else np.eye(k)[labels[rows][known]]
    share = softmax(logits[rows], axis=1)
    for _ in range(_ROUNDS):
        weight = np.clip(2 * share.max(axis=1) - 1, 0, 1) + _LEAST_WEIGHT
        if one_hot is not None:
            share[known] = one_hot
            weight[known] = max(float(weight[~known].sum()) / max(int(known.sum()), 1), 1.0)
        fitted = shrinkage_lda(own[rows], share, weight, _SHRINKAGE)
        share = softmax(_log_shares(fitted(own[rows])) + prior * logits[rows], axis=1)
    return log_softmax(_log_shares(fitted(own)) + prior * logits, axis=1)


def _log_shares(logits: Floats) -> Floats:
    return np.log(softmax(logits, axis=1).clip(1e-6))


def same_class(one: Floats, other: Floats) -> float:
    """Share of the observations that two logits put into the same class."""
    return float((one.argmax(axis=1) == other.argmax(axis=1)).mean())
