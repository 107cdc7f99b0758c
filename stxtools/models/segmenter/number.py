"""The number of segments by BIC of tied Gaussian mixtures, with the effective sample size of averaged observations."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter, itemgetter

import numpy as np
from scipy import sparse
from scipy.cluster.hierarchy import cut_tree, linkage
from scipy.special import logsumexp, softmax

from stxtools._spatial.smoothing import Neighbourhoods, averages, nearest
from stxtools._types import Floats, Floats32
from stxtools._warn import warn
from stxtools.models._section import Section
from stxtools.models.ensemble.discriminant import Linear

from .mixtures import Whitening, fit_tied, logits_of_labels, pairwise_rand_index, some_rows, tied_moments

_MAX_SEGMENTS = 12  # segments that are tried
_WINDOWS = (19, 7)  # observations that are averaged: the larger window where ``_LEAST`` of them fit into the tissue
_LEAST = 50
_PERMUTATIONS = 19  # a level of 5 %
_SAMPLE = 20_000  # observations that mixtures are fitted to; noise hardly varies in more
_STARTS, _TREE = 6, 500
_TOLERANCE = 1.0  # of the edge-preserving means
_PROBES = 1000  # observations around which residuals are correlated
_RINGS = (1, 7, 19, 37, 61, 91, 127)  # observations within so many rings of a hexagonal lattice


Choice = tuple[int, dict[str, list[float]]]  # number of segments; numbers that were tried, their stability and BIC


def choose_number(sections: Sequence[Section], rng: np.random.Generator) -> Choice:
    """Choose the number of segments by BIC (Schwarz 1978) on the components that vary in space.

    Averaging over neighbours shrinks noise and keeps spatial components. Those with more variance than any of permuted
    observations are kept (parallel analysis; Horn 1965). If there is none, there is one segment, else at least two.
    Plain means turn sharp borders into segments, edge-preserving means cut gradients into steps: the smaller of their
    two numbers is taken.
    """
    n = sum(s.n_obs for s in sections)
    window = next((w for w in _WINDOWS if n / w >= _LEAST), _WINDOWS[-1])
    samples = [_Sample(s, window, rng) for s in sections]
    x, z = _spatial_components(sections, samples, rng)
    if z.shape[1] == 0:
        warn(
            "There is no spatial structure (no component varies more than in permuted observations): one segment. "
            "Pass `n_segments=` to get more.",
        )
        return 1, {"n_segments": [1], "stability": [1.0], "bic": [0.0]}
    ks = [k for k in range(1, _MAX_SEGMENTS + 1) if k <= max(2, n // 20)]
    parts, edge_preserving = np.split(x, np.cumsum([s.n_obs for s in sections])[:-1]), []
    for s, sample, part in zip(sections, samples, parts, strict=True):
        means = Neighbourhoods(part, s.xy, sample.rows).edge_preserving_means(s.graph, [_TOLERANCE])
        edge_preserving.append(means[_TOLERANCE])
    views = (z, np.concatenate(edge_preserving).astype(np.float64))
    return min((_lowest_bic(view, ks, n, window, samples, rng) for view in views), key=itemgetter(0))


def _lowest_bic(
    z: Floats, ks: list[int], n: int, window: int, samples: Sequence[_Sample], rng: np.random.Generator
) -> Choice:
    """Number in ``ks`` with the lowest BIC of tied mixtures.

    A mixture started alone ends far from its highest likelihood; merged from larger ones, it hardly depends on chance.
    Averaging and tissue make neighbours alike: the effective sample size is the number of observations over the sum of
    the autocorrelation of the residuals (Bartlett 1946), measured at the largest number tried.
    """
    rows = some_rows(len(z), _SAMPLE, rng)
    z = Whitening.of(z[rows])(z)
    part = z[rows]
    paths = [_merged_mixtures(part, ks, rng) for _ in range(_STARTS)]
    best = [max(mixtures, key=attrgetter("loglik")) for mixtures in zip(*paths, strict=True)]
    for i in range(len(ks) - 2, -1, -1):  # a path may go on from the best mixture of another
        best[i] = max(best[i], _TiedMixture(part, best[i + 1].merged(part)), key=attrgetter("loglik"))
    size = n / max(window, _autocorrelation(best[-1].residuals(z), samples))
    n_params = np.array(ks) * (z.shape[1] + 1) - 1
    bic = n_params * np.log(max(size, 2.0)) - 2 * size * np.array([mixture.loglik for mixture in best])
    pairs, some = np.tril_indices(_STARTS, -1), part[some_rows(len(part), 3000, rng)]
    partitions = ([mixture.model(some).argmax(axis=1) for mixture in mixtures] for mixtures in zip(*paths, strict=True))
    stability = [float(pairwise_rand_index(p)[pairs].mean()) for p in partitions]
    return ks[1 + int(bic[1:].argmin())], {"n_segments": list(ks), "stability": stability, "bic": bic.tolist()}


class _Sample:
    """Sample of a section: ``rows``, the averaging matrix of their windows, and neighbours (``near``) of some."""

    def __init__(self, section: Section, window: int, rng: np.random.Generator) -> None:
        n = section.n_obs
        probes = some_rows(n, _PROBES, rng)
        near = nearest(section.xy, max(min(_RINGS[-1], n // 3), 2), probes)
        near[:, 0] = probes  # an observation at the same position may come first
        self.rows = np.union1d(near, some_rows(n, _SAMPLE, rng))
        self.near = np.searchsorted(self.rows, near)
        self.averaging = averages(nearest(section.xy, window, self.rows), n)


def _spatial_components(
    sections: Sequence[Section], samples: Sequence[_Sample], rng: np.random.Generator
) -> tuple[Floats32, Floats]:
    """Components whose means vary more than those of permuted observations (n, q), and these means (m, q)."""
    features = np.concatenate([s.features for s in sections]).astype(np.float64)
    x = Whitening.of(features)(features).astype(np.float32)
    averaging = sparse.block_diag([sample.averaging for sample in samples], format="csr")
    largest = 0.0
    for _ in range(_PERMUTATIONS if len(x) <= _SAMPLE else 3):
        noise = averaging @ x[rng.permutation(len(x))]
        largest = max(largest, float(np.linalg.eigvalsh(np.atleast_2d(np.cov(noise.T)))[-1]))
    z = averaging @ x
    variance, axes = np.linalg.eigh(np.atleast_2d(np.cov(z.T)))
    axes = axes[:, variance > largest][:, ::-1]
    return (x @ axes).astype(np.float32), np.asarray(z @ axes, dtype=np.float64)


class _TiedMixture:
    """Tied mixture of whitened ``z`` by EM from classes or memberships; ``loglik`` is that of an observation."""

    def __init__(self, z: Floats, start: Linear | Floats) -> None:
        self.model = fit_tied(z, start, max_iter=50)
        logits = self.model(z)
        total = logsumexp(logits, axis=1, keepdims=True)
        self.mass, self.means, within = tied_moments(z, np.exp(logits - total))
        self.precision = np.linalg.inv(within)
        distance = np.einsum("nd,de,ne->n", z, self.precision, z)
        self.loglik = float((total[:, 0] - distance / 2).mean() - np.linalg.slogdet(within)[1] / 2)

    def merged(self, z: Floats) -> Floats:
        """Memberships after the merger of the two classes that raises the variance within classes least (Ward)."""
        share = softmax(self.model(z), axis=1)
        i, j = np.tril_indices(len(self.mass), -1)
        apart, mass = self.means[i] - self.means[j], self.mass + 1e-9
        rise = np.einsum("pd,de,pe->p", apart, self.precision, apart) * mass[i] * mass[j] / (mass[i] + mass[j])
        share[:, j[rise.argmin()]] += share[:, i[rise.argmin()]]
        return np.delete(share, i[rise.argmin()], axis=1)

    def residuals(self, z: Floats) -> Floats:
        """Residuals of unit variance."""
        rest = (z - softmax(self.model(z), axis=1) @ self.means) @ np.linalg.cholesky(self.precision)
        return np.asarray((rest - rest.mean(axis=0)) / (rest.std(axis=0) + 1e-12))


def _merged_mixtures(z: Floats, ks: Sequence[int], rng: np.random.Generator) -> list[_TiedMixture]:
    """Mixtures of 1, 2, ... classes: the largest starts from Ward's tree of a sample, each other by a merger."""
    sample = z[some_rows(len(z), min(max(len(z) // 2, ks[-1] + 1), _TREE), rng)]
    labels = cut_tree(linkage(sample, "ward"), ks[-1])[:, 0]
    mixtures = [_TiedMixture(z, logits_of_labels(sample, labels, ks[-1]))]
    for _ in ks[1:]:
        mixtures.insert(0, _TiedMixture(z, mixtures[0].merged(z)))
    return mixtures


def _autocorrelation(residuals: Floats, samples: Sequence[_Sample]) -> float:
    """Sum of the autocorrelation over rings of neighbours, up to the first ring without any."""
    rho, start, count = np.zeros(_RINGS[-1]), 0, 0
    for sample in samples:
        probes = residuals[start + sample.near[:, 0]]
        for rank, near in enumerate(sample.near.T):
            rho[rank] += float((probes * residuals[start + near]).mean(axis=1).sum())
        start, count = start + len(sample.rows), count + len(sample.near)
    rings = np.add.reduceat(rho / count, _RINGS[:-1])
    first = int((rings <= 0).argmax()) if (rings <= 0).any() else len(rings)
    return 1.0 + float(rings[:first].sum())
