"""The member that crosses sections: linear classifiers of genes standardised within each section."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_expit, log_softmax, logit
from scipy.stats import t as student
from sklearn.metrics import roc_auc_score

from stxtools._spatial.blocks import deal, spatial_blocks
from stxtools.models._storage import ModelFile

from .evidence import RIDGE_SCALE, Answers
from .gene_means import READ_GENES, FloatArray, GeneMeans, GeneSection, chosen_genes
from .moments import N_COMPS, PENALTY, LabelMoments, moments_of

Codes = NDArray[np.int64]
Mask = NDArray[np.bool_]

PENALTIES = (5000.0, 500.0, 50.0, 5.0, PENALTY)  # from 500 on each gene counts by itself, whatever the others do
SEVERAL = 3  # labelled sections from which on they choose the penalty
_PRIOR = 0.5  # of the classes' log odds elsewhere: composition differs between donors
_FOLDS, _BLOCKS = 5, 25


@dataclass(frozen=True)
class GeneClassifier:
    """Ridge regression of standardised genes, solved for those that a section has.

    - ``moments``: What it is solved from.
    - ``penalty``: Of the ridge; None where the sections did not choose it. Then discriminant analysis of components
      takes part where the section's own components agree with it.
    - ``factor``: Of the logits, which it calibrates.
    """

    moments: LabelMoments
    penalty: float | None = None
    factor: float = 1.0

    @classmethod
    def fit(
        cls, expression: Sequence[GeneSection], codes: Sequence[Codes], n_classes: int, rng: np.random.Generator
    ) -> GeneClassifier:
        """Learn from the labels (-1 none) of sections, all of which count alike.

        Of three sections or more, those held out choose the penalty: the strongest whose AUROC is not significantly
        below the best. Cross-entropy would judge how their composition differs. Fewer cannot tell what donors share.
        """
        labelled = [i for i, c in enumerate(codes) if (c >= 0).any()]
        expression, codes = [expression[i] for i in labelled], [codes[i] for i in labelled]
        genes, means = chosen_genes(expression)
        shares = [np.where((c >= 0)[:, None], np.eye(n_classes)[c], 0.0) for c in codes]
        weights = [(c >= 0) / (c >= 0).sum() for c in codes]
        self = cls(moments_of(genes, means, shares, weights))
        several = len(codes) >= SEVERAL
        genes, means = genes[:READ_GENES], [m.leading(READ_GENES) for m in means]
        judged: dict[float, list[_Judged]] = {p: [] for p in (PENALTIES if several else (PENALTY,))}
        for held in _folds(expression, codes, rng):
            learned = moments_of(
                genes, means, shares, [np.where(h, 0.0, w) for h, w in zip(held, weights, strict=True)]
            )
            for penalty, found in judged.items():
                members = learned.solve(np.arange(len(genes)), penalty)
                for m, h, c in zip(means, held, codes, strict=True):
                    rows = h & (c >= 0)
                    if rows.any():
                        answers = Answers.of(members, m)[0]
                        logits = _scores(answers, learned.prior) if several else answers.ridge + answers.lda
                        found.append(_Judged(logits[rows], learned.prior, c[rows]))
        if several:
            best = _strongest(judged)
            return cls(self.moments, best, _calibrated([j.one_against_rest for j in judged[best]]))
        return cls(self.moments, None, _calibrated([j.all_at_once for j in judged[PENALTY]]))

    def logits(self, section: GeneSection) -> FloatArray:
        """Class logits of all observations of a section, (n, K)."""
        ours, theirs = self.moments.match(section.genes)
        means = GeneMeans(section, theirs)
        members = self.moments.solve(ours, self.penalty or PENALTY)
        answers, components = Answers.of(members, means, means.axes(N_COMPS))
        if self.penalty is None:
            return self.factor * answers.gated(components).logits
        logits = _one_against_rest(self.factor * _scores(answers, self.moments.prior), self.moments.prior)
        return Answers(logits, answers.lda).joined(components, with_lda=False).logits

    def to_file(self, prefix: str) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Return what a model file keeps: settings and arrays."""
        described, arrays = self.moments.to_file(prefix)
        return described, arrays | {f"{prefix}.how": np.array([self.penalty or 0.0, self.factor])}

    @classmethod
    def from_file(cls, file: ModelFile, prefix: str) -> GeneClassifier | None:
        """Return what :meth:`to_file` wrote, None where there is nothing."""
        moments = LabelMoments.from_file(file, prefix)
        if moments is None:
            return None
        penalty, factor = file.arrays[f"{prefix}.how"].tolist()
        return cls(moments, penalty or None, factor)


@dataclass(frozen=True)
class _Judged:
    """Scores or logits of held-out observations, the shares of the classes elsewhere, and their own classes."""

    logits: FloatArray
    prior: FloatArray
    codes: Codes

    def auroc(self) -> float:
        """Mean over the classes, weighted by their size."""
        sizes = np.bincount(self.codes, minlength=self.logits.shape[1])
        used = [k for k in range(len(sizes)) if 0 < sizes[k] < len(self.codes)]
        found = [roc_auc_score(self.codes == k, self.logits[:, k]) for k in used]
        return float(np.average(found, weights=sizes[used])) if used else 0.5

    def one_against_rest(self, factor: float) -> float:
        """Cross-entropy."""
        return self._loss(_one_against_rest(factor * self.logits, self.prior))

    def all_at_once(self, factor: float) -> float:
        """Cross-entropy."""
        return self._loss(factor * self.logits)

    def _loss(self, logits: FloatArray) -> float:
        return -float(log_softmax(logits, axis=1)[np.arange(len(self.codes)), self.codes].mean())


def _scores(answers: Answers, prior: FloatArray) -> FloatArray:
    """Scores of the ridge without what the classes' shares add; they sum to 0 over the classes."""
    scores = answers.ridge - 2 * RIDGE_SCALE * prior
    return np.asarray(scores - scores.mean(axis=1, keepdims=True))


def _one_against_rest(scores: FloatArray, prior: FloatArray) -> FloatArray:
    """Logits from each class's own odds: a rare class is found among many that are far from its opposite."""
    return np.asarray(log_expit(scores + _PRIOR * logit(prior.clip(1e-3, 1 - 1e-3))))


def _folds(expression: Sequence[GeneSection], codes: Sequence[Codes], rng: np.random.Generator) -> Iterator[list[Mask]]:
    """Held-out observations of every section, whole sections or blocks of a single one, where labels are left."""
    if len(codes) > 1:
        dealt = rng.permutation(len(codes)) % _FOLDS
        folds = [np.full(len(c), f) for c, f in zip(codes, dealt, strict=True)]
    else:
        folds = [deal(spatial_blocks(expression[0].xy, _BLOCKS), _FOLDS, rng)]
    for k in range(_FOLDS):
        held = [f == k for f in folds]
        left = [bool(((c >= 0) & ~h).any()) for c, h in zip(codes, held, strict=True)]
        if any(left) and any(h.any() for h in held):
            yield held


def _strongest(judged: dict[float, list[_Judged]]) -> float:
    """Strongest penalty whose AUROC is not significantly below the best: a paired t-test over sections at 5 %."""
    found = {penalty: np.array([j.auroc() for j in parts]) for penalty, parts in judged.items()}
    best = max(found.values(), key=lambda a: float(a.mean()))
    n = len(best)
    most = student.ppf(0.95, n - 1) / n**0.5  # standard deviations of the difference
    return next(p for p, a in found.items() if (best - a).mean() <= most * (best - a).std(ddof=1))


def _calibrated(losses: Sequence[Callable[[float], float]]) -> float:
    """Factor with the least mean loss; 1 where there is none."""
    if not losses:
        return 1.0
    found = minimize_scalar(
        lambda x: float(np.mean([loss(float(np.exp(x))) for loss in losses])), bounds=(-4.0, 2.0), method="bounded"
    )
    return float(np.exp(found.x))
