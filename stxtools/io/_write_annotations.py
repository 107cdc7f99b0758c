"""Labels or segments as annotations that QuPath opens."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stxtools import _keys
from stxtools._checks import check_number, check_writable
from stxtools._colors import annotation_colors
from stxtools._data.sections import Geometry
from stxtools._docs import documented
from stxtools._spatial.mask import REACH, REACH_SCATTERED
from stxtools._spatial.outlines import outlines
from stxtools._validate import categories, check_adata

from ._annotations import rows_of

if TYPE_CHECKING:
    from anndata import AnnData


@documented
def write_annotations(
    adata: AnnData, key: str, path: str | os.PathLike[str], *,
    library: str | None = None, scale: float = 1.0,
    spatial_key: str = _keys.SPATIAL, library_key: str | None = None,
) -> None:  # fmt: skip
    """Write the regions of a column as GeoJSON, which QuPath opens: one annotation per connected region.

    Annotations have the names and colours of the categories. :func:`read_annotations` gives the column back.

    Parameters
    ----------
    key
        Categorical column of ``obs``, such as ``"segment"``.
    path
        The file to write, ``.geojson``. In QuPath: File, Import objects from file.
    library
        The section to write, where there are several.
    scale
        Pixels of the image per unit of ``obsm[spatial_key]``, as in :func:`read_annotations`.
    library_key
        Column of ``obs`` with the section of each observation, with ``library``.
    %(parameters)s

    Returns
    -------
    None.

    Raises
    ------
    KeyError, ValueError
        If there is no such column or section, or no observation has a category.

    Examples
    --------
    >>> st.io.write_annotations(adata, "segment", "segments.geojson")  # doctest: +SKIP
    """
    check_adata(adata, unique_vars=False)
    codes, names = categories(adata, key, "key")
    scale = check_number("scale", scale, minimum=0)
    check_writable(path)
    libs, rows = rows_of(adata, library, library_key)
    where = Geometry(adata, spatial_key, library_key)
    index = int(libs.codes[rows[0]])
    spacing, scattered = where.spacings[index], where.grids[index].lattice == "scattered"
    reach = spacing * (REACH_SCATTERED if scattered else REACH)
    colors = annotation_colors(adata, key, names, {})
    features = [
        _feature(part, names[code], str(colors[code]), scale)
        for code, outline in outlines(where.xy[rows], codes[rows], reach).items()
        for part in getattr(outline, "geoms", [outline])
    ]
    collection = {"type": "FeatureCollection", "features": features}
    Path(path).expanduser().write_text(json.dumps(collection, ensure_ascii=False), encoding="utf-8")


def _feature(polygon: Any, name: str, color: str, scale: float) -> dict[str, Any]:
    import shapely

    rgb = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return {
        "type": "Feature",
        "geometry": shapely.geometry.mapping(shapely.transform(polygon, lambda xy: xy * scale)),
        "properties": {
            "objectType": "annotation",
            "name": name,
            "classification": {"name": name, "color": rgb},
            "isLocked": False,
        },
    }
