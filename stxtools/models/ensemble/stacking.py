"""Stacking (Wolpert 1992) of the members' logits, and label propagation, a member without parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.optimize import minimize
from scipy.spatial import cKDTree
from scipy.special import log_softmax

from stxtools._types import Bools, Floats, Floats32, Ints, Reals

from .discriminant import Linear
from .gene_classifier import GeneClassifier
from .gene_means import GeneSection
from .trees import Trees

_MAX_WEIGHT = 4.0
_MIN_GAIN = 1e-3  # of cross-entropy, by label propagation
_BANDWIDTHS = (0.5, 1.0, 2.0, 4.0)  # in distances of held-out observations to the nearest label
_CELLS = 3  # grid cells in one standard deviation of the kernel
_LARGEST = 512  # cells on a side at most
_PRIOR = 0.05  # weight of the section's class shares, in that of a well-labelled position


@dataclass(frozen=True)
class Weights:
    """Factors of the members' logits (values, in a regression), and the bandwidth of label propagation."""

    network: float = 0.0
    linear: float = 0.0
    trees: float = 0.0
    label_propagation: float = 0.0
    bandwidth: float = 0.0
    genes: float = 0.0

    def with_network(self, share: float) -> Weights:
        """Weights with the network at ``share``, or alone if no other has one; the others keep their proportions."""
        others = {name: getattr(self, name) for name in ("linear", "trees", "label_propagation", "genes")}
        share = share if any(others.values()) else float(share > 0)
        return replace(self, network=share, **{name: (1 - share) * weight for name, weight in others.items()})


@dataclass(frozen=True)
class Stack:
    """The fitted members beside the network, and the weights of all."""

    weights: Weights
    linear: Linear | None = None
    trees: Trees | None = None
    genes: GeneClassifier | None = None

    def __call__(
        self, features: Floats32, n_means: int, network: Reals, xy: Floats,
        codes: Ints | None, known: Bools, expression: GeneSection | None = None,
    ) -> Floats:  # fmt: skip
        """Logits (or values) of the observations ``known`` of a section; trees read the first ``n_means`` features."""
        w = self.weights
        logits = w.network * network.astype(np.float64)
        if self.linear is not None and w.linear > 0:
            logits += w.linear * self.linear(features)
        if self.trees is not None and w.trees > 0:
            logits += w.trees * self.trees(features[:, :n_means])
        if codes is not None and w.label_propagation > 0:
            logits += w.label_propagation * propagated_logits(xy, codes, network.shape[1], w.bandwidth)[known]
        if self.genes is not None and expression is not None and w.genes > 0:
            logits += w.genes * self.genes.predict(expression).logits[known]
        return logits


@dataclass(frozen=True)
class Ensemble:
    """The members that predict a task."""

    unlabelled: Stack  # in sections without labels; it is saved
    labelled: Stack | None = None  # in sections with labels; None if they are predicted like the others

    def stack(self, codes: Ints | None, coverage: float = 1.0) -> Stack:
        """The members for a section with these labels (-1 none) and this share of the genes that the network reads."""
        if self.labelled is not None and codes is not None and (codes >= 0).any():
            return self.labelled
        w = self.unlabelled.weights
        if w.genes == 0:
            return self.unlabelled
        weights = replace(w, network=coverage * w.network, genes=w.genes + (1 - coverage) * w.network)
        return replace(self.unlabelled, weights=weights)


@dataclass(frozen=True)
class OutOfFold:
    """Out-of-fold predictions of labelled observations."""

    members: dict[str, Floats]  # name -> logits, (n, K)
    propagated: dict[float, Floats]  # bandwidth -> logits of label propagation, (n, K)
    truth: Ints  # class codes, (n,)

    def weights(self) -> tuple[Weights, Weights | None]:
        """Best weights without and with label propagation; None if that adds nothing."""
        loss, without = self._fitted(self.members)
        fitted = (self._fitted(self.members | {"label_propagation": p}, b) for b, p in self.propagated.items())
        lowest, best = min(fitted, key=itemgetter(0), default=(np.inf, None))
        return without, best if lowest < loss - _MIN_GAIN else None

    def _fitted(self, members: dict[str, Floats], bandwidth: float = 0.0) -> tuple[float, Weights]:
        if not members:
            return np.inf, Weights()
        result = minimize(
            _loss, np.full(len(members), 0.5), args=(np.stack(list(members.values())), self.truth),
            method="L-BFGS-B", jac=True, bounds=[(0.0, _MAX_WEIGHT)] * len(members),
        )  # fmt: skip
        return float(result.fun), Weights(**dict(zip(members, result.x.tolist(), strict=True)), bandwidth=bandwidth)


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
    """Cross-validate the members on each division into ``folds`` (-1: none); None if no division has two folds.

    A member predicts observations from others, both given as masks, in this order: training, held out.
    """
    codes = np.concatenate([c for _, c in sections])
    divisions = [(fold, (codes >= 0) & (fold >= 0)) for fold in folds]
    splits = [split for division in divisions for split in _splits(codes, *division)]
    if not splits:
        return None
    ends = np.cumsum([len(xy) for xy, _ in sections])[:-1]
    unit = float(np.mean([_typical_gap(sections, *division) for division in divisions])) if label_propagation else 0.0

    def propagated(bandwidth: float, held: Bools) -> Floats:
        parts = zip(sections, np.split(np.where(held, -1, codes), ends), strict=True)
        return np.concatenate([propagated_logits(xy, seen, n_classes, bandwidth) for (xy, _), seen in parts])[held]

    return OutOfFold(
        {name: np.concatenate([member(*split) for split in splits]) for name, member in members.items()},
        {b * unit: np.concatenate([propagated(b * unit, held) for _, held in splits]) for b in _BANDWIDTHS if unit > 0},
        np.concatenate([codes[held] for _, held in splits]),
    )


def _splits(codes: Ints, fold: Ints, known: Bools) -> Iterator[tuple[Bools, Bools]]:
    """Training and held-out observations for each fold, if two classes are left for training."""
    for k in np.unique(fold[known]):
        held = known & (fold == k)
        seen = known & ~held
        if len(np.unique(codes[seen])) > 1:
            yield seen, held


def propagated_logits(xy: Floats, codes: Ints, n_classes: int, bandwidth: float) -> Floats:
    """Log ratio of the class shares around each observation to those of the section, (n, K).

    Like correct and smooth (Huang et al. 2021), it reads nearby labels alone.
    """
    known = codes >= 0
    if not known.any():
        return np.zeros((len(xy), n_classes))
    low, span = xy.min(axis=0), np.ptp(xy, axis=0)
    step = max(bandwidth / _CELLS, float(span.max()) / _LARGEST, 1e-12)
    shape = tuple(int(s / step) + 2 for s in span)
    at = (xy - low) / step
    cell = np.rint(at[known]).astype(np.int64)
    flat = np.ravel_multi_index((cell[:, 0], cell[:, 1]), shape)
    density = np.empty((len(xy), n_classes))
    for c in range(n_classes):
        count = np.bincount(flat[codes[known] == c], minlength=shape[0] * shape[1]).reshape(shape).astype(np.float64)
        smooth = gaussian_filter(count, bandwidth / step, mode="constant", truncate=3.0)
        density[:, c] = map_coordinates(smooth, at.T, order=1, mode="nearest")
    density = np.maximum(density, 0.0)
    share = np.bincount(codes[known], minlength=n_classes) / known.sum()
    prior = _PRIOR * float(np.median(density[known].sum(axis=1)))
    seen = share > 0
    logits = np.zeros_like(density)
    total = density.sum(axis=1, keepdims=True) + prior
    logits[:, seen] = np.log((density[:, seen] + prior * share[seen]) / total) - np.log(share[seen])
    logits[:, ~seen] = logits[:, seen].min(axis=1, keepdims=True)
    return logits


def _typical_gap(sections: Sequence[tuple[Floats, Ints]], fold: Ints, known: Bools) -> float:
    """Median distance of held-out observations to the nearest label in the other folds."""
    distances, ends = [], np.cumsum([len(xy) for xy, _ in sections])[:-1]
    for (xy, _), labelled, folds in zip(sections, np.split(known, ends), np.split(fold, ends), strict=True):
        for k in np.unique(folds[labelled]):
            seen, held = xy[labelled & (folds != k)], xy[labelled & (folds == k)]
            if len(seen):
                distances.append(cKDTree(seen).query(held)[0])
    return float(np.median(np.concatenate(distances))) if distances else 0.0
