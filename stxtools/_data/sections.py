"""Sections: where the observations lie, checked, their images, and what the models read of each section."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from functools import cache, cached_property, partial
from hashlib import blake2b
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy import sparse

from stxtools import _keys
from stxtools._checks import check_key
from stxtools._spatial.graph import section_meshes, spatial_graph
from stxtools._spatial.mask import REACH, REACH_SCATTERED, Frame, outlines
from stxtools._spatial.points import typical_spacing
from stxtools._spatial.raster import RasterGrid, rasterize_libraries, split_rows
from stxtools._spatial.triangulation import Mesh
from stxtools._types import Array, Bools, Floats, Floats32, Ints
from stxtools._validate import Libraries, array_positions, coordinates, fingerprint, libraries, listing, spatial_entry
from stxtools.models._section import Section

N_IMAGE_FEATURES = 6
_PIXELS_PER_SPOT = 2  # of an image that the mask takes its pixels from
# columns that often name sections, as they are written in lower case and without _ and -
_LIBRARY_NAMES = "library libraryid libraries sample sampleid samplename samples batch batchid dataset replicate"
_SLIDE_NAMES = "slide slideid section sectionid sectionname slice sliceid capturearea fov fovid fovname roi"
_PATIENT_NAMES = "patient patientid donor donorid subject individual"
_NAMES = frozenset(f"{_LIBRARY_NAMES} {_SLIDE_NAMES} {_PATIENT_NAMES}".split())
_COINCIDENT = 0.3  # share of observations that share their position; 0.2 in a section with doubled cells (osmFISH)
_FEW = 10  # doubled positions, or observations of a group, that say nothing
_LOOKED_AT = 20_000  # observations whose neighbours are looked at
_NEIGHBOURS = 6
_MOST_GROUPS = 500
_MADE: dict[int, tuple[bytes, dict[Any, Any]]] = {}  # by the identity of living AnnData


class Geometry:
    """Where the observations lie: coordinates, sections and, made when asked for, raster and neighbours."""

    def __init__(
        self, adata: AnnData, spatial_key: str, library_key: str | bool | None, *, raster: bool = True
    ) -> None:
        self.libs = libraries(adata, library_key)
        self.xy = coordinates(adata, spatial_key, self.libs)
        self._array, self._described = array_positions(adata), adata.uns.get(_keys.RASTER)
        self._stored = adata.obsm.get(_keys.RASTER)
        if library_key is None:
            check_one_section(adata.obs, self.xy)
        self._made = _made_before(adata, self.xy, self.libs.codes, self._array)
        if raster:
            self.grids  # noqa: B018 - made now: what is wrong with it is said before any long work

    @cached_property
    def _raster(self) -> tuple[NDArray[np.int32], list[RasterGrid]]:
        stored = _stored_raster(self._described, self._stored, self.xy, self.libs)
        if stored is None and "raster" not in self._made:
            self._made["raster"] = rasterize_libraries(self.xy, self.libs.codes, len(self.libs), self._array)
        return stored or self._made["raster"]

    @property
    def pixels(self) -> NDArray[np.int32]:
        """Row and column of every observation in the raster of its section."""
        return self._raster[0]

    @property
    def grids(self) -> list[RasterGrid]:
        """Raster of every section."""
        return self._raster[1]

    @cached_property
    def meshes(self) -> list[Mesh | None]:
        """Triangulation of every scattered section."""
        kinds = tuple(grid.lattice for grid in self.grids)
        if kinds not in self._made:
            self._made[kinds] = section_meshes(self.xy, self.libs.codes, self.grids)
        return self._made[kinds]

    @cached_property
    def graph(self) -> sparse.csr_matrix:
        """Distances between spatial neighbours, (n, n)."""
        return spatial_graph(self.xy, self.libs.codes, self.pixels, self.grids, self.meshes)

    @cached_property
    def parts(self) -> list[Ints]:
        """Per section, the positions of its observations."""
        return split_rows(self.libs.codes, len(self.libs))

    def split(self, values: Array) -> list[Array]:
        """Values of the observations of each section."""
        return [values[rows] for rows in self.parts]

    def join(self, parts: Sequence[Array]) -> Array:
        """Put arrays of each section back into the order of the observations."""
        out = np.empty((self.libs.codes.size, *parts[0].shape[1:]), dtype=parts[0].dtype)
        for rows, part in zip(self.parts, parts, strict=True):
            out[rows] = part
        return out

    @cached_property
    def spacings(self) -> list[float]:
        """Per section, the distance between neighbouring observations: the lattice's, or the typical one."""
        found = []
        for grid, rows in zip(self.grids, self.parts, strict=True):
            known = grid.spacing if grid.lattice == "scattered" else grid.pixel_size
            found.append(typical_spacing(self.xy[rows]) if known is None else known)
        return found

    def outlines(self, index: int, codes: NDArray[np.integer[Any]]) -> dict[int, Any]:
        """Return a shapely (multi)polygon for each code of the observations of a section, from 0 on."""
        rows, reach = self.parts[index], REACH_SCATTERED if self.grids[index].lattice == "scattered" else REACH
        return outlines(self.xy[rows], codes[rows], reach * self.spacings[index])


def _made_before(adata: AnnData, *arrays: Array | None) -> dict[Any, Any]:
    """What earlier calls have made of these very ``arrays``; it goes with the AnnData.

    Triangles and raster of a million cells take 14 s, and calls one after the other ask for the same ones.
    """
    digest = blake2b(b"".join(b"" if a is None else np.ascontiguousarray(a).tobytes() for a in arrays)).digest()
    made = _MADE.get(id(adata))
    if made is None:
        weakref.finalize(adata, _MADE.pop, id(adata), None)
    if made is None or made[0] != digest:  # another thread may set its own meanwhile: the entry is read once
        made = _MADE[id(adata)] = digest, {}
    return made[1]


def _stored_raster(
    described: Any, stored: Any, xy: Floats, libs: Libraries
) -> tuple[NDArray[np.int32], list[RasterGrid]] | None:
    """Return the raster that :func:`stxtools.pp.rasterize` wrote, if it was made from these very coordinates."""
    try:
        if str(described["params"]["coordinates"]) != str(fingerprint(xy)):
            return None
        grids = [RasterGrid.from_uns(described[name]) for name in libs.names]
    except (KeyError, IndexError, TypeError, ValueError):  # something else of that name
        return None
    pixels, shapes = np.asarray(stored), np.array([grid.shape for grid in grids])[libs.codes]
    fits = pixels.shape == shapes.shape and pixels.dtype.kind in "iu" and ((pixels >= 0) & (pixels < shapes)).all()
    return (pixels.astype(np.int32), grids) if fits else None


def make_sections(values: Floats32, where: Geometry) -> list[Section]:
    """Split features by section into :class:`stxtools.models.Section`."""
    if len(where.libs) == 1:  # no copies: features are the largest dense array there is
        return [Section(where.libs.names[0], values, where.pixels, where.grids[0].shape, lambda: where.graph, where.xy)]
    return [
        Section(
            name, values[rows], where.pixels[rows], grid.shape,
            cache(lambda rows=rows: where.graph[rows][:, rows].tocsr()), where.xy[rows],
        )
        for name, grid, rows in zip(where.libs.names, where.grids, where.parts, strict=True)
    ]  # fmt: skip


class Images:
    """Images of the sections, ``uns["spatial"][library]``, as scanpy lays them out."""

    def __init__(self, adata: AnnData) -> None:
        self._entry = partial(spatial_entry, adata)

    def features(self, where: Geometry, image_key: str) -> Floats32:
        """Mean and standard deviation of red, green and blue in a window as wide as the spacing, (n_obs, 6)."""
        from scipy.ndimage import uniform_filter

        out = np.empty((len(where.xy), N_IMAGE_FEATURES), dtype=np.float32)
        for name, rows, spacing in zip(where.libs.names, where.parts, where.spacings, strict=True):
            pixels, scale = self._read(name, image_key)
            at = np.rint(where.xy[rows][:, ::-1] * scale).astype(np.int64)  # x runs along the columns
            outside = ((at < 0) | (at >= pixels.shape[:2])).any(axis=1)
            if outside.any():
                raise ValueError(
                    f"{int(outside.sum())} of the {len(rows)} observations of section {name!r} lie outside its image "
                    f"{image_key!r} of {pixels.shape[1]} x {pixels.shape[0]} pixels; is its scale factor {scale:g}?"
                )
            side = max(1, round(spacing * scale))
            for channel in range(3):
                values = pixels[..., channel]
                mean = uniform_filter(values, side)
                square = uniform_filter(values**2, side)
                out[rows, channel] = mean[at[:, 0], at[:, 1]]
                out[rows, 3 + channel] = np.sqrt(np.maximum(square - mean**2, 0))[at[:, 0], at[:, 1]]
        return out

    def beside(self, values: Floats32, where: Geometry, image_key: str | None) -> Floats32:
        """Put the image's channels, if one is asked for, behind the features."""
        return values if image_key is None else np.concatenate([values, self.features(where, image_key)], axis=1)

    def frame(self, library: str, xy: Floats, spacing: float) -> Frame | None:
        """Pixels of the section's image, if it is fine enough and the tissue lies on it."""
        images, factors = (self._entry(library)[kind] for kind in (_keys.IMAGES, _keys.SCALEFACTORS))
        for name in ("hires", "lowres"):
            scale = factors.get(f"tissue_{name}_scalef")
            shape: Any = np.shape(images[name]) if name in images else ()
            if len(shape) not in (2, 3) or not isinstance(scale, (int, float, np.number)) or not np.isfinite(scale):
                continue
            pixels = xy * float(scale)
            inside = (pixels >= -0.5).all() and (pixels <= np.array(shape[1::-1]) - 0.5).all()
            if inside and spacing * scale >= _PIXELS_PER_SPOT:
                return Frame((shape[0], shape[1]), float(scale))
        return None

    def _read(self, library: str, image_key: str) -> tuple[Floats, float]:
        check_key("image_key", image_key)
        images, factors = (self._entry(library)[kind] for kind in (_keys.IMAGES, _keys.SCALEFACTORS))
        if image_key not in images:
            there = ", ".join(map(repr, images)) or "none"
            raise KeyError(
                f"`image_key={image_key!r}`: section {library!r} has no such image in "
                f"`adata.uns['spatial'][{library!r}]['images']`; there: {there}. The names in `library_key` must be "
                "those of `adata.uns['spatial']`."
            )
        factor = f"tissue_{image_key}_scalef"
        if factor not in factors:
            raise KeyError(f"`adata.uns['spatial'][{library!r}]['scalefactors']` has no {factor!r}, the image's scale.")
        pixels = np.asarray(images[image_key])
        if pixels.ndim != 3 or pixels.shape[2] not in {3, 4}:
            raise ValueError(
                f"The image {image_key!r} of section {library!r} has shape {pixels.shape}; expected RGB(A)."
            )
        values = pixels[..., :3].astype(np.float64)
        # white: colours of 8 or 16 bits may be stored as any type, shares of 1 may be a little above it
        top = 255.0 if pixels.dtype == np.uint8 else next((w for w in (1.0, 255.0) if values.max() < 2 * w), 65535.0)
        return values / top, float(factors[factor])


def check_one_section(obs: pd.DataFrame, xy: Floats) -> None:
    """Raise where many positions are held twice, or groups that a column names lie within each other."""
    mend = "`library_key=False` says that all observations are one section."
    twice = pd.DataFrame(xy).duplicated(keep=False).to_numpy()
    place = pd.factorize(pd.MultiIndex.from_arrays(xy[twice].T))[0] if twice.any() else np.empty(0, dtype=np.int64)
    if twice.mean() > _COINCIDENT and place.max() + 1 >= _FEW:
        column = _column_apart(obs, twice, place)
        named = (
            f"`adata.obs[{column!r}]` tells them apart: pass `library_key={column!r}`."
            if column is not None
            else "Name the section of each observation in a column of `adata.obs` (`anndata.concat(..., label=)` "
            "writes one) and pass it as `library_key=`."
        )
        raise ValueError(
            f"{int(twice.sum())} of {len(xy)} observations lie at exactly the position of another one, as when several "
            f"sections are put together. {named} {mend}"
        )
    found = {}
    for column in obs.columns:
        codes = _groups(obs, column)
        if codes is not None and np.greater(*_mixing(xy, codes)):
            found[column] = int(codes.max())
    if found:
        column = max(found, key=lambda name: found[name])  # sections, and not the patients who have several
        raise ValueError(
            f"The groups of `adata.obs[{column!r}]` ({listing(pd.unique(obs[column].dropna()), 4)}) lie within each "
            "other in space, as sections do whose coordinates begin at the same corner: neighbours would be of "
            f"different groups. Pass `library_key={column!r}`; or {mend}"
        )


def _groups(obs: pd.DataFrame, column: Any) -> Ints | None:
    """Codes of a column whose name is one of sections; None for others, and where there is one group."""
    name = str(column).lower().replace("_", "").replace("-", "").replace(" ", "").replace(".", "")
    if name not in _NAMES or pd.api.types.is_float_dtype(obs[column].dtype):
        return None
    try:
        codes = pd.factorize(obs[column])[0]
    except TypeError:  # unhashable values name nothing
        return None
    size = np.bincount(codes[codes >= 0]) if (codes >= 0).any() else np.empty(0, dtype=np.int64)
    large = size >= _FEW
    if not 2 <= large.sum() <= _MOST_GROUPS:
        return None
    return np.where((codes >= 0) & large[codes], codes, -1).astype(np.int64)


def _mixing(xy: Floats, codes: Ints) -> tuple[float, float]:
    """How often neighbours are of other groups, relative to chance, and the most of groups that lie side by side."""
    from scipy.spatial import cKDTree

    rows = np.flatnonzero(codes >= 0)
    rows = rows[:: len(rows) // _LOOKED_AT + 1]
    tree, own = cKDTree(xy[rows]), codes[rows]
    near = tree.query(xy[rows], k=min(_NEIGHBOURS, len(rows) - 1) + 1)[1][:, 1:]
    share = np.bincount(own) / len(own)
    chance = 1 - float(np.square(share).sum())
    typical = float(np.square(share).sum()) * len(own)  # size of the group of an observation
    other = float((own[near] != own[:, None]).mean())
    return other / max(chance, 1e-9), 0.05 + 2 / np.sqrt(typical)


def _column_apart(obs: pd.DataFrame, twice: Bools, place: Ints) -> Any:
    """Return a column whose values differ between observations at one position: the one with the fewest values."""
    found: list[tuple[int, int, Any]] = []
    for at, column in enumerate(obs.columns):
        values = obs[column]
        if pd.api.types.is_float_dtype(values.dtype):
            continue
        try:
            codes, names = pd.factorize(values[twice])
        except TypeError:
            continue
        if 2 <= len(names) <= _MOST_GROUPS and not pd.DataFrame({"p": place, "c": codes}).duplicated().mean() > 0.01:
            found.append((len(names), at, column))
    return min(found)[2] if found else None
