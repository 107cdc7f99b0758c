"""Correspondence of regions, and so of compartments, by fused unbalanced Gromov-Wasserstein transport."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components, shortest_path

from stxtools._types import Bools, Floats, Ints
from stxtools.models._section import group_means

HALF = 0.5  # share of the mass with a counterpart, under which a compartment appears or disappears
_SHRINKAGE = 0.1  # of the covariance within compartments towards a multiple of the identity
_WITHIN = 0.3  # weight of a region's deviation from its compartment


class Coupling(NamedTuple):
    """Transport plan between the regions of two sections, with their compartments and shares of the sections."""

    plan: Floats  # mass that regions of the earlier (rows) and the later section (columns) share
    earlier: Ints
    later: Ints
    earlier_weight: Floats
    later_weight: Floats


@dataclass(frozen=True)
class Nodes:
    """Regions of all sections."""

    expression: Floats  # mean log expression, (n_regions, n_genes)
    size: Floats  # observations of each region
    section: Ints  # of each region, as its compartment
    compartment: Ints
    time: Ints  # index of the time of each section


def discriminant_features(nodes: Nodes) -> Floats:
    """Features of the regions that separate compartments but not sections, (n_regions, n_features).

    Genes are standardised within sections. Fisher's discriminant axes are those of compartments within sections:
    names of compartments are not matched between sections. Sections are centred on the mean of their compartments, so
    that the size of one does not change the others. The features of a region are the mean of its compartment over the
    sections of its time, and a part of its deviation from it. A distance of 1 is the median distance of compartments
    to the nearest one of the same time.
    """
    values = _standardised(nodes)
    group, cell = _groups(nodes.section, nodes.compartment)
    mean = group_means(values, nodes.size, cell, len(group))
    off = values - mean[cell]
    covariance = off.T @ off / max(len(values) - len(group), 1)
    ridge = _SHRINKAGE * np.trace(covariance) / len(covariance) + np.finfo(float).eps
    variance, axes = np.linalg.eigh((1 - _SHRINKAGE) * covariance + ridge * np.eye(len(covariance)))
    whiten = axes / np.sqrt(variance)
    centred = mean - group_means(mean, np.ones(len(mean)), group[:, 0], len(nodes.time))[group[:, 0]]
    spread = np.linalg.svd(centred @ whiten, full_matrices=False)[2]
    directions = whiten @ spread[: max(int(np.bincount(group[:, 0]).max()), 1)].T

    pair, at = _groups(nodes.time[group[:, 0]], group[:, 1])
    pooled = group_means(centred @ directions, np.ones(len(group)), at, len(pair))
    out = pooled[at[cell]] + _WITHIN * (off @ directions)
    time, distance = pair[:, 0], np.linalg.norm(pooled[:, None] - pooled[None], axis=2)
    distance[(time[:, None] != time[None]) | np.eye(len(time), dtype=bool)] = np.inf
    nearest = distance.min(axis=1)
    nearest = nearest[np.isfinite(nearest) & (nearest > 0)]
    return out / float(np.median(nearest)) if len(nearest) else out


def _standardised(nodes: Nodes) -> Floats:
    n = len(nodes.time)
    off = nodes.expression - group_means(nodes.expression, nodes.size, nodes.section, n)[nodes.section]
    scale = np.sqrt(group_means(off**2, nodes.size, nodes.section, n))[nodes.section]
    return np.divide(off, scale, out=np.zeros_like(off), where=scale > 0)


def _groups(one: Ints, two: Ints) -> tuple[Ints, Ints]:
    """Return the distinct pairs of codes, and the index of each element's pair."""
    pairs, index = np.unique(np.stack([one, two], axis=1), axis=0, return_inverse=True)
    return pairs, index.ravel()


def graph_distances(edges: sparse.csr_matrix, weight: Floats) -> Floats:
    """Lengths of the shortest paths between regions, in units of their weighted mean."""
    distance = np.asarray(shortest_path(edges, directed=False))
    reached = np.isfinite(distance)
    distance[~reached] = distance[reached].max()
    mean = float(weight @ distance @ weight)
    return distance / mean if mean > 0 else distance


def couple(
    cost: Floats, structure: tuple[Floats, Floats], weight: tuple[Floats, Floats], structure_weight: float, slack: float
) -> Floats:
    """Transport plan between the regions of two sections, (n, m); mass without a counterpart stays unmatched.

    Solves the fused unbalanced Gromov-Wasserstein problem (Sejourne et al. 2021, Thual et al. 2022) by block coordinate
    descent, without entropy, for a ``cost`` of features, distances within the sections (``structure``, weighted by
    ``structure_weight``) and masses of the regions (``weight``); ``slack`` is the penalty of unmatched mass.
    """
    import ot

    with np.errstate(divide="ignore", invalid="ignore"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Numerical errors")  # of POT, before the error below
        try:
            plan = ot.gromov.fused_unbalanced_gromov_wasserstein(
                structure_weight * structure[0], structure_weight * structure[1], *weight, reg_marginals=slack,
                epsilon=0, unbalanced_solver="mm", alpha=1, M=cost, max_iter=20, tol=1e-5, max_iter_ot=200, tol_ot=1e-5,
            )[0]  # fmt: skip
        except ValueError as err:
            if "NaN in coupling" not in str(err):
                raise
            return np.zeros_like(cost)  # no mass is matched, and POT would divide by 0
    return np.asarray(plan)


@dataclass(frozen=True)
class Shared:
    """Mean mass shared by compartments of one time (rows) and of the next, and their mean total masses."""

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
        """The best target of every source with a counterpart, and the best source of every such target."""
        out = np.zeros(self.mass.shape, dtype=bool)
        sources, targets = self.forward.sum(axis=1) >= HALF, self.backward.sum(axis=0) >= HALF
        out[sources, self.forward[sources].argmax(axis=1)] = True
        out[self.backward[:, targets].argmax(axis=0), targets] = True
        return out & (self.mass > 0)


def shared_mass(
    couplings: Mapping[tuple[int, int], Coupling], shape: tuple[int, int], n_permutations: int, rng: np.random.Generator
) -> Shared:
    """Sum transport plans of pairs of sections by compartments, with a permutation test over later regions' labels.

    A permutation of a section's labels holds for all of its pairs: they are no replicates of it.
    """
    before, after = np.zeros(shape[0]), np.zeros(shape[1])
    by_source: dict[int, Floats] = {}
    labels: dict[int, Floats] = {}
    for (_, section), c in couplings.items():
        by_source[section] = by_source.get(section, 0) + np.eye(shape[0])[c.earlier].T @ c.plan
        labels[section] = np.eye(shape[1])[c.later]
        before += np.bincount(c.earlier, c.earlier_weight, minlength=shape[0])
        after += np.bincount(c.later, c.later_weight, minlength=shape[1])
    mass = sum((by_source[j] @ labels[j] for j in labels), np.zeros(shape))
    null = np.zeros((n_permutations, *shape))
    for i, j in product(range(n_permutations), labels):
        null[i] += by_source[j] @ rng.permutation(labels[j])
    n = len(couplings)
    pvals = (1 + (null >= mass * (1 - 1e-12)).sum(axis=0)) / (1 + n_permutations)
    return Shared(mass / n, before / n, after / n, pvals)


def events(links: Bools) -> NDArray[np.str_]:
    """Name each link: ``continues``, ``splits`` (one of several targets), ``merges`` (of several sources), both."""
    splits, merges = links.sum(axis=1, keepdims=True) > 1, links.sum(axis=0, keepdims=True) > 1
    return np.select([splits & merges, splits, merges], ["splits and merges", "splits", "merges"], "continues")


def lineages(n: int, linked: Sequence[tuple[int, int]]) -> Ints:
    """Lineage of each of ``n`` compartments: connected components of the links, numbered in order of appearance."""
    one, two = np.array(linked, dtype=np.int64).reshape(-1, 2).T
    graph = sparse.csr_matrix((np.ones(len(one)), (one, two)), shape=(n, n))
    return pd.factorize(connected_components(graph, directed=False)[1])[0].astype(np.int64)
