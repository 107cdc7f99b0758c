"""From coordinates to pixels: of the lattice that the observations form, or of bins by their density."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from stxtools._checks import check_choice
from stxtools._types import Array, Floats, Ints

from .points import typical_spacing

Kind = Literal["auto", "hex", "square", "scattered"]
# (n, 2) row and column; odd rows of a hexagonal lattice lie half a pixel further, on which all readers rely
Pixels = NDArray[np.int32]

_OCCUPANCY = 2.0  # scattered observations per pixel
_MAX_AREA, _MAX_AREA_PER_OBS = 2**24, 1000  # pixels of a raster: a constant, and as many for each observation
_MIN_DETECT = 9  # fewer observations look like a lattice by chance
_MAX_EDGE = 1.25  # length of an edge, in spacings (the second neighbours of a square lattice are at 1.41)
_TOLERANCE = 0.15  # nearest neighbours of a lattice lie within 15 % of the median distance ...
_REGULAR_SHARE = 0.85  # ... for this share of the observations
_MIN_ORDER = 0.75  # orientational order |mean exp(i m theta)| of the edges
_EDGE_ERROR = 0.35  # maximal distance of an edge from its lattice vector, in spacings
_SAMPLE = 10_000  # observations used by a fit
_RESIDUAL = 0.35  # 95 % of the observations must lie this close to the fitted lattice, in spacings
_START, _GROWTH = 8.0, 2.0  # radius around the middle that is fitted first, in spacings, and its growth factor


@dataclass(frozen=True)
class RasterGrid:
    """The raster of one section; lengths are in units of the coordinates."""

    shape: tuple[int, int]
    pixel_size: float  # distance between the centres of neighbouring pixels
    origin: tuple[float, float]  # x, y of the centre of pixel (0, 0)
    lattice: str  # "hex", "square" or "scattered" (square bins, which may hold several observations)
    spacing: float | None = field(default=None, compare=False)  # between scattered observations; not stored

    def to_uns(self) -> dict[str, Any]:
        """Return the fields in types that h5ad and zarr store."""
        return {
            "shape": np.array(self.shape, dtype=np.int64),
            "pixel_size": float(self.pixel_size),
            "origin": np.array(self.origin, dtype=np.float64),
            "lattice": self.lattice,
        }

    @classmethod
    def from_uns(cls, stored: Mapping[str, Any]) -> RasterGrid:
        """Restore a grid from :meth:`to_uns`."""
        rows, cols = (int(v) for v in stored["shape"])
        x, y = (float(v) for v in stored["origin"])
        return cls((rows, cols), float(stored["pixel_size"]), (x, y), str(stored["lattice"]))


def rasterize_libraries(
    xy: Floats, codes: Ints, n_libraries: int, array: Array | None = None, *,
    lattice: Kind = "auto", pixel_size: float | None = None,
) -> tuple[Pixels, list[RasterGrid]]:  # fmt: skip
    """Rasterise each section; scattered ones share the median of their pixel sizes, so that areas are comparable."""
    index = np.zeros((len(xy), 2), dtype=np.int32)
    grids: list[RasterGrid] = []
    sections = split_rows(codes, n_libraries)
    for rows in sections:
        part = None if array is None else array[rows]
        index[rows], grid = rasterize(xy[rows], array=part, lattice=lattice, pixel_size=pixel_size)
        grids.append(grid)
    if pixel_size is None:
        binned = [i for i, grid in enumerate(grids) if grid.lattice == "scattered"]
        # a single position has no density: it takes the pixel size of the others
        sizes = [grids[i].pixel_size for i in binned if np.ptp(xy[sections[i]], axis=0).any()]
        if not sizes:
            sizes = [g.pixel_size for g in grids if g.lattice != "scattered"]
        if sizes and (len(binned) > 1 or len(sizes) != len(binned)):
            for i in binned:
                index[sections[i]], grids[i] = _bin(xy[sections[i]], float(np.median(sizes)), grids[i].spacing)
    return index, grids


def split_rows(codes: Ints, n_libraries: int) -> list[Ints]:
    """Return the rows of every section, in order; linear in observations."""
    ends = np.cumsum(np.bincount(codes, minlength=n_libraries))[:-1]
    return np.split(np.argsort(codes, kind="stable"), ends)


def rasterize(
    xy: Floats, *, array: Array | None = None, lattice: Kind = "auto", pixel_size: float | None = None
) -> tuple[Pixels, RasterGrid]:
    """Return the pixel (row, col) of every observation of one section, and the grid."""
    check_choice("lattice", lattice, get_args(Kind))
    if pixel_size is not None:
        if lattice in ("hex", "square"):
            raise ValueError(
                f"`pixel_size={pixel_size}` and `lattice={lattice!r}` cannot be combined: a lattice has its own "
                "spacing. Leave one of them out."
            )
        return _bin(xy, pixel_size)
    if lattice != "scattered":
        fitted = fit_lattice(xy, array, lattice)
        if fitted is not None:
            index, grid = fitted
            _check_area(*grid.shape, len(xy), grid.pixel_size)
            return index.astype(np.int32), grid
        if lattice != "auto":
            raise ValueError(
                f"The {len(xy)} observations do not form a {lattice} lattice (by their coordinates"
                f"{'' if array is None else ' or array rows and columns'}); use `lattice='auto'` or 'scattered'."
            )
    spacing = typical_spacing(xy)
    return _bin(xy, spacing * np.sqrt(_OCCUPANCY) if (xy != xy[0]).any() else 1.0, spacing)


def _bin(xy: Floats, size: float, spacing: float | None = None) -> tuple[Pixels, RasterGrid]:
    low = xy.min(axis=0)
    extent = np.floor((xy.max(axis=0) - low) / size) + 1
    _check_area(float(extent[1]), float(extent[0]), len(xy), size)
    index = np.floor((xy - low) / size).astype(np.int32)[:, ::-1]
    x, y = low + size / 2
    grid = RasterGrid((int(extent[1]), int(extent[0])), float(size), (float(x), float(y)), "scattered", spacing)
    return np.ascontiguousarray(index), grid


def _check_area(rows: float, cols: float, n_obs: int, size: float) -> None:
    """Check that a raster is not nearly empty: networks read every pixel."""
    if rows * cols > _MAX_AREA + _MAX_AREA_PER_OBS * n_obs:
        raise ValueError(
            f"Pixels of {size:g} would make a raster of {rows:.0f} x {cols:.0f} for {n_obs} observations; choose a "
            "larger `pixel_size` in `st.pp.rasterize`, or drop observations that lie far from all others: "
            "look at the largest and smallest coordinates."
        )


def fit_lattice(xy: Floats, array: Array | None = None, kind: Kind = "auto") -> tuple[Ints, RasterGrid] | None:
    """Return the pixel (row, col) of every observation of one section, and its lattice; None if there is none."""
    if len(xy) < 2:
        return None
    fitted = None if array is None else _from_array(xy, array, kind)
    return _from_coordinates(xy, kind) if fitted is None else fitted


def _from_array(xy: Floats, array: Array, kind: Kind) -> tuple[Ints, RasterGrid] | None:
    """Of the lattices that array rows and columns may describe, return the least distorted one in space."""
    if not np.isfinite(array).all() or (array != np.rint(array)).any():
        return None
    grid = array.astype(np.int64)
    if pd.DataFrame(grid).duplicated().any() or not _matches_space(xy, grid):
        return None
    grid = grid - grid.min(axis=0)
    grid //= np.maximum(np.gcd.reduce(grid, axis=0), 1)  # numbers may have gaps, such as every second row
    if np.linalg.matrix_rank(grid - grid.mean(axis=0)) < 2:  # a line of pixels
        return _build(xy, grid, "square")
    row, col = grid.T
    if len(np.unique((row + col) % 2)) == 1:  # Visium's columns, or a square lattice rotated by 45 degrees
        square, doubled = np.c_[(row + col) // 2, (col - row + 1) // 2], [grid, grid[:, ::-1]]
    else:  # square, or hexagonal columns without gaps
        square = grid
        # odd rows may lie to the right or to the left, and "row" may be the column
        doubled = [np.c_[r, 2 * c + side * (r & 1)] for r, c in ((row, col), (col, row)) for side in (1, -1)]
    candidates = [("square", square)]
    if kind != "square":
        candidates += [("hex", _from_doubled_columns(d)) for d in doubled]
    best, index = min(candidates, key=lambda candidate: _distortion(xy, *candidate))
    return None if kind == "hex" != best else _build(xy, index, best)


def _matches_space(xy: Floats, grid: Ints) -> bool:
    """Whether nearest neighbours in space are near on the array, for most observations, as in warped sections too."""
    sample = _sample(np.arange(len(xy)))
    distance, nearest = cKDTree(xy).query(xy[sample], k=2)
    steps = np.abs(grid[nearest[:, 1]] - grid[nearest[:, 0]])
    unit = np.maximum(np.gcd.reduce(grid - grid.min(axis=0), axis=0), 1)
    close = (steps <= np.maximum(2, unit)).all(axis=1) & (distance[:, 1] > 0)
    return bool(close.mean() >= 0.5)


def _sample(rows: Ints) -> Ints:
    return rows if len(rows) <= _SAMPLE else np.random.default_rng(0).choice(rows, _SAMPLE, replace=False)


def _from_doubled_columns(doubled: Ints) -> Ints:
    """Return odd-r pixels of a hexagonal lattice with Visium's column numbers, two per spot."""
    row = doubled[:, 0] - doubled[:, 0].min()
    odd = row & 1
    start = int((doubled[0, 1] - odd[0]) % 2)  # parity of the columns of even rows
    return np.c_[row, (doubled[:, 1] - start - odd) // 2]


def _distortion(xy: Floats, kind: str, index: Ints) -> float:
    """Measure the anisotropy and the misfit of an affine map from the ideal lattice to the coordinates."""
    ideal = _lattice_xy(index, kind) * (1, np.sqrt(0.75) if kind == "hex" else 1)
    ideal, centred = ideal - ideal.mean(axis=0), xy - xy.mean(axis=0)
    matrix, *_ = np.linalg.lstsq(ideal, centred, rcond=None)
    longest, shortest = np.maximum(np.linalg.svd(matrix, compute_uv=False), 1e-300)
    misfit = np.sqrt(np.square(centred - ideal @ matrix).mean() / (longest * shortest))
    return float(np.log(longest / shortest) + 2 * misfit)


def _lattice_xy(index: Ints, kind: str) -> Floats:
    """Return columns and rows as x and y; odd rows of a hexagonal lattice are shifted by half a column."""
    position = index[:, ::-1].astype(np.float64)
    if kind == "hex":
        position[:, 0] += 0.5 * (index[:, 0] & 1)
    return position


def _from_coordinates(xy: Floats, kind: Kind) -> tuple[Ints, RasterGrid] | None:
    n = len(xy)
    if kind == "auto" and n < _MIN_DETECT:
        return None
    centred = xy - xy.mean(axis=0)
    sample = _sample(np.arange(n))
    distance, neighbour = cKDTree(centred).query(centred[sample], k=min(7, n))
    spacing = float(np.median(distance[:, 1]))
    if (np.abs(distance[:, 1] - spacing) < _TOLERANCE * spacing).mean() < _REGULAR_SHARE:
        return None
    source, slot = np.nonzero(distance[:, 1:] < _MAX_EDGE * spacing)
    edge = centred[neighbour[source, slot + 1]] - centred[sample[source]]
    spacing = float(np.median(np.linalg.norm(edge, axis=1)))
    # edges of a lattice point into m directions, so that m times their angle is one angle: its phase is the rotation
    angle = np.arctan2(edge[:, 1], edge[:, 0])
    order = {m: complex(np.mean(np.exp(1j * m * angle))) for m in (4, 6)}
    fold = {"hex": 6, "square": 4}.get(kind) or (4 if abs(order[4]) >= abs(order[6]) else 6)
    if abs(order[fold]) < _MIN_ORDER:
        return None
    theta = np.angle(order[fold]) / fold + np.array([0.0, 2 * np.pi / fold])
    basis = _fit_basis(edge, spacing * np.c_[np.cos(theta), np.sin(theta)], spacing)
    if basis is None:
        return None
    steps = _index_from_middle(centred, basis, spacing)
    row = steps[:, 1] - steps[:, 1].min()
    if fold == 6:
        return _build(xy, np.c_[row, steps[:, 0] + (row - (row & 1)) // 2], "hex", checked=True)
    return _build(xy, np.c_[row, steps[:, 0]], "square", checked=True)


def _fit_basis(edge: Floats, basis: Floats, spacing: float) -> Floats | None:
    """Fit the lattice vectors to the edges (slight shear, aspect); None if most edges match no lattice vector."""
    for _ in range(2):
        steps = np.rint(edge @ np.linalg.inv(basis))
        error = np.linalg.norm(edge - steps @ basis, axis=1)
        good = (error < _EDGE_ERROR * spacing) & (np.abs(steps).sum(axis=1) > 0)
        if good.mean() < 0.5:
            return None
        if np.linalg.matrix_rank(steps[good]) == 2:
            basis = np.linalg.lstsq(steps[good], edge[good], rcond=None)[0]
    return basis


def _index_from_middle(xy: Floats, basis: Floats, spacing: float) -> Ints:
    """Return steps along the lattice vectors, which are fitted again as the radius around the middle grows."""
    start = xy[np.argmin(np.abs(xy).max(axis=1))]
    reach = np.abs(xy - start).max(axis=1)
    radius = _START * spacing
    while True:
        rows = _sample(np.flatnonzero(reach <= radius))
        steps = np.rint((xy[rows] - start) @ np.linalg.inv(basis))
        if np.linalg.matrix_rank(steps - steps.mean(axis=0)) == 2:
            fitted: Any = np.linalg.lstsq(np.c_[steps, np.ones(len(rows))], xy[rows], rcond=None)[0]
            basis, start = fitted[:2], fitted[2]
        if radius >= reach.max():
            return np.rint((xy - start) @ np.linalg.inv(basis)).astype(np.int64)
        radius *= _GROWTH


def _build(xy: Floats, index: Ints, kind: str, *, checked: bool = False) -> tuple[Ints, RasterGrid] | None:
    """Fit the affine map from lattice to space; None for doubled pixels or, if ``checked``, for a poor fit."""
    index = index - index.min(axis=0)
    if pd.DataFrame(index).duplicated().any():
        return None
    position = _lattice_xy(index, kind)
    mean, centred = position.mean(axis=0), xy - xy.mean(axis=0)
    matrix, _, rank, _ = np.linalg.lstsq(position - mean, centred, rcond=None)
    area = abs(float(np.linalg.det(matrix)))
    if rank == 2 and area > 0:
        spacing = float(np.sqrt(area * (2 / np.sqrt(3) if kind == "hex" else 1.0)))
    else:  # a line: the distance between its points
        distance, _ = cKDTree(xy).query(xy, k=2)
        spacing = float(np.median(distance[:, 1])) or 1.0
    if checked:
        residual = np.linalg.norm(centred - (position - mean) @ matrix, axis=1)
        if np.quantile(residual, 0.95) > _RESIDUAL * spacing:
            return None
    x, y = xy.mean(axis=0) - mean @ matrix
    rows, cols = index.max(axis=0) + 1
    return index, RasterGrid((int(rows), int(cols)), spacing, (float(x), float(y)), kind)
