"""Row views and column moments of sparse matrices, and principal axes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import sparse

from stxtools._types import Csr, Floats

_CHUNK = 2**22  # stored values that are summed at a time


def row_view(matrix: Csr, rows: slice) -> Csr:
    """Return consecutive rows as a read-only view that shares the memory of the matrix."""
    start, stop, _ = rows.indices(matrix.shape[0])
    ends = matrix.indptr[start : stop + 1]
    first, last = ends[0], ends[-1]
    arrays = matrix.data[first:last], matrix.indices[first:last], ends - first
    return sparse.csr_matrix(arrays, shape=(stop - start, matrix.shape[1]))


def equal_blocks(pieces: Iterator[Csr], size: int) -> Iterator[Csr]:
    """Yield the rows of ``pieces`` in blocks of ``size`` rows; the last one may be smaller."""
    held: list[Csr] = []
    n = 0
    for piece in pieces:
        start = 0
        while start < piece.shape[0]:
            part = row_view(piece, slice(start, start + size - n))
            start, n = start + part.shape[0], n + part.shape[0]
            held.append(part)
            if n == size:
                yield held[0] if len(held) == 1 else sparse.vstack(held, format="csr")
                held, n = [], 0
    if n:
        yield held[0] if len(held) == 1 else sparse.vstack(held, format="csr")


def column_moments(matrix: Csr) -> tuple[Floats, Floats]:
    """Return mean and variance of each column, in float64."""
    n_obs, n_vars = matrix.shape
    total, squares = np.zeros(n_vars), np.zeros(n_vars)
    for start in range(0, matrix.nnz, _CHUNK):
        columns = matrix.indices[start : start + _CHUNK]
        values = matrix.data[start : start + _CHUNK].astype(np.float64)
        total += np.bincount(columns, values, n_vars)
        squares += np.bincount(columns, values**2, n_vars)
    mean = total / n_obs
    return mean, np.maximum(squares / n_obs - mean**2, 0.0)


def leading_axes(covariance: Floats, n_comps: int) -> Floats:
    """Return the eigenvectors of the largest eigenvalues, (n, k)."""
    return signed(np.linalg.eigh(covariance)[1][:, ::-1][:, :n_comps])


def signed(axes: Floats) -> Floats:
    """Flip each axis so that its largest loading is positive."""
    sign = np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    return np.ascontiguousarray(axes * np.where(sign == 0, 1, sign))
