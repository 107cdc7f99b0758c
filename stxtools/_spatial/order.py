"""An order of observations that does not depend on their rows: what is drawn at random is drawn in it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stxtools._types import Array, Floats, Ints


def position_order(xy: Floats, names: NDArray[np.str_]) -> Ints:
    """Return the rows sorted by x, then y, then, where observations lie at one position, by name."""
    return ties_sorted(np.lexsort((xy[:, 1], xy[:, 0])), xy, names)


def ties_sorted(order: Ints, values: Array, *keys: Array) -> Ints:
    """Sort rows of equal ``values`` (n, d), neighbours in ``order``, by ``keys`` (the last first): they are few."""
    placed = values[order]
    same = np.zeros(len(order) + 1, dtype=bool)  # whether a row is the one before it again
    same[1:-1] = (placed[1:] == placed[:-1]).all(axis=1)
    tied = np.flatnonzero(same[:-1] | same[1:])
    if len(tied):
        rows, stack = order[tied], np.cumsum(~same[:-1])[tied]
        order[tied] = rows[np.lexsort((*(key[rows] for key in keys), stack))]
    return order


def evenly_spread(n: int, most: int) -> Ints:
    """Positions of at most ``most`` of n observations, evenly spread."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).astype(np.int64))
