"""Spatial blocks for splits that keep neighbours together, and partitions of neighbour graphs."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components, dijkstra
from scipy.stats import rankdata

from stxtools._types import Csr, Floats, Ints

_BLOCKS_PER_PART = 8


def spatial_blocks(xy: Floats, n_blocks: int) -> Ints:
    """Cut a section into about ``n_blocks`` blocks of equal size: quantiles of x, and within each, quantiles of y."""
    columns = max(1, int(np.sqrt(n_blocks)))
    rows = -(-int(n_blocks) // columns)
    column = _quantile_bin(xy[:, 0], columns)
    row = np.empty(len(xy), dtype=np.int64)
    for c in range(columns):
        inside = column == c
        row[inside] = _quantile_bin(xy[inside, 1], rows)
    return column * rows + row


def _quantile_bin(values: Floats, n_bins: int) -> Ints:
    return (rankdata(values, method="ordinal").astype(np.int64) - 1) * n_bins // max(len(values), 1)


def assign_parts(unit: Ints, n_parts: int, rng: np.random.Generator) -> Ints:
    """Assign units (such as blocks) to parts at random; the numbers of units differ by at most one."""
    n_units = int(unit.max()) + 1 if len(unit) else 0
    part = np.empty(n_units, dtype=np.int64)
    part[rng.permutation(n_units)] = np.arange(n_units) % n_parts
    return part[unit]


class Subgraph(NamedTuple):
    """Core nodes, followed by their halo, and the edges among all of them."""

    nodes: Any  # arrays, or tensors for a network
    core: tuple[int, int]  # numbers of core nodes and of edges that lead to them
    edges: Any  # (2, E) source and target, as indices into ``nodes``


def subgraphs(graph: Csr, xy: Floats, max_size: int, hops: int) -> Iterator[Subgraph]:
    """Partition a symmetric graph into cores of at most ``max_size`` nodes, each with a halo of ``hops`` steps.

    Message passing over ``hops`` layers gives a core the same result as on the whole graph: a halo node at distance k
    is correct up to layer ``hops - k``. A core has up to eight compact blocks, which sample the whole section.
    """
    blocks_per_part = min(_BLOCKS_PER_PART, max_size)
    block = spatial_blocks(xy, _n_blocks(len(xy), max_size // blocks_per_part))
    part = assign_parts(block, ceil((int(block.max()) + 1) / blocks_per_part), np.random.default_rng(0))
    order = np.argsort(part, kind="stable")
    for core in np.split(order, np.flatnonzero(np.diff(part[order])) + 1):
        yield _with_halo(graph, core, hops)


def _n_blocks(n: int, max_size: int) -> int:
    """Smallest number of blocks none of which exceeds ``max_size``; their columns and rows both round up."""
    n_blocks = max(1, ceil(n / max_size))
    while True:
        columns = max(1, int(np.sqrt(n_blocks)))
        if ceil(ceil(n / columns) / ceil(n_blocks / columns)) <= max_size:
            return n_blocks
        n_blocks += 1


def _with_halo(graph: Csr, core: Ints, hops: int) -> Subgraph:
    inside = np.zeros(graph.shape[0], dtype=bool)
    inside[core] = True
    rings = [core]
    for _ in range(hops):
        neighbours = np.unique(graph[rings[-1]].indices)
        rings.append(neighbours[~inside[neighbours]].astype(np.int64))
        inside[rings[-1]] = True
    nodes = np.concatenate(rings)
    local = graph[nodes][:, nodes].tocsr()
    target, source = local.nonzero()  # it is symmetric
    return Subgraph(nodes, (len(core), int(local.indptr[len(core)])), np.stack([source, target]).astype(np.int64))


def bounded_components(graph: Csr, max_size: int, rng: np.random.Generator) -> Ints:
    """Return connected components, those of more than ``max_size`` nodes cut into connected parts below it."""
    labels, rows, n_labels = np.empty(graph.shape[0], dtype=np.int64), np.arange(graph.shape[0]), 0
    while True:  # cut what is too large, and look at the pieces in the next turn
        n_components, component = connected_components(graph, directed=False)
        labels[rows] = n_labels + component
        n_labels += n_components
        size = np.bincount(component)
        large = size[component] > max_size
        if not large.any():
            return labels
        rows, component, graph = rows[large], component[large], graph[large][:, large].tocsr()
        cell, coo = _voronoi(graph, component, size, max_size, rng), graph.tocoo()
        same = cell[coo.row] == cell[coo.col]
        graph = sparse.csr_matrix((coo.data[same], (coo.row[same], coo.col[same])), shape=graph.shape)


def _voronoi(graph: Csr, component: NDArray[np.int32], size: Ints, max_size: int, rng: np.random.Generator) -> Ints:
    """Return the nearest seed along the graph for each node; every component gets at least two random seeds."""
    order = np.lexsort((rng.random(len(component)), component))
    _, first, index = np.unique(component[order], return_index=True, return_inverse=True)
    n_seeds = np.maximum(np.ceil(size[component[order]] / (0.7 * max_size)), 2)  # some room: cells vary in size
    seeds = order[np.arange(len(order)) - first[index] < n_seeds]
    nearest = _nearest_seed(graph, seeds)
    for _ in range(2):  # Lloyd's iterations even out the cells
        nearest = _nearest_seed(graph, _centres(graph, nearest))
    return nearest


def _nearest_seed(graph: Csr, seeds: Ints) -> Ints:
    _, _, source = dijkstra(graph, directed=False, indices=seeds, min_only=True, return_predecessors=True)
    return source.astype(np.int64)


def _centres(graph: Csr, cell: Ints) -> Ints:
    """Return the node of each cell that is most steps away from the cell's boundary."""
    coo = graph.tocoo()
    boundary = np.flatnonzero(np.bincount(coo.row[cell[coo.row] != cell[coo.col]]))
    depth = dijkstra(graph, directed=False, indices=boundary, min_only=True, unweighted=True)
    order = np.lexsort((-depth, cell))
    return order[np.unique(cell[order], return_index=True)[1]].astype(np.int64)
