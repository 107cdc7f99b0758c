"""A matrix by chunks of rows, wherever it lies: in memory, in a file (backed), or in a dask array.

Chunks of a dask array go to the user's :class:`dask.distributed.Client`, else to dask's own scheduler; so do chunks of
a backed matrix where there is a client. What is done to a chunk returns something small.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from scipy import sparse

from stxtools._settings import settings
from stxtools._types import Floats, Ints

T = TypeVar("T")

_LOG_MAX = 30.0  # log1p of 1e13: no log-normalised matrix holds more
_ONE_DEPTH = 1e-4  # relative range of the depths after scanpy's normalize_total, with room for float32
_FEW = 10  # observations of which one depth says nothing
_LOOKED_AT = 4_000_000  # values that are looked at at a time
AT_ONCE = 8  # chunks of a dask array whose results are held at a time


def is_dask(matrix: Any) -> bool:
    """Whether ``matrix`` is a dask array; dask is not imported to find out."""
    return "dask" in sys.modules and isinstance(matrix, sys.modules["dask.array"].Array)


def is_backed(matrix: Any) -> bool:
    """Whether ``matrix`` lies in a file: a backed sparse matrix of anndata, an HDF5 dataset, a zarr array."""
    return not (isinstance(matrix, np.ndarray) or sparse.issparse(matrix) or is_dask(matrix))


def is_out_of_core(matrix: Any) -> bool:
    """Whether ``matrix`` is not in memory."""
    return is_dask(matrix) or is_backed(matrix)


def to_csr(matrix: Any) -> sparse.csr_matrix:
    """Return ``matrix`` as CSR, read into memory if it is not (a new wrapper; data are shared where they can be)."""
    if hasattr(matrix, "to_memory"):  # backed
        matrix = matrix.to_memory()
    elif is_dask(matrix):
        matrix = matrix.compute()
    elif not sparse.issparse(matrix) and not isinstance(matrix, np.ndarray) and hasattr(matrix, "__getitem__"):
        matrix = np.asarray(matrix[()] if hasattr(matrix, "shape") else matrix)  # a dataset of h5py or zarr
    if np.ma.is_masked(matrix):
        raise ValueError("The expression matrix is a masked array with masked values; fill them first (`.filled(0)`).")
    dtype = np.dtype(matrix.dtype)
    if dtype.kind not in "buif":
        raise TypeError(f"The expression matrix holds {dtype}; real numbers are needed, e.g. `.astype('float32')`.")
    if dtype.kind == "b" or (dtype.kind == "f" and dtype.itemsize not in (4, 8)):  # scipy cannot compute with these
        matrix = matrix.astype(np.float64 if dtype.itemsize > 8 else np.float32)
    elif not dtype.isnative:
        matrix = matrix.astype(dtype.newbyteorder("="))
    out = sparse.csr_matrix(matrix)
    if not out.has_canonical_format:  # a value may be stored in parts, and a logarithm of parts is another
        out = out.copy()
        out.sum_duplicates()
    if not np.isfinite(out.data).all():
        raise ValueError("The expression matrix holds NaN or infinite values; fill or drop them first.")
    return out


def rows_per_chunk(n_vars: int) -> int:
    """Rows that, were they dense, would fill a quarter of ``settings.max_memory`` in float64."""
    return max(256, int(settings.max_memory * 2**30 / 4 / (8 * n_vars)))


def iter_rows(matrix: Any, work: Callable[[sparse.csr_matrix, slice], T], *, at_once: int | None = None) -> Iterator[T]:
    """Yield ``work(chunk, rows)`` (picklable) for chunks of rows, CSR to be read only; dask's by ``at_once``."""
    if is_backed(matrix):
        matrix = to_csr(matrix) if getattr(matrix, "format", "csr") == "csc" else _as_dask(matrix)
    if is_dask(matrix):
        yield from _iter_dask(matrix, work, at_once)
        return
    if sparse.issparse(matrix):
        matrix = to_csr(matrix)
    n, n_vars = matrix.shape
    step = rows_per_chunk(n_vars)
    for start in range(0, n, step):
        rows = slice(start, min(start + step, n))
        yield work(to_csr(matrix[rows]), rows)


def _iter_dask(matrix: Any, work: Callable[[sparse.csr_matrix, slice], T], at_once: int | None) -> Iterator[T]:
    import dask

    if len(matrix.chunks[1]) > 1:
        matrix = matrix.rechunk({1: -1})
    # the work may carry arrays (loadings): one node of the graph, not a copy in each task
    shared = dask.delayed(work, traverse=False)
    ends = np.cumsum(matrix.chunks[0]).tolist()
    tasks = [
        dask.delayed(_run)(shared, block, slice(end - size, end))
        for block, size, end in zip(matrix.to_delayed().ravel(), matrix.chunks[0], ends, strict=True)
    ]
    step = len(tasks) if at_once is None else at_once
    for start in range(0, len(tasks), max(step, 1)):
        yield from dask.compute(*tasks[start : start + step])


def _run(work: Callable[[sparse.csr_matrix, slice], T], block: Any, rows: slice) -> T:
    return work(to_csr(block), rows)


def _as_dask(matrix: Any) -> Any:
    """Return a backed matrix as a dask array whose chunks workers of the user's client read; as it is without one."""
    try:
        sys.modules["distributed"].get_client()
        from anndata.experimental import read_elem_lazy

        return read_elem_lazy(getattr(matrix, "group", matrix))
    except (TypeError, ValueError, KeyError, NotImplementedError):  # no client, or no file that a worker could open
        return matrix


@dataclass(frozen=True)
class Survey:
    """Summary of a matrix or of some rows: extremes, depth, genes per observation, how often each gene is ``seen``."""

    lowest: float
    highest: float
    whole: bool
    depth: Floats
    n_genes: Ints
    seen: Ints

    @classmethod
    def of(cls, matrix: sparse.csr_matrix) -> Survey:
        """Summarise all values."""
        data, depth = matrix.data, np.asarray(matrix.sum(axis=1), dtype=np.float64).ravel()
        n_genes, seen = np.diff(matrix.indptr).astype(np.int64), np.zeros(matrix.shape[1], dtype=np.int64)
        whole, (lowest, highest) = True, (data.min(), data.max()) if data.size else (0, 0)
        for start in range(0, data.size, _LOOKED_AT):
            part, genes = data[start : start + _LOOKED_AT], matrix.indices[start : start + _LOOKED_AT]
            whole = whole and (data.dtype.kind in "iu" or np.array_equal(part, np.rint(part)))
            seen += np.bincount(genes[part != 0], minlength=len(seen))
            zeros = start + np.flatnonzero(part == 0)
            np.subtract.at(n_genes, np.searchsorted(matrix.indptr, zeros, side="right") - 1, 1)
        return cls(float(lowest), float(highest), whole, depth, n_genes, seen)

    @classmethod
    def joined(cls, parts: Sequence[Survey]) -> Survey:
        """Put together what was seen chunk by chunk."""
        return cls(
            min(p.lowest for p in parts),
            max(p.highest for p in parts),
            all(p.whole for p in parts),
            np.concatenate([p.depth for p in parts]),
            np.concatenate([p.n_genes for p in parts]),
            np.sum([p.seen for p in parts], axis=0),
        )

    @property
    def scale(self) -> str:
        """``"counts"``, ``"linear"``, ``"log"`` or ``"scaled"``."""
        if self.lowest < 0:
            return "scaled"
        if self.whole:
            return "counts"
        depth = self.depth[self.depth > 0]
        one_depth = len(depth) >= _FEW and float(np.ptp(depth)) <= _ONE_DEPTH * float(depth.mean())
        return "linear" if self.highest > _LOG_MAX or one_depth else "log"


def look_at(stored: Any, in_memory: bool) -> tuple[Any, Survey]:
    """Return a matrix, read or as it is stored, and what all of its values say."""
    if in_memory:
        matrix = to_csr(stored)
        return matrix, Survey.of(matrix)
    return stored, Survey.joined(list(iter_rows(stored, lambda chunk, rows: Survey.of(chunk))))
