"""The number of segments by BIC of tied Gaussian mixtures, with the effective sample size of averaged observations."""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter

import numpy as np
from scipy import sparse
from scipy.cluster.hierarchy import cut_tree, linkage
from scipy.special import logsumexp

from stxtools._spatial.smoothing import Neighbourhoods, averages, nearest
from stxtools._types import Floats, Floats32, Ints
from stxtools._warn import warn
from stxtools.models._section import Section
from stxtools.models.ensemble.discriminant import Linear

from .mixtures import Whitening, fit_tied, logits_of_labels, pairwise_rand_index, some_rows, tied_moments

_MAX_SEGMENTS = 12  # segments that are tried
_WINDOWS = (19, 7)  # observations that are averaged: the larger window where ``_LEAST`` of them fit into the tissue
_LEAST = 50
_PERMUTATIONS = 19  # a level of 5 %
_SAMPLE = 20_000  # observations that mixtures are fitted to; noise hardly varies in more
_STARTS, _TREE = 6, 1000
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

    Averaging and tissue make neighbours alike: the effective sample size is the number of observations over the sum of
    the autocorrelation of the residuals (Bartlett 1946), measured at the largest number tried.
    """
    fitted = [_TiedMixtures(z, ks, rng) for _ in range(_STARTS)]
    size = n / max(window, float(np.mean([_autocorrelation(m.residuals(z), samples) for m in fitted])))
    n_params = np.array(ks) * (z.shape[1] + 1) - 1
    bic = -2 * size * np.mean([m.loglik for m in fitted], axis=0) + n_params * np.log(max(size, 2.0))
    pairs = np.tril_indices(_STARTS, -1)
    some = z[some_rows(len(z), 3000, rng)]
    partitions = zip(*(m.partitions(some) for m in fitted), strict=True)
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


class _TiedMixtures:
    """Tied mixtures for each number of classes, started from Ward's tree of a random half of the observations."""

    def __init__(self, z: Floats, ks: Sequence[int], rng: np.random.Generator) -> None:
        part = z[some_rows(len(z), _SAMPLE, rng)]
        self.whiten = Whitening.of(part)
        part = self.whiten(part)
        sample = part[some_rows(len(part), min(max(len(part) // 2, ks[-1] + 1), _TREE), rng)]
        cuts = cut_tree(linkage(sample, "ward"), list(ks))
        self.models: list[Linear] = []
        self.loglik: list[float] = []
        scale = np.linalg.slogdet(self.whiten.matrix)[1]
        for labels, k in zip(cuts.T, ks, strict=True):
            self.models.append(fit_tied(part, logits_of_labels(sample, labels, k), max_iter=50))
            logits = self.models[-1](part)
            total = logsumexp(logits, axis=1, keepdims=True)
            within = tied_moments(part, np.exp(logits - total))[2]
            precision = np.linalg.inv(within)
            distance = np.einsum("nd,de,ne->n", part, precision, part)
            self.loglik.append(float((total[:, 0] - distance / 2).mean() - np.linalg.slogdet(within)[1] / 2 + scale))
        self.precision_root = np.linalg.cholesky(precision)  # root of the precision matrix of the largest mixture

    def partitions(self, z: Floats) -> list[Ints]:
        z = self.whiten(z)
        return [model(z).argmax(axis=1) for model in self.models]

    def residuals(self, z: Floats) -> Floats:
        """Residuals of the largest mixture, of unit variance."""
        z = self.whiten(z)
        logits = self.models[-1](z)
        share = np.exp(logits - logsumexp(logits, axis=1, keepdims=True))
        rest = (z - share @ tied_moments(z, share)[1]) @ self.precision_root
        return np.asarray((rest - rest.mean(axis=0)) / (rest.std(axis=0) + 1e-12))


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
