"""Sections: coordinates of the observations, rasters, neighbours and images, and the input of the models."""

from __future__ import annotations

import re
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache, cached_property
from hashlib import blake2b
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from stxtools import _keys
from stxtools._checks import check_key, listing
from stxtools._on_spatialdata import ATTRS
from stxtools._spatial.graph import section_meshes, spatial_graph
from stxtools._spatial.mask import REACH, REACH_SCATTERED, Frame, outlines
from stxtools._spatial.points import typical_spacing
from stxtools._spatial.raster import Pixels, RasterGrid, rasterize_libraries, split_rows
from stxtools._spatial.triangulation import Mesh
from stxtools._types import Array, Csr, Floats, Floats32, Ints
from stxtools._validate import Libraries, array_positions, coordinates, fingerprint, libraries, spatial_entry
from stxtools._warn import warn
from stxtools.models._section import Section

N_IMAGE_FEATURES = 6
_PIXELS_PER_SPOT = 2  # of an image that is fine enough for the mask
# names of columns that identify sections, in lower case and without separators
_LIBRARY_NAMES = "library libraryid libraries sample sampleid samplename samples batch batchid dataset replicate"
_SLIDE_NAMES = "slide slideid section sectionid sectionname slice sliceid capturearea fov fovid fovname roi"
_PATIENT_NAMES = "patient patientid donor donorid subject individual"
_NAMES = frozenset(f"{_LIBRARY_NAMES} {_SLIDE_NAMES} {_PATIENT_NAMES}".split())
_MAX_COINCIDENT = 0.3  # share of observations at a shared position; 0.2 in a section with duplicated cells (osmFISH)
_MIN_SIZE = 10  # shared positions, or observations of a group, that are evidence
_SAMPLE = 20_000  # observations whose neighbours are compared
_N_NEIGHBOURS = 6
_MAX_GROUPS = 500
_CACHE: dict[int, tuple[bytes, dict[Any, Any]]] = {}  # by the identity of living AnnData


class Geometry:
    """Coordinates and sections of the observations and, computed on first use, rasters and neighbours."""

    def __init__(
        self, adata: AnnData, spatial_key: str, library_key: str | bool | None, *, raster: bool = True
    ) -> None:
        self.libs = libraries(adata, library_key)
        self.xy = coordinates(adata, spatial_key, self.libs)
        self._array = array_positions(adata)
        self.images = [spatial_entry(adata, name) for name in self.libs.names]  # with their scale factors
        self._stored = adata.uns.get(_keys.RASTER), adata.obsm.get(_keys.RASTER)
        if library_key is None:
            check_one_section(adata.obs, self.xy, adata.uns.get(ATTRS, {}).get("region_key"))
        self._cache = _cache_for(adata, self.xy, self.libs.codes, self._array)
        if raster:
            self.grids  # noqa: B018 - computed now, so that its errors come before any long work

    @cached_property
    def _raster(self) -> tuple[Pixels, list[RasterGrid]]:
        stored = _stored_raster(*self._stored, self.xy, self.libs)
        if stored is None:
            _warn_unused(self._stored[0])
        if stored is None and "raster" not in self._cache:
            self._cache["raster"] = rasterize_libraries(self.xy, self.libs.codes, len(self.libs), self._array)
        return stored or self._cache["raster"]

    @property
    def pixels(self) -> Pixels:
        """Row and column of every observation in the raster of its section."""
        return self._raster[0]

    @property
    def grids(self) -> list[RasterGrid]:
        """Raster of every section."""
        return self._raster[1]

    @cached_property
    def meshes(self) -> list[Mesh | None]:
        """Triangulation of every scattered section."""
        lattices = tuple(grid.lattice for grid in self.grids)
        if lattices not in self._cache:
            self._cache[lattices] = section_meshes(self.xy, self.libs.codes, self.grids)
        return self._cache[lattices]

    @cached_property
    def graph(self) -> Csr:
        """Distances between spatial neighbours, (n, n)."""
        return spatial_graph(self.xy, self.libs.codes, self.pixels, self.grids, self.meshes)

    @cached_property
    def parts(self) -> list[Ints]:
        """Rows of the observations of every section."""
        return split_rows(self.libs.codes, len(self.libs))

    def split(self, values: Array) -> list[Array]:
        """Split values of the observations by section."""
        return [values[rows] for rows in self.parts]

    def join(self, parts: Sequence[Array]) -> Array:
        """Concatenate values of every section in the order of the observations."""
        out = np.empty((self.libs.codes.size, *parts[0].shape[1:]), dtype=parts[0].dtype)
        for rows, part in zip(self.parts, parts, strict=True):
            out[rows] = part
        return out

    @cached_property
    def spacings(self) -> list[float]:
        """Spacing of the lattice, or typical distance between neighbours, in every section."""
        known = [grid.spacing if grid.lattice == "scattered" else grid.pixel_size for grid in self.grids]
        return [typical_spacing(xy) if k is None else k for k, xy in zip(known, self.split(self.xy), strict=True)]

    def outlines(self, index: int, codes: NDArray[np.integer[Any]]) -> dict[int, Any]:
        """Return a shapely (multi)polygon for each non-negative code of the observations of a section."""
        rows, reach = self.parts[index], REACH_SCATTERED if self.grids[index].lattice == "scattered" else REACH
        return outlines(self.xy[rows], codes[rows], reach * self.spacings[index])


def _cache_for(adata: AnnData, *arrays: Array | None) -> dict[Any, Any]:
    """Return the results of earlier calls for the same ``arrays``; they live as long as the AnnData.

    Triangulation and raster of a million cells take 14 s, and successive calls need the same ones.
    """
    digest = blake2b(b"".join(b"" if a is None else np.ascontiguousarray(a).tobytes() for a in arrays)).digest()
    entry = _CACHE.get(id(adata))
    if entry is None:
        weakref.finalize(adata, _CACHE.pop, id(adata), None)
    if entry is None or entry[0] != digest:  # another thread may set its own meanwhile: the entry is read once
        entry = _CACHE[id(adata)] = digest, {}
    return entry[1]


def _stored_raster(uns: Any, pixels: Any, xy: Floats, libs: Libraries) -> tuple[Pixels, list[RasterGrid]] | None:
    """Return the raster that :func:`stxtools.pp.rasterize` wrote, if it was made from the same coordinates."""
    try:
        if str(uns["params"]["coordinates"]) != str(fingerprint(xy)):
            return None
        grids = [RasterGrid.from_uns(uns[name]) for name in libs.names]
    except (KeyError, IndexError, TypeError, ValueError):  # something else of that name
        return None
    pixels, shapes = np.asarray(pixels), np.array([grid.shape for grid in grids])[libs.codes]
    fits = pixels.shape == shapes.shape and pixels.dtype.kind in "iu" and ((pixels >= 0) & (pixels < shapes)).all()
    return (pixels.astype(np.int32), grids) if fits else None


def _warn_unused(uns: Any) -> None:
    params = uns.get("params") if isinstance(uns, Mapping) else None
    if isinstance(params, Mapping) and params.get("call") == "pp.rasterize" and "pixel_size" in params:
        warn(f"The raster with `pixel_size={params['pixel_size']:g}` in `adata.uns[{_keys.RASTER!r}]` belongs to other "
             "observations, coordinates or sections and is not used; run `st.pp.rasterize` again.")  # fmt: skip


def make_sections(values: Floats32, where: Geometry) -> list[Section]:
    """Split features by section into :class:`stxtools.models.Section`."""
    if len(where.libs) == 1:  # no copies: features are the largest dense array
        return [Section(where.libs.names[0], values, where.pixels, where.grids[0].shape, lambda: where.graph, where.xy)]
    return [
        Section(
            name, values[rows], where.pixels[rows], grid.shape,
            cache(lambda rows=rows: where.graph[rows][:, rows].tocsr()), where.xy[rows],
        )
        for name, grid, rows in zip(where.libs.names, where.grids, where.parts, strict=True)
    ]  # fmt: skip


def with_image_features(values: Floats32, where: Geometry, image_key: str | None) -> Floats32:
    """Append mean and standard deviation of red, green and blue in a window as wide as the spacing, (n_obs, 6)."""
    from scipy.ndimage import uniform_filter

    if image_key is None:
        return values
    out = np.empty((len(where.xy), N_IMAGE_FEATURES), dtype=np.float32)
    for name, entry, rows, spacing in zip(where.libs.names, where.images, where.parts, where.spacings, strict=True):
        image, scale = _read_image(entry, name, image_key)
        pixels = np.rint(where.xy[rows].T[::-1] * scale).astype(np.int64)  # x runs along the columns
        row, col = pixels
        outside = ((pixels < 0) | (pixels >= np.array(image.shape[:2])[:, None])).any(axis=0)
        if outside.any():
            raise ValueError(
                f"{int(outside.sum())} of the {len(rows)} observations of section {name!r} lie outside its image "
                f"{image_key!r} of {image.shape[1]} x {image.shape[0]} pixels; is its scale factor {scale:g}?"
            )
        side = max(1, round(spacing * scale))
        for channel in range(3):
            mean = uniform_filter(image[..., channel], side)
            square = uniform_filter(image[..., channel] ** 2, side)
            out[rows, channel] = mean[row, col]
            out[rows, 3 + channel] = np.sqrt(np.maximum(square - mean**2, 0))[row, col]
    return np.concatenate([values, out], axis=1)


def image_frame(entry: Mapping[str, Any], xy: Floats, spacing: float) -> Frame | None:
    """Return the pixel grid of a section's image, if it is fine enough and contains the tissue."""
    for name in ("hires", "lowres"):
        scale = entry[_keys.SCALEFACTORS].get(f"tissue_{name}_scalef")
        shape = np.shape(entry[_keys.IMAGES].get(name))
        if len(shape) not in (2, 3) or not isinstance(scale, (int, float, np.number)) or not np.isfinite(scale):
            continue
        pixels = xy * float(scale)
        inside = (pixels >= -0.5).all() and (pixels <= np.array(shape[1::-1]) - 0.5).all()
        if inside and spacing * scale >= _PIXELS_PER_SPOT:
            return Frame((shape[0], shape[1]), float(scale))
    return None


def _read_image(entry: Mapping[str, Any], library: str, image_key: str) -> tuple[Floats, float]:
    """Return an image with values from 0 to 1, and its scale factor."""
    factor = f"tissue_{check_key('image_key', image_key)}_scalef"
    images, factors = entry[_keys.IMAGES], entry[_keys.SCALEFACTORS]
    if image_key not in images:
        raise KeyError(
            f"`image_key={image_key!r}`: section {library!r} has no such image in "
            f"`adata.uns['spatial'][{library!r}]['images']`; there: {listing(images)}. The "
            "names in `library_key` must be those of `adata.uns['spatial']`."
        )
    if factor not in factors:
        raise KeyError(f"`adata.uns['spatial'][{library!r}]['scalefactors']` has no {factor!r}, the image's scale.")
    pixels = np.asarray(images[image_key])
    if pixels.ndim != 3 or pixels.shape[2] not in {3, 4}:
        raise ValueError(f"The image {image_key!r} of section {library!r} has shape {pixels.shape}; expected RGB(A).")
    values = pixels[..., :3].astype(np.float64)
    # white: colours of 8 or 16 bits may be stored as any type, fractions may slightly exceed 1
    white = 255.0 if pixels.dtype == np.uint8 else next((w for w in (1.0, 255.0) if values.max() < 2 * w), 65535.0)
    return values / white, float(factors[factor])


def check_one_section(obs: pd.DataFrame, xy: Floats, region_key: str | None = None) -> None:
    """Raise if many observations share positions, or if groups named by a column overlap in space.

    ``region_key`` is the column with the element of SpatialData that an observation belongs to.
    """
    remedy = "`library_key=False` says that all observations are one section."
    coincident = pd.DataFrame(xy).duplicated(keep=False).to_numpy()
    if coincident.mean() > _MAX_COINCIDENT:
        position = pd.DataFrame(xy[coincident]).groupby([0, 1], sort=False).ngroup().to_numpy()
        if position.max() + 1 >= _MIN_SIZE:
            column = _separating_column(obs[coincident], position)
            named = (
                f"`adata.obs[{column!r}]` separates them: pass `library_key={column!r}`."
                if column is not None
                else "Name the section of each observation in a column of `adata.obs` (`anndata.concat(..., label=)` "
                "writes one) and pass it as `library_key=`."
            )
            raise ValueError(
                f"{int(coincident.sum())} of {len(xy)} observations have exactly the same coordinates as another "
                f"one, as after concatenating sections. {named} {remedy}"
            )
    n_groups = {}
    for column in obs.columns:
        codes = _section_codes(obs, column) if column == region_key or _names_sections(column) else None
        if codes is not None and _overlap(xy, codes):
            n_groups[column] = int(codes.max())
    if n_groups:
        column = max(n_groups, key=lambda name: n_groups[name])  # sections, and not the patients who have several
        raise ValueError(
            f"The groups of `adata.obs[{column!r}]` ({listing(pd.unique(obs[column].dropna()), 4)}) overlap in "
            "space, as sections with the same origin do: spatial neighbours would come from different groups. "
            f"Pass `library_key={column!r}`; or {remedy}"
        )


def _separating_column(obs: pd.DataFrame, position: Ints) -> Any:
    """Return the column with the fewest values that differ between observations at one position, if there is one."""
    n_values: dict[Any, int] = {}
    for column in obs.columns:
        codes = _codes(obs[column])
        n_names = codes.max(initial=-1) + 1
        repeated = pd.DataFrame({"position": position[: len(codes)], "code": codes}).duplicated().mean()
        if 2 <= n_names <= _MAX_GROUPS and repeated <= 0.01:
            n_values[column] = n_names
    return min(n_values, key=lambda name: n_values[name], default=None)


def _names_sections(column: Any) -> bool:
    return re.sub("[-_. ]", "", str(column).lower()) in _NAMES


def _codes(column: pd.Series) -> Ints:
    """Return codes of the values of a column, -1 where missing; none of numbers and unhashable values."""
    if not pd.api.types.is_float_dtype(column.dtype):
        with suppress(TypeError):  # unhashable values
            return pd.factorize(column)[0].astype(np.int64)
    return np.empty(0, dtype=np.int64)


def _section_codes(obs: pd.DataFrame, column: Any) -> Ints | None:
    """Return codes of the groups of a column, -1 for small ones; None if it cannot name sections."""
    codes = _codes(obs[column])
    large = np.bincount(codes[codes >= 0]) >= _MIN_SIZE
    if not 2 <= large.sum() <= _MAX_GROUPS:
        return None
    return np.where((codes >= 0) & large[codes], codes, -1)


def _overlap(xy: Floats, codes: Ints) -> bool:
    """Whether neighbours are of other groups more often, relative to chance, than in groups that lie side by side."""
    from scipy.spatial import cKDTree

    rows = np.flatnonzero(codes >= 0)
    rows = rows[:: len(rows) // _SAMPLE + 1]
    group = codes[rows]
    near = cKDTree(xy[rows]).query(xy[rows], k=min(_N_NEIGHBOURS, len(rows) - 1) + 1)[1][:, 1:]
    same = float(np.square(np.bincount(group) / len(group)).sum())  # probability that two observations share a group
    other = float((group[near] != group[:, None]).mean())
    size = same * len(group)  # expected, of the group of an observation
    return bool(other / max(1 - same, 1e-9) > 0.05 + 2 / np.sqrt(size))
