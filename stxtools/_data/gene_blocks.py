"""Log expression by blocks of genes: as many genes at once as ``settings.max_memory`` holds."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from stxtools._settings import settings

from .chunks import is_out_of_core, to_csr
from .expression import Expression, log_chunks, log_matrix
from .representation import log_view, median_depth

_BYTES = 64  # of a stored value, in all forms that a test needs: by row and by column, logged, linear, ranked
_SHARE = 4  # of the memory, for what is held from block to block


class GeneBlocks:
    """Expression, as read, for tests gene by gene; it may be out of core."""

    def __init__(self, read: Expression) -> None:
        self.read = read
        self.shape = (int(read.matrix.shape[0]), int(read.matrix.shape[1]))
        budget = settings.max_memory * 2**30
        self.slices = gene_slices(read.survey.seen, budget / _BYTES)
        self.limit = budget / _SHARE

    @property
    def depth(self) -> NDArray[np.float64] | None:
        """Depth of the observations, None on the log scale."""
        return None if self.read.scale == "log" else self.read.survey.depth

    @property
    def n_genes(self) -> NDArray[np.int64]:
        """Genes that each observation expresses."""
        return self.read.survey.n_genes

    def block(self, genes: slice) -> sparse.csr_matrix:
        """Return log expression of some genes for all observations, to be read only."""
        if genes == slice(0, self.shape[1]) and not is_out_of_core(self.read.matrix):
            target = median_depth(self.read.survey.depth)
            return log_view(to_csr(self.read.matrix), self.read.scale, target_sum=target)
        return log_matrix(self.read, genes)

    def rows(self, genes: NDArray[np.int64] | None = None) -> Iterator[tuple[slice, sparse.csr_matrix]]:
        """Yield log expression chunk of rows by chunk, of some genes or of all."""
        every = genes is None or len(genes) == self.shape[1]
        yield from log_chunks(self.read, lambda logged, rows: (rows, logged if every else logged[:, genes]))


def gene_slices(seen: NDArray[np.int64], most: float) -> list[slice]:
    """Divide genes into runs of ``most`` stored values at most; a gene is never divided."""
    ends = np.cumsum(np.asarray(seen, dtype=np.float64))
    out: list[slice] = []
    start, before = 0, 0.0
    while start < len(seen):
        stop = max(start + 1, int(np.searchsorted(ends, before + most, side="right")))
        out.append(slice(start, stop))
        start, before = stop, float(ends[stop - 1])
    return out or [slice(0, 0)]
