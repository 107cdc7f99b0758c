"""From AnnData to what the models read: sections with features, raster and neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from stxtools import _keys
from stxtools._data.one_section import sections
from stxtools._spatial.density import typical_spacing
from stxtools._spatial.graph import section_meshes, spatial_graph
from stxtools._spatial.raster import RasterGrid, rasterize_libraries
from stxtools._validate import Libraries, array_positions, fingerprint

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from scipy import sparse

    from stxtools._spatial.triangulation import Mesh


@dataclass(frozen=True)
class Geometry:
    """Where the observations lie: coordinates, sections, raster index and, made when asked for, neighbours."""

    xy: NDArray[np.float64]
    libs: Libraries
    pixels: NDArray[np.int32]
    grids: list[RasterGrid]

    @cached_property
    def meshes(self) -> list[Mesh | None]:
        """Triangulation of every scattered section."""
        return section_meshes(self.xy, self.libs.codes, self.grids)

    @cached_property
    def graph(self) -> sparse.csr_matrix:
        """Distances between spatial neighbours, (n, n)."""
        return spatial_graph(self.xy, self.libs.codes, self.pixels, self.grids, self.meshes)

    @property
    def parts(self) -> list[NDArray[np.int64]]:
        """Per section, the positions of its observations."""
        return [self.libs.rows(i) for i in range(len(self.libs))]

    @cached_property
    def spacings(self) -> list[float]:
        """Per section, the distance between neighbouring observations: the lattice's, or the typical one."""
        found = []
        for grid, rows in zip(self.grids, self.parts, strict=True):
            known = grid.spacing if grid.lattice == "scattered" else grid.pixel_size
            found.append(typical_spacing(self.xy[rows]) if known is None else known)
        return found


def geometry(adata: AnnData, spatial_key: str, library_key: str | bool | None) -> Geometry:
    """Read coordinates and sections; take the raster of :func:`stxtools.pp.rasterize` if it fits, else make one."""
    xy, libs = sections(adata, spatial_key, library_key)
    stored = _stored_raster(adata, libs, fingerprint(xy))
    if stored is not None:
        pixels, grids = stored
    else:
        pixels, grids = rasterize_libraries(xy, libs.codes, len(libs), array_positions(adata))
    return Geometry(xy, libs, pixels, grids)


def _stored_raster(
    adata: AnnData, libs: Libraries, coordinates_now: int
) -> tuple[NDArray[np.int32], list[RasterGrid]] | None:
    """Return the raster that :func:`stxtools.pp.rasterize` wrote, if it was made from these very coordinates."""
    described = adata.uns.get(_keys.RASTER)
    if _keys.RASTER not in adata.obsm or not isinstance(described, Mapping):
        return None
    params, stored = described.get("params"), adata.obsm[_keys.RASTER]
    if not isinstance(params, Mapping) or str(params.get("coordinates")) != str(coordinates_now):
        return None
    if not all(isinstance(described.get(name), Mapping) for name in libs.names):
        return None
    if np.shape(stored) != (adata.n_obs, 2) or np.asarray(stored).dtype.kind not in "iu":
        return None
    pixels = np.asarray(stored, dtype=np.int32)
    grids = [RasterGrid.from_uns(described[name]) for name in libs.names]
    for i, grid in enumerate(grids):
        rows = libs.rows(i)
        if (pixels[rows] < 0).any() or (pixels[rows] >= np.array(grid.shape)).any():
            return None
    return pixels, grids


def make_sections(values: NDArray[np.float32], where: Geometry) -> list[Any]:
    """Split features by section into :class:`stxtools.models.Section`."""
    from stxtools.models import Section

    if len(where.libs) == 1:  # no copies: features are the largest dense array there is
        return [Section(where.libs.names[0], values, where.pixels, where.grids[0].shape, lambda: where.graph, where.xy)]
    return [
        Section(
            where.libs.names[i],
            values[rows],
            where.pixels[rows],
            where.grids[i].shape,
            cache(partial(_within, where, rows)),
            where.xy[rows],
        )
        for i, rows in enumerate(where.parts)
    ]


def _within(where: Geometry, rows: NDArray[np.int64]) -> sparse.csr_matrix:
    return where.graph[rows][:, rows].tocsr()


def join(parts: Sequence[NDArray[Any]], where: Geometry) -> NDArray[Any]:
    """Put per-section arrays back into the order of the observations."""
    out = np.empty((where.libs.codes.size, *parts[0].shape[1:]), dtype=parts[0].dtype)
    for rows, part in zip(where.parts, parts, strict=True):
        out[rows] = part
    return out
