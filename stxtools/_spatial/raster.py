"""From coordinates to pixels: lattices keep theirs, scattered cells are binned by density."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stxtools._checks import check_choice
from stxtools._types import Array, Floats, Ints

from .lattice import Kind, RasterGrid, fit_lattice
from .points import typical_spacing

LATTICES = ("auto", "hex", "square", "scattered")
_OCCUPANCY = 2.0  # scattered observations per pixel
_MAX_AREA, _MAX_AREA_PER_OBS = 2**24, 1000  # pixels of a raster: a constant, and as many for each observation


def rasterize(
    xy: Floats, *, array: Array | None = None, lattice: Kind = "auto", pixel_size: float | None = None
) -> tuple[NDArray[np.int32], RasterGrid]:
    """Return the pixel (row, col) of every observation of one section, and the grid."""
    check_choice("lattice", lattice, LATTICES)
    if pixel_size is not None and lattice in ("hex", "square"):
        raise ValueError(
            f"`pixel_size={pixel_size}` and `lattice={lattice!r}` exclude each other: a lattice has its own spacing. "
            "Leave one of them out."
        )
    if pixel_size is not None and not (np.isfinite(pixel_size) and pixel_size > 0):
        raise ValueError(f"`pixel_size={pixel_size}` must be a positive number, in units of the coordinates.")
    if len(xy) == 0:
        raise ValueError("A raster needs at least one observation; found none.")
    if pixel_size is None and lattice != "scattered":
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
    if pixel_size is not None:
        return _bin(xy, float(pixel_size))
    spacing = typical_spacing(xy)
    return _bin(xy, spacing * np.sqrt(_OCCUPANCY) if (xy != xy[0]).any() else 1.0, spacing)


def _bin(xy: Floats, size: float, spacing: float | None = None) -> tuple[NDArray[np.int32], RasterGrid]:
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


def rasterize_libraries(
    xy: Floats, codes: Ints, n_libraries: int, array: Array | None = None, *,
    lattice: Kind = "auto", pixel_size: float | None = None,
) -> tuple[NDArray[np.int32], list[RasterGrid]]:  # fmt: skip
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
