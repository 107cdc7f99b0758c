"""Find the lattice under the observations of one section: hexagonal, square, or none.

Pixels of a hexagonal lattice are in *odd-r offset* coordinates: odd rows lie half a pixel further
along the column direction. Every module that reads pixel indices of a hexagonal raster relies on that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from scipy.spatial import cKDTree

from stxtools._types import Array, Floats, Ints

Kind = Literal["auto", "hex", "square", "scattered"]

_MIN_DETECT = 9  # fewer observations look like a lattice by chance
_NEAR = 1.25  # an edge is at most this long, in units of the lattice spacing (the next shell of a square is at 1.41)
_CONSTANT = 0.15  # nearest neighbours of a lattice lie within 15 % of the median distance ...
_CONSTANT_SHARE = 0.85  # ... for this share of the observations
_ORDER = 0.75  # least |mean exp(i m theta)| of the edge directions
_EDGE_ERROR = 0.35  # an edge may miss its lattice vector by this much, in spacings
_SAMPLE = 10_000  # observations that a fit looks at
_RESIDUAL = 0.35  # 95 % of the observations must lie this close to the fitted lattice, in spacings
_START, _GROWTH = 8.0, 2.0  # spacings around the middle that are fitted first, and steps in which they grow


@dataclass(frozen=True)
class RasterGrid:
    """The raster of one section; lengths are in units of the coordinates.

    - ``pixel_size``, ``origin``: Distance between the centres of neighbouring pixels; x, y of the centre of pixel (0,
      0).
    - ``lattice``: ``"hex"`` (odd rows lie half a pixel further along the column direction), ``"square"`` or
      ``"scattered"`` (bins of a square grid, which may hold several observations).
    - ``spacing``: Typical distance between scattered observations, where it was measured; it is not stored.
    """

    shape: tuple[int, int]
    pixel_size: float
    origin: tuple[float, float]
    lattice: str
    spacing: float | None = field(default=None, compare=False)

    def to_uns(self) -> dict[str, Any]:
        """Return what ``uns`` can hold."""
        return {
            "shape": np.array(self.shape, dtype=np.int64),
            "pixel_size": float(self.pixel_size),
            "origin": np.array(self.origin, dtype=np.float64),
            "lattice": self.lattice,
        }

    @classmethod
    def from_uns(cls, stored: Mapping[str, Any]) -> RasterGrid:
        """Return the grid that :meth:`to_uns` stored."""
        rows, cols = (int(v) for v in stored["shape"])
        x, y = (float(v) for v in stored["origin"])
        return cls((rows, cols), float(stored["pixel_size"]), (x, y), str(stored["lattice"]))


def fit_lattice(xy: Floats, array: Array | None = None, kind: Kind = "auto") -> tuple[Ints, RasterGrid] | None:
    """Return the pixel (row, col) of every observation of one section, and its lattice; None where there is none."""
    if len(xy) < 2:
        return None
    found = None if array is None else _from_array(xy, array, kind)
    return _from_coordinates(xy, kind) if found is None else found


def _from_array(xy: Floats, array: Array, kind: Kind) -> tuple[Ints, RasterGrid] | None:
    """Of the lattices that rows and columns may count, the one that lies in space nearest to how it should."""
    if not np.isfinite(array).all() or (array != np.rint(array)).any():
        return None
    grid = array.astype(np.int64)
    if not _all_different(grid) or not _agrees(xy, grid):
        return None
    grid = grid - grid.min(axis=0)
    grid //= np.maximum(np.gcd.reduce(grid, axis=0), 1)
    if np.linalg.matrix_rank(grid - grid.mean(axis=0)) < 2:  # a line of pixels
        return _build(xy, grid, "square")
    row, col = grid.T
    if len(np.unique((row + col) % 2)) == 1:  # Visium's columns, or a square lattice that stands on its corner
        square, doubled = np.c_[(row + col) // 2, (col - row + 1) // 2], [grid, grid[:, ::-1]]
    else:  # square, or hexagonal columns without gaps
        square = grid
        doubled = [np.c_[r, 2 * c + side * (r & 1)] for r, c in ((row, col), (col, row)) for side in (1, -1)]
    shapes = [("square", square)] if kind == "square" else [("square", square), *(("hex", _halved(d)) for d in doubled)]
    found, index = min(shapes, key=lambda shape: _distortion(xy, *shape))
    return None if kind == "hex" != found else _build(xy, index, found)


def _all_different(index: Ints) -> bool:
    row, col = (index - index.min(axis=0)).T
    return len(np.unique(row * (col.max() + 1) + col)) == len(index)


def _agrees(xy: Floats, grid: Ints) -> bool:
    """Nearest in space is near on the array, for most observations: also true of a warped section."""
    asked = _some(np.arange(len(xy)))
    distance, nearest = cKDTree(xy).query(xy[asked], k=2)
    steps = np.abs(grid[nearest[:, 1]] - grid[nearest[:, 0]])
    unit = np.maximum(np.gcd.reduce(grid - grid.min(axis=0), axis=0), 1)
    close = (steps <= np.maximum(2, unit)).all(axis=1) & (distance[:, 1] > 0)
    return bool(close.mean() >= 0.5)


def _some(rows: Ints) -> Ints:
    return rows if len(rows) <= _SAMPLE else np.random.default_rng(0).choice(rows, _SAMPLE, replace=False)


def _halved(doubled: Ints) -> Ints:
    """Pixels of a hexagonal lattice whose columns are counted as Visium does: two a spot."""
    row = doubled[:, 0] - doubled[:, 0].min()
    odd = row & 1
    start = int((doubled[0, 1] - odd[0]) % 2)  # parity of the columns of even rows
    return np.c_[row, (doubled[:, 1] - start - odd) // 2]


def _distortion(xy: Floats, kind: str, index: Ints) -> float:
    """How far coordinates are from an ideal lattice that was turned and scaled: by stretch and by misfit."""
    place = _place(index, kind) * (1, np.sqrt(0.75) if kind == "hex" else 1)
    place, centred = place - place.mean(axis=0), xy - xy.mean(axis=0)
    matrix, *_ = np.linalg.lstsq(place, centred, rcond=None)
    longest, shortest = np.maximum(np.linalg.svd(matrix, compute_uv=False), 1e-300)
    missed = np.sqrt(np.square(centred - place @ matrix).mean() / (longest * shortest))
    return float(np.log(longest / shortest) + 2 * missed)


def _place(index: Ints, kind: str) -> Floats:
    """Column and row, along x and y, in which odd rows of a hexagonal lattice lie half a column further."""
    place = index[:, ::-1].astype(np.float64)
    if kind == "hex":
        place[:, 0] += 0.5 * (index[:, 0] & 1)
    return place


def _from_coordinates(xy: Floats, kind: Kind) -> tuple[Ints, RasterGrid] | None:
    n = len(xy)
    if kind == "auto" and n < _MIN_DETECT:
        return None
    centred = xy - xy.mean(axis=0)
    asked = _some(np.arange(n))
    distance, neighbour = cKDTree(centred).query(centred[asked], k=min(7, n))
    spacing = float(np.median(distance[:, 1]))
    if (np.abs(distance[:, 1] - spacing) < _CONSTANT * spacing).mean() < _CONSTANT_SHARE:
        return None
    source, slot = np.nonzero(distance[:, 1:] < _NEAR * spacing)
    edge = centred[neighbour[source, slot + 1]] - centred[asked[source]]
    spacing = float(np.median(np.linalg.norm(edge, axis=1)))
    angle = np.arctan2(edge[:, 1], edge[:, 0])
    order = {m: complex(np.mean(np.exp(1j * m * angle))) for m in (4, 6)}
    fold = {"hex": 6, "square": 4}.get(kind) or (4 if abs(order[4]) >= abs(order[6]) else 6)
    if abs(order[fold]) < _ORDER:
        return None
    theta = np.angle(order[fold]) / fold + np.array([0.0, 2 * np.pi / fold])
    basis = _fitted_basis(edge, spacing * np.c_[np.cos(theta), np.sin(theta)], spacing)
    if basis is None:
        return None
    steps = _grown(centred, basis, spacing)
    row = steps[:, 1] - steps[:, 1].min()
    found = "hex" if fold == 6 else "square"
    return _build(xy, np.c_[row, steps[:, 0] + ((row - (row & 1)) // 2 if fold == 6 else 0)], found, checked=True)


def _fitted_basis(edge: Floats, basis: Floats, spacing: float) -> Floats | None:
    """Lattice vectors that the edges themselves give (slight shear, aspect); None where most are no such vector."""
    for _ in range(2):
        steps = np.rint(edge @ np.linalg.inv(basis))
        missed = np.linalg.norm(edge - steps @ basis, axis=1)
        good = (missed < _EDGE_ERROR * spacing) & (np.abs(steps).sum(axis=1) > 0)
        if good.mean() < 0.5:
            return None
        if np.linalg.matrix_rank(steps[good]) == 2:
            basis = np.linalg.lstsq(steps[good], edge[good], rcond=None)[0]
    return basis


def _grown(xy: Floats, basis: Floats, spacing: float) -> Ints:
    """Steps of all observations along the lattice vectors, fitted anew from the middle outwards."""
    start = xy[np.argmin(np.abs(xy).max(axis=1))]
    reach = np.abs(xy - start).max(axis=1)
    radius = _START * spacing
    while True:
        rows = _some(np.flatnonzero(reach <= radius))
        steps = np.rint((xy[rows] - start) @ np.linalg.inv(basis))
        if np.linalg.matrix_rank(steps - steps.mean(axis=0)) == 2:
            found: Any = np.linalg.lstsq(np.c_[steps, np.ones(len(rows))], xy[rows], rcond=None)[0]
            basis, start = found[:2], found[2]
        if radius >= reach.max():
            return np.rint((xy - start) @ np.linalg.inv(basis)).astype(np.int64)
        radius *= _GROWTH


def _build(xy: Floats, index: Ints, kind: str, *, checked: bool = False) -> tuple[Ints, RasterGrid] | None:
    """Place the lattice in space by an affine fit; reject it where it does not hold (``checked``)."""
    index = index - index.min(axis=0)
    if not _all_different(index):
        return None
    place = _place(index, kind)
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
    x, y = xy.mean(axis=0) - mean @ matrix
    rows, cols = index.max(axis=0) + 1
    return index, RasterGrid((int(rows), int(cols)), spacing, (float(x), float(y)), kind)
