"""Negative-binomial counts with depth and dropout, drawn in chunks and kept sparse."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from stxtools._progress import progress

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ._truth import Genes, Hardness

# A fixed size, since the random stream (and so the counts) depends on the order of the draws.
_CHUNK_ENTRIES = 4_000_000
_DEPTH_SAMPLE = 2_000  # observations on which the mean depth is set


def negative_binomial(
    rng: np.random.Generator, mean: NDArray[np.float32], inverse_dispersion: NDArray[np.float32], dropout: float
) -> NDArray[np.int64]:
    """Draw gamma-Poisson counts of variance ``mean + mean**2 / inverse_dispersion``; ``dropout`` sets some to 0."""
    rate = rng.standard_gamma(inverse_dispersion, size=mean.shape, dtype=np.float32)
    rate *= mean
    rate /= inverse_dispersion
    if dropout > 0:
        rate *= rng.random(mean.shape, dtype=np.float32) >= dropout
    return rng.poisson(rate)


def deep_counts(
    rng: np.random.Generator, design: NDArray[np.float32], effects: NDArray[np.float32], genes: Genes,
    hardness: Hardness, mean_depth: float, show_progress: bool | None = None,
) -> sparse.csr_matrix:  # fmt: skip
    """Draw counts (CSR, float32) whose depth varies around ``mean_depth``: memory is that of those above 0."""
    n_obs, baseline = len(design), genes.baseline.astype(np.float32)
    log_depth = (hardness.depth_sd * rng.standard_normal(n_obs)).astype(np.float32)
    sample = np.linspace(0, n_obs - 1, min(n_obs, _DEPTH_SAMPLE)).astype(np.int64)
    rates = np.exp(design[sample] @ effects + baseline + log_depth[sample, None])
    log_depth += np.float32(np.log(mean_depth / ((1 - hardness.dropout) * rates.sum(axis=1, dtype=np.float64).mean())))
    dispersion = genes.inverse_dispersion.astype(np.float32)
    step = max(1, _CHUNK_ENTRIES // effects.shape[1])
    parts = []
    with progress(n_obs, "counts", show_progress) as bar:
        for start in range(0, n_obs, step):
            rows = slice(start, min(start + step, n_obs))
            mean = design[rows] @ effects  # natural logarithms
            mean += baseline
            mean += log_depth[rows, None]
            np.exp(mean, out=mean)
            counts = negative_binomial(rng, mean, dispersion, hardness.dropout)
            parts.append(sparse.csr_matrix(counts, dtype=np.float32))
            bar.update(rows.stop - start)
    return sparse.vstack(parts, format="csr", dtype=np.float32)
