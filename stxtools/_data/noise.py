"""Noise on expression or on a representation, and binomial thinning of counts."""

from __future__ import annotations

from typing import Any

import numpy as np
from anndata import AnnData
from scipy import sparse

from stxtools import _keys
from stxtools._types import Csr, Ints

from .chunks import MatrixSummary, to_csr
from .expression import stored_matrix
from .representation import stored_representation

_MAX_COUNT = 2.0**53  # float64 does not represent all larger integers
_BLOCK = 4_000_000  # molecules redistributed at a time


def noised_values(
    adata: AnnData, level: float, *, kind: str, layer: str | None, use_rep: str | None, seed: int
) -> tuple[Any, dict[str, str]]:
    """Return noised expression (sparse if it was), or noised ``obsm[use_rep]``, and entries of ``params``."""
    rng = np.random.default_rng(seed)
    if use_rep is not None:
        values = stored_representation(adata, use_rep)
        noise = rng.standard_normal(values.shape, dtype=np.float32)
        return values + np.float32(level) * values.std(axis=0) * noise, {}
    use_x = kind != "counts" and layer is None and adata.X is not None
    source, name = (adata.X, "X") if use_x else stored_matrix(adata, layer)
    matrix = to_csr(source)
    # sums may overflow 8 or 16 bits
    matrix = matrix.astype(np.int64 if matrix.dtype.kind in "iu" else matrix.dtype, copy=True)
    scale = MatrixSummary.of(matrix).scale
    if kind != "counts":
        out = _gaussian(matrix, level, rng, integers=scale == "counts")
    elif scale == "counts":
        out = _thin_and_refill(matrix, level, rng)
    else:
        raise ValueError(
            "`kind='counts'` needs integer counts; the values found are not. Name the `layer` that holds counts, "
            "or use `kind='gaussian'`."
        )
    return out if sparse.issparse(source) else out.toarray(), {"expression_scale": scale, "expression_source": name}


def noised_copy(adata: AnnData, values: Any, *, kind: str, use_rep: str | None) -> AnnData:
    """Return a copy with the noised values, without slots that hold the original ones."""
    target = adata.copy()
    if use_rep is not None:
        target.obsm[use_rep] = values
        return target
    target.raw = None  # would be read if X is scaled
    target.obsm.pop(_keys.X_PCA, None)
    had_counts = target.layers.pop(_keys.COUNTS, None) is not None
    if kind == "counts":
        target.uns.pop("log1p", None)  # X holds counts now
        if had_counts:
            target.layers[_keys.COUNTS] = values.copy()
    target.X = values
    return target


def thin_counts(counts: Csr, fraction: float, rng: np.random.Generator, order: Ints) -> tuple[Csr, Csr]:
    """Split counts into two parts that add up to them.

    Every molecule goes to the first part with probability ``fraction``. The parts of Poisson counts are independent
    (Neufeld et al. 2024, Biostatistics). For negative binomial counts with mean m and variance ``m + a * m**2`` their
    correlation is ``a * m / sqrt((1 / f + a * m) * (1 / (1 - f) + a * m))``, f the fraction. Rows are drawn in
    ``order``.
    """
    counts = counts.copy()
    counts.eliminate_zeros()  # draws must not depend on how values are stored
    if counts.nnz and counts.data.max() > _MAX_COUNT:
        raise ValueError(
            f"The expression has counts of up to {counts.data.max():g}; only counts up to {_MAX_COUNT:g} can be split."
        )
    drawn = counts[order]
    drawn.data = rng.binomial(drawn.data.astype(np.int64), fraction)
    first = counts.copy()
    first.data = drawn[np.argsort(order)].data.astype(counts.dtype)
    counts.data -= first.data
    first.eliminate_zeros()
    counts.eliminate_zeros()
    return first, counts


def _gaussian(matrix: Csr, level: float, rng: np.random.Generator, *, integers: bool) -> Csr:
    n, n_vars = matrix.shape
    mean = np.asarray(matrix.mean(axis=0, dtype=np.float64)).ravel()
    square = np.bincount(matrix.indices, weights=matrix.data.astype(np.float64) ** 2, minlength=n_vars) / n
    sd = np.sqrt(np.maximum(square - mean**2, 0.0))
    dtype = matrix.dtype if integers or matrix.dtype.kind == "f" else np.float32
    if matrix.nnz and matrix.data.min() < 0:
        dense = matrix.toarray()
        return sparse.csr_matrix((dense + level * sd * rng.standard_normal(dense.shape)).astype(dtype))
    values = matrix.data + level * sd[matrix.indices] * rng.standard_normal(matrix.nnz)
    if integers:
        values = np.floor(values + rng.uniform(size=len(values))) if level > 0 else values
    matrix = sparse.csr_matrix((np.maximum(values, 0.0).astype(dtype), matrix.indices, matrix.indptr), matrix.shape)
    matrix.eliminate_zeros()
    return matrix


def _thin_and_refill(matrix: Csr, level: float, rng: np.random.Generator) -> Csr:
    """Remove molecules with probability ``level`` and replace them by random ones from the overall gene shares."""
    cumulative = np.cumsum(np.asarray(matrix.sum(axis=0, dtype=np.float64)).ravel())
    if matrix.nnz and matrix.data.max() >= 2**62:
        raise ValueError(f"`adata` has counts of up to {matrix.data.max():.3g}, too many to thin; check `layer`.")
    counts = matrix.data.astype(np.int64)
    lost = rng.binomial(counts, level)
    kept = sparse.csr_matrix((counts - lost, matrix.indices, matrix.indptr), shape=matrix.shape)
    lost_per_row = np.diff(np.r_[0, np.cumsum(lost)][matrix.indptr])
    blocks = []
    ends = np.flatnonzero(np.diff(np.cumsum(lost_per_row) // _BLOCK)) + 1
    for n_lost in np.split(lost_per_row, ends):
        total = int(n_lost.sum())
        draws = rng.uniform(0, cumulative[-1] if len(cumulative) else 0, size=total)
        gene, row = np.searchsorted(cumulative, draws, side="right"), np.repeat(np.arange(len(n_lost)), n_lost)
        gained = sparse.coo_matrix((np.ones(total, np.int64), (row, gene)), shape=(len(n_lost), matrix.shape[1]))
        blocks.append(gained.tocsr())
    out = (kept + sparse.vstack(blocks, format="csr")).tocsr().astype(matrix.dtype)
    out.eliminate_zeros()
    out.sort_indices()
    return out
