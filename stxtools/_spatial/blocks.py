"""Cut sections into blocks of neighbouring observations, so that a split keeps neighbours together."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def spatial_blocks(xy: NDArray[np.float64], n_blocks: int) -> NDArray[np.int64]:
    """Cut a section into about ``n_blocks`` blocks of as many observations: columns, then rows in each, by rank."""
    columns = max(1, int(np.sqrt(n_blocks)))
    rows = -(-int(n_blocks) // columns)
    column = _ranked(xy[:, 0], columns)
    row = np.empty(len(xy), dtype=np.int64)
    for c in range(columns):
        inside = column == c
        row[inside] = _ranked(xy[inside, 1], rows)
    return column * rows + row


def deal(unit: NDArray[np.int64], n_parts: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Deal units (blocks, say) out in random order; each part gets as many as the next, or one more."""
    n_units = int(unit.max()) + 1 if len(unit) else 0
    dealt = np.empty(n_units, dtype=np.int64)
    dealt[rng.permutation(n_units)] = np.arange(n_units) % n_parts
    return dealt[unit]


def _ranked(values: NDArray[np.float64], parts: int) -> NDArray[np.int64]:
    """Part of each value when they are cut, in their order, into parts of equal size."""
    rank = np.empty(len(values), dtype=np.int64)
    rank[np.argsort(values, kind="stable")] = np.arange(len(values))
    return rank * parts // max(len(values), 1)
