"""How many segments: BIC of tied Gaussian mixtures, with the sample size that averaged observations amount to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import sparse
from scipy.cluster.hierarchy import cut_tree, linkage
from scipy.spatial import cKDTree
from scipy.special import logsumexp

from stxtools._spatial.smoothing import Neighbourhoods, averages
from stxtools._types import Floats, Floats32, Ints
from stxtools._warn import warn
from stxtools.models._section import Section

from .mixtures import fit_tied, from_tree, pairwise_rand_index, some_rows, tied_moments, whitening

MOST = 12  # segments that are tried
_WINDOWS = (19, 7)  # observations that are averaged: the first window of which ...
_LEAST = 50  # ... so many fit into the tissue
_PERMUTATIONS = 19  # all below the data: 5 % that noise passes for structure
_SAMPLE = 20_000  # observations that mixtures are fitted to; noise hardly varies in more
_STARTS, _TREE = 6, 1000
_TOLERANCE = 1.0  # of the edge-preserving means
_PROBES = 1000  # observations around which residuals are correlated
_RINGS = (1, 7, 19, 37, 61, 91, 127)  # observations within so many rings of a hexagonal lattice


class Choice(NamedTuple):
    """A number of segments, 1 where nothing is arranged in space, and what it was chosen by."""

    k: int
    curve: dict[str, list[float]]


def choose_number(sections: Sequence[Section], rng: np.random.Generator) -> Choice:
    """Choose the number of segments by BIC (Schwarz 1978) on the components that are arranged in space.

    Averaged over neighbours, noise-like components shrink and spatial ones stay. Those with more variance than any of
    permuted observations are kept (parallel analysis; Horn 1965). If there is none, there is one segment; else two
    at least. A plain mean takes the mixtures along a sharp border for segments, an edge-preserving one cuts gradients
    into steps: both are asked, and the smaller number is supported by both.
    """
    n = sum(s.n_obs for s in sections)
    window = next((w for w in _WINDOWS if n / w >= _LEAST), _WINDOWS[-1])
    places = [_Places(s, window, rng) for s in sections]
    x, z = _spatial_components(sections, places, rng)
    if z.shape[1] == 0:
        warn(
            "Nothing in this tissue is arranged in space more than permuted observations are: it becomes one segment. "
            "`n_segments=` asks for a number all the same.",
        )
        return Choice(1, {"n_segments": [1], "stability": [1.0], "bic": [0.0]})
    ks = [k for k in range(1, MOST + 1) if k <= max(2, n // 20)]
    parts = zip(sections, places, np.split(x, np.cumsum([s.n_obs for s in sections])[:-1]), strict=True)
    near = [(s.graph, Neighbourhoods(own, s.xy, p.rows)) for s, p, own in parts]
    sharp = np.concatenate([at.edge_preserving_means(graph, [_TOLERANCE])[_TOLERANCE] for graph, at in near])
    views = (z, sharp.astype(np.float64))
    return min((_lowest_bic(view, ks, n, window, places, rng) for view in views), key=lambda choice: choice.k)


def _lowest_bic(
    z: Floats, ks: list[int], n: int, window: int, places: Sequence[_Places], rng: np.random.Generator
) -> Choice:
    """Fit tied mixtures of ``ks`` classes and count observations as their residuals do.

    Averaging and tissue make neighbours alike: the sample size is the number of observations over the sum of the
    autocorrelation of the residuals (Bartlett 1946), measured at the largest number tried.
    """
    fitted = [_Mixtures(z, ks, rng) for _ in range(_STARTS)]
    size = n / max(window, float(np.mean([_autocorrelation(m.residuals(z), places) for m in fitted])))
    free = np.array(ks) * (z.shape[1] + 1) - 1
    bic = -2 * size * np.mean([m.loglik for m in fitted], axis=0) + free * np.log(max(size, 2.0))
    below = np.tril_indices(_STARTS, -1)
    seen = z[some_rows(len(z), 3000, rng)]
    parts = zip(*(m.partitions(seen) for m in fitted), strict=True)
    stability = [float(pairwise_rand_index(p)[below].mean()) for p in parts]
    return Choice(ks[1 + int(bic[1:].argmin())], {"n_segments": list(ks), "stability": stability, "bic": bic.tolist()})


class _Places:
    """Where a section is looked at: ``rows``, of whose ``means`` all is fitted, and what is ``near`` some of these."""

    def __init__(self, section: Section, window: int, rng: np.random.Generator) -> None:
        tree, n = cKDTree(section.xy), section.n_obs
        probes = some_rows(n, _PROBES, rng)
        near = tree.query(section.xy[probes], k=max(min(_RINGS[-1], n // 3), 2))[1]
        near[:, 0] = probes  # a twin may come first
        self.rows = np.union1d(near, some_rows(n, _SAMPLE, rng))
        self.near = np.searchsorted(self.rows, near)
        own = tree.query(section.xy[self.rows], k=min(window, n))[1]
        self.means = averages(own.reshape(len(self.rows), -1), n)


def _spatial_components(
    sections: Sequence[Section], places: Sequence[_Places], rng: np.random.Generator
) -> tuple[Floats32, Floats]:
    """Components whose means have more variance than those of permuted observations (n, q), and their means (m, q)."""
    features = np.concatenate([s.features for s in sections]).astype(np.float64)
    centre, white = whitening(features)
    x = ((features - centre) @ white).astype(np.float32)
    means = sparse.block_diag([p.means for p in places], format="csr")
    largest = 0.0
    for _ in range(_PERMUTATIONS if len(x) <= _SAMPLE else 3):
        noise = means @ x[rng.permutation(len(x))]
        largest = max(largest, float(np.linalg.eigvalsh(np.atleast_2d(np.cov(noise.T)))[-1]))
    z = means @ x
    variance, axes = np.linalg.eigh(np.atleast_2d(np.cov(z.T)))
    axes = axes[:, variance > largest][:, ::-1]
    return (x @ axes).astype(np.float32), np.asarray(z @ axes, dtype=np.float64)


class _Mixtures:
    """Tied mixtures, one for each number of classes, started from the tree of a random half of the observations."""

    def __init__(self, z: Floats, ks: Sequence[int], rng: np.random.Generator) -> None:
        part = z[some_rows(len(z), _SAMPLE, rng)]
        self.centre, self.white = whitening(part)
        part = (part - self.centre) @ self.white
        sample = part[some_rows(len(part), min(max(len(part) // 2, ks[-1] + 1), _TREE), rng)]
        cuts = cut_tree(linkage(sample, "ward"), list(ks))
        self.models: list[tuple[Floats, Floats]] = []
        self.loglik: list[float] = []
        scale = np.linalg.slogdet(self.white)[1]
        for labels, k in zip(cuts.T, ks, strict=True):
            coef, intercept = fit_tied(part, from_tree(sample, labels, k), max_iter=50)
            logits = part @ coef + intercept
            total = logsumexp(logits, axis=1, keepdims=True)
            within = tied_moments(part, np.exp(logits - total))[2]
            precision = np.linalg.inv(within)
            distance = np.einsum("nd,de,ne->n", part, precision, part)
            self.models.append((coef, intercept))
            self.loglik.append(float((total[:, 0] - distance / 2).mean() - np.linalg.slogdet(within)[1] / 2 + scale))
        self.within = np.linalg.cholesky(precision)  # root of the inverse covariance within the classes of the largest

    def partitions(self, z: Floats) -> list[Ints]:
        seen = (z - self.centre) @ self.white
        return [(seen @ coef + intercept).argmax(axis=1) for coef, intercept in self.models]

    def residuals(self, z: Floats) -> Floats:
        """What the largest mixture leaves unexplained, of unit variance."""
        seen = (z - self.centre) @ self.white
        coef, intercept = self.models[-1]
        logits = seen @ coef + intercept
        share = np.exp(logits - logsumexp(logits, axis=1, keepdims=True))
        rest = (seen - share @ tied_moments(seen, share)[1]) @ self.within
        return np.asarray((rest - rest.mean(axis=0)) / (rest.std(axis=0) + 1e-12))


def _autocorrelation(residuals: Floats, places: Sequence[_Places]) -> float:
    """Sum of the autocorrelation over rings of neighbours, up to the first that has none."""
    rho, start, count = np.zeros(_RINGS[-1]), 0, 0
    for p in places:
        own = residuals[start + p.near[:, 0]]
        rho[: p.near.shape[1]] += [float((own * residuals[start + near]).mean(axis=1).sum()) for near in p.near.T]
        start, count = start + p.means.shape[0], count + len(p.near)
    rings = np.add.reduceat(rho / count, _RINGS[:-1])
    alike = rings[: int((rings <= 0).argmax())] if (rings <= 0).any() else rings
    return 1.0 + float(alike.sum())
