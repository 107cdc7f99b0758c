"""Random regions with the correlogram of a region (surrogate maps): the null distribution of a region test."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count, islice

import numpy as np
from scipy import fft, sparse
from scipy.integrate import cumulative_trapezoid
from scipy.spatial import cKDTree
from scipy.special import ndtri

from stxtools._spatial.kernels import BITS
from stxtools._types import Bools, Floats, Floats32, Ints, Reals

from ._smooth import SmoothBasis, chunks

N_LAGS = 14
N_PAIRS = 6000
_POWERS = np.array([1.0, 1.5, 2.0])
_NUGGETS = np.array([0.0, 0.03, 0.08, 0.15, 0.25, 0.4, 0.6, 0.8, 1.0])
_MAX_GRID = 1024
_FIELDS = 4  # random fields simulated at a time
_BATCH = 64  # labels drawn at a time
_MOST_COPIED = 2000  # observations of a region that is copied
_LARGEST_COPIED = 0.25  # its diameter over the section's extent
_REACH = 2.5  # spacings; farther from any observation, a position is outside
_OUTSIDE = 0.2  # share of a copy that may be outside
_TRIED = 40  # copies that show whether most fit


@dataclass(frozen=True)
class LabelModel:
    """Gaussian random field with correlation ``(1 - nugget) exp(-(h / length) ** power)``; a ``fraction`` is inside."""

    fraction: float
    length: float
    power: float
    nugget: float


@dataclass(frozen=True)
class LagPairs:
    """Pairs of observations at fixed lags, and quantiles of the distances between all."""

    spacing: float
    extent: float
    first: Ints
    second: Ints
    lag: Ints
    distance: Floats
    all_distances: Floats


def sample_lag_pairs(xy: Floats, rng: np.random.Generator) -> LagPairs:
    """Sample pairs of observations at geometrically spaced lags; linear in observations."""
    xy = np.asarray(xy, dtype=np.float64)
    n = len(xy)
    span = np.ptp(xy, axis=0)
    extent = float(np.hypot(*span))
    if n < 3 or extent == 0:
        raise ValueError(
            f"{n} observation(s) at {len(np.unique(xy, axis=0))} position(s) cannot give a null distribution."
        )
    tree = cKDTree(xy)
    probe = rng.choice(n, size=min(n, N_PAIRS), replace=False)
    nearest = tree.query(xy[probe], k=2)[0][:, 1]
    spacing = float(np.median(nearest[nearest > 0])) if (nearest > 0).any() else extent / np.sqrt(n)
    lags = np.geomspace(spacing, max(0.5 * extent, 2 * spacing), N_LAGS)
    pairs = []
    for b, h in enumerate(lags):
        i = rng.integers(0, n, size=N_PAIRS)
        angle = rng.uniform(0, 2 * np.pi, size=N_PAIRS)
        errors, nearest = tree.query(xy[i] + h * np.c_[np.cos(angle), np.sin(angle)], k=2)
        itself = nearest[:, 0] == i
        j, error = (np.where(itself, two[:, 1], two[:, 0]) for two in (nearest, errors))
        keep = (error <= max(0.3 * h, 0.75 * spacing)) & (j != i)
        pairs.append(np.stack([i, j, np.full(N_PAIRS, b)])[:, keep])
    first, second, lag = np.concatenate(pairs, axis=1)
    distance = np.hypot(*(xy[first] - xy[second]).T)
    i, j = rng.integers(0, n, size=(2, 4 * N_PAIRS))
    all_distances = np.quantile(np.hypot(*(xy[i] - xy[j]).T), (np.arange(400) + 0.5) / 400)
    return LagPairs(spacing, extent, first, second, lag, distance, all_distances)


def _binary_correlation(rho: Floats, fraction: float) -> Floats:
    """Correlation of a normal pair (``rho`` >= 0) after thresholding both at one quantile (Plackett 1954)."""
    threshold = ndtri(1.0 - fraction)
    angle = np.linspace(0.0, np.pi / 2, 513)
    density = np.exp(-(threshold**2) / (1.0 + np.sin(angle))) / (2 * np.pi)
    covariance = cumulative_trapezoid(density, dx=angle[1] - angle[0], initial=0)
    return np.interp(np.arcsin(np.clip(rho, 0.0, 1.0)), angle, covariance / covariance[-1])


def fit_label_model(pairs: LagPairs, label: Bools) -> LabelModel:
    """Fit length, smoothness and nugget of a label by least squares on its correlogram less the mean of all pairs."""
    label = np.asarray(label, dtype=bool)
    p = float(label.mean())
    if not 0.0 < p < 1.0:
        raise ValueError("A region needs observations on both sides.")
    centred = label - p
    n_pairs = np.bincount(pairs.lag, minlength=N_LAGS)
    used = n_pairs >= 30
    product = np.bincount(pairs.lag, centred[pairs.first] * centred[pairs.second], minlength=N_LAGS)
    distance = np.bincount(pairs.lag, pairs.distance, minlength=N_LAGS)
    observed = product[used] / n_pairs[used] / (p * (1 - p))
    h = distance[used] / n_pairs[used]
    # correlations at long lags vary most between regions: low weight without correlation
    weight = 0.05 + np.clip(observed, 0.0, 1.0)
    lengths = np.geomspace(0.3 * pairs.spacing, pairs.extent, 60)
    best, best_loss = LabelModel(p, float(lengths[0]), 2.0, 1.0), np.inf
    for power in _POWERS:
        at_lags = np.exp(-((h[None, :] / lengths[:, None]) ** power))
        overall = np.exp(-((pairs.all_distances[None, :] / lengths[:, None]) ** power))
        for nugget in _NUGGETS:
            mean = _binary_correlation((1 - nugget) * overall, p).mean(axis=1, keepdims=True)
            model = (_binary_correlation((1 - nugget) * at_lags, p) - mean) / (1 - mean)
            loss = (weight * (model - observed) ** 2).sum(axis=1)
            k = int(np.argmin(loss))
            if loss[k] < best_loss:
                best, best_loss = LabelModel(p, float(lengths[k]), float(power), float(nugget)), float(loss[k])
    return best


class LabelSampler:
    """Draws random regions of a :class:`LabelModel` on given positions, each of the size of the tested one.

    The field is simulated by its spectrum on a large enough torus (circulant embedding, Dietrich & Newsam 1993).
    """

    def __init__(self, xy: Floats, model: LabelModel, spacing: float) -> None:
        self.model = model
        self.n_in = max(1, min(len(xy) - 1, round(model.fraction * len(xy))))
        low, span = xy.min(axis=0), np.ptp(xy, axis=0)
        reach = model.length * (3.0 if model.power > 1.0 else 4.0)
        step = max(model.length / (6.0 if model.power == 2.0 else 10.0), 0.5 * spacing)
        step = max(step, float((span + reach).max()) / _MAX_GRID)
        shape = [fft.next_fast_len(int(np.ceil((s + reach) / step)) + 2, real=True) for s in span]
        axes = [np.minimum(np.arange(m), m - np.arange(m)) * step for m in shape]
        kernel = np.exp(-((np.hypot(axes[0][:, None], axes[1][None, :]) / model.length) ** model.power))
        spectrum = np.clip(fft.rfft2(kernel).real, 0.0, None)
        self._filter = np.sqrt(spectrum).astype(np.float32)
        self._shape = (shape[0], shape[1])
        position = (xy - low) / step
        corner = np.minimum(position.astype(np.int64), np.array(shape) - 2)
        frac = position - corner
        dx, dy = np.array([[0, 0, 1, 1], [0, 1, 0, 1]])
        columns = (corner[:, :1] + dx) * shape[1] + corner[:, 1:] + dy
        weights = np.abs(1 - dx - frac[:, :1]) * np.abs(1 - dy - frac[:, 1:])
        ends = 4 * np.arange(len(xy) + 1)
        self._interpolate = sparse.csr_matrix(
            (weights.astype(np.float32).ravel(), columns.ravel(), ends), (len(xy), shape[0] * shape[1])
        )

    def draw(self, n_labels: int, rng: np.random.Generator) -> Iterator[Bools]:
        """Yield labels."""
        n = int(self._interpolate.shape[0])
        buffer = np.empty((min(_BATCH, n_labels), n), dtype=np.float32)
        for start in range(0, n_labels, _BATCH):
            values = buffer[: n_labels - start]
            for first in range(0, len(values), _FIELDS):
                part = values[first : first + _FIELDS]
                noise = rng.standard_normal((len(part), *self._shape), dtype=np.float32)
                field = fft.irfft2(fft.rfft2(noise) * self._filter, s=self._shape)
                part[:] = (self._interpolate @ np.ascontiguousarray(field.reshape(len(part), -1).T)).T
            if self.model.nugget > 0:
                values *= np.float32(np.sqrt(1 - self.model.nugget))
                for rows in chunks(n):
                    white = rng.standard_normal(values[:, rows].T.shape, dtype=np.float32)
                    values[:, rows] += np.float32(np.sqrt(self.model.nugget)) * white.T
            for row in values:
                label = np.zeros(n, dtype=bool)
                label[np.argpartition(row, n - self.n_in)[n - self.n_in :]] = True
                yield label


def _region_copies(xy: Floats, label: Bools, pairs: LagPairs, rng: np.random.Generator) -> Iterator[Bools] | None:
    """Return copies of a region without end: turned, mirrored and moved at random, of the nearest observations.

    Thresholded fields are less compact than a region of little extent. None for others, or if most copies do not fit.
    """
    offsets = xy[label] - xy[label].mean(axis=0)
    n, radius = len(offsets), float(np.hypot(*offsets.T).max())
    if n > _MOST_COPIED or 2.0 * radius > _LARGEST_COPIED * pairs.extent:
        return None
    tree, shape = cKDTree(xy), cKDTree(offsets)

    def copy() -> Bools | None:
        angle, mirror = rng.uniform(0, 2 * np.pi), rng.choice([-1.0, 1.0])
        turn = np.array([[np.cos(angle), -np.sin(angle)], [mirror * np.sin(angle), mirror * np.cos(angle)]])
        centre = xy[rng.integers(len(xy))]
        if (tree.query(offsets @ turn + centre)[0] > _REACH * pairs.spacing).mean() > _OUTSIDE:
            return None
        reach, needed = radius, np.inf
        while needed > reach:  # farther observations may be nearer to a part of the region
            reach = needed if needed < np.inf else 1.5 * reach + _REACH * pairs.spacing
            near = np.sort(tree.query_ball_point(centre, reach))
            if len(near) >= n:
                distance = shape.query((xy[near] - centre) @ turn.T)[0]
                needed = radius + float(np.partition(distance, n - 1)[n - 1])
        out = np.zeros(len(xy), dtype=bool)
        out[near[np.argsort(distance, kind="stable")[:n]]] = True
        return out

    copies = (copy() for _ in count())
    n_fitting = sum(one is not None for one in islice(copies, _TRIED))
    return (one for one in copies if one is not None) if n_fitting > _TRIED // 2 else None


class PackedLabels:
    """Labels as the bits of ``words`` (observations x words), less the ``share`` of the first one."""

    def __init__(self, labels: Iterator[Bools], n_obs: int, n_labels: int) -> None:
        self._bytes = np.zeros((n_obs, 8 * n_words(n_labels)), dtype=np.uint8)
        for byte in range(-(-n_labels // 8)):
            self._bytes[:, byte] = np.packbits(list(islice(labels, 8)), axis=0, bitorder="little")[0]
        self.words, self.share = self._bytes.view(np.uint64), float((self._bytes[:, 0] & 1).mean())
        self._smooth: Floats | None = None

    def sums(self, values: Reals, n_labels: int, weight: Floats32 | None = None) -> Floats:
        """Return ``(weight * values)' (labels - share)``, (columns x labels): float32 products, sums in float64."""
        n_bytes = 8 * n_words(n_labels)
        out = np.zeros((values.shape[1], 8 * n_bytes))
        for rows in chunks(len(values)):
            labels = np.unpackbits(self._bytes[rows, :n_bytes], axis=1, bitorder="little")
            weighted = values[rows] if weight is None else weight[rows, None] * values[rows]
            out += weighted.astype(np.float32, copy=False).T @ np.subtract(labels, self.share, dtype=np.float32)
        return out

    def smooth(self, basis: SmoothBasis, n_labels: int) -> Floats:
        """Return :meth:`sums` of smooth functions, computed once."""
        if self._smooth is None:
            self._smooth = self.sums(basis.values, 8 * self._bytes.shape[1])
        return self._smooth[:, : BITS * n_words(n_labels)]


def n_words(n_labels: int) -> int:
    """Return the number of words that hold labels."""
    return -(-n_labels // BITS)


class RegionDraws(PackedLabels):
    """A region and, after it, its random regions; the same for its complement.

    The side without the first observation is tested; ``flipped``: that is the complement.
    """

    def __init__(self, xy: Floats, pairs: LagPairs, label: Bools, n_null: int, seed: Sequence[int]) -> None:
        self.flipped = bool(label[0])
        side = ~label if self.flipped else label
        self.model = fit_label_model(pairs, side)
        rng = np.random.default_rng([*seed, zlib.crc32(np.packbits(side).tobytes())])
        few = side.mean() <= 0.5
        copies = _region_copies(xy, side if few else ~side, pairs, rng)
        if copies is None:
            drawn = LabelSampler(xy, self.model, pairs.spacing).draw(n_null, rng)
        else:
            drawn = (copy == few for copy in islice(copies, n_null))
        super().__init__(chain([side], drawn), len(xy), 1 + n_null)
