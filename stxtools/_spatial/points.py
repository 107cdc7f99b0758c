"""Points: an order that does not depend on their rows, samples of them, and their density, the scale of lengths."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from stxtools._types import Array, Floats, Ints

N_NEIGHBOURS = 6  # a planar tiling has six neighbours on average


def unique_points(xy: Floats) -> tuple[Floats, Ints, Ints]:
    """Return distinct points, the row that stands for each, and for every row its distinct point."""
    # complex numbers sort by x, then y: faster than rows
    pairs = np.ascontiguousarray(xy, dtype=np.float64).view(np.complex128)[:, 0]
    points, first, inverse = np.unique(pairs, return_index=True, return_inverse=True)
    return points.view(np.float64).reshape(-1, 2), first.astype(np.int64), inverse.reshape(-1).astype(np.int64)


def neighbour_radius(points: Floats) -> Floats:
    """Return the distance of each distinct point to its sixth neighbour (to the farthest if there are fewer)."""
    k = min(N_NEIGHBOURS, len(points) - 1)
    if k < 1:
        return np.ones(len(points))
    distance, _ = cKDTree(points).query(points, k=[k + 1], workers=-1)
    return distance[:, 0]


def local_area(radius: Floats) -> Floats:
    """Area that each distinct point has to itself, ``pi r**2 / 6`` of :func:`neighbour_radius` (1 for a lone point)."""
    if len(radius) < 2:
        return np.ones(len(radius))
    return np.pi * radius**2 / min(N_NEIGHBOURS, len(radius) - 1)


def typical_spacing(xy: Floats) -> float:
    """Return the square root of the median area per observation (1.0 for a lone position)."""
    points, _, _ = unique_points(xy)
    return float(np.sqrt(np.median(local_area(neighbour_radius(points))))) if len(points) > 1 else 1.0


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
