"""Cut connected sets of observations into connected parts of bounded size."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components, dijkstra


def bounded_parts(
    graph: sparse.csr_matrix, part: NDArray[np.int64], max_size: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Cut the parts that have more than ``max_size`` members into connected ones that have not."""
    part = pd.factorize(part)[0].astype(np.int64)
    while True:
        size = np.bincount(part)
        large = np.flatnonzero(size[part] > max_size)
        if len(large) == 0:
            return part
        sub = graph if len(large) == len(part) else graph[large][:, large].tocsr()  # the others stay as they are
        cell = _voronoi(_within(sub, part[large]), part[large], size, max_size, rng)
        part[large] = part.max() + 1 + _connected(sub, cell)
        part = pd.factorize(part)[0].astype(np.int64)


def _voronoi(
    graph: sparse.csr_matrix, own: NDArray[np.int64], size: NDArray[np.int64], max_size: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Nearest seed along the graph for each observation, whose part is ``own``; two seeds at least in every part."""
    order = np.lexsort((rng.random(len(own)), own))
    first = np.r_[0, np.flatnonzero(np.diff(own[order])) + 1]
    place = np.arange(len(own)) - np.repeat(first, np.diff(np.r_[first, len(own)]))
    wanted = np.maximum(np.ceil(size[own[order]] / (0.7 * max_size)), 2)  # some room: cells vary in size
    seeds = order[place < wanted]
    nearest = _nearest_seed(graph, seeds)
    for _ in range(2):  # Lloyd's steps even the cells out
        seeds = _medoids(graph, nearest, seeds)
        nearest = _nearest_seed(graph, seeds)
    return nearest


def _nearest_seed(graph: sparse.csr_matrix, seeds: NDArray[np.int64]) -> NDArray[np.int64]:
    _, _, source = dijkstra(graph, directed=False, indices=seeds, min_only=True, return_predecessors=True)
    return source.astype(np.int64)


def _medoids(graph: sparse.csr_matrix, nearest: NDArray[np.int64], seeds: NDArray[np.int64]) -> NDArray[np.int64]:
    """Member of each cell that lies deepest in it, counted in steps from the cell's rim."""
    coo = graph.tocoo()
    crossing = nearest[coo.row] != nearest[coo.col]
    rim = np.flatnonzero(np.bincount(coo.row[crossing]))
    if len(rim) == 0:
        return seeds
    depth = dijkstra(graph, directed=False, indices=rim, min_only=True, unweighted=True)
    order = np.lexsort((-depth, nearest))
    first = np.r_[0, np.flatnonzero(np.diff(nearest[order])) + 1]
    return order[first].astype(np.int64)


def _within(graph: sparse.csr_matrix, part: NDArray[np.int64]) -> sparse.csr_matrix:
    coo = graph.tocoo()
    same = part[coo.row] == part[coo.col]
    return sparse.csr_matrix((coo.data[same], (coo.row[same], coo.col[same])), shape=graph.shape)


def _connected(graph: sparse.csr_matrix, part: NDArray[np.int64]) -> NDArray[np.int64]:
    return connected_components(_within(graph, part), directed=False)[1].astype(np.int64)
