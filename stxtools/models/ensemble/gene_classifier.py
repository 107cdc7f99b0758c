"""The member that crosses sections: linear classifiers of genes standardised within each section."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_expit, log_softmax, logit

from stxtools._progress import stage
from stxtools._spatial.blocks import deal, spatial_blocks
from stxtools._types import Bools, Floats, Floats32, Ints

from .evidence import ADAPT_FROM, RIDGE_SCALE, Answers, Evidence
from .gene_means import READ_GENES, GeneMeans, GeneSection, chosen_genes
from .moments import N_COMPS, PENALTY, LabelMoments, LinearMembers, moments_of

ALONE = 5000.0  # penalty of the ridge at which each gene counts by itself, whatever the others do
SEVERAL = 3  # labelled sections from which on, in one batch as well, they choose the penalty
_TIE = 0.02  # of AUROC: how moments are factored changes it by up to 0.01
_TOWARDS = 0.5  # the mean of the sources, where a section moves there
_TOWARDS_ALONE = 0.6  # where genes count alone: without a look at the section's components
_KEPT = 0.15  # then, of what the classes' shares add to the ridge: with the mean moved, they place its thresholds
_CURVE = 2  # degree of what depth and panel do to the genes' means
_PRIOR = 0.5  # of the classes' log odds elsewhere: composition differs between donors
_FOLDS, _BLOCKS = 5, 25
_FOLD_RANK = 128  # for a fold: as good, in half the time


@dataclass(frozen=True)
class GeneClassifier:
    """Ridge regression of standardised genes, solved for those that a section has."""

    moments: LabelMoments  # what it is solved from
    # mean of each gene's neighbourhood means in the sections, at each size, (2, g), and the inverse of their standard
    # deviation, 0 where there is none
    centre: Floats32
    unit: Floats32
    # whether each gene counts by itself, and each class against the rest; elsewhere discriminant analysis of components
    # takes part where the section's own components agree with it
    alone: bool = False
    factor: float = 1.0  # of the logits, which it calibrates

    enough: ClassVar[int] = READ_GENES  # genes that it reads at most

    @classmethod
    def fit(
        cls, expression: Sequence[GeneSection], shares: Sequence[Floats], weights: Sequence[Floats],
        rng: np.random.Generator, batch: Ints | None = None,
    ) -> GeneClassifier:  # fmt: skip
        """Learn from sections with class shares (n, K) and weights (n,) of their observations; all count alike.

        Of three sections or more, or two of different batches (by section), those held out say by AUROC whether genes
        count alone. Cross-entropy would judge how their composition differs. Others cannot tell what donors share.
        """
        stage("solving linear members")
        labelled = [i for i, w in enumerate(weights) if w.any()]
        expression, shares = [expression[i] for i in labelled], [shares[i] for i in labelled]
        weights = [weights[i] / weights[i].sum() for i in labelled]
        genes, means = chosen_genes(expression)
        centre, scale = (np.mean([getattr(m, name) for m in means], axis=0) for name in ("centre", "scale"))
        known = moments_of(genes, means, shares, weights), centre.astype(np.float32), (1 / scale).astype(np.float32)
        means = [m.leading(READ_GENES) for m in means]
        apart = batch is not None and len(np.unique(batch[labelled])) > 1
        penalties = (PENALTY, ALONE) if apart or len(means) >= SEVERAL else (PENALTY,)
        held_out = _held_out(genes, means, shares, weights, _folds([e.xy for e in expression], rng), penalties)
        together = [(a, m.components(m.axes(N_COMPS))) for (a, _), m in zip(held_out[PENALTY], means, strict=True)]
        if ALONE in held_out:
            alone = [(_scores(a, prior), prior) for a, prior in held_out[ALONE]]
            least = _auroc([answers.joined(own).logits for answers, own in together], shares, weights) - _TIE
            if _auroc([scores for scores, _ in alone], shares, weights) >= least:
                factor = _calibrated(lambda x: [_one_against_rest(x * s, prior) for s, prior in alone], shares, weights)
                return cls(*known, True, factor)
        adapted = [a.joined(own, with_lda=with_lda).logits for with_lda in (False, True) for a, own in together]
        return cls(*known, False, _calibrated(lambda x: [x * a for a in adapted], [*shares, *shares], weights * 2))

    def evidence(self, section: GeneSection, *, labels: Ints | None = None, adapt: bool = True) -> Evidence:
        """Class logits of a section that may share only some of the genes, and may have some ``labels`` itself."""
        means, members, ours = self.solved(section)
        answers, components = Answers.of(members, means, means.axes(N_COMPS))
        if not self.alone:
            if adapt and means.n_obs >= ADAPT_FROM:
                answers = answers.moved(_TOWARDS * self._towards_sources(means, members, ours), components)
            found = answers.joined(components, labels, adapt=adapt)
            return Evidence(self.factor * found.logits, found.weights)
        prior = self.moments.prior
        if adapt:
            shift = _TOWARDS_ALONE * self._towards_sources(means, members, ours)
            answers = Answers(answers.ridge + shift, answers.lda)
        logits = _one_against_rest(self.factor * _scores(answers, prior), prior)
        if adapt:
            logits += _KEPT * self.factor * 2 * RIDGE_SCALE * prior
        return Answers(logits, answers.lda).joined(components, labels, with_lda=False, adapt=adapt)

    def solved(self, section: GeneSection) -> tuple[GeneMeans, LinearMembers, Ints]:
        """Means of the best genes that the section has, the members that read them, and their place in the model."""
        ours, theirs = self.moments.match(section.genes)
        return GeneMeans(section, theirs), self.moments.solve(ours, ALONE if self.alone else PENALTY), ours

    def _towards_sources(self, means: GeneMeans, members: LinearMembers, ours: Ints) -> Floats:
        """What the ridge's logits gain if the section's mean moves to that of the sources, (K,).

        A curve over the genes takes out what depth and panel do to their means.
        """
        gained = np.zeros(len(self.moments.prior))
        for own, scale, centre, unit, coef in zip(
            means.centre, means.scale, self.centre[:, ours], self.unit[:, ours], members.ridge, strict=True
        ):
            weight = np.where(np.isfinite(scale), unit, 0.0)
            if np.count_nonzero(weight) <= _CURVE + 1:
                continue  # a curve through all of them leaves nothing
            usual = np.polyval(np.polyfit(centre, own, _CURVE, w=weight), centre)
            gained += ((own - usual) * weight) @ coef
        return RIDGE_SCALE * gained


def _scores(answers: Answers, prior: Floats) -> Floats:
    """Scores of the ridge without what the classes' shares add; they sum to 0 over the classes."""
    scores = answers.ridge - 2 * RIDGE_SCALE * prior
    return np.asarray(scores - scores.mean(axis=1, keepdims=True))


def _one_against_rest(scores: Floats, prior: Floats) -> Floats:
    """Logits from each class's own odds: a rare class is found among many that are far from its opposite."""
    return np.asarray(log_expit(scores + _PRIOR * logit(prior.clip(1e-3, 1 - 1e-3))))


def _folds(xy: Sequence[Floats], rng: np.random.Generator) -> list[list[Bools]]:
    """Observations of every section that are held out together: whole sections, or blocks of a single one."""
    if len(xy) > 1:
        dealt = rng.permutation(len(xy)) % _FOLDS
        fold = [np.full(len(at), f) for at, f in zip(xy, dealt, strict=True)]
    else:
        angle = rng.uniform(0, np.pi)
        turned = xy[0] @ np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        fold = [deal(spatial_blocks(turned, _BLOCKS), _FOLDS, rng)]
    return [[f == k for f in fold] for k in range(_FOLDS)]


def _held_out(
    genes: Sequence[str], means: Sequence[GeneMeans], shares: Sequence[Floats], weights: Sequence[Floats],
    folds: Sequence[Sequence[Bools]], penalties: Sequence[float],
) -> dict[float, list[tuple[Answers, Floats]]]:  # fmt: skip
    """Answers for each section by members that did not see it, or the block, and the classes' shares elsewhere."""
    found = {
        p: [(Answers(np.zeros_like(s), np.zeros_like(s)), np.zeros(s.shape[1])) for s in shares] for p in penalties
    }
    for held in folds:
        seen = [np.where(h, 0.0, w) for h, w in zip(held, weights, strict=True)]
        if not any(w.any() for w in seen) or not any(h.any() for h in held):
            continue
        learned = moments_of(genes[:READ_GENES], means, shares, seen, rank=_FOLD_RANK)
        for penalty, parts in found.items():
            members = learned.solve(np.arange(len(learned.genes)), penalty)
            for m, h, (answers, prior) in zip(means, held, parts, strict=True):
                if h.any():
                    new, _ = Answers.of(members, m)
                    answers.ridge[h], answers.lda[h], prior[:] = new.ridge[h], new.lda[h], learned.prior
    return found


def _auroc(logits: Sequence[Floats], shares: Sequence[Floats], weights: Sequence[Floats]) -> float:
    """Mean over sections of the mean over classes, weighted by their size."""
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
    """Factor of ``logits`` with the lowest cross-entropy, of which all sections have the same part."""

    def loss(log_factor: float) -> float:
        found = zip(logits(float(np.exp(log_factor))), shares, weights, strict=True)
        return -float(np.mean([w @ (s * log_softmax(each, axis=1)).sum(axis=1) for each, s, w in found]))

    return float(np.exp(minimize_scalar(loss, bounds=(-4.0, 2.0), method="bounded").x))
