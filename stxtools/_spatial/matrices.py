"""Rows of sparse matrices without a copy."""

from __future__ import annotations

from scipy import sparse


def row_view(matrix: sparse.csr_matrix, rows: slice) -> sparse.csr_matrix:
    """Return consecutive rows, which share the memory of the matrix: they are to be read only."""
    start, stop, _ = rows.indices(matrix.shape[0])
    ends = matrix.indptr[start : stop + 1]
    own = slice(ends[0], ends[-1])
    return sparse.csr_matrix((matrix.data[own], matrix.indices[own], ends - ends[0]), (stop - start, matrix.shape[1]))
