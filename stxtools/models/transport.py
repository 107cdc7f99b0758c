"""Correspondence of regions by fused unbalanced Gromov-Wasserstein transport, and what it says of compartments."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components, shortest_path

from stxtools._types import Bools, Floats, Ints

Coupling = tuple[Floats, Ints, Ints, Floats, Floats]  # plan, compartments and weights of its rows and columns

HALF = 0.5  # share of its mass with a counterpart, under which a compartment appears or disappears
_SHRINKAGE = 0.1  # of the covariance within compartments towards a multiple of the identity
_WITHIN = 0.3  # how much of its own deviation from its compartment a region keeps


@dataclass(frozen=True)
class Nodes:
    """Regions of all sections."""

    expression: Floats  # mean log expression, (n_regions, n_genes)
    size: Floats  # observations of each region
    section: Ints  # of each region, as its compartment
    compartment: Ints
    time: Ints  # index of the time of each section


def discriminant_features(nodes: Nodes) -> Floats:
    """Features of the regions in which compartments differ and sections do not, (n_regions, n_features).

    Genes are standardised within sections. Fisher's discriminant axes follow from compartments within sections: no name
    of a compartment is carried from one section to another. Sections are centred on the mean of their compartments, so
    that a compartment that grows moves no other. Regions move with their compartment to its mean over the sections of
    their time, and keep a part of their own deviation. A distance of 1 is the median distance of a compartment from its
    nearest neighbour in expression at the same time.
    """
    values = _standardised(nodes)
    group, cell = _groups(nodes.section, nodes.compartment)
    mean = _means(values, nodes.size, cell, len(group))
    off = values - mean[cell]
    covariance = off.T @ off / max(len(values) - len(group), 1)
    ridge = _SHRINKAGE * np.trace(covariance) / len(covariance) + np.finfo(float).eps
    variance, axes = np.linalg.eigh((1 - _SHRINKAGE) * covariance + ridge * np.eye(len(covariance)))
    whiten = axes / np.sqrt(variance)
    centred = mean - _means(mean, np.ones(len(mean)), group[:, 0], len(nodes.time))[group[:, 0]]
    spread = np.linalg.svd(centred @ whiten, full_matrices=False)[2]
    directions = whiten @ spread[: max(int(np.bincount(group[:, 0]).max()), 1)].T

    pair, at = _groups(nodes.time[group[:, 0]], group[:, 1])
    pooled = _means(centred @ directions, np.ones(len(group)), at, len(pair))
    out = pooled[at[cell]] + _WITHIN * (off @ directions)
    time, distance = pair[:, 0], np.linalg.norm(pooled[:, None] - pooled[None], axis=2)
    distance[(time[:, None] != time[None]) | np.eye(len(time), dtype=bool)] = np.inf
    nearest = distance.min(axis=1)  # other compartment of the time
    nearest = nearest[np.isfinite(nearest) & (nearest > 0)]
    return out / float(np.median(nearest)) if len(nearest) else out


def _standardised(nodes: Nodes) -> Floats:
    n = len(nodes.time)
    off = nodes.expression - _means(nodes.expression, nodes.size, nodes.section, n)[nodes.section]
    scale = np.sqrt(_means(off**2, nodes.size, nodes.section, n))[nodes.section]
    return np.divide(off, scale, out=np.zeros_like(off), where=scale > 0)


def _groups(one: Ints, two: Ints) -> tuple[Ints, Ints]:
    """Pairs of codes that occur, and which of them each element has."""
    found, which = np.unique(np.stack([one, two], axis=1), axis=0, return_inverse=True)
    return found, which.ravel()


def _means(values: Floats, weight: Floats, code: Ints, n: int) -> Floats:
    total = np.bincount(code, weight, minlength=n)
    member = sparse.csr_matrix((weight, (code, np.arange(len(code)))), shape=(n, len(code)))
    return np.asarray(member @ values) / np.maximum(total, 1e-12)[:, None]


def graph_distances(edges: sparse.csr_matrix, weight: Floats) -> Floats:
    """Lengths of the shortest paths between regions, in units of their mean: no scale of a section matters."""
    distance = np.asarray(shortest_path(edges, directed=False))
    reached = np.isfinite(distance)
    distance[~reached] = distance[reached].max()
    mean = float(weight @ distance @ weight)
    return distance / mean if mean > 0 else distance


def couple(
    cost: Floats, structure: tuple[Floats, Floats], weight: tuple[Floats, Floats], structure_weight: float, slack: float
) -> Floats:
    """Mass that each region of a section shares with each of another, (n, m); what fits nowhere is left out.

    Solves the fused unbalanced Gromov-Wasserstein problem (Sejourne et al. 2021, Thual et al. 2022) by block coordinate
    descent, without entropy, for a ``cost`` of features, distances within the sections (``structure``, which counts
    ``structure_weight``) and shares of the regions (``weight``); ``slack`` is the price of mass that is left out.
    """
    import ot

    with np.errstate(divide="ignore", invalid="ignore"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Numerical errors")  # what POT says of the NaN below
        try:
            plan = ot.gromov.fused_unbalanced_gromov_wasserstein(
                structure_weight * structure[0], structure_weight * structure[1], *weight, reg_marginals=slack,
                epsilon=0, unbalanced_solver="mm", alpha=1, M=cost, max_iter=20, tol=1e-5, max_iter_ot=200, tol_ot=1e-5,
            )[0]  # fmt: skip
        except ValueError as err:
            if "NaN in coupling" not in str(err):
                raise
            return np.zeros_like(cost)  # where nothing fits, all mass is left out, and POT divides by none
    return np.asarray(plan)


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
