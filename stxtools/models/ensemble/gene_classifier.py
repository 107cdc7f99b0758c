"""Linear classifiers of genes standardised within each section, which predict other sections."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_expit, log_softmax, logit

from stxtools._progress import stage
from stxtools._spatial.blocks import assign_parts, spatial_blocks
from stxtools._types import Bools, Floats, Floats32, Ints

from .adaptation import ADAPT_FROM, RIDGE_SCALE, MemberLogits, Prediction
from .gene_means import READ_GENES, GeneMeans, GeneSection, select_genes
from .moments import N_COMPS, PENALTY, LabelMoments, LinearMembers, moments_of

ALONE = 5000.0  # penalty of the ridge at which each gene counts by itself
SEVERAL = 3  # labelled sections from which the penalty is chosen in one batch as well
_TIE = 0.02  # of AUROC: how moments are factored changes it by up to 0.01
_TOWARDS = 0.5  # of the way from the section's mean to that of the training sections
_TOWARDS_ALONE = 0.6  # the same where genes count alone: without a look at the section's components
_KEPT = 0.15  # of the effect of the class shares on the ridge: with the mean moved, they place its thresholds
_CURVE = 2  # degree of the effect of depth and panel on the genes' means
_PRIOR = 0.5  # of the classes' log odds elsewhere: composition differs between donors
_FOLDS, _BLOCKS = 5, 25
_FOLD_RANK = 128  # of the moments of a fold: as good, in half the time


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
        rng: np.random.Generator, batch: Ints | None = None,
    ) -> GeneClassifier:  # fmt: skip
        """Learn from sections, of equal weight, with class shares (n, K) and weights (n,) of their observations.

        With three sections, or two of different ``batch`` (by section), the AUROC in held-out sections decides whether
        genes count alone. Cross-entropy would depend on their composition. Fewer cannot tell what donors share.
        """
        stage("solving linear members")
        labelled = [i for i, w in enumerate(weights) if w.any()]
        expression, shares = [expression[i] for i in labelled], [shares[i] for i in labelled]
        weights = [weights[i] / weights[i].sum() for i in labelled]
        genes, means = select_genes(expression)
        centre, scale = (np.mean([getattr(m, name) for m in means], axis=0) for name in ("centre", "scale"))
        fitted = moments_of(genes, means, shares, weights), centre.astype(np.float32), (1 / scale).astype(np.float32)
        means = [m.leading(READ_GENES) for m in means]
        several_batches = batch is not None and len(np.unique(batch[labelled])) > 1
        penalties = (PENALTY, ALONE) if several_batches or len(means) >= SEVERAL else (PENALTY,)
        folds = _folds([e.xy for e in expression], rng)
        held_out, priors = _held_out(genes, means, shares, weights, folds, penalties)
        if ALONE in held_out:
            scores = [_scores(m.ridge, prior) for m, prior in zip(held_out[ALONE], priors, strict=True)]
            together = _auroc([m.combined().logits for m in held_out[PENALTY]], shares, weights)
            if _auroc(scores, shares, weights) >= together - _TIE:
                pairs = list(zip(scores, priors, strict=True))
                factor = _calibrated(lambda x: [_one_against_rest(x * s, prior) for s, prior in pairs], shares, weights)
                return cls(*fitted, True, factor)
        adapted = [m.combined(with_lda=with_lda).logits for with_lda in (False, True) for m in held_out[PENALTY]]
        return cls(*fitted, False, _calibrated(lambda x: [x * a for a in adapted], [*shares, *shares], weights * 2))

    def predict(self, section: GeneSection, *, labels: Ints | None = None, adapt: bool = True) -> Prediction:
        """Predict a section, which may lack some of the genes and may have some ``labels`` itself."""
        means, members, ours = self.solve_for(section)
        logits, prior = MemberLogits.of(members, means, means.axes(N_COMPS)), self.moments.prior
        if not self.alone:
            if adapt and means.n_obs >= ADAPT_FROM:
                logits = logits.shifted(_TOWARDS * self._shift_to_sources(means, members, ours))
            combined = logits.combined(labels, adapt=adapt)
            return replace(combined, logits=self.factor * combined.logits)
        ridge = logits.ridge
        if adapt:
            ridge = ridge + _TOWARDS_ALONE * self._shift_to_sources(means, members, ours)
        ridge = _one_against_rest(self.factor * _scores(ridge, prior), prior)
        if adapt:
            ridge += _KEPT * self.factor * 2 * RIDGE_SCALE * prior
        return replace(logits, ridge=ridge).combined(labels, with_lda=False, adapt=adapt)

    def solve_for(self, section: GeneSection) -> tuple[GeneMeans, LinearMembers, Ints]:
        """Means of the best genes of a section, the members that read them, and the genes' positions in the model."""
        ours, theirs = self.moments.match(section.genes)
        return GeneMeans(section, theirs), self.moments.solve(ours, ALONE if self.alone else PENALTY), ours

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


def _folds(xy: Sequence[Floats], rng: np.random.Generator) -> list[list[Bools]]:
    """Whether each observation of each section is held out, for each fold of whole sections, or blocks of one."""
    if len(xy) > 1:
        dealt = rng.permutation(len(xy)) % _FOLDS
        fold = [np.full(len(at), f) for at, f in zip(xy, dealt, strict=True)]
    else:
        angle = rng.uniform(0, np.pi)
        turned = xy[0] @ np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        fold = [assign_parts(spatial_blocks(turned, _BLOCKS), _FOLDS, rng)]
    return [[f == k for f in fold] for k in range(_FOLDS)]


def _held_out(
    genes: Sequence[str], means: Sequence[GeneMeans], shares: Sequence[Floats], weights: Sequence[Floats],
    folds: Sequence[Sequence[Bools]], penalties: Sequence[float],
) -> tuple[dict[float, list[MemberLogits]], list[Floats]]:  # fmt: skip
    """Out-of-fold logits of each section for each penalty, and the class shares in its training folds."""
    components, priors = [m.components(m.axes(N_COMPS)) for m in means], [np.zeros(s.shape[1]) for s in shares]
    logits = {
        penalty: [MemberLogits(np.zeros_like(s), np.zeros_like(s), c) for s, c in zip(shares, components, strict=True)]
        for penalty in penalties
    }
    for held in folds:
        training = [np.where(h, 0.0, w) for h, w in zip(held, weights, strict=True)]
        if not any(w.any() for w in training) or not any(h.any() for h in held):
            continue
        moments = moments_of(genes[:READ_GENES], means, shares, training, rank=_FOLD_RANK)
        for penalty, of_sections in logits.items():
            members = moments.solve(np.arange(len(moments.genes)), penalty)
            for i, (h, out) in enumerate(zip(held, of_sections, strict=True)):
                if h.any():
                    new = MemberLogits.of(members, means[i])
                    out.ridge[h], out.lda[h], priors[i] = new.ridge[h], new.lda[h], moments.prior
    return logits, priors


def _auroc(logits: Sequence[Floats], shares: Sequence[Floats], weights: Sequence[Floats]) -> float:
    """Mean over sections of the mean AUROC of the classes, weighted by their size."""
    from sklearn.metrics import roc_auc_score

    out = []
    for each, share, weight in zip(logits, shares, weights, strict=True):
        codes, rows = share.argmax(axis=1)[weight > 0], each[weight > 0]
        used = np.unique(codes)
        if len(used) > 1:
            out.append(roc_auc_score(codes[:, None] == used, rows[:, used], average="weighted"))
    return float(np.mean(out)) if out else 0.5


def _calibrated(
    logits: Callable[[float], Sequence[Floats]], shares: Sequence[Floats], weights: Sequence[Floats]
) -> float:
    """Factor of ``logits`` with the lowest cross-entropy, as a mean over sections."""

    def loss(log_factor: float) -> float:
        sections = zip(logits(float(np.exp(log_factor))), shares, weights, strict=True)
        return -float(np.mean([w @ (s * log_softmax(each, axis=1)).sum(axis=1) for each, s, w in sections]))

    return float(np.exp(minimize_scalar(loss, bounds=(-4.0, 2.0), method="bounded").x))
