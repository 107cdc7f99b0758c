"""Label propagation (as in correct and smooth, Huang et al. 2021), which reads nearby labels alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial import cKDTree

from stxtools._types import Bools, Floats, Ints

BANDWIDTHS = (0.5, 1.0, 2.0, 4.0)  # in distances of held-out observations to the nearest label
_CELLS = 3  # grid cells in one standard deviation of the kernel
_LARGEST = 512  # cells on a side at most
_PRIOR = 0.05  # weight of the section's class shares, in that of a well-labelled position


def propagated_logits(xy: Floats, codes: Ints, n_classes: int, bandwidth: float) -> Floats:
    """Log ratio of the class shares around each observation to those of the section, (n, K)."""
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


def typical_gap(sections: Sequence[tuple[Floats, Ints]], fold: Ints, known: Bools) -> float:
    """Median distance of held-out observations to the nearest label in the other folds."""
    distances, ends = [], np.cumsum([len(xy) for xy, _ in sections])[:-1]
    for (xy, _), labelled, folds in zip(sections, np.split(known, ends), np.split(fold, ends), strict=True):
        for k in np.unique(folds[labelled]):
            seen, held = xy[labelled & (folds != k)], xy[labelled & (folds == k)]
            if len(seen):
                distances.append(cKDTree(seen).query(held)[0])
    return float(np.median(np.concatenate(distances))) if distances else 0.0
