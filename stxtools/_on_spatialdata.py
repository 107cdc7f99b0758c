"""Calls on SpatialData: one of its tables is the AnnData, with positions and images from its elements."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from inspect import signature
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar, overload

import numpy as np
from anndata import AnnData

from . import _keys
from ._checks import listing
from ._types import Array, Floats

if TYPE_CHECKING:
    from spatialdata import SpatialData

P = ParamSpec("P")
R = TypeVar("R", covariant=True)

ATTRS = "spatialdata_attrs"  # of a table: which elements its rows annotate
GLOBAL = "global"
_LARGEST = 2048  # rows or columns of an image that is read, as of scanpy's "hires"


class OnSpatialData(Protocol[P, R]):
    """A function of AnnData that also takes SpatialData, with ``table_key`` and ``coordinate_system``."""

    __name__: str

    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    def __call__(self, sdata: SpatialData, /, *args: Any, table_key: str = ..., **kwargs: Any) -> Any: ...


def on_spatialdata(function: Callable[P, R]) -> OnSpatialData[P, R]:
    """Let a function whose first parameter is ``adata`` take SpatialData, too; results are written into its table."""
    if next(iter(signature(function).parameters), None) != "adata":
        return function  # type: ignore[return-value]

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not args and "adata" in kwargs:
            args = (kwargs.pop("adata"),)
        many = bool(args) and isinstance(args[0], Sequence)
        sources = list(args[0]) if many else list(args[:1])
        if not any(map(is_spatialdata, sources)):
            return function(*args, **kwargs)
        key, system = kwargs.pop("table_key", "table"), kwargs.pop("coordinate_system", None)
        with ExitStack() as stack:
            tables = list(sources)
            for i, source in enumerate(sources):
                if is_spatialdata(source):
                    tables[i] = table = table_of(source, key)
                    stack.enter_context(temporary_spatial(table, *spatial_of(table, source, system)))
            result = function(tables if many else tables[0], *args[1:], **kwargs)  # type: ignore[arg-type]
        if isinstance(result, list) and len(result) == len(sources):
            return [_with_table(one, source, key) for one, source in zip(result, sources, strict=True)]
        return _with_table(result, args[0], key)

    return call  # type: ignore[return-value]


def is_spatialdata(data: Any) -> bool:
    """Return whether ``data`` is SpatialData, without an import of spatialdata."""
    return isinstance(data, getattr(sys.modules.get("spatialdata"), "SpatialData", ()))


def table_of(sdata: SpatialData, table_key: str) -> AnnData:
    """Return a table of SpatialData."""
    if table_key not in sdata.tables:
        raise KeyError(f"`table_key={table_key!r}` is not in `sdata.tables`; it has {listing(sdata.tables)}.")
    return sdata.tables[table_key]


@contextmanager
def temporary_spatial(table: AnnData, xy: Any, spatial: Any) -> Iterator[AnnData]:
    """Set positions and images of a table within the block."""
    before = table.obsm.get(_keys.SPATIAL), table.uns.get(_keys.SPATIAL)
    try:
        set_spatial(table, xy, spatial)
        yield table
    finally:
        set_spatial(table, *before)


def set_spatial(table: AnnData, xy: Any, spatial: Any) -> None:
    """Set ``obsm["spatial"]`` and ``uns["spatial"]``, or delete what is None."""
    for slot, value in ((table.obsm, xy), (table.uns, spatial)):
        if value is not None:
            slot[_keys.SPATIAL] = value
        elif _keys.SPATIAL in slot:
            del slot[_keys.SPATIAL]


def _with_table(result: Any, sdata: Any, table_key: str) -> Any:
    """Return SpatialData with the changed copy of its table; any other result as it is."""
    if not is_spatialdata(sdata) or not isinstance(result, AnnData):
        return result
    table = table_of(sdata, table_key)
    set_spatial(result, table.obsm.get(_keys.SPATIAL), table.uns.get(_keys.SPATIAL))
    elements = {kind: dict(getattr(sdata, kind)) for kind in ("images", "labels", "points", "shapes", "tables")}
    elements["tables"][table_key] = result
    return type(sdata)(**elements, attrs=sdata.attrs)


def spatial_of(table: AnnData, sdata: SpatialData, system: str | None) -> tuple[Any, Any]:
    """Return positions, the table's own unless a coordinate system is named, and images with their scale factors."""
    stored = table.obsm.get(_keys.SPATIAL) if system is None else None
    named = system or GLOBAL
    xy = _centroids(sdata, table, named) if stored is None else stored
    spatial = _with_images(sdata, table, named if stored is None else None)
    return xy, spatial or table.uns.get(_keys.SPATIAL)


def regions_of(table: AnnData) -> list[str]:
    """Return the names of the elements that the table annotates."""
    regions = table.uns.get(ATTRS, {}).get("region", [])
    return [regions] if isinstance(regions, str) else [str(region) for region in regions]


def _centroids(sdata: SpatialData, table: AnnData, system: str) -> Floats:
    from spatialdata import get_centroids
    from spatialdata.transformations import get_transformation

    if not (regions := regions_of(table)):
        raise KeyError(
            "The table annotates no element and has no `obsm['spatial']`, so its rows have no positions. Set "
            "`sdata.set_table_annotates_spatialelement(...)`, or put x, y into `obsm['spatial']`."
        )
    column, instances = (table.obs[table.uns[ATTRS][name]] for name in ("region_key", "instance_key"))
    xy = np.full((table.n_obs, 2), np.nan)
    for name in regions:
        if name not in sdata:
            raise KeyError(f"The table annotates {name!r}, which is not an element of `sdata`.")
        systems = get_transformation(sdata[name], get_all=True)
        if system not in systems:
            raise ValueError(
                f"`coordinate_system={system!r}`: {name!r} is not aligned to it, but to {listing(systems)}."
            )
        rows = np.flatnonzero(column == name)
        centres = get_centroids(sdata[name], coordinate_system=system).compute()
        index = centres.index.get_indexer(instances.iloc[rows])
        if len(absent := instances.iloc[rows[index < 0]]):
            raise ValueError(f"{len(absent)} rows of the table are not in {name!r}, such as {absent.iloc[0]!r}.")
        xy[rows] = centres[["x", "y"]].to_numpy()[index]
    return xy


def _with_images(sdata: SpatialData, table: AnnData, system: str | None) -> dict[str, Any]:
    """Return ``uns["spatial"]`` with the images that it names, else those that overlie an annotated element."""
    spatial = {k: dict(v) if isinstance(v, Mapping) else v for k, v in table.uns.get(_keys.SPATIAL, {}).items()}
    named = [v for v in spatial.values() if isinstance(v, dict) and _keys.IMAGES in v]
    for entry in named:
        images = dict(entry[_keys.IMAGES])
        for name in (name for name, image in images.items() if isinstance(image, str)):
            images[name] = _pixels(_levels(sdata.images[images[name]])[0])
        entry[_keys.IMAGES] = images
    regions = [name for name in regions_of(table) if name in sdata]
    for region in regions if not named else ():
        images, factors = _images_over(sdata, region, system)
        if images:
            entry = spatial.setdefault(next(iter(spatial), region) if len(regions) == 1 else region, {})
            entry[_keys.IMAGES] = images
            entry[_keys.SCALEFACTORS] = factors | dict(entry.get(_keys.SCALEFACTORS, {}))
    return spatial


def _images_over(sdata: SpatialData, region: str, system: str | None) -> tuple[dict[str, Any], dict[str, float]]:
    """Return the colour images that overlie an element, not larger than scanpy's, and their scale factors."""
    images, factors = {}, {}
    for name, image in sdata.images.items():
        levels = _levels(image)
        matrix = _matrix_between(sdata[region], image, system)
        if matrix is None or levels[0].sizes["c"] not in {3, 4}:
            continue
        level = next((level for level in levels if max(level.shape[1:]) <= _LARGEST), levels[-1])
        step = math.ceil(max(level.shape[1:]) / _LARGEST)
        pixels = _pixels(level[:, ::step, ::step])
        shrunk = pixels.shape[1] / levels[0].sizes["x"]
        scale = float(matrix[0, 0]) * shrunk
        # scanpy has a scale factor for an image, but no rotation, reflection or shift
        only_scaled = np.allclose(matrix[:2, :2], matrix[0, 0] * np.eye(2), rtol=1e-3, atol=1e-3 * abs(matrix[0, 0]))
        if not only_scaled or scale <= 0 or np.abs(matrix[:2, 2]).max() > 1:
            pixels, scale = _resampled(pixels, np.diag([shrunk, shrunk, 1]) @ matrix)
        if pixels.size:
            key = next((known for known in ("hires", "lowres") if known in name), name)
            images[key], factors[f"tissue_{key}_scalef"] = pixels, scale
    if images and "radius" in getattr(sdata.shapes.get(region), "columns", ()):  # circles
        factors[_keys.SPOT_DIAMETER] = float(2 * np.median(sdata.shapes[region]["radius"]))
    return images, factors


def _levels(image: Any) -> list[Any]:
    """Return the resolutions of an image, the finest first."""
    return [next(iter(level.values())) for level in image.values()] if hasattr(image, "children") else [image]


def _pixels(image: Any) -> Array:
    values = np.moveaxis(image.transpose("c", "y", "x").to_numpy(), 0, -1)
    return np.ascontiguousarray(values[..., 0] if values.shape[-1] == 1 else values)


def _resampled(image: Array, matrix: Floats) -> tuple[Array, float]:
    """Return a rotated or shifted image resampled to start at (0, 0), and its pixels per unit of the coordinates."""
    from skimage.transform import AffineTransform, warp

    height, width = image.shape[:2]
    corners = np.array([[0, width, 0, width], [0, 0, height, height], [1, 1, 1, 1]])
    extent = np.maximum((np.linalg.inv(matrix) @ corners)[:2].max(axis=1), 0)
    scale = float(min(np.sqrt(abs(np.linalg.det(matrix))), _LARGEST / max(extent.max(), 1e-9)))
    centre = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])  # of the first pixel
    onto = AffineTransform(np.linalg.inv(centre) @ matrix @ np.diag([1 / scale, 1 / scale, 1]) @ centre)
    white = np.iinfo(image.dtype).max if image.dtype.kind in "iu" else 1.0
    shape = np.ceil(extent[::-1] * scale).astype(int)
    if not shape.all():  # it lies beside the coordinates that an image can show
        return image[:0], scale
    return warp(image, onto, output_shape=shape, cval=white, preserve_range=True).astype(image.dtype), scale


def _matrix_between(element: Any, image: Any, system: str | None) -> Floats | None:
    """Return the matrix from coordinates of ``element``, or of ``system``, to pixels of an image."""
    from spatialdata.transformations import get_transformation

    of_image = get_transformation(image, get_all=True)
    of_element = get_transformation(element, get_all=True)
    shared = next((name for name in (of_element if system is None else [system]) if name in of_image), None)
    if shared is None:
        return None
    axes = {"input_axes": ("x", "y"), "output_axes": ("x", "y")}
    matrix = np.linalg.inv(of_image[shared].to_affine_matrix(**axes))
    if system is None:
        matrix = matrix @ of_element[shared].to_affine_matrix(**axes)
    return matrix
