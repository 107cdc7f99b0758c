"""Groups of observations as a label image, in squidpy's layout, and as polygons."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import Voronoi, cKDTree

from stxtools._types import Floats

from .threads import in_threads

_PIXELS_PER_SPOT = 4  # unless the image would exceed _MAX_SIDE
_MAX_SIDE = 2048  # rows or columns
_BLOCK = 1 << 16  # pixels per nearest-neighbour query
REACH = 0.75  # of an observation of a lattice, in spacings
REACH_SCATTERED = 1.5
_INSIDE_DISC = np.cos(np.pi / 16)  # radius within a disc, a polygon of 16 corners


class Frame(NamedTuple):
    """Pixel grid in the coordinates of the observations: column c, row r is at ``origin + (c, r) / scale``."""

    shape: tuple[int, int]
    scale: float
    origin: tuple[float, float] = (0.0, 0.0)


def tissue_frame(xy: Floats, spacing: float, *, margin: float = REACH) -> Frame:
    """Return a frame that covers the tissue and ``margin`` spacings around it."""
    low = xy.min(axis=0) - margin * spacing
    size = xy.max(axis=0) + margin * spacing - low
    # - 2, + 2: the image must contain the pixel of the outermost observation, rounded either way
    scale = min(_PIXELS_PER_SPOT / spacing, (_MAX_SIDE - 2) / float(size.max()))
    # rounded, so that shifted tissue gets an image of the same size
    width, height = (min(int(np.ceil(np.round(v * scale, 6))) + 2, _MAX_SIDE) for v in size)
    return Frame((height, width), float(scale), (float(low[0]), float(low[1])))


def render_mask(
    xy: Floats, values: NDArray[np.integer[Any]], spacing: float, frame: Frame, *, reach: float = REACH
) -> NDArray[np.uint32]:
    """Return a label image, rows along y: the value of the nearest observation, 0 beyond ``reach`` spacings."""
    height, width = frame.shape
    limit = max(reach * spacing, 1.5 / frame.scale)  # no spot falls between pixels that are larger than it
    xy = xy - np.asarray(frame.origin)
    tree = cKDTree(xy)
    padded = np.append(np.asarray(values).astype(np.uint32), np.uint32(0))  # the query gives len(xy) for none
    x = np.arange(width) / frame.scale
    step = max(_BLOCK // width, 1)

    def rows(top: int) -> NDArray[np.uint32]:
        y = np.arange(top, min(top + step, height)) / frame.scale
        pixels = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
        return padded[tree.query(pixels, distance_upper_bound=limit)[1]].reshape(len(y), width)

    return np.concatenate(list(in_threads(rows, range(0, height, step))))


def outlines(xy: Floats, codes: NDArray[np.integer[Any]], reach: float) -> dict[int, Any]:
    """Return a shapely polygon or multipolygon for each non-negative code; together they tile the tissue."""
    import shapely

    middle, far = xy.mean(axis=0), 10 * max(float(np.ptp(xy, axis=0).max()), reach)
    bounds = far * np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])  # so that every observation has a closed cell
    diagram = Voronoi(np.vstack([xy - middle, bounds]))  # in GEOS, cells of rotated lattices overlap
    regions, first = np.unique(diagram.point_region[: len(xy)], return_index=True)  # duplicates share one
    xy, codes, corners = xy[first], np.asarray(codes)[first], [diagram.regions[region] for region in regions]
    cell = np.repeat(np.arange(len(corners)), [len(corner) for corner in corners])
    vertices = diagram.vertices[np.concatenate(corners)] + middle
    cells = shapely.polygons(shapely.linearrings(vertices, indices=cell))
    at_rim = np.zeros(len(cells), dtype=bool)  # others lie within the disc of their observation
    at_rim[cell[np.linalg.norm(vertices - xy[cell], axis=1) > _INSIDE_DISC * reach]] = True
    order = np.argsort(codes, kind="stable")
    names, starts = np.unique(codes[order], return_index=True)
    out = {}
    for code, own in zip(names.tolist(), np.split(order, starts[1:]), strict=True):
        if code >= 0:
            rim = own[at_rim[own]]
            discs = shapely.union_all(shapely.buffer(shapely.points(xy[rim]), reach, quad_segs=4))
            clipped = shapely.intersection(shapely.coverage_union_all(cells[rim]), discs)
            out[code] = shapely.union(shapely.coverage_union_all(cells[own[~at_rim[own]]]), clipped)
    return out
