"""Put observations on a raster."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from anndata import AnnData

from stxtools import _keys
from stxtools._api import public
from stxtools._checks import check_number
from stxtools._data.sections import Geometry
from stxtools._slots import Slots, free_key, provenance
from stxtools._spatial.raster import rasterize_libraries
from stxtools._validate import array_positions, check_adata, fingerprint


@public
def rasterize(
    adata: AnnData, *, pixel_size: float | None = None, lattice: Literal["auto", "hex", "square", "scattered"] = "auto",
    spatial_key: str = _keys.SPATIAL, library_key: str | bool | None = None, key_added: str | None = None,
    copy: bool = False,
) -> AnnData | None:  # fmt: skip
    """Assign observations to the pixels of a raster of their section.

    Each spot of a hexagonal (Visium) or square lattice gets its own pixel; hexagonal rows are shifted by half a pixel.
    The lattice is taken from ``obs["array_row"]`` and ``obs["array_col"]`` if they agree with the coordinates, else
    inferred from the coordinates. Scattered cells are binned, two per pixel on average, with the same pixel size in all
    sections.

    Parameters
    ----------
    pixel_size
        Width of the bins in units of the coordinates. If given, all sections are binned, lattices too.
    lattice
        ``"hex"``, ``"square"``, ``"scattered"`` (always bin), or ``"auto"``: inferred for each section.

    Examples
    --------
    >>> adata = st.datasets.synthetic_tissue(n_obs=500)
    >>> st.pp.rasterize(adata)
    >>> adata.obsm["raster"].shape
    (500, 2)
    """
    check_adata(adata, unique_vars=False, copy=copy)
    if pixel_size is not None:
        pixel_size = check_number("pixel_size", pixel_size, above=0)
    key = free_key(adata, "pp.rasterize", key_added, _keys.RASTER, obsm=[""], uns=[""])
    where = Geometry(adata, spatial_key, library_key, raster=False)
    xy, sections = where.xy, where.libs
    if pixel_size is not None and pixel_size > np.ptp(xy, axis=0).max() > 0:
        raise ValueError(f"`pixel_size={pixel_size:g}` would put all observations into one pixel: they are "
                         f"{np.ptp(xy, axis=0).max():g} apart at most.")  # fmt: skip
    if "params" in sections.names:
        raise ValueError("A section is called 'params', the name under which parameters are stored; rename it.")
    index, grids = rasterize_libraries(
        xy, sections.codes, len(sections), array_positions(adata), lattice=lattice, pixel_size=pixel_size
    )
    stored: dict[str, Any] = {name: grid.to_uns() for name, grid in zip(sections.names, grids, strict=True)}
    stored["params"] = provenance(
        pixel_size=pixel_size, lattice=lattice, spatial_key=spatial_key, library_key=library_key,
        coordinates=fingerprint(xy),
    )  # fmt: skip
    return Slots("pp.rasterize", obsm={key: index}, uns={key: stored}).write(adata, copy)
