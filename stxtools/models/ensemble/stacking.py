"""Stacking (Wolpert 1992): weights of the members' logits with the lowest cross-entropy in held-out blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax

from stxtools._types import Bools, Floats, Floats32, Ints, Reals

from .discriminant import Linear
from .gene_classifier import GeneClassifier
from .gene_means import GeneSection
from .label_propagation import BANDWIDTHS, propagated_logits, typical_gap
from .trees import Trees

_MOST = 4.0  # largest weight
_GAIN = 1e-3  # cross-entropy that label propagation must save to take part


@dataclass(frozen=True)
class Weights:
    """Factors of the members' logits (of the values, in a regression); ``bandwidth`` is that of label propagation."""

    network: float = 0.0
    linear: float = 0.0
    trees: float = 0.0
    label_propagation: float = 0.0
    bandwidth: float = 0.0
    genes: float = 0.0

    def with_network(self, share: float) -> Weights:
        """Weights with the network at ``share``; the others keep their proportions."""
        others = {name: (1 - share) * getattr(self, name) for name in ("linear", "trees", "label_propagation", "genes")}
        return replace(self, network=share, **others)


@dataclass(frozen=True)
class Stack:
    """The members beside the network, fitted, and what each of them counts."""

    weights: Weights
    linear: Linear | None = None
    trees: Trees | None = None
    genes: GeneClassifier | None = None

    def __call__(
        self, own: Floats32, n_means: int, network: Reals, xy: Floats,
        codes: Ints | None, known: Bools, by_name: GeneSection | None = None,
    ) -> Floats:  # fmt: skip
        """Logits (or values) of the observations ``known`` of a section; trees read the first ``n_means`` features."""
        w = self.weights
        logits = w.network * network.astype(np.float64)
        if self.linear is not None and w.linear > 0:
            logits += w.linear * self.linear(own)
        if self.trees is not None and w.trees > 0:
            logits += w.trees * self.trees(own[:, :n_means])
        if codes is not None and w.label_propagation > 0:
            logits += w.label_propagation * propagated_logits(xy, codes, network.shape[1], w.bandwidth)[known]
        if self.genes is not None and by_name is not None and w.genes > 0:
            logits += w.genes * self.genes.evidence(by_name).logits[known]
        return logits


@dataclass(frozen=True)
class Ensemble:
    """What predicts a task."""

    elsewhere: Stack  # for sections without labels; a model file keeps it
    labelled: Stack | None = None  # for sections that have labels themselves; None where nothing is gained by them

    def stack(self, codes: Ints | None, found: float = 1.0) -> Stack:
        """The members for a section with these labels (-1 none), in which a share of the network's genes was found."""
        if self.labelled is not None and codes is not None and (codes >= 0).any():
            return self.labelled
        w = self.elsewhere.weights
        if w.genes == 0:
            return self.elsewhere
        weights = replace(w, network=found * w.network, genes=w.genes + (1 - found) * w.network)
        return replace(self.elsewhere, weights=weights)


@dataclass(frozen=True)
class OutOfFold:
    """Out-of-fold predictions of labelled observations."""

    members: dict[str, Floats]  # name -> logits, (n, K)
    propagated: dict[float, Floats]  # bandwidth -> logits of label propagation, (n, K)
    truth: Ints  # class codes, (n,)

    def weights(self) -> tuple[Weights, Weights | None]:
        """Best weights without and with label propagation; None where that adds nothing."""
        loss, without = self._fitted(self.members)
        found = (self._fitted(self.members | {"label_propagation": p}, b) for b, p in self.propagated.items())
        least, best = min(found, key=itemgetter(0), default=(np.inf, None))
        return without, best if least < loss - _GAIN else None

    def _fitted(self, members: dict[str, Floats], bandwidth: float = 0.0) -> tuple[float, Weights]:
        if not members:
            return np.inf, Weights()
        found = minimize(
            _loss, np.full(len(members), 0.5), args=(np.stack(list(members.values())), self.truth),
            method="L-BFGS-B", jac=True, bounds=[(0.0, _MOST)] * len(members),
        )  # fmt: skip
        return float(found.fun), Weights(**dict(zip(members, found.x.tolist(), strict=True)), bandwidth=bandwidth)


def _loss(weights: Floats, logits: Floats, truth: Ints) -> tuple[float, Floats]:
    """Cross-entropy of weighted logits (P, n, K), and its gradient."""
    log_p = log_softmax(np.tensordot(weights, logits, axes=1), axis=1)
    rows = np.arange(len(truth))
    expected = np.einsum("nk,pnk->pn", np.exp(log_p), logits)
    return -float(log_p[rows, truth].mean()), (expected - logits[:, rows, truth]).mean(axis=1)


def out_of_fold(
    sections: Sequence[tuple[Floats, Ints]], folds: Sequence[Ints], n_classes: int,
    members: Mapping[str, Callable[[Bools, Bools], Floats]], *, label_propagation: bool = False,
) -> OutOfFold | None:  # fmt: skip
    """Train on all folds but one and predict it, for each division into ``folds`` (-1: none); None without two."""
    codes = np.concatenate([c for _, c in sections])
    divisions = [(fold, (codes >= 0) & (fold >= 0)) for fold in folds]
    turns = [turn for division in divisions for turn in _turns(codes, *division)]
    if not turns:
        return None
    ends = np.cumsum([len(xy) for xy, _ in sections])[:-1]
    unit = float(np.mean([typical_gap(sections, *division) for division in divisions])) if label_propagation else 0.0

    def propagated(bandwidth: float, held: Bools) -> Floats:
        parts = zip(sections, np.split(np.where(held, -1, codes), ends), strict=True)
        return np.concatenate([propagated_logits(xy, seen, n_classes, bandwidth) for (xy, _), seen in parts])[held]

    return OutOfFold(
        {name: np.concatenate([member(seen, held) for held, seen in turns]) for name, member in members.items()},
        {b * unit: np.concatenate([propagated(b * unit, held) for held, _ in turns]) for b in BANDWIDTHS if unit > 0},
        np.concatenate([codes[held] for held, _ in turns]),
    )


def _turns(codes: Ints, fold: Ints, known: Bools) -> Iterator[tuple[Bools, Bools]]:
    """Each fold that is held out, and what is seen meanwhile."""
    folds = np.unique(fold[known])
    for k in folds if len(folds) > 1 else []:
        held = known & (fold == k)
        seen = known & ~held
        if len(np.unique(codes[seen])) > 1:
            yield held, seen
