"""Arrays as text that a browser turns into typed arrays: gzip and base64."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

MISSING = 255
_LEVELS = 254  # a colour scale has no more; 255 is a missing value


def packed(values: NDArray[Any] | Sequence[str]) -> str:
    """Return an array (little-endian), or lines of text, as base64 of gzip."""
    if isinstance(values, np.ndarray):
        data = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<")).tobytes()
    else:
        data = "\n".join(values).encode()
    return base64.b64encode(gzip.compress(data, 6, mtime=0)).decode()


def levels(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """Round numbers to the levels of a colour scale; what is not finite is missing."""
    known = np.isfinite(values)
    share = np.clip((np.where(known, values, low) - low) / (high - low or 1.0), 0, 1)
    return np.where(known, np.rint(share * _LEVELS), MISSING).astype(np.uint8)
