"""Two independent halves of the same counts: binomial thinning."""

from __future__ import annotations

import numpy as np
from scipy import sparse


def thin_counts(
    counts: sparse.csr_matrix, fraction: float, rng: np.random.Generator
) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """Split counts into two parts that add up to them.

    Every molecule goes to the first part with probability ``fraction``. Of a Poisson count with mean m the parts are
    independent and Poisson with means ``fraction * m`` and ``(1 - fraction) * m`` (Neufeld et al. 2024, Biostatistics).

    Parameters
    ----------
    counts
        Non-negative integers, of any dtype.
    fraction
        Share of the molecules that the first part gets, between 0 and 1.
    rng
        Generator.

    Returns
    -------
    Both parts, CSR with the dtype of ``counts`` and without stored zeros.
    """
    counts = sparse.csr_matrix(counts)
    whole = counts.data.astype(np.int64)
    first = rng.binomial(whole, fraction)
    parts = []
    for values in (first, whole - first):
        part = sparse.csr_matrix(
            (values.astype(counts.dtype), counts.indices.copy(), counts.indptr.copy()), counts.shape
        )
        part.eliminate_zeros()
        parts.append(part)
    return parts[0], parts[1]
