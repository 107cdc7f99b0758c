"""Find the lattice under the observations of one section: hexagonal, square, or none.

Pixels of a hexagonal lattice are in *odd-r offset* coordinates: odd rows lie half a pixel further
along the column direction. Every module that reads pixel indices of a hexagonal raster relies on that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse import csgraph
from scipy.spatial import cKDTree

Kind = Literal["auto", "hex", "square", "scattered"]

_MIN_DETECT = 9  # fewer observations look like a lattice by chance
_NEAR = 1.25  # an edge is at most this long, in units of the lattice spacing (the next shell of a square is at 1.41)
_CONSTANT = 0.15  # nearest neighbours of a lattice lie within 15 % of the median distance ...
_CONSTANT_SHARE = 0.85  # ... for this share of the observations
_ORDER = 0.75  # least |mean exp(i m theta)| of the edge directions
_EDGE_ERROR = 0.35  # an edge may miss its lattice vector by this much, in spacings
_SAMPLE, _SAMPLE_ERROR = 10_000, 0.05  # observations looked at first, and by how much their share may mislead
_RESIDUAL = 0.35  # 95 % of the observations must lie this close to the fitted lattice, in spacings
_LARGE, _PATCH = 50_000, 4000  # observations from which the lattice of a patch is tried on all first, and its size
_GROWTH, _STRAIGHT = 4.0, 0.2  # steps in which a patch grows; then all lie this close to its lattice, in spacings


@dataclass(frozen=True)
class Lattice:
    """Integer pixel of every observation, and where the lattice lies in space."""

    kind: str
    index: NDArray[np.int64]  # (n, 2) row, col; both start at 0
    spacing: float
    origin: tuple[float, float]  # x, y of pixel (0, 0)


def fit_lattice(
    xy: NDArray[np.float64], array: NDArray[np.generic] | None = None, kind: Kind = "auto"
) -> Lattice | None:
    """Return the lattice of one section, or None where there is none.

    ``array`` is each observation's row and column on the instrument; it counts where it agrees with the coordinates.
    """
    if kind == "scattered" or len(xy) < 2:
        return None
    if array is not None:
        found = _from_array(xy, array, kind)
        if found is not None:
            return found
    return _from_coordinates(xy, kind)


# --- array rows and columns --------------------------------------------------------------------


def _from_array(xy: NDArray[np.float64], array: NDArray[np.generic], kind: Kind) -> Lattice | None:
    grid = _usable_array(array)
    if grid is None or not _agrees(xy, grid):
        return None
    parity = grid.sum(axis=1) % 2
    constant = bool((parity == parity[0]).all())
    if not constant and kind != "square":
        doubled = _doubled_columns(xy, grid)
        if doubled is not None:
            grid, constant = doubled, True
    shape = _shape_of_parity_lattice(xy, grid) if constant else "square"
    if kind == "hex":
        if not constant:
            return None
        shape = shape if shape in ("hex", "hex_transposed") else "hex"
    elif kind == "square" and shape != "square":
        shape = "diamond"
    if shape == "hex_transposed":
        grid = grid[:, ::-1]
    if shape.startswith("hex"):
        row = grid[:, 0] - grid[:, 0].min()
        odd = row & 1
        start = int((grid[0, 1] - odd[0]) % 2)  # parity of the columns of even rows
        index = np.c_[row, (grid[:, 1] - start - odd) // 2]
        return _build(xy, index, "hex")
    if shape == "diamond":  # a square lattice that stands on its corner: its axes are the diagonals
        grid = np.c_[(grid[:, 0] + grid[:, 1]) // 2, (grid[:, 1] - grid[:, 0] + 1) // 2]
    grid = grid - grid.min(axis=0)
    step = np.maximum(np.gcd.reduce(grid, axis=0), 1)
    return _build(xy, grid // step, "square")


def _usable_array(array: NDArray[np.generic]) -> NDArray[np.int64] | None:
    try:
        values = np.asarray(array, dtype=np.float64)
    except (TypeError, ValueError):
        return None
    if not np.isfinite(values).all() or not np.array_equal(values, np.rint(values)):
        return None
    grid = values.astype(np.int64)
    return grid if _all_different(grid) else None


def _all_different(index: NDArray[np.int64]) -> bool:
    row, col = (index - index.min(axis=0)).T
    return len(np.unique(row * (col.max() + 1) + col)) == len(index)


def _agrees(xy: NDArray[np.float64], grid: NDArray[np.int64]) -> bool:
    """Nearest in space is near on the array, for most observations: also true of a warped section."""
    asked = np.arange(len(xy))
    if len(xy) > _SAMPLE:
        asked = np.random.default_rng(0).choice(len(xy), _SAMPLE, replace=False)
    distance, nearest = cKDTree(xy).query(xy[asked], k=2)
    steps = np.abs(grid[nearest[:, 1]] - grid[nearest[:, 0]])
    unit = np.maximum(np.gcd.reduce(grid - grid.min(axis=0), axis=0), 1)
    close = (steps <= np.maximum(2, unit)).all(axis=1) & (distance[:, 1] > 0)
    return bool(close.mean() >= 0.5)


def _shape_of_parity_lattice(xy: NDArray[np.float64], grid: NDArray[np.int64]) -> str:
    """Tell hexagonal from square where row + column is always even (or always odd).

    Steps (1, 1), (1, -1) and (0, 2) are equally long on Visium's array; on a square one on its corner (0, 2) is longer.
    """
    centred = grid - grid.mean(axis=0)
    if np.linalg.matrix_rank(centred) < 2:
        return "square"  # one row or diagonal: a line of pixels
    matrix, *_ = np.linalg.lstsq(centred, xy - xy.mean(axis=0), rcond=None)
    if abs(np.linalg.det(matrix)) < 1e-12 * np.abs(matrix).max() ** 2:
        return "hex"
    diagonal, anti, across, down = np.linalg.norm(np.array([[1, 1], [1, -1], [0, 2], [2, 0]]) @ matrix, axis=1)
    mean = np.sqrt(diagonal * anti)
    errors = {
        "hex": abs(np.log(across / mean)),
        "hex_transposed": abs(np.log(down / mean)),
        "diamond": (abs(np.log(across / mean / np.sqrt(2))) + abs(np.log(down / mean / np.sqrt(2)))) / 2,
    }
    # every second row and column of a square array: nothing lies between
    even = not (grid - grid.min(axis=0) & 1).any()
    return "square" if even and errors["diamond"] < 0.2 else min(errors, key=lambda name: errors[name])


def _doubled_columns(xy: NDArray[np.float64], grid: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """Rows and columns as Visium counts them, if the array counts hexagonal columns without gaps, else None."""
    grid = grid - grid.min(axis=0)
    if np.linalg.matrix_rank(grid - grid.mean(axis=0)) < 2:
        return None
    plain = _misfit(xy, grid)
    best, found = 0.5 * plain, None
    for rows, cols in (grid.T, grid.T[::-1]):
        for side in (1, -1):
            shifted = np.c_[rows, 2 * cols + side * (rows & 1)]
            misfit = _misfit(xy, shifted)
            if misfit < best and _shape_of_parity_lattice(xy, shifted) == "hex":
                best, found = misfit, shifted
    return found


def _misfit(xy: NDArray[np.float64], grid: NDArray[np.int64]) -> float:
    place = grid - grid.mean(axis=0)
    centred = xy - xy.mean(axis=0)
    matrix, *_ = np.linalg.lstsq(place, centred, rcond=None)
    return float(np.sqrt(np.mean((centred - place @ matrix) ** 2)))


# --- coordinates alone ---------------------------------------------------------------------------


def _from_coordinates(xy: NDArray[np.float64], kind: Kind) -> Lattice | None:
    n = len(xy)
    if kind == "auto" and n < _MIN_DETECT:
        return None
    centred = xy - xy.mean(axis=0)
    if n > _LARGE:
        found = _from_patch(xy, centred, kind)
        if found is not None:
            return found
    tree = cKDTree(centred)
    if n > _SAMPLE:  # most large sections of cells are seen to have no lattice long before all neighbours are found
        sample = np.random.default_rng(0).choice(n, _SAMPLE, replace=False)
        if _share_at_constant_distance(tree.query(centred[sample], k=2)[0][:, 1]) < _CONSTANT_SHARE - _SAMPLE_ERROR:
            return None
    distance, neighbour = tree.query(centred, k=min(7, n))
    if _share_at_constant_distance(distance[:, 1]) < _CONSTANT_SHARE:
        return None
    spacing = float(np.median(distance[:, 1]))
    source, slot = np.nonzero(distance[:, 1:] < _NEAR * spacing)
    target = neighbour[source, slot + 1]
    edge = centred[target] - centred[source]
    spacing = float(np.median(np.linalg.norm(edge, axis=1)))
    angle = np.arctan2(edge[:, 1], edge[:, 0])
    order = {m: complex(np.mean(np.exp(1j * m * angle))) for m in (4, 6)}
    fold = {"hex": 6, "square": 4}.get(kind) or (4 if abs(order[4]) >= abs(order[6]) else 6)
    if abs(order[fold]) < _ORDER:
        return None
    index = _integrate(centred, source, target, edge, spacing, fold, float(np.angle(order[fold])) / fold)
    return None if index is None else _build_from_steps(xy, index, "hex" if fold == 6 else "square")


def _build_from_steps(xy: NDArray[np.float64], steps: NDArray[np.int64], kind: str) -> Lattice | None:
    """Build the lattice from the steps along its two axes."""
    row = steps[:, 1] - steps[:, 1].min()
    col = steps[:, 0] + (row - (row & 1)) // 2 if kind == "hex" else steps[:, 0]
    return _build(xy, np.c_[row, col], kind, checked=True)


def _from_patch(xy: NDArray[np.float64], centred: NDArray[np.float64], kind: Kind) -> Lattice | None:
    """Extend the lattice of a patch to all observations; None where it bends, or there is none."""
    reach = np.abs(centred - centred[np.argmin(np.abs(centred).max(axis=1))]).max(axis=1)
    rows = np.argpartition(reach, _PATCH)[:_PATCH]
    patch = _from_coordinates(centred[rows], kind)
    if patch is None:
        return None
    row, col = patch.index.T
    steps = np.c_[col - (row - (row & 1)) // 2 if patch.kind == "hex" else col, row].astype(np.float64)
    radius, rng = float(reach[rows].max()), np.random.default_rng(0)
    while True:
        shape = np.c_[steps, np.ones(len(steps))]
        basis, _, rank, _ = np.linalg.lstsq(shape, centred[rows], rcond=None)
        if rank < 3:
            return None
        if radius >= reach.max():
            break
        radius *= _GROWTH
        rows = np.flatnonzero(reach <= radius)
        rows = rows if len(rows) <= _SAMPLE else rng.choice(rows, _SAMPLE, replace=False)
        steps = np.rint((centred[rows] - basis[2]) @ np.linalg.inv(basis[:2]))
    everywhere = np.rint((centred - basis[2]) @ np.linalg.inv(basis[:2]))
    missed = np.linalg.norm(centred - basis[2] - everywhere @ basis[:2], axis=1)
    if missed.max() > _STRAIGHT * patch.spacing:
        return None
    return _build_from_steps(xy, everywhere.astype(np.int64), patch.kind)


def _share_at_constant_distance(nearest: NDArray[np.float64]) -> float:
    """Return the share of nearest neighbours that are about as far away as the median (0 where that is 0)."""
    median = float(np.median(nearest))
    return float(np.mean(np.abs(nearest / median - 1) < _CONSTANT)) if median > 0 else 0.0


def _integrate(
    xy: NDArray[np.float64],
    source: NDArray[np.int64],
    target: NDArray[np.int64],
    edge: NDArray[np.float64],
    spacing: float,
    fold: int,
    theta: float,
) -> NDArray[np.int64] | None:
    """Add up the integer steps along a spanning tree; place other components by the fit of the largest."""
    turn = 2 * np.pi / fold
    basis = spacing * np.array([[np.cos(theta), np.sin(theta)], [np.cos(theta + turn), np.sin(theta + turn)]])
    for _ in range(2):  # the second time with the basis that the edges themselves give (slight shear, aspect)
        steps = np.rint(edge @ np.linalg.inv(basis))
        missed = np.linalg.norm(edge - steps @ basis, axis=1)
        good = (missed < _EDGE_ERROR * spacing) & (np.abs(steps).sum(axis=1) > 0)
        if good.mean() < 0.5:
            return None
        if np.linalg.matrix_rank(steps[good]) == 2:
            basis = np.linalg.lstsq(steps[good], edge[good], rcond=None)[0]
    n = len(xy)
    source, target = source[good], target[good]
    link = sparse.coo_matrix((np.ones(len(source)), (source, target)), shape=(n, n))
    n_parts, part = csgraph.connected_components(link, directed=False)
    # an extra node joins one member of every component, so that one search spans them all
    _, member = np.unique(part, return_index=True)
    joined = sparse.csr_matrix(
        (np.ones(len(source) + n_parts), (np.r_[source, np.full(n_parts, n)], np.r_[target, member])),
        shape=(n + 1, n + 1),
    )
    _, parent = csgraph.breadth_first_order(joined, n, directed=False)
    parent = parent.astype(np.int64)
    parent[n] = n
    below_root = parent[:n] == n
    offset = np.zeros((n + 1, 2), dtype=np.int64)
    inner = np.flatnonzero(~below_root)
    offset[inner] = np.rint((xy[inner] - xy[parent[inner]]) @ np.linalg.inv(basis)).astype(np.int64)
    while (parent[:n] != n).any():  # pointer jumping: log2(depth) rounds
        offset += offset[parent]
        parent = parent[parent]
    index = offset[:n]
    if n_parts > 1:
        rows = part == np.argmax(np.bincount(part))
        own = index[rows] - index[rows].mean(axis=0)
        if np.linalg.matrix_rank(own) == 2:
            basis = np.linalg.lstsq(own, xy[rows] - xy[rows].mean(axis=0), rcond=None)[0]
        start = xy[rows].mean(axis=0) - index[rows].mean(axis=0) @ basis
        gap = (xy - start) @ np.linalg.inv(basis) - index
        size = np.bincount(part)
        shift = np.stack([np.bincount(part, weights=gap[:, d]) / size for d in (0, 1)], axis=1)
        index = index + np.rint(shift).astype(np.int64)[part]
    return index


# --- both ---------------------------------------------------------------------------------------


def _build(xy: NDArray[np.float64], index: NDArray[np.int64], kind: str, *, checked: bool = False) -> Lattice | None:
    """Place the lattice in space by an affine fit; reject it where it does not hold (``checked``)."""
    index = index - index.min(axis=0)
    if not _all_different(index):
        return None
    place = index[:, ::-1].astype(np.float64)  # col, row: along x, along y
    if kind == "hex":
        place[:, 0] += 0.5 * (index[:, 0] & 1)
    mean = place.mean(axis=0)
    matrix, _, rank, _ = np.linalg.lstsq(place - mean, xy - xy.mean(axis=0), rcond=None)
    area = abs(float(np.linalg.det(matrix)))
    if rank == 2 and area > 0:
        spacing = float(np.sqrt(area * (2 / np.sqrt(3) if kind == "hex" else 1.0)))
    else:  # a line: its own step
        distance, _ = cKDTree(xy).query(xy, k=2)
        spacing = float(np.median(distance[:, 1])) or 1.0
    if checked:
        residual = np.linalg.norm(xy - xy.mean(axis=0) - (place - mean) @ matrix, axis=1)
        if np.quantile(residual, 0.95) > _RESIDUAL * spacing:
            return None
    origin = xy.mean(axis=0) - mean @ matrix
    return Lattice(kind, index, spacing, (float(origin[0]), float(origin[1])))
