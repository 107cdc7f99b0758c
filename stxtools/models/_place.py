"""What the labels around a place say of it, beside what is expressed there.

Tissue classes are patches: a spot between labelled spots of a class is likely of that class, whatever was measured
in it (as in correct and smooth, Huang et al. 2021).
How far that reaches, and how much it counts beside expression, is read off labelled blocks that are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.optimize import minimize
from scipy.spatial import cKDTree
from scipy.special import log_softmax

FloatArray = NDArray[np.float64]

REACHES = (0.5, 1.0, 2.0, 4.0)  # in distances of left-out observations to the nearest label
_CELLS = 3  # grid cells in one standard deviation of the kernel
_LARGEST = 512  # cells on a side at most
_DOUBT = 0.05  # share of a well-labelled place's weight that speaks for the class sizes instead
_MOST = 3.0  # largest weight: blocks near labels tell too well of them


@dataclass(frozen=True)
class Place:
    """What the labels around count beside a classifier of expression.

    ``reach`` is the standard deviation of the kernel that averages them, in the unit of the coordinates.
    """

    weight: float
    reach: float

    def __call__(self, xy: FloatArray, codes: NDArray[np.int64], n_classes: int) -> FloatArray:
        """Logits that the labels ``codes`` (-1: none) give every observation, (n, K); 0 far from any label."""
        return self.weight * label_logits(xy, codes, n_classes, self.reach)


def label_logits(xy: FloatArray, codes: NDArray[np.int64], n_classes: int, reach: float) -> FloatArray:
    """Log ratio of the classes' shares around each observation to their shares in the section, (n, K).

    Labels are averaged by a Gaussian kernel on a grid: time and memory are linear in observations.
    """
    known = codes >= 0
    if not known.any():
        return np.zeros((len(xy), n_classes))
    low, span = xy.min(axis=0), np.ptp(xy, axis=0)
    step = max(reach / _CELLS, float(span.max()) / _LARGEST, 1e-12)
    shape = tuple(int(s / step) + 2 for s in span)
    at = (xy - low) / step
    cell = np.rint(at[known]).astype(np.int64)
    flat = np.ravel_multi_index((cell[:, 0], cell[:, 1]), shape)
    found = np.empty((len(xy), n_classes))
    for c in range(n_classes):
        count = np.bincount(flat[codes[known] == c], minlength=shape[0] * shape[1]).reshape(shape).astype(np.float64)
        smooth = gaussian_filter(count, reach / step, mode="constant", truncate=3.0)
        found[:, c] = map_coordinates(smooth, at.T, order=1, mode="nearest")
    found = np.maximum(found, 0.0)
    share = np.bincount(codes[known], minlength=n_classes) / known.sum()
    doubt = _DOUBT * float(np.median(found[known].sum(axis=1)))
    seen = share > 0
    logits = np.zeros_like(found)
    mass = found.sum(axis=1, keepdims=True) + doubt
    logits[:, seen] = np.log((found[:, seen] + doubt * share[seen]) / mass) - np.log(share[seen])
    logits[:, ~seen] = logits[:, seen].min(axis=1, keepdims=True)
    return logits


def fit_place(
    sections: Sequence[tuple[FloatArray, NDArray[np.int64]]],
    fold: NDArray[np.int64],
    told: Callable[[NDArray[np.bool_]], FloatArray],
    n_classes: int,
) -> Place | None:
    """Choose reach and weight on labelled blocks that are left out; None where the labels around add nothing.

    Parameters
    ----------
    sections
        Coordinates and class codes (-1 unlabelled) of the observations of each section.
    fold
        Fold of every observation of all sections, whole blocks; -1 for those to leave alone.
    told
        Logits of all observations by expression, learned from the observations that it is given.
    n_classes
        Number of classes.
    """
    codes = np.concatenate([c for _, c in sections])
    known = (codes >= 0) & (fold >= 0)
    folds = np.unique(fold[known])
    if len(folds) < 2:
        return None
    expressed, truth = [], []
    around: dict[float, list[FloatArray]] = {r: [] for r in REACHES}
    unit = _gap(sections, fold, known)
    if unit <= 0:
        return None
    for k in folds:
        left = known & (fold == k)
        seen = (codes >= 0) & ~left
        if len(np.unique(codes[seen])) < 2:
            continue
        expressed.append(told(seen)[left])
        truth.append(codes[left])
        for r in REACHES:
            at = [label_logits(xy, c, n_classes, r * unit) for xy, c in _hidden(sections, left)]
            around[r].append(np.concatenate(at)[left])
    if not expressed:
        return None
    y, z = np.concatenate(truth), np.concatenate(expressed)
    best, best_loss = None, _loss(np.array([_slope(z, y), 0.0]), z, np.zeros_like(z), y)
    for r in REACHES:
        p = np.concatenate(around[r])
        found = minimize(_loss, [1.0, 0.5], args=(z, p, y), method="L-BFGS-B", bounds=[(0.05, 4.0), (0.0, 4.0)])
        if found.fun < best_loss - 1e-3:
            weight = float(min(found.x[1] / found.x[0], _MOST))
            best, best_loss = Place(weight, r * unit), float(found.fun)
    return best if best is not None and best.weight > 0 else None


def _hidden(
    sections: Sequence[tuple[FloatArray, NDArray[np.int64]]], left: NDArray[np.bool_]
) -> list[tuple[FloatArray, NDArray[np.int64]]]:
    """The sections without the labels of ``left``."""
    out, start = [], 0
    for xy, codes in sections:
        out.append((xy, np.where(left[start : start + len(xy)], -1, codes)))
        start += len(xy)
    return out


def _gap(
    sections: Sequence[tuple[FloatArray, NDArray[np.int64]]], fold: NDArray[np.int64], known: NDArray[np.bool_]
) -> float:
    """Median distance of a left-out observation to the nearest label that is left."""
    far, start = [], 0
    for xy, _ in sections:
        rows = slice(start, start + len(xy))
        here, f = known[rows], fold[rows]
        start += len(xy)
        for k in np.unique(f[here]):
            seen, left = xy[here & (f != k)], xy[here & (f == k)]
            if len(seen):
                far.append(cKDTree(seen).query(left)[0])
    return float(np.median(np.concatenate(far))) if far else 0.0


def _slope(z: FloatArray, y: NDArray[np.int64]) -> float:
    """Slope of the logits ``z`` alone with the lowest cross-entropy."""
    found = minimize(lambda a: _loss(np.array([a[0], 0.0]), z, np.zeros_like(z), y), [1.0], method="L-BFGS-B",
                     bounds=[(0.05, 4.0)])  # fmt: skip
    return float(found.x[0])


def _loss(weights: FloatArray, z: FloatArray, p: FloatArray, y: NDArray[np.int64]) -> float:
    logits = weights[0] * z + weights[1] * p
    return -float(log_softmax(logits, axis=1)[np.arange(len(y)), y].mean())
