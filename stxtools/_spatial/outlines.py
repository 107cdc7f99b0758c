"""Outlines of groups of observations as polygons."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def outlines(xy: NDArray[np.float64], codes: NDArray[np.integer[Any]], reach: float) -> dict[int, Any]:
    """Return a shapely polygon or multipolygon for each code from 0 on; together they tile the tissue."""
    import shapely

    first = np.sort(np.unique(xy, axis=0, return_index=True)[1])
    xy, codes = xy[first], np.asarray(codes)[first]
    discs = shapely.buffer(shapely.points(xy), reach, quad_segs=4)
    if len(xy) > 1:
        tissue = shapely.union_all(discs)
        frame = shapely.box(*(xy.min(axis=0) - 2 * reach), *(xy.max(axis=0) + 2 * reach))
        cells = shapely.get_parts(shapely.voronoi_polygons(shapely.multipoints(xy), extend_to=frame, ordered=True))
    else:
        tissue, cells = discs[0], discs
    return {
        int(code): shapely.intersection(shapely.coverage_union_all(cells[codes == code]), tissue)
        for code in np.unique(codes[codes >= 0])
    }
