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
from stxtools._data.expression import Expression
from stxtools._data.features import compute_representation
from stxtools._data.representation import stored_representation
from stxtools._data.sections import Geometry
from stxtools._docs import documented
from stxtools._progress import stage, whole_call
from stxtools._slots import Slots, check_free, provenance
from stxtools._spatial.points import typical_spacing
from stxtools._types import Bools, Floats, Floats32
from stxtools._validate import check_adata, check_choice, check_key_added, check_seed
from stxtools._warn import warn

Maps = dict[str, tuple[Floats, dict[str, float]]]  # matrix and score of each section but the reference

METHODS = ("rigid", "similarity", "affine")
_LEAST = {"rigid": 2, "similarity": 2, "affine": 3}
_MIN_OBS = 10
_N_COMPS = 10
_N_TOP_GENES = 500  # enough for a position; and faster than the 2000 of an analysis
Method = Literal["rigid", "similarity", "affine"]
Cost = Callable[[Floats], float]

_MAX_SIDE = 192  # pixels of a feature image
_POINTS = (600, 3000)  # observations sampled by the coarse and the fine fit
_ANGLES = 24
_REFINED = 5  # starts that are optimised
_COARSE, _FINE = 0.06, 1.0  # smoothing: share of the section's extent; spacings
_TURNS = np.deg2rad(10.0)


@documented
@whole_call({"reading expression": 0.5, "choosing genes": 1, "computing components": 1, "aligning": 3})
def align(
    adata: AnnData, reference: str | None = None, *, library_key: str | bool | None = None,
    landmarks: Mapping[str, ArrayLike] | None = None, method: Method = "similarity", use_rep: str | None = None,
    layer: str | None = None, spatial_key: str = _keys.SPATIAL, key_added: str | None = None, random_state: int = 0,
    show_progress: bool | None = None, copy: bool = False,
) -> AnnData | None:  # fmt: skip
    """Bring sections into one frame by an affine map of each onto a reference section.

    With ``landmarks`` the map is their least-squares fit. Without, images of the tissue and of its smoothed expression
    are registered: rotations, shifts and scales are tried and the best improved, on the correlation of the expression
    images plus the overlap of the tissues. The sections must show about the same tissue, with structure, and none may
    lie upside down; check ``uns["align"]["score"]`` and a plot. Images and masks in ``uns["spatial"]`` are not warped.

    Parameters
    ----------
    reference
        Name of the section that stays; the first in order of their names if None.
    landmarks
        Section name -> coordinates of the same landmarks (m x 2) in the same order, for every section.
    method
        ``"rigid"`` (rotation, shift), ``"similarity"`` (and one scale) or ``"affine"`` (and shear). Two landmarks at
        least, three for ``"affine"``.
    use_rep
        Key of ``obsm`` with features comparable across sections, instead of joint principal components.
    key_added
        Name of the outputs in ``obsm`` and ``uns``; ``"spatial_aligned"`` and ``"align"`` if None.
    %(parameters)s

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
    check_choice("method", method, METHODS)
    random_state = check_seed(random_state)
    obsm_key, uns_key = check_key_added(key_added, _keys.SPATIAL_ALIGNED), check_key_added(key_added, _keys.ALIGN)
    check_free(adata, "pp.align", obsm=[obsm_key], uns=[uns_key])
    where = Geometry(adata, spatial_key, library_key, raster=False)
    sections = where.libs
    if len(sections) == 1 and library_key is None:
        warn("One section stays as it is. Where there are several, name the one of each observation by `library_key=`.")
    if reference is None:
        reference = sections.names[0]
    elif not isinstance(reference, str) or reference not in sections.names:
        raise KeyError(f"`reference={reference!r}` is not a section; there are {', '.join(map(repr, sections.names))}.")
    read: dict[str, str] = {}
    found: Maps = {}
    if landmarks is not None:
        found = _from_landmarks(landmarks, sections.names, reference, method)
    elif len(sections) > 1:
        for name, part in zip(sections.names, where.split(where.xy), strict=True):
            if len(np.unique(part, axis=0)) < _MIN_OBS or np.linalg.matrix_rank(part - part.mean(axis=0)) < 2:
                raise ValueError(
                    f"Section {name!r} has {len(part)} observation(s), too few (or on a line) to be aligned by itself: "
                    f"{_MIN_OBS} places are needed. Pass `landmarks`, or drop the section."
                )
        if use_rep is None:
            expression = Expression(adata, layer, in_memory=None)
            features, _ = compute_representation(expression, random_state, n_comps=_N_COMPS, n_top_genes=_N_TOP_GENES)
            read = expression.record
        else:
            features = stored_representation(adata, use_rep)
        points = [PointSet(*part) for part in zip(where.split(where.xy), where.split(features), strict=True)]
        fixed, rng = points[sections.names.index(reference)], np.random.default_rng(random_state)
        for name, moving in zip(sections.names, points, strict=True):
            if name != reference:
                stage("aligning")
                matrix, correlation, overlap = register(moving, fixed, method=method, rng=rng)
                found[name] = matrix, {"correlation": correlation, "overlap": overlap}
    matrices = {name: found[name][0] if name in found else np.eye(2, 3) for name in sections.names}
    score = {name: reached for name, (_, reached) in found.items()}
    aligned = [part if name == reference else part @ matrix[:, :2].T + matrix[:, 2]
               for (name, matrix), part in zip(matrices.items(), where.split(where.xy), strict=True)]  # fmt: skip
    params = provenance(
        library_key=library_key, landmarks=landmarks is not None, method=method, use_rep=use_rep, layer=layer, **read,
        spatial_key=spatial_key, random_state=random_state,
    )  # fmt: skip
    stored = {"matrices": matrices, "score": score, "reference": reference, "params": params}
    return Slots("pp.align", obsm={obsm_key: where.join(aligned)}, uns={uns_key: stored}).write(adata, copy)


def _from_landmarks(landmarks: Mapping[str, ArrayLike], names: list[str], reference: str, method: Method) -> Maps:
    if not isinstance(landmarks, Mapping):
        raise TypeError(f"`landmarks` must map section names to (m, 2) arrays, not {type(landmarks).__name__}.")
    absent = [n for n in names if n not in landmarks]
    if absent:
        raise KeyError(
            f"`landmarks` has none for section(s) {', '.join(map(repr, absent))}; it has "
            f"{', '.join(repr(str(n)) for n in landmarks) or 'none'}. The reference ({reference!r}) needs its own, too."
        )
    points = {name: _points(name, landmarks[name], method) for name in names}
    found = {}
    for name in names:
        if len(points[name]) != len(points[reference]):
            raise ValueError(
                f"Section {name!r} has {len(points[name])} landmarks and the reference {reference!r} "
                f"{len(points[reference])}; they must be the same ones, in the same order."
            )
        if name == reference:
            continue
        matrix, rmse = _fit(points[name], points[reference], method, name)
        if np.linalg.det(matrix[:, :2]) < 0:
            raise ValueError(
                f"The landmarks of section {name!r} turn it over; check their order. If it was mounted upside down, "
                "change the sign of its x, and of its landmarks' x, first."
            )
        found[name] = matrix, {"rmse": rmse}
    return found


def _points(name: str, value: Any, method: str) -> Floats:
    try:
        points = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as err:
        raise TypeError(f"The landmarks of section {name!r} are no numbers: {err}") from err
    if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
        raise ValueError(f"The landmarks of section {name!r} have shape {points.shape}; expected finite (m, 2).")
    rank = np.linalg.matrix_rank(points - points.mean(axis=0)) if len(points) else 0
    if len(points) < _LEAST[method] or rank < (2 if method == "affine" else 1):
        raise ValueError(
            f"Section {name!r} has {len(points)} landmark(s)"
            f"{' on one line or at one place' if len(points) >= _LEAST[method] else ''}; `method={method!r}` needs at "
            f"least {_LEAST[method]} different ones{', not on a line' if method == 'affine' else ''}."
        )
    return points


def _fit(source: Floats, target: Floats, method: str, name: str) -> tuple[Floats, float]:
    """Return the map of landmarks, and the root of its mean squared error."""
    from skimage.transform import estimate_transform

    kind = "euclidean" if method == "rigid" else method
    fitted = estimate_transform(kind, source, target)
    matrix = np.asarray(getattr(fitted, "params", np.nan), dtype=np.float64)  # a failure has none, or NaN
    if not np.isfinite(matrix).all():
        raise ValueError(f"The landmarks of section {name!r} do not determine a {method} map.")
    matrix = matrix[:2]
    missed = source @ matrix[:, :2].T + matrix[:, 2] - target
    return matrix, float(np.sqrt((missed**2).sum(axis=1).mean()))


class PointSet:
    """Coordinates and features of one section, its typical spacing, and as ``extent`` the root of its area."""

    def __init__(self, xy: Floats, features: Floats32) -> None:
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
    tissue: Bools = np.asarray(distance) < np.inf
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

    def parts(self, matrix: Floats) -> tuple[float, float]:
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


def _matrix(parameters: Floats, centre: Floats) -> Floats:
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
) -> tuple[Floats, float, float]:  # fmt: skip
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
    chosen: list[Floats] = []
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


def _descend(cost: Cost, start: Floats, size: Floats, free: Bools) -> tuple[float, Floats]:
    """Return the lowest cost found from ``start`` by steps of ``size`` in the ``free`` parameters, and its place."""
    moves = np.diag(size)[: len(start), np.flatnonzero(free[: len(start)])]
    n = moves.shape[1]
    options = {"initial_simplex": np.eye(n + 1, n, k=-1), "xatol": 1e-3, "fatol": 1e-5, "maxfev": 50 * n}
    result = optimize.minimize(
        lambda z: cost(start + moves @ z), np.zeros(n), method="Nelder-Mead", options=options
    )  # fmt: skip
    return float(result.fun), start + moves @ result.x
