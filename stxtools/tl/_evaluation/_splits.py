"""Which observations are learned from and which are predicted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stxtools._spatial.blocks import deal, spatial_blocks

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stxtools._validate import Libraries

SCHEMES = ("block", "library", "random")
LEAKY = frozenset({"random"})  # the neighbours of a test observation are in the training set
_BLOCKS_A_FOLD = 5
_SMALLEST_BLOCK = 16  # observations


def folds_of(
    scheme: str, xy: NDArray[np.float64], libs: Libraries, n_folds: int, seed: int
) -> tuple[NDArray[np.int64], list[str]]:
    """Return the fold of every observation and the names of the folds."""
    if scheme == "library":
        return libs.codes.copy(), list(libs.names)
    rng = np.random.default_rng([seed, 7])
    fold = np.empty(len(xy), dtype=np.int64)
    for i in range(len(libs)):
        rows = libs.rows(i)
        unit = np.arange(len(rows))
        if scheme == "block":
            wanted = np.clip(len(rows) // _SMALLEST_BLOCK, n_folds, _BLOCKS_A_FOLD * n_folds)
            unit = spatial_blocks(xy[rows], int(wanted))
        fold[rows] = deal(unit, n_folds, rng)
    return fold, [str(k) for k in range(n_folds)]
