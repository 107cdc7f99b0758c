"""Draw observations as a label image, the way that squidpy reads segmentation masks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.spatial import cKDTree

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BLOCK = 1 << 20  # pixels per nearest-neighbour query
REACH = 0.75  # for lattices
REACH_SCATTERED = 1.5


def render_mask(
    xy: NDArray[np.float64],
    values: NDArray[np.integer[Any]],
    spacing: float,
    *,
    pixels_per_spot: float = 4,
    max_side: int = 2048,
    full_shape_px: tuple[int, int] | None = None,
    reach: float = REACH,
) -> tuple[NDArray[np.uint32], float]:
    """Return a label image (rows along y) and its scale: ``xy`` lies at pixel ``(y * scale, x * scale)``.

    A pixel has the value of the nearest observation, or 0 (background) where that is farther than
    ``reach`` spacings away (``REACH`` suits lattices, ``REACH_SCATTERED`` cells).

    Parameters
    ----------
    xy
        Coordinates (n x 2), none of them negative.
    values
        One integer per observation; 0 stands for background.
    spacing
        Distance between neighbouring observations.
    pixels_per_spot
        Pixels per spacing, unless the image would be larger than ``max_side``.
    max_side
        Largest number of rows or columns.
    full_shape_px
        Rows and columns of the image whose pixels the coordinates are; the mask then covers it.
    reach
        Distance, in spacings, beyond which there is background.

    Raises
    ------
    ValueError
        If a coordinate is negative (an image has no such pixel) or a value is.
    """
    if len(xy) == 0 or len(xy) != len(values):
        raise ValueError(f"A mask needs one value per observation; got {len(values)} for {len(xy)}.")
    if xy.min() < 0:
        low = xy.min(axis=0)
        raise ValueError(
            f"The coordinates begin at x = {low[0]:g}, y = {low[1]:g}; an image has no negative pixels. "
            "Shift them first, e.g. `xy - xy.min(axis=0)`."
        )
    if np.min(values) < 0:
        raise ValueError(f"Mask values must not be negative (0 is the background); found {np.min(values)}.")
    if not spacing > 0:
        raise ValueError(f"`spacing={spacing}` must be positive.")
    if full_shape_px is None:
        high = xy.max(axis=0) + reach * spacing
    else:
        high = np.maximum(np.array(full_shape_px[::-1], dtype=np.float64), xy.max(axis=0))
    # + 2: the image must hold the pixel of the outermost observation, rounded either way
    scale = min(pixels_per_spot / spacing, (max_side - 2) / float(high.max()) if high.max() > 0 else np.inf)
    width, height = (int(np.ceil(v * scale)) + 2 for v in high)
    width, height = min(width, max_side), min(height, max_side)
    limit = max(reach * spacing, 1.5 / scale)  # where pixels are larger than spots, no spot is lost in between
    tree = cKDTree(xy)
    padded = np.append(np.asarray(values).astype(np.uint32), np.uint32(0))  # "none near" points past the end
    mask = np.zeros((height, width), dtype=np.uint32)
    x = np.arange(width) / scale
    step = max(_BLOCK // width, 1)
    for top in range(0, height, step):
        y = np.arange(top, min(top + step, height)) / scale
        pixels = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
        _, nearest = tree.query(pixels, distance_upper_bound=limit)
        mask[top : top + len(y)] = padded[nearest].reshape(len(y), width)
    return mask, float(scale)
