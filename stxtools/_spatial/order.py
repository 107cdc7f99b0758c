"""An order of observations that does not depend on their rows: what is drawn at random is drawn in it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def position_order(xy: NDArray[np.float64], names: NDArray[np.str_]) -> NDArray[np.int64]:
    """Return the rows sorted by x, then y, then, where observations lie at one position, by name."""
    order = np.lexsort((xy[:, 1], xy[:, 0])).astype(np.int64)
    placed = xy[order]
    same = np.zeros(len(order) + 1, dtype=bool)  # whether a row lies where the one before it does
    same[1:-1] = (placed[1:] == placed[:-1]).all(axis=1)
    tied = np.flatnonzero(same[:-1] | same[1:])
    if len(tied):
        rows, stack = order[tied], np.cumsum(~same[:-1])[tied]
        order[tied] = rows[np.lexsort((names[rows], stack))]
    return order


def name_order(names: NDArray[np.str_]) -> NDArray[np.int64]:
    """Return the rows sorted by name."""
    return np.argsort(names, kind="stable").astype(np.int64)
