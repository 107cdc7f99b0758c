"""Compiled sums over the stored values of sparse matrices."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from stxtools._types import Csr, Floats

BITS = 64  # labels per word
_DENSE = 0.25  # share of stored entries above which a dense product is faster


def add_products(block: Csr, out: Floats) -> None:
    """Add the upper triangle of ``block' block`` to ``out``, computed and summed in float64."""
    if block.nnz > _DENSE * np.prod(block.shape):
        dense = block.toarray().astype(np.float64, copy=False)
        out += np.triu(dense.T @ dense)
    else:
        _add_products(block.indptr, block.indices, block.data, out)


def symmetric(upper: Floats) -> Floats:
    """Return the symmetric matrix with this upper triangle."""
    return upper + upper.T - np.diag(upper.diagonal())


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _add_products(indptr: Any, columns: Any, values: Any, out: Any) -> None:
    for row in range(len(indptr) - 1):
        for i in range(indptr[row], indptr[row + 1]):
            value, products = np.float64(values[i]), out[columns[i]]
            for j in range(i, indptr[row + 1]):
                products[columns[j]] += value * values[j]


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def label_sums(indptr: Any, rows: Any, values: Any, weight: Any, words: Any, centre: float) -> Any:
    """Return ``values' (weight * (labels - centre))``, (columns of a CSC matrix x labels), in float64.

    Labels (0 or 1) are the bits of ``words`` (observations x words). Values are first summed by each combination of
    four labels: one addition instead of four.
    """
    n_words = words.shape[1]
    out = np.zeros((len(indptr) - 1, n_words * 64))
    sums = np.empty((n_words * 16, 16))
    for column in range(len(indptr) - 1):
        sums[:] = 0.0
        total = 0.0
        for i in range(indptr[column], indptr[column + 1]):
            row = rows[i]
            value = np.float64(values[i]) * weight[row]
            total += value
            for j in range(n_words):
                word = words[row, j]
                for k in range(16):
                    sums[16 * j + k, np.int64((word >> np.uint64(4 * k)) & np.uint64(15))] += value
        if indptr[column] < indptr[column + 1]:
            for k in range(16 * n_words):
                for bit in range(4):
                    inside = -centre * total
                    for labels in range(16):
                        if (labels >> bit) & 1:
                            inside += sums[k, labels]
                    out[column, 4 * k + bit] = inside
    return out
