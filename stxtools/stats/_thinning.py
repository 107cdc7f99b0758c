"""Two independent halves of the same counts: binomial thinning."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from stxtools._types import Ints

LARGEST_COUNT = 2.0**53  # float64 does not hold larger integers exactly


def thin_counts(
    counts: sparse.csr_matrix, fraction: float, rng: np.random.Generator, order: Ints
) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """Split counts into two parts that add up to them.

    Every molecule goes to the first part with probability ``fraction``. Of Poisson counts the parts are independent
    (Neufeld et al. 2024, Biostatistics). Of negative binomial counts with mean m and variance ``m + a * m**2`` their
    correlation is ``a * m / sqrt((1 / f + a * m) * (1 / (1 - f) + a * m))``, f the fraction.
    Rows are drawn in ``order``.
    """
    counts = sparse.csr_matrix(counts)
    if not counts.has_canonical_format or not counts.data.all():  # draws go by column, not by where it is stored
        counts = counts.copy()
        counts.sum_duplicates()
        counts.eliminate_zeros()
    if counts.nnz and (counts.data.min() < 0 or counts.data.max() > LARGEST_COUNT):
        raise ValueError(
            f"The expression holds values from {counts.data.min():g} to {counts.data.max():g}, which are no counts "
            f"to split: these lie between 0 and {LARGEST_COUNT:g}."
        )
    drawn = counts[order]
    drawn.data = rng.binomial(drawn.data.astype(np.int64), fraction)
    taken, rest = counts.copy(), counts.copy()
    taken.data = drawn[np.argsort(order)].data.astype(counts.dtype)
    rest.data -= taken.data
    taken.eliminate_zeros()
    rest.eliminate_zeros()
    return taken, rest
