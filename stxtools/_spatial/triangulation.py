"""Delaunay triangulation of one scattered section, without the edges that span gaps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import Delaunay, QhullError

from stxtools._types import Array, Bools, Floats, Ints

from .points import local_area, neighbour_radius, unique_points

_MAX_LENGTH = 2.0  # of an edge, in units of the local distance to the sixth neighbour


@dataclass(frozen=True)
class Mesh:
    """Edges between the distinct points of a section, with areas and shared borders."""

    first: Ints  # row of the first observation at each distinct point
    member: Ints  # distinct point of every observation
    edges: Ints  # (m, 2) distinct points
    length: Floats
    contact: Floats  # length of the Voronoi border that the ends of every edge share
    area: Floats  # of every distinct point
    spacing: Floats  # square root of the local area of every distinct point


def triangulate(xy: Floats) -> Mesh:
    """Triangulate; drop edges that are long relative to the distance of their ends to the sixth neighbour."""
    points, first, member = unique_points(xy)
    points -= points.mean(axis=0)  # of sorted points: no bit depends on the order of the rows
    radius = neighbour_radius(points)
    density_area = local_area(radius)
    spacing = np.sqrt(density_area)
    edges, contact, area = _edges(points, radius)
    length, keep = _measure(points, radius, *edges.T)
    edges, length, contact = edges[keep], length[keep], contact[keep]
    # a border at the rim of the tissue may run to infinity: then as long as between hexagonal cells
    contact = np.where(np.isfinite(contact), contact, length / np.sqrt(3))
    contact = np.minimum(contact, 2 * np.sqrt(spacing[edges[:, 0]] * spacing[edges[:, 1]]))
    return Mesh(first, member, edges, length, contact, np.where(area > 0, area, density_area), spacing)


def _edges(points: Floats, radius: Floats) -> tuple[Ints, Floats, Floats]:
    """Return edges, the border of each, and a third of the area of the complete triangles around each point."""
    n = len(points)
    if n < 4 or np.linalg.matrix_rank(points, tol=1e-9 * np.abs(points).max() * n) < 2:
        return *_line_edges(points), np.zeros(n)
    try:
        mesh = Delaunay(points)
    except QhullError:  # on a line but for rounding
        return *_line_edges(points), np.zeros(n)
    corners, centre = mesh.simplices, _circumcentres(points[mesh.simplices])
    complete, edges, borders = np.ones(len(corners), dtype=bool), [], []
    for k in range(3):  # the edge opposite to corner k
        ends, other = corners[:, [k - 2, k - 1]], mesh.neighbors[:, k]
        complete &= _measure(points, radius, *ends.T)[1]
        once = np.flatnonzero(other < np.arange(len(other)))
        ends, other = ends[once], other[once]
        edges.append(np.sort(ends, axis=1))
        borders.append(np.where(other < 0, np.inf, np.linalg.norm(centre[once] - centre[other], axis=1)))
    if len(mesh.coplanar):  # points that Qhull merged with another one
        edges.append(np.sort(mesh.coplanar[:, [0, 2]], axis=1))
        borders.append(np.full(len(mesh.coplanar), np.inf))
    corners = corners[complete]
    b, c = points[corners[:, 1]] - points[corners[:, 0]], points[corners[:, 2]] - points[corners[:, 0]]
    third = np.abs(b[:, 0] * c[:, 1] - b[:, 1] * c[:, 0]) / 6
    area: Array = np.bincount(corners.ravel(), np.repeat(third, 3), n)
    return np.concatenate(edges), np.concatenate(borders), area


def _line_edges(points: Floats) -> tuple[Ints, Floats]:
    """Connect successive points along the principal axis; their borders are infinite."""
    centred = points - points.mean(axis=0)
    axis = np.linalg.svd(centred, full_matrices=False)[2][0]
    order = np.argsort(centred @ axis, kind="stable").astype(np.int64)
    return np.sort(np.c_[order[:-1], order[1:]], axis=1), np.full(max(len(points) - 1, 0), np.inf)


def _circumcentres(corners: Floats) -> Floats:
    a = corners[:, 0]
    b, c = corners[:, 1] - a, corners[:, 2] - a
    d = 2 * (b[:, 0] * c[:, 1] - b[:, 1] * c[:, 0])
    bb, cc = (b**2).sum(axis=1), (c**2).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):  # a flat triangle has its centre at infinity
        u = np.c_[c[:, 1] * bb - b[:, 1] * cc, b[:, 0] * cc - c[:, 0] * bb] / d[:, None]
    return a + np.where(np.isfinite(u), u, 1e150)


def _measure(points: Floats, radius: Floats, i: Ints, j: Ints) -> tuple[Floats, Bools]:
    """Return the length of each edge, and whether it is short enough."""
    length = np.linalg.norm(points[i] - points[j], axis=1)
    return length, length <= _MAX_LENGTH * np.sqrt(radius[i] * radius[j])
