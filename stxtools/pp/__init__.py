"""Preparation: normalise, put observations on a raster, align sections, add noise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stxtools._lazy import lazy_exports

if TYPE_CHECKING:
    from ._align import align as align
    from ._noise import add_noise as add_noise
    from ._normalize import normalize as normalize
    from ._rasterize import rasterize as rasterize
    from ._split import split_counts as split_counts

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "add_noise": "_noise",
        "align": "_align",
        "normalize": "_normalize",
        "rasterize": "_rasterize",
        "split_counts": "_split",
    },
)
