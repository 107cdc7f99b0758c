"""What a coupling of regions says of compartments: shared mass, links, and a null of shuffled labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from stxtools._types import Bools, Floats, Ints

Coupling = tuple[Floats, Ints, Ints, Floats, Floats]  # plan, compartments and weights of its rows and columns

HALF = 0.5  # share of its mass with a counterpart, under which a compartment appears or disappears


@dataclass(frozen=True)
class Shared:
    """Compartments of one time (rows) against those of the next: mean ``mass`` shared, and share in their sections."""

    mass: Floats
    before: Floats
    after: Floats
    pvals: Floats

    @property
    def forward(self) -> Floats:
        """Share of each source that goes to each target."""
        return self.mass / np.maximum(self.before, 1e-12)[:, None]

    @property
    def backward(self) -> Floats:
        """Share of each target that comes from each source."""
        return self.mass / np.maximum(self.after, 1e-12)[None]

    @property
    def links(self) -> Bools:
        """The best target of every source that goes on, and the best source of every target that was there."""
        out = np.zeros(self.mass.shape, dtype=bool)
        goes_on, was_there = self.forward.sum(axis=1) >= HALF, self.backward.sum(axis=0) >= HALF
        out[goes_on, self.forward[goes_on].argmax(axis=1)] = True
        out[self.backward[:, was_there].argmax(axis=0), was_there] = True
        return out & (self.mass > 0)


def shared_mass(
    couplings: Sequence[Coupling], shape: tuple[int, int], n_permutations: int, rng: np.random.Generator
) -> Shared:
    """Sum couplings of regions up to compartments, and compare them with labels shuffled over later regions."""
    mass, null = np.zeros(shape), np.zeros((n_permutations, *shape))
    before, after = np.zeros(shape[0]), np.zeros(shape[1])
    for plan, rows, columns, one, two in couplings:
        half, labels = np.eye(shape[0])[rows].T @ plan, np.eye(shape[1])[columns]
        mass += half @ labels
        before += np.bincount(rows, one, minlength=shape[0])
        after += np.bincount(columns, two, minlength=shape[1])
        for i in range(n_permutations):
            null[i] += half @ labels[rng.permutation(len(columns))]
    n = len(couplings)
    pvals = (1 + (null >= mass * (1 - 1e-12)).sum(axis=0)) / (1 + n_permutations)
    return Shared(mass / n, before / n, after / n, pvals)


def events(links: Bools) -> NDArray[np.str_]:
    """Name each link: ``continues``, ``splits`` (one of several targets), ``merges`` (of several sources), both."""
    splits, merges = links.sum(axis=1, keepdims=True) > 1, links.sum(axis=0, keepdims=True) > 1
    return np.select([splits & merges, splits, merges], ["splits and merges", "splits", "merges"], "continues")


def lineages(n: int, linked: Sequence[tuple[int, int]]) -> Ints:
    """Number of the lineage of each of ``n`` compartments: those that links connect, in the order of their first."""
    one, two = np.array(linked, dtype=np.int64).reshape(-1, 2).T
    joined = sparse.csr_matrix((np.ones(len(one)), (one, two)), shape=(n, n))
    component = connected_components(joined, directed=False)[1]
    _, first, which = np.unique(component, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[which.ravel()].astype(np.int64)
