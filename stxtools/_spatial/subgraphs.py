"""Cut a large graph into parts that can be worked on one at a time without changing what comes out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from .blocks import deal, spatial_blocks


@dataclass(frozen=True)
class Subgraph:
    """A part: its ``nodes``, the first ``core`` its own, then the halo; ``edges`` (2, E) as places among them."""

    nodes: NDArray[np.int64]
    core: int
    edges: NDArray[np.int64]


def subgraphs(
    graph: sparse.csr_matrix, xy: NDArray[np.float64], max_size: int, hops: int, pieces: int = 8
) -> Iterator[Subgraph]:
    """Cut a symmetric graph into parts of at most ``max_size`` nodes, each with a halo of ``hops`` steps.

    Message passing over ``hops`` layers gives a core what it gives it on the whole graph: a node of the halo at
    distance k is right up to layer ``hops - k``. A part has up to ``pieces`` compact blocks, so that it is a sample of
    the section.
    """
    pieces = min(pieces, max_size)
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


def with_halo(graph: sparse.csr_matrix, core: NDArray[np.int64], hops: int) -> Subgraph:
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
    among = graph[nodes][:, nodes].tocoo()
    return Subgraph(nodes, len(core), np.stack([among.row, among.col]).astype(np.int64))
