"""Blocks of neighbouring observations, for splits that keep neighbours together, and parts of a graph."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components, dijkstra

from stxtools._types import Floats, Ints

_PIECES = 8  # blocks of a part


def spatial_blocks(xy: Floats, n_blocks: int) -> Ints:
    """Cut a section into about ``n_blocks`` blocks of as many observations: columns, then rows in each, by rank."""
    columns = max(1, int(np.sqrt(n_blocks)))
    rows = -(-int(n_blocks) // columns)
    column = _ranked(xy[:, 0], columns)
    row = np.empty(len(xy), dtype=np.int64)
    for c in range(columns):
        inside = column == c
        row[inside] = _ranked(xy[inside, 1], rows)
    return column * rows + row


def deal(unit: Ints, n_parts: int, rng: np.random.Generator) -> Ints:
    """Deal units (blocks, say) out in random order; each part gets as many as the next, or one more."""
    n_units = int(unit.max()) + 1 if len(unit) else 0
    dealt = np.empty(n_units, dtype=np.int64)
    dealt[rng.permutation(n_units)] = np.arange(n_units) % n_parts
    return dealt[unit]


def _ranked(values: Floats, parts: int) -> Ints:
    """Part of each value when they are cut, in their order, into parts of equal size."""
    rank = np.empty(len(values), dtype=np.int64)
    rank[np.argsort(values, kind="stable")] = np.arange(len(values))
    return rank * parts // max(len(values), 1)


class Subgraph(NamedTuple):
    """A part: its ``nodes`` and the ``edges`` (2, E), source and target, as places among them; its own come first."""

    nodes: Any  # arrays, or tensors for a network
    core: tuple[int, int]  # how many nodes are its own, and how many edges lead to these
    edges: Any


def subgraphs(graph: sparse.csr_matrix, xy: Floats, max_size: int, hops: int) -> Iterator[Subgraph]:
    """Cut a symmetric graph into parts of at most ``max_size`` nodes, each with a halo of ``hops`` steps.

    Message passing over ``hops`` layers gives a core what it gives it on the whole graph: a node of the halo at
    distance k is right up to layer ``hops - k``. A part has up to eight compact blocks, so that it is a sample of
    the section.
    """
    pieces = min(_PIECES, max_size)
    block = spatial_blocks(xy, _n_blocks(len(xy), max_size // pieces))
    part = deal(block, ceil((int(block.max()) + 1) / pieces), np.random.default_rng(0))
    order = np.argsort(part, kind="stable")
    for core in np.split(order, np.flatnonzero(np.diff(part[order])) + 1):
        yield with_halo(graph, core, hops)


def _n_blocks(n: int, max_size: int) -> int:
    """Least number of blocks of which none is larger; columns and rows of their grid both round up."""
    n_blocks = max(1, ceil(n / max_size))
    while True:
        columns = max(1, int(np.sqrt(n_blocks)))
        if ceil(ceil(n / columns) / ceil(n_blocks / columns)) <= max_size:
            return n_blocks
        n_blocks += 1


def with_halo(graph: sparse.csr_matrix, core: Ints, hops: int) -> Subgraph:
    """``core`` and all nodes within ``hops`` steps of it, with the edges among them."""
    inside = np.zeros(graph.shape[0], dtype=bool)
    inside[core] = True
    rings, ring = [core], core
    for _ in range(hops):
        near = np.unique(graph[ring].indices)
        ring = near[~inside[near]].astype(np.int64)
        inside[ring] = True
        rings.append(ring)
    nodes = np.concatenate(rings)
    among = graph[nodes][:, nodes].tocsr()
    target, source = among.nonzero()  # it is symmetric
    return Subgraph(nodes, (len(core), int(among.indptr[len(core)])), np.stack([source, target]).astype(np.int64))


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
        cell, coo = _voronoi(graph, part, size, max_size, rng), graph.tocoo()
        same = cell[coo.row] == cell[coo.col]
        graph = sparse.csr_matrix((coo.data[same], (coo.row[same], coo.col[same])), shape=graph.shape)


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
