"""Row chunks of a matrix in memory, in a file (backed) or in a dask array, and summaries of its values."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import numpy as np
from scipy import sparse

from stxtools._settings import settings
from stxtools._types import Csr, Floats, Ints

T = TypeVar("T")
ChunkFunction = Callable[[Csr, slice], T]  # of a chunk and its rows

MAX_PENDING = 8  # results of dask chunks that are held at a time
_LOG_MAX = 30.0  # log1p of 1e13: no log-normalised matrix holds more
_DEPTH_TOLERANCE = 1e-4  # relative range of the depths after scanpy's normalize_total, with room for float32
_MIN_OBS_FOR_DEPTH = 10  # fewer observations may have equal depths by chance


def is_dask(matrix: Any) -> bool:
    """Whether ``matrix`` is a dask array; does not import dask."""
    return "dask" in sys.modules and isinstance(matrix, sys.modules["dask.array"].Array)


def is_out_of_core(matrix: Any) -> bool:
    """Whether ``matrix`` is not in memory."""
    return not (isinstance(matrix, np.ndarray) or sparse.issparse(matrix))


def is_backed(matrix: Any) -> bool:
    """Whether ``matrix`` lies in a file: a backed sparse matrix of anndata, an HDF5 dataset or a zarr array."""
    return is_out_of_core(matrix) and not is_dask(matrix)


def to_csr(matrix: Any) -> Csr:
    """Return ``matrix`` in memory as canonical CSR, checked to be finite; it shares data if possible."""
    if hasattr(matrix, "to_memory"):  # backed
        matrix = matrix.to_memory()
    elif is_dask(matrix):
        matrix = matrix.compute()
    elif is_backed(matrix):
        matrix = np.asarray(matrix[()])  # a dataset of h5py or zarr
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
    if not out.has_canonical_format:  # duplicate entries must be summed before a logarithm
        out = out.copy()
        out.sum_duplicates()
    if not np.isfinite(out.data).all():
        raise ValueError("The expression matrix holds NaN or infinite values; fill or drop them first.")
    return out


def rows_per_chunk(n_vars: int) -> int:
    """Return the number of dense float64 rows that fill a quarter of ``settings.max_memory``."""
    return max(256, int(settings.max_memory * 2**30 / 4 / (8 * n_vars)))


def map_row_chunks(
    matrix: Any, function: ChunkFunction[T], *, max_pending: int | None = None, within: Ints | None = None
) -> Iterator[T]:
    """Yield the small results of a picklable ``function``, at most ``max_pending`` of a dask array at a time.

    With sorted rows ``within``, chunks are cut to these, and chunks without any are not read.
    A dask array is computed by the user's :class:`dask.distributed.Client`, else by dask; with a client, so is a file.
    """
    if is_backed(matrix):
        matrix = to_csr(matrix) if getattr(matrix, "format", "csr") == "csc" else _dask_if_client(matrix)
    if is_dask(matrix):
        yield from _map_dask_chunks(matrix, function, max_pending, within)
        return
    if sparse.issparse(matrix) and within is None:
        matrix = to_csr(matrix)
    n, n_vars = matrix.shape
    step = rows_per_chunk(n_vars)
    for start in range(0, n, step):
        rows = slice(start, min(start + step, n))
        if within is None:
            yield function(to_csr(matrix[rows]), rows)
        elif len(chosen := _chosen(within, rows)):
            part = matrix[rows][chosen - start] if is_out_of_core(matrix) else matrix[chosen]
            yield function(to_csr(part), rows)


def _chosen(within: Ints, rows: slice) -> Ints:
    first, last = np.searchsorted(within, [rows.start, rows.stop])
    return within[first:last]


def _dask_if_client(matrix: Any) -> Any:
    """Return a backed matrix as a dask array whose chunks the user's client reads, or unchanged without a client."""
    try:
        sys.modules["distributed"].get_client()
        from anndata.experimental import read_elem_lazy

        return read_elem_lazy(getattr(matrix, "group", matrix))
    except (TypeError, ValueError, KeyError, NotImplementedError):  # no client, or no file that a worker could open
        return matrix


def _map_dask_chunks(
    matrix: Any, function: ChunkFunction[T], max_pending: int | None, within: Ints | None
) -> Iterator[T]:
    import dask

    if len(matrix.chunks[1]) > 1:
        matrix = matrix.rechunk({1: -1})
    # the function may hold arrays (loadings): one node of the graph, not a copy in each task
    shared = dask.delayed(function, traverse=False)
    ends = np.cumsum(matrix.chunks[0]).tolist()
    tasks = []
    for block, size, end in zip(matrix.to_delayed().ravel(), matrix.chunks[0], ends, strict=True):
        rows = slice(end - size, end)
        chosen = None if within is None else _chosen(within, rows) - rows.start
        if chosen is None or len(chosen):
            tasks.append(dask.delayed(_apply)(shared, block, rows, chosen))
    step = max_pending or len(tasks)
    for start in range(0, len(tasks), step):
        yield from dask.compute(*tasks[start : start + step])


def _apply(function: ChunkFunction[T], block: Any, rows: slice, chosen: Ints | None) -> T:
    return function(to_csr(block if chosen is None else block[chosen]), rows)


class MatrixSummary(NamedTuple):
    """Summary of all values of a matrix."""

    minimum: float  # of stored values
    maximum: float
    integers: bool  # whether all values are
    depth: Floats  # sum of each observation
    n_genes: Ints  # expressed in each observation
    n_cells: Ints  # observations that express each gene

    @classmethod
    def of(cls, matrix: Any) -> MatrixSummary:
        """Summarise a matrix by chunks."""
        minimum, maximum, integers, depth, n_genes, n_cells = zip(*map_row_chunks(matrix, _summarize), strict=True)
        return cls(
            min(minimum), max(maximum), all(integers), np.concatenate(depth), np.concatenate(n_genes),
            np.sum(n_cells, axis=0),
        )  # fmt: skip

    @property
    def scale(self) -> str:
        """``"counts"`` (integers), ``"linear"`` (above 30, or equal depths), ``"scaled"`` (negative) or ``"log"``."""
        if self.minimum < 0:
            return "scaled"
        if self.integers:
            return "counts"
        depth = self.depth[self.depth > 0]
        if len(depth) >= _MIN_OBS_FOR_DEPTH and float(np.ptp(depth)) <= _DEPTH_TOLERANCE * float(depth.mean()):
            return "linear"
        return "linear" if self.maximum > _LOG_MAX else "log"


def _summarize(chunk: Csr, rows: slice) -> MatrixSummary:
    data = chunk.data
    minimum, maximum = (data.min(), data.max()) if data.size else (0, 0)
    integers = data.dtype.kind in "iu" or np.array_equal(data, np.rint(data))
    depth = np.asarray(chunk.sum(axis=1), dtype=np.float64).ravel()
    if not data.all():
        chunk = chunk.copy()
        chunk.eliminate_zeros()
    n_genes = np.diff(chunk.indptr).astype(np.int64)
    n_cells = np.bincount(chunk.indices, minlength=chunk.shape[1])
    return MatrixSummary(float(minimum), float(maximum), integers, depth, n_genes, n_cells)
