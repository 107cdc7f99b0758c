"""Map sections onto one of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray

from stxtools import _keys
from stxtools._data.expression import Expression
from stxtools._data.features import compute_representation
from stxtools._data.representation import stored_representation
from stxtools._data.sections import Geometry
from stxtools._docs import documented
from stxtools._progress import stage, whole_call
from stxtools._slots import Slots, check_free, provenance
from stxtools._validate import check_adata, check_choice, check_key_added, check_seed

from ._register import Method, PointSet, register

Maps = dict[str, tuple[NDArray[np.float64], dict[str, float]]]  # matrix and score of each section but the reference

METHODS = ("rigid", "similarity", "affine")
_LEAST = {"rigid": 2, "similarity": 2, "affine": 3}
_MIN_OBS = 10
_N_COMPS = 10
_N_TOP_GENES = 500  # enough for a position; and faster than the 2000 of an analysis


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
    if reference is None:
        reference = sections.names[0]
    elif not isinstance(reference, str) or reference not in sections.names:
        raise KeyError(f"`reference={reference!r}` is not a section; there are {', '.join(map(repr, sections.names))}.")
    read: dict[str, str] = {}
    found: Maps = {}
    if landmarks is not None:
        found = _from_landmarks(landmarks, sections.names, reference, method)
    elif len(sections) > 1:
        _check_sizes(where)
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


def _check_sizes(where: Geometry) -> None:
    for name, part in zip(where.libs.names, where.split(where.xy), strict=True):
        if len(np.unique(part, axis=0)) < _MIN_OBS or np.linalg.matrix_rank(part - part.mean(axis=0)) < 2:
            raise ValueError(
                f"Section {name!r} has {len(part)} observation(s), too few (or on a line) to be aligned by itself: "
                f"{_MIN_OBS} places are needed. Pass `landmarks`, or drop the section."
            )


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


def _points(name: str, value: Any, method: str) -> NDArray[np.float64]:
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


def _fit(
    source: NDArray[np.float64], target: NDArray[np.float64], method: str, name: str
) -> tuple[NDArray[np.float64], float]:
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
