"""Spatial neighbour graphs within sections, shared borders, areas and neighbourhood means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import sparse

from stxtools._types import Array, Csr, Floats, Ints

from .raster import Pixels, RasterGrid, split_rows
from .triangulation import Mesh, triangulate

Grids = Sequence[RasterGrid]
Meshes = Sequence[Mesh | None]

_COINCIDENT = 1e-3  # distance between observations at one position, in units of the local spacing


def section_meshes(xy: Floats, codes: Ints, grids: Grids) -> list[Mesh | None]:
    """Triangulate every scattered section, once for the graph, the contacts and the areas."""
    return [
        triangulate(xy[rows]) if grid.lattice == "scattered" else None
        for rows, grid in zip(split_rows(codes, len(grids)), grids, strict=True)
    ]


def spatial_graph(xy: Floats, codes: Ints, pixels: Pixels, grids: Grids, meshes: Meshes) -> Csr:
    """Return the distances between neighbours (n x n, symmetric, no stored zero, no edge between sections)."""
    edges = []
    for rows, grid, mesh in zip(split_rows(codes, len(grids)), grids, meshes, strict=True):
        if mesh is not None:
            i, j, length, _ = _scattered_edges(mesh)
        else:
            i, j = _lattice_edges(pixels[rows], hexagonal=grid.lattice == "hex")
            length = np.linalg.norm(xy[rows[i]] - xy[rows[j]], axis=1)
            length = np.where(length > 0, length, _COINCIDENT * grid.pixel_size)
        edges.append((rows[i], rows[j], length))
    return _symmetric(edges, len(xy))


def contact_lengths(graph: Csr, codes: Ints, grids: Grids, meshes: Meshes) -> Csr:
    """Return the length of the border between neighbours, with the sparsity pattern of ``graph``."""
    row = np.repeat(np.arange(len(codes)), np.diff(graph.indptr))
    lattice_contact = [grid.pixel_size / (np.sqrt(3) if grid.lattice == "hex" else 1.0) for grid in grids]
    data, edges = np.array(lattice_contact)[codes[row]], []
    for rows, mesh in zip(split_rows(codes, len(grids)), meshes, strict=True):
        if mesh is not None:
            i, j, _, contact = _scattered_edges(mesh)
            edges.append((rows[i], rows[j], contact))
    scattered = np.flatnonzero(np.array([mesh is not None for mesh in meshes])[codes[row]])
    if len(scattered):
        data[scattered] = _symmetric(edges, len(codes))[row[scattered], graph.indices[scattered]]
    return sparse.csr_matrix((data, graph.indices.copy(), graph.indptr.copy()), shape=graph.shape)


def observation_area(codes: Ints, grids: Grids, meshes: Meshes) -> Floats:
    """Return the tissue area of each observation, in squared units of the coordinates."""
    area = np.ones(len(codes))
    for rows, grid, mesh in zip(split_rows(codes, len(grids)), grids, meshes, strict=True):
        if mesh is not None:
            area[rows] = (mesh.area / np.bincount(mesh.member))[mesh.member]
        else:
            area[rows] = grid.pixel_size**2 * (np.sqrt(3) / 2 if grid.lattice == "hex" else 1.0)
    return area


def neighbour_mean(graph: Csr, values: Array, rounds: int = 1) -> Array:
    """Average ``values`` (n, d) over each observation and its neighbours, ``rounds`` times."""
    out = np.asarray(values)
    weight = averaging_matrix(graph, out.dtype)
    for _ in range(rounds):
        out = weight @ out
    return np.asarray(out, dtype=weight.dtype)


def averaging_matrix(graph: Csr, dtype: Any = np.float64) -> Csr:
    """Return the row-normalised adjacency matrix with self-loops: float32 where ``dtype`` is, else float64."""
    dtype = np.float32 if dtype == np.float32 else np.float64
    n = graph.shape[0]
    weight = sparse.csr_matrix((np.ones(graph.nnz, dtype=dtype), graph.indices, graph.indptr), shape=graph.shape)
    weight = (weight + sparse.identity(n, dtype=dtype, format="csr")).tocsr()
    weight.data /= np.repeat(np.asarray(weight.sum(axis=1)).ravel(), np.diff(weight.indptr)).astype(dtype)
    return weight


def _lattice_edges(pixels: Pixels, *, hexagonal: bool) -> tuple[Ints, Ints]:
    """Find each pair of neighbours once, by the pixels to the right and below."""
    row, col = pixels[:, 0].astype(np.int64), pixels[:, 1].astype(np.int64) + 1
    width = int(col.max()) + 2
    key = row * width + col
    order = np.argsort(key, kind="stable")
    ordered = key[order]
    below = [col - 1 + (row & 1), col + (row & 1)] if hexagonal else [col]  # odd rows lie half a pixel further
    i, j = [], []
    for target in [key + 1, *[(row + 1) * width + c for c in below]]:
        position = np.minimum(np.searchsorted(ordered, target), len(ordered) - 1)
        hit = ordered[position] == target
        i.append(np.flatnonzero(hit))
        j.append(order[position[hit]])
    return np.concatenate(i), np.concatenate(j)


def _scattered_edges(mesh: Mesh) -> tuple[Ints, Ints, Floats, Floats]:
    """Return edges of observations (ends, length, shared border) from those of distinct points."""
    a, b = mesh.edges.T
    size = np.bincount(mesh.member)
    contact = mesh.contact / (size[a] + size[b] - 1)  # divided over all edges of observations between the two points
    parts = [(mesh.first[a], mesh.first[b], mesh.length, contact)]
    # a duplicate is a neighbour of the first observation at its position, and of all that this one's neighbours are
    duplicates = np.flatnonzero(mesh.first[mesh.member] != np.arange(len(mesh.member)))
    if len(duplicates):
        point = mesh.member[duplicates]
        parts.append((duplicates, mesh.first[point], _COINCIDENT * mesh.spacing[point], np.zeros(len(duplicates))))
        numbered = _symmetric([(a, b, np.arange(1, len(a) + 1, dtype=np.float64))], len(size))[point].tocoo()
        edge = numbered.data.astype(np.int64) - 1
        parts.append((duplicates[numbered.row], mesh.first[numbered.col], mesh.length[edge], contact[edge]))
    i, j, length, contact = (np.concatenate(column) for column in zip(*parts, strict=True))
    return i, j, length, contact


def _symmetric(edges: Sequence[tuple[Array, ...]], n: int) -> Csr:
    """Return the symmetric (n, n) matrix of edges (i, j, value), each given once."""
    i, j, values = (np.concatenate(column) for column in zip(*edges, strict=True))
    out = sparse.coo_matrix((np.r_[values, values], (np.r_[i, j], np.r_[j, i])), shape=(n, n)).tocsr()
    out.sort_indices()
    return out
