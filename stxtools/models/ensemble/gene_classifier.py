"""Linear classifiers of genes standardised within each section, which predict other sections."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_expit, log_softmax, logit, softmax

from stxtools._progress import stage
from stxtools._spatial.blocks import assign_parts, spatial_blocks
from stxtools._spatial.points import evenly_spread
from stxtools._types import Bools, Floats, Floats32, Ints

from .discriminant import shrinkage_lda, standardised
from .gene_means import (
    N_COMPS,
    PENALTY,
    READ_GENES,
    SIZES,
    GeneMeans,
    GeneSection,
    LabelledSection,
    LabelMoments,
    LinearMembers,
    moments_of,
    select_genes,
)

RIDGE_SCALE = 6.0  # from scores to logits
_ALONE = 5000.0  # penalty of the ridge at which each gene counts by itself
_SEVERAL = 3  # labelled sections from which the penalty is chosen in one batch as well
_TIE = 0.02  # of AUROC: how moments are factored changes it by up to 0.01
_SHIFT = 0.5  # of the way from the section's mean to that of the training sections
_SHIFT_ALONE = 0.6  # the same where genes count alone: without a look at the section's components
_SHARE_EFFECT = 0.15  # of the effect of the class shares on the ridge: with the mean moved, they place its thresholds
_CURVE = 2  # degree of the effect of depth and panel on the genes' means
_PRIOR = 0.5  # of the log odds of the classes in training: composition differs between donors
_FOLDS, _BLOCKS = 5, 25
_FOLD_RANK = 128  # of the moments of a fold: as good, in half the time
_ADAPT_FROM = SIZES[0] * 2 * N_COMPS  # observations: an independent neighbourhood for each component
_MIN_LOG_PROBA = -8.0
_MIN_GAIN = 0.05  # of agreement, by a shift of the ridge's logits
_AGREEMENT_FROM = 100  # observations from which the agreement of two classifiers is measured
_ROUNDS, _SHRINKAGE = 6, 0.1  # of the co-training
_WEIGHT_ALONE = 6.0  # beside labels, of the logits before calibration where genes count alone
_MAX_ROWS = 60_000  # observations from which it learns
_MIN_WEIGHT = 1e-3


@dataclass(frozen=True)
class Prediction:
    """Class logits of a section, (n, K), and the weight of each member in them."""

    logits: Floats
    weights: dict[str, float]
    # share of the observations for which both members predict one class, or its mean with the accuracy on labels; None
    # if they are few
    agreement: float | None


@dataclass(frozen=True)
class GeneClassifier:
    """Ridge regression of standardised genes, solved for those that a section has."""

    moments: LabelMoments
    centre: Floats32  # mean of each gene's neighbourhood means in the training sections, at each size, (2, g)
    unit: Floats32  # inverse of their standard deviation, 0 where there is none, (2, g)
    # whether each gene counts by itself, and each class against the rest; if not, a discriminant analysis of components
    # takes part where the section's own components agree with it
    alone: bool = False
    factor: float = 1.0  # inverse temperature of the logits

    max_genes: ClassVar[int] = READ_GENES

    @classmethod
    def fit(
        cls, expression: Sequence[GeneSection], shares: Sequence[Floats], weights: Sequence[Floats],
        rng: np.random.Generator, batch: Ints | None = None, subject: Ints | None = None,
    ) -> GeneClassifier:  # fmt: skip
        """Learn from sections, of equal weight, with class shares (n, K) and weights (n,) of their observations.

        With three sections, or two of different ``batch`` (by section), the AUROC in held-out sections decides whether
        genes count alone. Cross-entropy would depend on their composition. Fewer do not show what donors share. If the
        ``subject`` of each section is known, two subjects decide, and are held out with all their sections.
        """
        stage("solving linear members")
        labelled = [i for i, w in enumerate(weights) if w.any()]
        expression = [expression[i] for i in labelled]
        genes, means = select_genes(expression)
        sections = [
            LabelledSection(m, shares[i], weights[i] / weights[i].sum()) for i, m in zip(labelled, means, strict=True)
        ]
        centre, scale = (np.mean([getattr(m, name) for m in means], axis=0) for name in ("centre", "scale"))
        fitted = moments_of(genes, sections), centre.astype(np.float32), (1 / scale).astype(np.float32)
        sections = [s._replace(means=s.means.best()) for s in sections]
        donors = batch if subject is None else subject
        several_donors = donors is not None and len(np.unique(donors[labelled])) > 1
        unit = np.arange(len(sections))
        if subject is not None and several_donors:
            unit = np.unique(subject[labelled], return_inverse=True)[1]
        enough = several_donors or (subject is None and len(sections) >= _SEVERAL)
        penalties = (PENALTY, _ALONE) if enough else (PENALTY,)
        held_out, priors = _held_out(genes, sections, _folds([e.xy for e in expression], unit, rng), penalties)
        if _ALONE in held_out:
            scores = [_scores(m.ridge, prior) for m, prior in zip(held_out[_ALONE], priors, strict=True)]
            together = _auroc([m.combined().logits for m in held_out[PENALTY]], sections)
            if _auroc(scores, sections) >= together - _TIE:
                pairs = list(zip(scores, priors, strict=True))
                factor = _calibrated(lambda x: [_one_against_rest(x * s, prior) for s, prior in pairs], sections)
                return cls(*fitted, True, factor)
        adapted = [m.combined(with_lda=with_lda).logits for with_lda in (False, True) for m in held_out[PENALTY]]
        return cls(*fitted, False, _calibrated(lambda x: [x * a for a in adapted], sections * 2))

    def predict(self, section: GeneSection, *, labels: Ints | None = None, adapt: bool = True) -> Prediction:
        """Predict a section, which may lack some of the genes and may have some ``labels`` itself."""
        means, members, ours = self.solve_for(section)
        logits, prior = _MemberLogits.of(members, means, means.axes()), self.moments.prior
        if not self.alone:
            # another composition moves the section's mean, too: its components show whether the shift helps
            if adapt and means.n_obs >= _ADAPT_FROM:
                logits = logits.shifted(_SHIFT * self._shift_to_sources(means, members, ours))
            combined = logits.combined(labels, adapt=adapt)
            return replace(combined, logits=self.factor * combined.logits)
        ridge = logits.ridge
        if adapt:
            ridge = ridge + _SHIFT_ALONE * self._shift_to_sources(means, members, ours)
        ridge = _one_against_rest(self.factor * _scores(ridge, prior), prior)
        if adapt:
            ridge += _SHARE_EFFECT * self.factor * 2 * RIDGE_SCALE * prior
        logits = replace(logits, ridge=ridge)
        return logits.combined(labels, with_lda=False, adapt=adapt, weight=_WEIGHT_ALONE / self.factor)

    def solve_for(self, section: GeneSection) -> tuple[GeneMeans, LinearMembers, Ints]:
        """Means of the best genes of a section, the members that read them, and the genes' positions in the model."""
        ours, theirs = self.moments.match(section.genes)
        return GeneMeans(section, theirs), self.moments.solve(ours, _ALONE if self.alone else PENALTY), ours

    def _shift_to_sources(self, means: GeneMeans, members: LinearMembers, ours: Ints) -> Floats:
        """Change of the ridge's logits if the section's mean moves to that of the training sections, (K,).

        A curve over the genes takes out the effect of depth and panel on their means.
        """
        shift = np.zeros(len(self.moments.prior))
        for mean, scale, centre, unit, coef in zip(
            means.centre, means.scale, self.centre[:, ours], self.unit[:, ours], members.ridge, strict=True
        ):
            weight = np.where(np.isfinite(scale), unit, 0.0)
            if np.count_nonzero(weight) <= _CURVE + 1:
                continue  # the curve would fit all of them
            expected = np.polyval(np.polyfit(centre, mean, _CURVE, w=weight), centre)
            shift += ((mean - expected) * weight) @ coef
        return RIDGE_SCALE * shift


def _scores(ridge: Floats, prior: Floats) -> Floats:
    """The ridge's logits without the effect of the class shares; they sum to 0 over the classes."""
    scores = ridge - 2 * RIDGE_SCALE * prior
    return np.asarray(scores - scores.mean(axis=1, keepdims=True))


def _one_against_rest(scores: Floats, prior: Floats) -> Floats:
    """Logits from the odds of each class against the rest, which do not depend on how the others differ."""
    return np.asarray(log_expit(scores + _PRIOR * logit(prior.clip(1e-3, 1 - 1e-3))))


def _folds(xy: Sequence[Floats], unit: Ints, rng: np.random.Generator) -> list[list[Bools]]:
    """Whether each observation of each section is held out, for each fold of whole units, or else of blocks."""
    if unit.max() > 0:
        dealt = rng.permutation(unit.max() + 1) % _FOLDS
        fold = [np.full(len(at), f) for at, f in zip(xy, dealt[unit], strict=True)]
    else:
        angle = rng.uniform(0, np.pi)
        turned = xy[0] @ np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        fold = [assign_parts(spatial_blocks(turned, _BLOCKS), _FOLDS, rng)]
    return [[f == k for f in fold] for k in range(_FOLDS)]


def _held_out(
    genes: Sequence[str], sections: Sequence[LabelledSection], folds: Sequence[Sequence[Bools]],
    penalties: Sequence[float],
) -> tuple[dict[float, list[_MemberLogits]], list[Floats]]:  # fmt: skip
    """Out-of-fold logits of each section for each penalty, and the class shares in its training folds."""
    components = [standardised(np.hstack(m.projected([m.axes()] * 2))) for m, _, _ in sections]
    logits = {penalty: [_MemberLogits(np.zeros_like(s.share), np.zeros_like(s.share), c)
                        for s, c in zip(sections, components, strict=True)] for penalty in penalties}  # fmt: skip
    priors = [np.zeros(s.share.shape[1]) for s in sections]
    for held in folds:
        training = [s._replace(weight=np.where(h, 0.0, s.weight)) for s, h in zip(sections, held, strict=True)]
        if not any(s.weight.any() for s in training) or not any(h.any() for h in held):
            continue
        moments = moments_of(genes[:READ_GENES], training, rank=_FOLD_RANK)
        for penalty, of_sections in logits.items():
            members = moments.solve(np.arange(len(moments.genes)), penalty)
            for i, (h, out) in enumerate(zip(held, of_sections, strict=True)):
                if h.any():
                    new = _MemberLogits.of(members, sections[i].means)
                    out.ridge[h], out.lda[h], priors[i] = new.ridge[h], new.lda[h], moments.prior
    return logits, priors


def _auroc(logits: Sequence[Floats], sections: Sequence[LabelledSection]) -> float:
    """Mean over sections of the mean AUROC of the classes, weighted by their size."""
    from sklearn.metrics import roc_auc_score

    out = []
    for z, (_, share, weight) in zip(logits, sections, strict=True):
        codes, rows = share.argmax(axis=1)[weight > 0], z[weight > 0]
        used = np.unique(codes)
        if len(used) > 1:
            out.append(roc_auc_score(codes[:, None] == used, rows[:, used], average="weighted"))
    return float(np.mean(out)) if out else 0.5


def _calibrated(logits: Callable[[float], Sequence[Floats]], sections: Sequence[LabelledSection]) -> float:
    """Factor of ``logits`` with the lowest cross-entropy, as a mean over sections."""

    def loss(log_factor: float) -> float:
        pairs = zip(logits(float(np.exp(log_factor))), sections, strict=True)
        return -float(np.mean([s.weight @ (s.share * log_softmax(z, axis=1)).sum(axis=1) for z, s in pairs]))

    return float(np.exp(minimize_scalar(loss, bounds=(-4.0, 2.0), method="bounded").x))


@dataclass(frozen=True)
class _MemberLogits:
    """Logits of the members in a section."""

    ridge: Floats  # (n, K)
    lda: Floats  # of the discriminant analysis, (n, K)
    components: Floats  # the section's own, standardised, (n, 2 k)

    @classmethod
    def of(cls, members: LinearMembers, means: GeneMeans, own: Floats | None = None) -> _MemberLogits:
        """Predict a section, whose components are those along its ``own`` axes (none by default)."""
        own = np.zeros((len(members.axes), 0)) if own is None else own
        ends = np.cumsum([len(members.ridge_intercept), members.axes.shape[1]])
        first, second = means.projected([np.hstack([w, members.axes, own]) for w in members.ridge])
        parts = list(zip(np.split(first, ends, axis=1), np.split(second, ends, axis=1), strict=True))
        scores = parts[0][0] + parts[0][1] + members.ridge_intercept
        z, components = (standardised(np.hstack(pair)) for pair in parts[1:])
        lda = np.maximum(log_softmax(members.lda(z), axis=1), _MIN_LOG_PROBA)
        return cls(log_softmax(RIDGE_SCALE * scores, axis=1), log_softmax(lda, axis=1), components)

    def shifted(self, shift: Floats) -> _MemberLogits:
        """Add ``shift`` (K,) to the ridge's logits, if the components then agree with them clearly more."""
        other = replace(self, ridge=log_softmax(self.ridge + shift, axis=1))
        before, after = (_agreement(_cotrained(m.ridge, m.components, prior=0.0), m.ridge) for m in (self, other))
        return other if after > before + _MIN_GAIN else self

    def combined(
        self, labels: Ints | None = None, *, with_lda: bool | None = None, adapt: bool = True, weight: float = 1.0
    ) -> Prediction:
        """Sum the members, and co-train the sum with the section's own components.

        By default the discriminant analysis takes part if co-training brings the ridge nearer to it. It does not where
        components of another donor mean something else. Beside labels, a sum that is always right on them has
        this ``weight``, and each feature of the components has two independent neighbourhoods.
        """
        few = len(self.ridge) < _AGREEMENT_FROM
        agreement = None if few else _agreement(self.ridge, self.lda)
        if with_lda is None:
            refined = self.ridge if few else _cotrained(self.ridge, self.components, prior=0.0)
            with_lda = few or _agreement(refined, self.lda) > _agreement(self.ridge, self.lda)
        logits = log_softmax(self.ridge + self.lda, axis=1) if with_lda else self.ridge
        adapts = labels is not None or (adapt and len(logits) >= _ADAPT_FROM)
        if labels is not None:
            n, known = len(logits), labels >= 0
            first = self.components.reshape(n, 2, -1)[:, :, : max(n // (4 * SIZES[0]), 1)].reshape(n, -1)
            right, chance = float((logits[known].argmax(axis=1) == labels[known]).mean()), 1 / logits.shape[1]
            if np.ptp(labels[known]) == 0:  # of one class: often errors that say little of the rest
                right = 1 - float(known.mean()) * (1 - right)
            logits = _cotrained(logits, first, labels, prior=weight * max(right - chance, 0.0) / (1 - chance))
            if agreement is not None:  # of the members before they learn from the labels, which they fit too well
                agreement = (agreement + float((logits[known].argmax(axis=1) == labels[known]).mean())) / 2
        elif adapts:
            logits = _cotrained(logits, self.components)
        weights = {"ridge": 1.0, "lda": float(with_lda), "adaptation": float(adapts)}
        return Prediction(logits, weights, agreement)


def _cotrained(logits: Floats, components: Floats, labels: Ints | None = None, *, prior: float = 1.0) -> Floats:
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


def _agreement(one: Floats, other: Floats) -> float:
    """Share of the observations for which two logits predict the same class."""
    return float((one.argmax(axis=1) == other.argmax(axis=1)).mean())
