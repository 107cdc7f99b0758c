"""Cut connected sets of observations into connected parts of bounded size."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components, dijkstra

from stxtools._types import Ints


def bounded_parts(graph: sparse.csr_matrix, max_size: int, rng: np.random.Generator) -> Ints:
    """Connected components; those of more than ``max_size`` members are cut into connected parts that have not."""
    found, rows, start = np.empty(graph.shape[0], dtype=np.int64), np.arange(graph.shape[0]), 0
    while True:
        count, part = connected_components(graph, directed=False)
        found[rows], start = start + part, start + count
        size = np.bincount(part)
        large = size[part] > max_size
        if not large.any():
            return found
        if not large.all():
            rows, part, graph = rows[large], part[large], graph[large][:, large].tocsr()
        graph = _within(graph, _voronoi(graph, part, size, max_size, rng))


def _voronoi(
    graph: sparse.csr_matrix, own: NDArray[np.int32], size: Ints, max_size: int, rng: np.random.Generator
) -> Ints:
    """Nearest seed along the graph for each observation, whose part is ``own``; two seeds at least in every part."""
    order = np.lexsort((rng.random(len(own)), own))
    first = np.r_[0, np.flatnonzero(np.diff(own[order])) + 1]
    place = np.arange(len(own)) - np.repeat(first, np.diff(np.r_[first, len(own)]))
    wanted = np.maximum(np.ceil(size[own[order]] / (0.7 * max_size)), 2)  # some room: cells vary in size
    seeds = order[place < wanted]
    nearest = _nearest_seed(graph, seeds)
    for _ in range(2):  # Lloyd's steps even the cells out
        nearest = _nearest_seed(graph, _medoids(graph, nearest))
    return nearest


def _nearest_seed(graph: sparse.csr_matrix, seeds: Ints) -> Ints:
    _, _, source = dijkstra(graph, directed=False, indices=seeds, min_only=True, return_predecessors=True)
    return source.astype(np.int64)


def _medoids(graph: sparse.csr_matrix, nearest: Ints) -> Ints:
    """Member of each cell that lies deepest in it, counted in steps from the cell's rim."""
    coo = graph.tocoo()
    crossing = nearest[coo.row] != nearest[coo.col]
    rim = np.flatnonzero(np.bincount(coo.row[crossing]))
    depth = dijkstra(graph, directed=False, indices=rim, min_only=True, unweighted=True)
    order = np.lexsort((-depth, nearest))
    first = np.r_[0, np.flatnonzero(np.diff(nearest[order])) + 1]
    return order[first].astype(np.int64)


def _within(graph: sparse.csr_matrix, part: Ints) -> sparse.csr_matrix:
    coo = graph.tocoo()
    same = part[coo.row] == part[coo.col]
    return sparse.csr_matrix((coo.data[same], (coo.row[same], coo.col[same])), shape=graph.shape)
