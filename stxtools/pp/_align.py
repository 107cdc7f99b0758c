"""Map sections onto one of them, by landmarks or by images of tissue and of smoothed features."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product
from typing import Any, Literal

import numpy as np
from anndata import AnnData
from numpy.typing import ArrayLike
from scipy import ndimage, optimize
from scipy.interpolate import RegularGridInterpolator
from scipy.spatial import cKDTree

from stxtools import _keys
from stxtools._api import public
from stxtools._checks import check_choice, check_seed
from stxtools._data.expression import Expression
from stxtools._data.features import compute_representation
from stxtools._data.representation import stored_representation
from stxtools._data.sections import Geometry
from stxtools._progress import FEATURES, progress_bar, stage
from stxtools._slots import Slots, check_free, provenance
from stxtools._spatial.points import typical_spacing
from stxtools._types import Floats, Floats32
from stxtools._validate import check_adata, check_key_added
from stxtools._warn import warn

Method = Literal["rigid", "similarity", "affine"]
Maps = dict[str, tuple[Floats, dict[str, float]]]  # matrix and score of each section except the reference

_MIN_LANDMARKS = {"rigid": 2, "similarity": 2, "affine": 3}
_MIN_OBS = 10
_N_COMPS = 10
_N_TOP_GENES = 500  # enough for a position; and faster than the 2000 of an analysis
_MAX_SIDE = 192  # pixels of a feature image
_COARSE_SIGMA = 0.06  # smoothing, as a share of the section's extent; at least one spacing
_COARSE_POINTS, _FINE_POINTS = 600, 3000  # observations sampled
_N_ANGLES = 24
_N_REFINED = 5  # starts that are optimised
_MIN_ANGLE = np.deg2rad(10.0)  # between them


@public
@progress_bar({**FEATURES, "aligning": 3})
def align(
    adata: AnnData, reference: str | None = None, *, library_key: str | bool | None = None,
    landmarks: Mapping[str, ArrayLike] | None = None, method: Literal["rigid", "similarity", "affine"] = "similarity",
    use_rep: str | None = None, layer: str | None = None, spatial_key: str = _keys.SPATIAL,
    key_added: str | None = None, random_state: int = 0, show_progress: bool | None = None, copy: bool = False,
) -> AnnData | None:  # fmt: skip
    """Register sections to a reference section by a rigid, similarity or affine transformation.

    With ``landmarks`` the transformation is a least-squares fit. Without, images of smoothed expression are registered:
    the search over rotations, shifts and scales maximises the correlation of the images plus the overlap of the
    tissues. The sections must show similar, structured tissue, and none may be mirrored; check
    ``uns["align"]["score"]`` and a plot. Images and masks are not transformed.

    Parameters
    ----------
    reference
        Name of the reference section; by default the first in alphabetical order.
    landmarks
        Mapping from every section to the coordinates of corresponding landmarks (m x 2), in the same order: at least
        two, or three for ``method="affine"``.
    method
        ``"rigid"`` (rotation and translation), ``"similarity"`` (and isotropic scaling) or ``"affine"`` (and shear).
    use_rep
        Key of ``obsm`` with features comparable across sections; by default joint principal components.
    key_added
        Key of ``obsm`` and ``uns`` for the results; by default ``"spatial_aligned"`` and ``"align"``.

    Examples
    --------
    >>> import numpy as np, stxtools as st
    >>> adata = st.datasets.synthetic_tissue(n_obs=500)
    >>> adata.obs["slide"] = np.repeat(["a", "b"], 250)
    >>> corners = {"a": [[0, 0], [0, 9], [9, 0]], "b": [[5, 5], [5, 14], [14, 5]]}
    >>> st.pp.align(adata, "a", library_key="slide", landmarks=corners)
    >>> adata.uns["align"]["matrices"]["b"].round(6)[:, 2]
    array([-5., -5.])
    """
    check_adata(adata, layer=layer, copy=copy)
    check_choice("method", method, tuple(_MIN_LANDMARKS))
    random_state = check_seed(random_state)
    obsm_key, uns_key = check_key_added(key_added, _keys.SPATIAL_ALIGNED), check_key_added(key_added, _keys.ALIGN)
    check_free(adata, "pp.align", obsm=[obsm_key], uns=[uns_key])
    where = Geometry(adata, spatial_key, library_key, raster=False)
    names, coordinates = where.libs.names, where.split(where.xy)
    if len(names) == 1 and library_key is None:
        warn("One section stays as it is. If there are several, pass the column that names them as `library_key=`.")
    if reference is None:
        reference = names[0]
    elif not isinstance(reference, str) or reference not in names:
        raise KeyError(f"`reference={reference!r}` is not a section; there are {', '.join(map(repr, names))}.")
    record: dict[str, str] = {}
    maps: Maps = {}
    if landmarks is not None:
        maps = _from_landmarks(landmarks, names, reference, method)
    elif len(names) > 1:
        _check_positions(names, coordinates)
        if use_rep is None:
            expression = Expression(adata, layer, in_memory=False)
            features, _ = compute_representation(expression, random_state, n_comps=_N_COMPS, n_top_genes=_N_TOP_GENES)
            record = expression.record
        else:
            features = stored_representation(adata, use_rep)
        points = dict(zip(names, map(PointSet, coordinates, where.split(features)), strict=True))
        maps = _from_images(points, reference, method, random_state)
    matrices = {name: maps[name][0] if name in maps else np.eye(2, 3) for name in names}
    aligned = [
        xy if name == reference else xy @ matrices[name][:, :2].T + matrices[name][:, 2]
        for name, xy in zip(names, coordinates, strict=True)
    ]
    params = provenance(
        library_key=library_key, landmarks=landmarks is not None, method=method, use_rep=use_rep, layer=layer, **record,
        spatial_key=spatial_key, random_state=random_state,
    )  # fmt: skip
    score = {name: agreement for name, (_, agreement) in maps.items()}
    stored = {"matrices": matrices, "score": score, "reference": reference, "params": params}
    return Slots("pp.align", obsm={obsm_key: where.join(aligned)}, uns={uns_key: stored}).write(adata, copy)


def _from_landmarks(landmarks: Mapping[str, ArrayLike], names: list[str], reference: str, method: Method) -> Maps:
    """Return the least-squares map of each section, and its root mean squared error."""
    from skimage.transform import estimate_transform

    if not isinstance(landmarks, Mapping):
        raise TypeError(f"`landmarks` must map section names to (m, 2) arrays, not {type(landmarks).__name__}.")
    if missing := [n for n in names if n not in landmarks]:
        raise KeyError(
            f"`landmarks` lacks section(s) {', '.join(map(repr, missing))}; it has "
            f"{', '.join(repr(str(n)) for n in landmarks) or 'none'}. The reference ({reference!r}) needs some, too."
        )
    points = {name: _check_landmarks(name, landmarks[name], method) for name in names}
    target = points[reference]
    maps = {}
    for name, source in points.items():
        if len(source) != len(target):
            raise ValueError(
                f"Section {name!r} has {len(source)} landmarks and the reference {reference!r} {len(target)}; they "
                "must be the same ones, in the same order."
            )
        if name == reference:
            continue
        fitted = estimate_transform("euclidean" if method == "rigid" else method, source, target)
        matrix = np.asarray(getattr(fitted, "params", np.nan), dtype=np.float64)  # a failure has none, or NaN
        if not np.isfinite(matrix).all():
            raise ValueError(f"The landmarks of section {name!r} do not determine a {method} map; add more.")
        matrix = matrix[:2]
        if np.linalg.det(matrix[:, :2]) < 0:
            raise ValueError(
                f"The landmarks of section {name!r} mirror it; check their order. If it was mounted upside down, "
                "flip the sign of x in its coordinates and landmarks first."
            )
        residual = source @ matrix[:, :2].T + matrix[:, 2] - target
        maps[name] = matrix, {"rmse": float(np.sqrt((residual**2).sum(axis=1).mean()))}
    return maps


def _check_positions(names: list[str], coordinates: list[Floats]) -> None:
    for name, xy in zip(names, coordinates, strict=True):
        if len(np.unique(xy, axis=0)) < _MIN_OBS or np.linalg.matrix_rank(xy - xy.mean(axis=0)) < 2:
            raise ValueError(
                f"Section {name!r} has {len(xy)} observation(s), too few (or on a line) for an alignment "
                f"without landmarks: {_MIN_OBS} positions are needed. Pass `landmarks`, or drop the section."
            )


def _from_images(sections: dict[str, PointSet], reference: str, method: Method, seed: int) -> Maps:
    """Return the map that registers the images of each section to the reference's, and its score."""
    rng = np.random.default_rng(seed)
    maps = {}
    for name, section in sections.items():
        if name != reference:
            stage("aligning")
            maps[name] = register(section, sections[reference], method=method, rng=rng)
    return maps


def _check_landmarks(name: str, value: Any, method: Method) -> Floats:
    try:
        points = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as err:
        raise TypeError(f"The landmarks of section {name!r} are not numbers: {err}") from err
    if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
        raise ValueError(f"The landmarks of section {name!r} have shape {points.shape}; expected finite (m, 2).")
    needed = _MIN_LANDMARKS[method]
    rank = np.linalg.matrix_rank(points - points.mean(axis=0)) if len(points) else 0
    if len(points) < needed or rank < (2 if method == "affine" else 1):
        raise ValueError(
            f"Section {name!r} has {len(points)} landmark(s)"
            f"{' on one line or at one position' if len(points) >= needed else ''}; `method={method!r}` needs at "
            f"least {needed} different ones{', not on a line' if method == 'affine' else ''}."
        )
    return points


class PointSet:
    """Coordinates and features of one section, its spacing, and its ``extent``, the square root of its area."""

    def __init__(self, xy: Floats, features: Floats32) -> None:
        values = np.asarray(features, dtype=np.float64)
        values = values - values.mean(axis=0)  # differences between whole sections carry no information on position
        self.xy, self.features = xy, values / (float(np.sqrt((values**2).sum(axis=1).mean())) or 1.0)
        self.spacing = typical_spacing(xy)
        self.extent = self.spacing * np.sqrt(len(xy))


def register(
    moving: PointSet, reference: PointSet, *, method: Method, rng: np.random.Generator
) -> tuple[Floats, dict[str, float]]:
    """Return the map of ``moving`` onto ``reference`` and its score: the best of many starts."""
    coarse = Objective(moving, reference, _COARSE_SIGMA, _COARSE_POINTS, rng)
    target, shift = reference.xy.mean(axis=0), 0.12 * reference.extent
    log_scales = {0.0} if method == "rigid" else {0.0, *(np.log(s) for s in _scales(moving, reference))}
    angles, shifts = np.arange(_N_ANGLES) * 2 * np.pi / _N_ANGLES, (-shift, 0.0, shift)
    starts = []
    for angle, log_scale, dx, dy in product(angles, sorted(log_scales), shifts, shifts):
        parameters = np.array([angle, log_scale, target[0] + dx, target[1] + dy])
        starts.append((coarse.cost(parameters), parameters))
    starts.sort(key=lambda start: start[0])
    chosen: list[Floats] = []
    for _, parameters in starts:  # the best start of each range of angles
        if all(abs(np.angle(np.exp(1j * (parameters[0] - c[0])))) > _MIN_ANGLE for c in chosen):
            chosen.append(parameters)
        if len(chosen) == _N_REFINED:
            break
    step = np.array([np.deg2rad(8.0), 0.0 if method == "rigid" else 0.05, shift / 2, shift / 2, 0.03, 0.03])
    refined = sorted((_minimize(coarse.cost, start, step) for start in chosen), key=lambda result: result[0])
    fine = Objective(moving, reference, 0.0, _FINE_POINTS, rng)
    finished = []
    for _, parameters in refined[:2]:
        _, parameters = _minimize(fine.cost, parameters, step * 0.25)
        if method == "affine":
            _, parameters = _minimize(fine.cost, np.r_[parameters, 0.0, 0.0], step * 0.25)
        finished.append(_minimize(fine.cost, parameters, step * 0.05))
    matrix = fine.matrix(min(finished, key=lambda result: result[0])[1])
    return matrix, fine.score(matrix)


def _scales(moving: PointSet, reference: PointSet) -> tuple[float, float]:
    """Return the ratios of the tissue areas' square roots and of the spacings."""
    spread = [float(np.sqrt(np.linalg.det(np.cov(s.xy.T)))) for s in (moving, reference)]
    by_area = np.sqrt(spread[1] / spread[0]) if min(spread) > 0 else 1.0
    if not moving.spacing > 0:
        raise ValueError("Coordinates (`spatial_key`) lie too close together; use a larger unit.")
    return float(by_area), reference.spacing / moving.spacing


def _minimize(cost: Callable[[Floats], float], start: Floats, step: Floats) -> tuple[float, Floats]:
    """Return the lowest cost from ``start``, and its parameters; those with a ``step`` of 0 stay fixed."""
    moves = np.diag(step[: len(start)])
    moves = moves[:, moves.any(axis=0)]
    n = moves.shape[1]
    options = {"initial_simplex": np.eye(n + 1, n, k=-1), "xatol": 1e-3, "fatol": 1e-5, "maxfev": 50 * n}
    result = optimize.minimize(lambda z: cost(start + moves @ z), np.zeros(n), method="Nelder-Mead", options=options)
    return float(result.fun), start + moves @ result.x


class Objective:
    """Agreement of a moved section with the reference: correlation of features + overlap of tissues, each at most 1."""

    def __init__(
        self, moving: PointSet, reference: PointSet, sigma: float, max_points: int, rng: np.random.Generator
    ) -> None:
        both = (moving, reference)
        self.centre = moving.xy.mean(axis=0)
        self.images = [feature_image(s, max(sigma * s.extent, s.spacing)) for s in both]
        self.points = [
            s.xy[np.sort(rng.choice(len(s.xy), max_points, replace=False))] if len(s.xy) > max_points else s.xy
            for s in both
        ]
        self.features = self.images[0][1](self.points[0][:, ::-1])[:, 1:]
        self.tissue = [
            np.maximum(image[0](p[:, ::-1]), 1e-9) for image, p in zip(self.images, self.points, strict=True)
        ]

    def matrix(self, parameters: Floats) -> Floats:
        """Build the map from (angle, log scale, shift x, shift y[, log stretch, its angle]) about the centre."""
        angle, log_scale, *shift = parameters[:4]
        linear = np.exp(log_scale) * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        if len(parameters) == 6:  # a symmetric stretch: with the rotation, any linear map
            a, b = parameters[4:]
            linear = linear @ (np.eye(2) + np.array([[a, b], [b, -a]]))
        return np.c_[linear, np.asarray(shift) - linear @ self.centre]

    def cost(self, parameters: Floats) -> float:
        """Return the negative agreement."""
        return -sum(self.score(self.matrix(parameters)).values())

    def score(self, matrix: Floats) -> dict[str, float]:
        """Return the correlation (-1 to 1) and the overlap (0 to 1: harmonic mean of the shares covered)."""
        linear, shift = matrix[:, :2], matrix[:, 2]
        target = self.images[1][1]((self.points[0] @ linear.T + shift)[:, ::-1])
        reverse = self.images[0][0](((self.points[1] - shift) @ np.linalg.inv(linear).T)[:, ::-1])
        weight, values = target[:, :1], target[:, 1:]
        norm = np.sqrt((weight * self.features**2).sum() * (weight * values**2).sum())
        correlation = float((weight * self.features * values).sum() / norm) if norm > 0 else 0.0
        covered = float(np.minimum(weight[:, 0] / self.tissue[0], 1).mean())
        covering = float(np.minimum(reverse / self.tissue[1], 1).mean())
        overlap = 2 * covered * covering / (covered + covering) if covered + covering > 0 else 0.0
        return {"correlation": correlation, "overlap": overlap}


def feature_image(points: PointSet, sigma: float) -> list[RegularGridInterpolator]:
    """Return interpolators at (y, x) of the smoothed tissue, and of tissue and features; 0 outside."""
    margin = 3 * sigma + 2 * points.spacing
    low, high = points.xy.min(axis=0) - margin, points.xy.max(axis=0) + margin
    pixel = max(float((high - low).max()) / _MAX_SIDE, 0.5 * points.spacing)
    x, y = (a + pixel * np.arange(int(np.ceil((b - a) / pixel) + 2)) for a, b in zip(low, high, strict=True))
    if (np.diff(x) <= 0).any() or (np.diff(y) <= 0).any():
        raise ValueError("Coordinates are too far from 0 to tell neighbours apart; subtract their minimum first.")
    grid = np.stack(np.meshgrid(x, y), axis=-1)
    distance, nearest = cKDTree(points.xy).query(grid, distance_upper_bound=max(1.2 * points.spacing, pixel))
    tissue = np.isfinite(distance)
    image = np.zeros((*tissue.shape, 1 + points.features.shape[1]))
    image[tissue, 0] = 1.0
    image[tissue, 1:] = points.features[nearest[tissue]]
    image = ndimage.gaussian_filter(image, sigma / pixel, axes=(0, 1), mode="constant")
    # average over tissue only: features must not decay towards the edge
    image[..., 1:] /= np.maximum(image[..., :1], 1e-3)
    return [RegularGridInterpolator((y, x), v, bounds_error=False, fill_value=0.0) for v in (image[..., 0], image)]
