"""Register one section onto another, as images of tissue and of smoothed features: arrays in, a 2 x 3 matrix out."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, optimize
from scipy.interpolate import RegularGridInterpolator
from scipy.spatial import cKDTree

from stxtools._spatial.density import typical_spacing

Method = Literal["rigid", "similarity", "affine"]
Cost = Callable[[NDArray[np.float64]], float]

_MAX_SIDE = 192  # pixels of a feature image
_POINTS = (600, 3000)  # observations sampled by the coarse and the fine fit
_ANGLES = 24
_REFINED = 5  # starts that are optimised
_COARSE, _FINE = 0.06, 1.0  # smoothing: share of the section's extent; spacings
_TURNS = np.deg2rad(10.0)


class PointSet:
    """Coordinates and features of one section, its typical spacing, and as ``extent`` the root of its area."""

    def __init__(self, xy: NDArray[np.float64], features: NDArray[np.float32]) -> None:
        values = np.asarray(features, dtype=np.float64)
        values = values - values.mean(axis=0)  # differences between whole sections say nothing about position
        self.xy, self.features = xy, values / (float(np.sqrt((values**2).sum(axis=1).mean())) or 1.0)
        self.spacing = typical_spacing(xy)
        self.extent = self.spacing * np.sqrt(len(xy))


def feature_image(points: PointSet, sigma: float) -> list[RegularGridInterpolator]:
    """Smooth tissue, and tissue with features, by a Gaussian of ``sigma`` into images to read at (y, x), 0 outside."""
    margin = 3 * sigma + 2 * points.spacing
    low, high = points.xy.min(axis=0) - margin, points.xy.max(axis=0) + margin
    pixel = max(float((high - low).max()) / _MAX_SIDE, 0.5 * points.spacing)
    x, y = (
        start + pixel * np.arange(int(np.ceil((end - start) / pixel) + 2)) for start, end in zip(low, high, strict=True)
    )
    if (np.diff(x) <= 0).any() or (np.diff(y) <= 0).any():
        raise ValueError("Coordinates are too far from 0 to tell neighbours apart; subtract their minimum first.")
    grid = np.stack(np.meshgrid(x, y), axis=-1)
    distance, nearest = cKDTree(points.xy).query(grid, distance_upper_bound=max(1.2 * points.spacing, pixel))
    tissue: NDArray[np.bool_] = np.asarray(distance) < np.inf
    image = np.zeros((*tissue.shape, 1 + points.features.shape[1]))
    image[tissue, 0] = 1.0
    image[tissue, 1:] = points.features[nearest[tissue]]
    image = ndimage.gaussian_filter(image, sigma / pixel, axes=(0, 1), mode="constant")
    # average over tissue only: features must not fade towards the edge
    image[..., 1:] /= np.maximum(image[..., :1], 1e-3)
    return [RegularGridInterpolator((y, x), v, bounds_error=False, fill_value=0.0) for v in (image[..., 0], image)]


class Objective:
    """Agreement of a moved section with the reference: correlation of features + overlap of tissues, each at most 1."""

    def __init__(
        self, moving: PointSet, reference: PointSet, share: float, max_points: int, rng: np.random.Generator
    ) -> None:
        self.images = [feature_image(s, max(share * s.extent, _FINE * s.spacing)) for s in (moving, reference)]
        self.points = [
            s.xy[np.sort(rng.choice(len(s.xy), max_points, replace=False))] if len(s.xy) > max_points else s.xy
            for s in (moving, reference)
        ]
        self.features = self.images[0][1](self.points[0][:, ::-1])[:, 1:]
        self.tissue = [
            np.maximum(image[0](p[:, ::-1]), 1e-9) for image, p in zip(self.images, self.points, strict=True)
        ]

    def parts(self, matrix: NDArray[np.float64]) -> tuple[float, float]:
        """Return the correlation (-1 to 1) and the overlap (0 to 1: harmonic mean of the shares covered)."""
        linear, shift = matrix[:, :2], matrix[:, 2]
        there = self.images[1][1]((self.points[0] @ linear.T + shift)[:, ::-1])
        back = self.images[0][0](((self.points[1] - shift) @ np.linalg.inv(linear).T)[:, ::-1])
        weight, values = there[:, :1], there[:, 1:]
        norm = np.sqrt((weight * self.features**2).sum() * (weight * values**2).sum())
        correlation = float((weight * self.features * values).sum() / norm) if norm > 0 else 0.0
        covered = float(np.minimum(weight[:, 0] / self.tissue[0], 1).mean())
        covers = float(np.minimum(back / self.tissue[1], 1).mean())
        overlap = 2 * covered * covers / (covered + covers) if covered + covers > 0 else 0.0
        return correlation, overlap


def _matrix(parameters: NDArray[np.float64], centre: NDArray[np.float64]) -> NDArray[np.float64]:
    """Build the map from (angle, log scale, shift x, shift y[, log stretch, its angle]) about ``centre``."""
    angle, log_scale, *shift = parameters[:4]
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = np.exp(log_scale) * turn
    if len(parameters) == 6:  # a symmetric stretch: with the rotation, any linear map
        a, b = parameters[4:]
        linear = linear @ (np.eye(2) + np.array([[a, b], [b, -a]]))
    return np.c_[linear, np.asarray(shift) - linear @ centre]


def register(
    moving: PointSet, reference: PointSet, *, method: Method = "similarity", rng: np.random.Generator
) -> tuple[NDArray[np.float64], float, float]:  # fmt: skip
    """Return the map of ``moving`` onto ``reference``, its correlation and overlap: the best of many starts."""

    def cost(objective: Objective) -> Cost:
        return lambda p: -sum(objective.parts(_matrix(p, centre)))

    coarse = Objective(moving, reference, _COARSE, _POINTS[0], rng)
    centre, target = moving.xy.mean(axis=0), reference.xy.mean(axis=0)
    step = 0.12 * reference.extent
    logs = {0.0} if method == "rigid" else {0.0, *(np.log(r) for r in _ratios(moving, reference))}
    starts = []
    turns, shifts = np.arange(_ANGLES) * 2 * np.pi / _ANGLES, (-step, 0.0, step)
    for angle, scale, dx, dy in product(turns, sorted(logs), shifts, shifts):
        p = np.array([angle, scale, target[0] + dx, target[1] + dy])
        starts.append((cost(coarse)(p), p))
    starts.sort(key=lambda s: s[0])
    chosen: list[NDArray[np.float64]] = []
    for _, p in starts:  # the best start of each range of angles
        if all(abs(np.angle(np.exp(1j * (p[0] - c[0])))) > _TURNS for c in chosen):
            chosen.append(p)
        if len(chosen) == _REFINED:
            break
    size = np.array([np.deg2rad(8.0), 0.05, step / 2, step / 2, 0.03, 0.03])
    free = np.array([True, method != "rigid", True, True, True, True])
    found = [_descend(cost(coarse), p, size, free) for p in chosen]
    fine = Objective(moving, reference, 0.0, _POINTS[1], rng)
    finished = []
    for _, p in sorted(found, key=lambda f: f[0])[:2]:
        goal = cost(fine)
        _, p = _descend(goal, p, size * 0.25, free)
        if method == "affine":
            _, p = _descend(goal, np.r_[p, 0.0, 0.0], size * 0.25, free)
        reached, p = _descend(goal, p, size * 0.05, free)
        finished.append((reached, _matrix(p, centre)))
    matrix = min(finished, key=lambda f: f[0])[1]
    correlation, overlap = fine.parts(matrix)
    return matrix, correlation, overlap


def _ratios(moving: PointSet, reference: PointSet) -> tuple[float, float]:
    """Return the scales from the tissue areas and from the spacings."""
    spread = [float(np.sqrt(np.linalg.det(np.cov(s.xy.T)))) for s in (moving, reference)]
    by_area = np.sqrt(spread[1] / spread[0]) if min(spread) > 0 else 1.0
    if not moving.spacing > 0:
        raise ValueError("Coordinates (`spatial_key`) lie too close together; give them a larger unit.")
    return float(by_area), reference.spacing / moving.spacing


def _descend(
    cost: Cost, start: NDArray[np.float64], size: NDArray[np.float64], free: NDArray[np.bool_]
) -> tuple[float, NDArray[np.float64]]:
    """Return the lowest cost found from ``start`` by steps of ``size`` in the ``free`` parameters, and its place."""
    moves = np.diag(size)[: len(start), np.flatnonzero(free[: len(start)])]
    n = moves.shape[1]
    options = {"initial_simplex": np.eye(n + 1, n, k=-1), "xatol": 1e-3, "fatol": 1e-5, "maxfev": 50 * n}
    result = optimize.minimize(
        lambda z: cost(start + moves @ z), np.zeros(n), method="Nelder-Mead", options=options
    )  # fmt: skip
    return float(result.fun), start + moves @ result.x
