"""Linear classifiers, trees and the labels around a place put together, with weights that left-out labels decide.

Each is trained without some blocks and asked about them; the weights of their logits are those of the lowest
cross-entropy there (stacking, Wolpert 1992), which also calibrates them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax

from ._anchor import Linear
from ._model_file import ModelFile
from ._place import REACHES, label_logits, typical_gap
from ._trees import Trees

FloatArray = NDArray[np.float64]
Codes = NDArray[np.int64]

_MOST = 4.0  # largest weight
_GAIN = 1e-3  # cross-entropy that the labels around must save to be asked


@dataclass(frozen=True)
class Weights:
    """What each counts in the logits.

    ``reach`` is the standard deviation of the kernel that averages the labels around, in the unit of the coordinates.
    """

    linear: float = 1.0
    trees: float = 0.0
    place: float = 0.0
    reach: float = 0.0


@dataclass(frozen=True)
class Told:
    """What is told of an observation beside the network.

    Attributes
    ----------
    linear
        Linear classifier, or regression.
    trees
        Trees, or None where they are not asked.
    apart
        Weights where the section has no labels.
    around
        Weights where it has; None where the labels around add nothing. They are not saved: they speak of the sections
        that the model learned from.
    alone
        Weight of the linear classifier if nothing else stood beside it.
    """

    linear: Linear
    trees: Trees | None = None
    apart: Weights = Weights()
    around: Weights | None = None
    alone: float = 1.0

    def __call__(
        self, own: NDArray[np.float32], n_means: int, xy: FloatArray | None = None, codes: Codes | None = None,
        known: NDArray[np.bool_] | None = None,
    ) -> FloatArray:  # fmt: skip
        """Logits (or values) of observations.

        Parameters
        ----------
        own
            What they read of their neighbourhoods, (m, d).
        n_means
            How many columns of it trees read.
        xy, codes
            Coordinates and class (-1 none) of all observations of the section, for the labels around.
        known
            Which of these are the ``m`` observations.
        """
        beside = self.around if xy is not None and codes is not None else None
        weights = beside or self.apart
        logits = weights.linear * self.linear(own)
        if self.trees is not None and weights.trees > 0:
            logits += weights.trees * self.trees(own[:, :n_means])
        if beside is not None and xy is not None and codes is not None:
            logits += beside.place * label_logits(xy, codes, logits.shape[1], beside.reach)[known]
        return logits

    def to_file(self, prefix: str) -> dict[str, NDArray[Any]]:
        """Arrays that a model file keeps."""
        arrays = {f"{prefix}.coef": self.linear.coef, f"{prefix}.intercept": self.linear.intercept}
        arrays[f"{prefix}.weights"] = np.array([self.apart.linear, self.apart.trees, self.alone])
        return arrays | (self.trees.to_file(f"{prefix}.trees") if self.trees is not None else {})

    @classmethod
    def from_file(cls, file: ModelFile, prefix: str, n_own: int, n_means: int, n_classes: int) -> Told:
        """Return what :meth:`to_file` wrote; an observation reads ``n_own`` features, ``n_means`` of them means."""
        linear, trees, alone = (float(w) for w in file.array(f"{prefix}.weights", (3,), minimum=0.0))
        return cls(
            Linear(file.array(f"{prefix}.coef", (n_own, n_classes)), file.array(f"{prefix}.intercept", (n_classes,))),
            Trees.from_file(file, f"{prefix}.trees", n_means, n_classes),
            Weights(linear, trees),
            alone=alone,
        )


@dataclass(frozen=True)
class LeftOut:
    """What the classifiers said of labelled observations that they had not seen.

    Attributes
    ----------
    linear, trees
        Logits, (n, K); ``trees`` None where they are not asked.
    place
        Reach -> logits of the labels around, (n, K).
    truth
        Class codes, (n,).
    """

    linear: FloatArray
    trees: FloatArray | None
    place: dict[float, FloatArray]
    truth: Codes

    def alone(self) -> float:
        """Best weight of the linear classifier if nothing else is asked."""
        return LeftOut(self.linear, None, {}, self.truth).weights()[0].linear

    def weights(self) -> tuple[Weights, Weights | None]:
        """Best weights without and with the labels around; None where these add nothing."""
        loss, apart = self._fitted(None)
        least, around = min((self._fitted(reach) for reach in self.place), key=itemgetter(0), default=(np.inf, None))
        return apart, around if least < loss - _GAIN else None

    def _fitted(self, reach: float | None) -> tuple[float, Weights]:
        parts = [self.linear]
        parts += [] if self.trees is None else [self.trees]
        parts += [] if reach is None else [self.place[reach]]
        logits = np.stack(parts)
        start = np.full(len(parts), 0.5)
        found = minimize(_loss, start, args=(logits, self.truth), method="L-BFGS-B", jac=True,
                         bounds=[(0.0, _MOST)] * len(parts))  # fmt: skip
        w = [float(x) for x in found.x]
        return float(found.fun), Weights(
            w[0], 0.0 if self.trees is None else w[1], 0.0 if reach is None else w[-1], reach or 0.0
        )


def _loss(weights: FloatArray, logits: FloatArray, truth: Codes) -> tuple[float, FloatArray]:
    """Cross-entropy of weighted logits (P, n, K), and its gradient."""
    log_p = log_softmax(np.tensordot(weights, logits, axes=1), axis=1)
    rows = np.arange(len(truth))
    expected = np.einsum("nk,pnk->pn", np.exp(log_p), logits)
    return -float(log_p[rows, truth].mean()), (expected - logits[:, rows, truth]).mean(axis=1)


def ask_left_out(
    sections: Sequence[tuple[FloatArray, Codes]],
    folds: Sequence[Codes],
    linear: Callable[[NDArray[np.bool_], NDArray[np.bool_]], FloatArray],
    trees: Callable[[NDArray[np.bool_], NDArray[np.bool_]], FloatArray] | None,
    n_classes: int,
    *,
    around: bool,
) -> LeftOut | None:
    """Train on all folds but one and ask about it, fold by fold, for each division; None where there are not two folds.

    Parameters
    ----------
    sections
        Coordinates and class codes (-1 unlabelled) of the observations of each section.
    folds
        Divisions: the fold of every observation of all sections, whole blocks; -1 for those to leave alone.
    linear, trees
        Logits of the second observations, learned from the first.
    n_classes
        Number of classes.
    around
        Whether the labels around are asked.
    """
    codes = np.concatenate([c for _, c in sections])
    asked = [(fold, (codes >= 0) & (fold >= 0)) for fold in folds]
    unit = float(np.mean([typical_gap(sections, fold, known) for fold, known in asked])) if around and asked else 0.0
    reaches = [r * unit for r in REACHES] if unit > 0 else []
    said: dict[str, list[FloatArray]] = {"linear": [], "trees": []}
    place: dict[float, list[FloatArray]] = {reach: [] for reach in reaches}
    truth = []
    for left, seen in (turn for fold, known in asked for turn in _turns(codes, fold, known)):
        said["linear"].append(linear(seen, left))
        if trees is not None:
            said["trees"].append(trees(seen, left))
        for reach in reaches:
            at = [label_logits(xy, c, n_classes, reach) for xy, c in _hidden(sections, left)]
            place[reach].append(np.concatenate(at)[left])
        truth.append(codes[left])
    if not truth:
        return None
    return LeftOut(
        np.concatenate(said["linear"]),
        np.concatenate(said["trees"]) if trees is not None else None,
        {reach: np.concatenate(found) for reach, found in place.items()},
        np.concatenate(truth),
    )


def _turns(
    codes: Codes, fold: Codes, known: NDArray[np.bool_]
) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """Each fold that is left out, and what is seen meanwhile."""
    folds = np.unique(fold[known])
    for k in folds if len(folds) > 1 else []:
        left = known & (fold == k)
        seen = known & ~left
        if len(np.unique(codes[seen])) > 1:
            yield left, seen


def _hidden(sections: Sequence[tuple[FloatArray, Codes]], left: NDArray[np.bool_]) -> list[tuple[FloatArray, Codes]]:
    """The sections without the labels of ``left``."""
    out, start = [], 0
    for xy, codes in sections:
        out.append((xy, np.where(left[start : start + len(xy)], -1, codes)))
        start += len(xy)
    return out
