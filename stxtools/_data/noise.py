"""Noise on expression or on a representation, and two independent halves of the same counts by thinning."""

from __future__ import annotations

from typing import Any

import numpy as np
from anndata import AnnData
from scipy import sparse

from stxtools import _keys
from stxtools._types import Ints

from .chunks import to_csr
from .expression import Survey, stored_matrix
from .representation import stored_representation

LARGEST_COUNT = 2.0**53  # float64 does not hold larger integers exactly
_BLOCK = 4_000_000  # molecules redistributed at a time


def noised_values(
    adata: AnnData, level: float, *, kind: str, layer: str | None, use_rep: str | None, seed: int
) -> tuple[Any, dict[str, str]]:
    """Return noised expression (sparse where it was), or ``obsm[use_rep]`` with noise, and what ``params`` say."""
    rng = np.random.default_rng(seed)
    if use_rep is not None:
        values = stored_representation(adata, use_rep)
        noise = rng.standard_normal(values.shape, dtype=np.float32)
        return values + np.float32(level) * values.std(axis=0) * noise, {}
    use_x = kind != "counts" and layer is None and adata.X is not None
    source, name = (adata.X, "X") if use_x else stored_matrix(adata, layer)
    matrix = to_csr(source)
    # what is added may be more than 8 or 16 bits hold
    matrix = matrix.astype(np.int64 if matrix.dtype.kind in "iu" else matrix.dtype, copy=True)
    scale = Survey.of(matrix).scale
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
    """Copy with the noised values in place, and nothing beside them that is free of noise."""
    target = adata.copy()
    if use_rep is not None:
        target.obsm[use_rep] = values
        return target
    target.raw = None  # read where X is scaled
    target.obsm.pop(_keys.X_PCA, None)
    known = target.layers.pop(_keys.COUNTS, None)
    if kind == "counts":
        target.uns.pop("log1p", None)  # X holds counts now
        if known is not None:
            target.layers[_keys.COUNTS] = values.copy()
    target.X = values
    return target


def _gaussian(
    matrix: sparse.csr_matrix, level: float, rng: np.random.Generator, *, integers: bool
) -> sparse.csr_matrix:
    n = matrix.shape[0]
    mean = np.asarray(matrix.mean(axis=0, dtype=np.float64)).ravel()
    second = np.bincount(matrix.indices, weights=matrix.data.astype(np.float64) ** 2, minlength=matrix.shape[1]) / n
    sd = np.sqrt(np.maximum(second - mean**2, 0.0))
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


def _thin_and_refill(matrix: sparse.csr_matrix, level: float, rng: np.random.Generator) -> sparse.csr_matrix:
    share = np.cumsum(np.asarray(matrix.sum(axis=0, dtype=np.float64)).ravel())
    if matrix.nnz and matrix.data.max() >= 2**62:
        raise ValueError(f"`adata` has counts of up to {matrix.data.max():.3g}, too many to thin; check `layer`.")
    counts = matrix.data.astype(np.int64)
    lost = rng.binomial(counts, level)
    kept = sparse.csr_matrix((counts - lost, matrix.indices, matrix.indptr), shape=matrix.shape)
    per_row = np.diff(np.r_[0, np.cumsum(lost)][matrix.indptr])
    blocks = []
    cuts = np.flatnonzero(np.diff(np.cumsum(per_row) // _BLOCK)) + 1
    for rows in np.split(np.arange(len(per_row)), cuts):
        total = int(per_row[rows].sum())
        gene = np.searchsorted(share, rng.uniform(0, share[-1] if len(share) else 0, size=total), side="right")
        row = np.repeat(np.arange(len(rows)), per_row[rows])
        gained = sparse.coo_matrix((np.ones(total, dtype=np.int64), (row, gene)), shape=(len(rows), matrix.shape[1]))
        blocks.append(gained.tocsr())
    out = (kept + sparse.vstack(blocks, format="csr")).tocsr().astype(matrix.dtype)
    out.eliminate_zeros()
    out.sort_indices()
    return out


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
