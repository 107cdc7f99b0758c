"""Expression by chunks of rows, wherever it lies: in memory, in a file (backed), or in a dask array.

Chunks of a dask array are worked on by the :class:`dask.distributed.Client` that the user has started, else by dask's
own scheduler in this process; so are chunks of a backed matrix where there is a client. What is done to a chunk returns
something small (features, sums); chunks themselves are never all in memory at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from scipy import sparse

from stxtools._settings import settings

from .expression import Survey, find_expression, to_csr
from .representation import log_normalize, median_depth

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    Block = Callable[[sparse.csr_matrix, slice], Any]

T = TypeVar("T")

_AT_ONCE = 8  # chunks of a dask array whose results are held at a time


def is_dask(matrix: Any) -> bool:
    """Whether ``matrix`` is a dask array; dask is not imported to find out."""
    return "dask" in sys.modules and isinstance(matrix, sys.modules["dask.array"].Array)


def is_backed(matrix: Any) -> bool:
    """Whether ``matrix`` lies in a file: a backed sparse matrix of anndata, an HDF5 dataset, a zarr array."""
    return not is_dask(matrix) and type(matrix).__module__.partition(".")[0] in {"anndata", "h5py", "zarr"}


def is_out_of_core(matrix: Any) -> bool:
    """Whether ``matrix`` is not in memory."""
    return is_dask(matrix) or is_backed(matrix)


def rows_per_chunk(n_vars: int) -> int:
    """Rows that, were they dense, would fill a quarter of ``settings.max_memory`` in float64."""
    return max(256, int(settings.max_memory * 2**30 / 4 / (8 * n_vars)))


def map_rows(matrix: Any, work: Callable[[sparse.csr_matrix, slice], T], n_rows: int | None = None) -> list[T]:
    """Apply ``work(chunk, rows)`` to every chunk of rows (CSR) and return the results in order.

    Parameters
    ----------
    matrix
        Observations x variables: scipy sparse, numpy, backed, or a dask array. A backed matrix that is stored by
        column is read as a whole.
    work
        Picklable for work on a cluster: a function of a module, or a :func:`functools.partial` of one.
    n_rows
        Rows of a chunk where the matrix has no chunks of its own; by default :func:`rows_per_chunk`.
    """
    return list(iter_rows(matrix, work, n_rows, at_once=None))


def iter_rows(
    matrix: Any,
    work: Callable[[sparse.csr_matrix, slice], T],
    n_rows: int | None = None,
    *,
    at_once: int | None = _AT_ONCE,
) -> Iterator[T]:
    """Yield what :func:`map_rows` returns, chunk by chunk; ``at_once`` chunks of a dask array are under way."""
    if is_backed(matrix) and _by_column(matrix):
        matrix = to_csr(matrix)
    if is_backed(matrix) and _client() is not None:
        lazy = _as_dask(matrix)
        matrix = matrix if lazy is None else lazy
    if is_dask(matrix):
        yield from _iter_dask(matrix, work, at_once)
        return
    if not is_backed(matrix) and not isinstance(matrix, np.ndarray):
        matrix = to_csr(matrix)
    for rows, chunk in _local_chunks(matrix, n_rows):
        yield work(chunk, rows)


def _local_chunks(matrix: Any, n_rows: int | None) -> Iterator[tuple[slice, sparse.csr_matrix]]:
    n, n_vars = matrix.shape
    step = rows_per_chunk(n_vars) if n_rows is None else n_rows
    for start in range(0, n, step):
        rows = slice(start, min(start + step, n))
        yield rows, to_csr(matrix[rows])


def _iter_dask(matrix: Any, work: Callable[[sparse.csr_matrix, slice], T], at_once: int | None) -> Iterator[T]:
    import dask

    if len(matrix.chunks[1]) > 1:
        matrix = matrix.rechunk({1: -1})
    # the work may carry arrays (loadings): one node of the graph, not a copy in each task
    shared = dask.delayed(_Work(work), traverse=False)
    ends = np.cumsum(matrix.chunks[0]).tolist()
    tasks = [
        dask.delayed(_run)(shared, block, slice(end - size, end))
        for block, size, end in zip(matrix.to_delayed().ravel(), matrix.chunks[0], ends, strict=True)
    ]
    step = len(tasks) if at_once is None else at_once
    for start in range(0, len(tasks), max(step, 1)):
        yield from dask.compute(*tasks[start : start + step])


@dataclass(frozen=True)
class _Work:
    """A function that dask takes for data."""

    function: Callable[[sparse.csr_matrix, slice], Any]


def _run(shared: _Work, block: Any, rows: slice) -> Any:
    return shared.function(to_csr(block), rows)


def _client() -> Any:
    """Return the user's dask client, if there is one."""
    if "distributed" not in sys.modules:
        return None
    try:
        return sys.modules["distributed"].get_client()
    except ValueError:
        return None


def _by_column(matrix: Any) -> bool:
    return getattr(matrix, "format", "csr") == "csc"


def _as_dask(matrix: Any) -> Any:
    """Return a backed matrix as a dask array whose chunks the workers read from the file themselves."""
    from anndata.experimental import read_elem_lazy

    group = getattr(matrix, "group", matrix)
    try:
        return read_elem_lazy(group)
    except (TypeError, ValueError, KeyError, NotImplementedError):  # no file that a worker could open
        return None


class LogExpression:
    """Log-normalised expression that is computed chunk by chunk when it is asked for, equal to that in memory.

    Parameters
    ----------
    adata
        Annotated data; expression may be out of core.
    layer
        Layer to take expression from; by default ``layers["counts"]`` if there, else ``X``.
    target_sum
        Depth after normalisation; the median depth if None.

    Attributes
    ----------
    matrix, scale
        What was found, as stored, and ``"counts"``, ``"linear"`` or ``"log"`` by all of its values.
    read
        What ``params`` say of it.
    depth
        Sum of every observation as stored, (n_obs,).
    seen
        In how many observations each gene is not 0, (n_vars,).
    """

    def __init__(self, adata: AnnData, layer: str | None = None, *, target_sum: float | None = None) -> None:
        found = find_expression(adata, layer, read=_as_stored, survey=survey_rows)
        self.matrix, self.scale, self.read = found.matrix, found.scale, found.record
        self.depth, self.seen = found.survey.depth, found.survey.seen
        self._target_sum = target_sum

    @property
    def shape(self) -> tuple[int, int]:
        """Observations and genes."""
        return (int(self.matrix.shape[0]), int(self.matrix.shape[1]))

    @property
    def target_sum(self) -> float:
        """Depth after normalisation."""
        return median_depth(self.depth) if self._target_sum is None else self._target_sum

    def map(self, work: Callable[[sparse.csr_matrix, slice], T]) -> list[T]:
        """Apply ``work(logged_chunk, rows)`` to every chunk and return the results in order."""
        return map_rows(self.matrix, partial(_normalized, self.scale, self.target_sum, work))

    def stream(self, work: Callable[[sparse.csr_matrix, slice], T]) -> Iterator[T]:
        """Yield what :meth:`map` returns, chunk by chunk: for results that are not small."""
        return iter_rows(self.matrix, partial(_normalized, self.scale, self.target_sum, work))

    def columns(self, genes: NDArray[np.int64]) -> sparse.csr_matrix:
        """Return log expression of some genes for all observations, in memory (float32 CSR)."""
        return sparse.csr_matrix(sparse.vstack(self.map(partial(_columns_of, genes)), format="csr"))

    def weighted_sums(self, weights: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Return the sums over observations of log expression times ``weights`` (n_obs, m), (n_vars, m)."""
        total = np.zeros((self.shape[1], weights.shape[1]))
        for part in self.map(partial(_weighted_sum, weights)):
            total += part
        return total

    def products(self, genes: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return sum (g,) and sum of products (g, g) of some genes: what a PCA needs of the observations."""
        parts = self.map(partial(_products_of, genes))
        return np.sum([p[0] for p in parts], axis=0), np.sum([p[1] for p in parts], axis=0)


def survey_rows(matrix: Any) -> Survey:
    """Look at all values, chunk by chunk."""
    return Survey.joined(map_rows(matrix, _survey_chunk))


def _survey_chunk(chunk: sparse.csr_matrix, rows: slice) -> Survey:
    return Survey.of(chunk)


def _as_stored(matrix: Any) -> Any:
    return matrix


def _normalized(
    scale: str, target_sum: float, work: Callable[[sparse.csr_matrix, slice], T], chunk: sparse.csr_matrix, rows: slice
) -> T:
    return work(log_normalize(chunk, scale, target_sum=target_sum), rows)


def _columns_of(genes: NDArray[np.int64], logged: sparse.csr_matrix, rows: slice) -> sparse.csr_matrix:
    return logged[:, genes]


def _weighted_sum(weights: NDArray[np.floating[Any]], logged: sparse.csr_matrix, rows: slice) -> NDArray[np.float64]:
    return np.asarray(logged.T @ weights[rows], dtype=np.float64)


def _products_of(
    genes: NDArray[np.int64], logged: sparse.csr_matrix, rows: slice
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    dense = logged[:, genes].toarray().astype(np.float64)
    return dense.sum(axis=0), dense.T @ dense
