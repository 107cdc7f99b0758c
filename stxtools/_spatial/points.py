"""Points of a section: canonical order, samples, local density and spacing."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from stxtools._types import Array, Floats, Ints

from .threads import in_threads

_CHUNK = 8192
_N_NEIGHBOURS = 6  # a planar tiling has six neighbours on average


def unique_points(xy: Floats) -> tuple[Floats, Ints, Ints]:
    """Return distinct points, the first row of each, and the distinct point of every row."""
    # complex numbers sort by x, then y: faster than rows
    pairs = np.ascontiguousarray(xy, dtype=np.float64).view(np.complex128)[:, 0]
    points, first, inverse = np.unique(pairs, return_index=True, return_inverse=True)
    return points.view(np.float64).reshape(-1, 2), first.astype(np.int64), inverse.reshape(-1).astype(np.int64)


def neighbour_radius(points: Floats) -> Floats:
    """Return the distance of each distinct point to its sixth neighbour (to the farthest if there are fewer)."""
    k = min(_N_NEIGHBOURS, len(points) - 1)
    if k < 1:
        return np.ones(len(points))
    tree, starts = cKDTree(points), range(0, len(points), _CHUNK)
    return np.concatenate(list(in_threads(lambda i: tree.query(points[i : i + _CHUNK], k=[k + 1])[0][:, 0], starts)))


def local_area(radius: Floats) -> Floats:
    """Return the area per distinct point, ``pi r**2 / 6`` of :func:`neighbour_radius` (1 for a single point)."""
    if len(radius) < 2:
        return np.ones(len(radius))
    return np.pi * radius**2 / min(_N_NEIGHBOURS, len(radius) - 1)


def typical_spacing(xy: Floats) -> float:
    """Return the square root of the median area per observation (1.0 for a single position)."""
    points, _, _ = unique_points(xy)
    return float(np.sqrt(np.median(local_area(neighbour_radius(points)))))


def position_order(xy: Floats, names: NDArray[np.str_]) -> Ints:
    """Return the rows sorted by x, then y, then, where observations share a position, by name."""
    return ties_sorted(np.lexsort((xy[:, 1], xy[:, 0])), xy, names)


def ties_sorted(order: Ints, values: Array, *keys: Array) -> Ints:
    """Sort rows of equal ``values`` (n, d), adjacent in ``order``, by ``keys`` (last key first); ties are few."""
    ordered = values[order]
    same = np.zeros(len(order) + 1, dtype=bool)  # whether a row equals the one before it
    same[1:-1] = (ordered[1:] == ordered[:-1]).all(axis=1)
    tied = np.flatnonzero(same[:-1] | same[1:])
    if len(tied):
        rows, group = order[tied], np.cumsum(~same[:-1])[tied]
        order[tied] = rows[np.lexsort((*(key[rows] for key in keys), group))]
    return order


def evenly_spread(n: int, max_size: int) -> Ints:
    """Return at most ``max_size`` evenly spaced indices below ``n``."""
    return np.unique(np.linspace(0, n - 1, min(n, max_size)).astype(np.int64))
