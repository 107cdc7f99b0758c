"""Log expression for tests, read by blocks of genes or by rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from stxtools._spatial.matrices import row_view


class ExpressionReader(Protocol):
    """Log expression of observations x genes, read by blocks of genes or by rows."""

    shape: tuple[int, int]
    slices: list[slice]

    def block(self, genes: slice) -> sparse.csr_matrix:
        """Return some genes of all observations."""

    def rows(self, genes: NDArray[np.int64] | None = None) -> Iterator[tuple[slice, sparse.csr_matrix]]:
        """Yield consecutive observations, of some genes or of all."""


def equal_blocks(pieces: Iterator[sparse.csr_matrix], size: int) -> Iterator[sparse.csr_matrix]:
    """Yield the rows of ``pieces`` in blocks of ``size``."""
    held: list[sparse.csr_matrix] = []
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
