"""Which matrix of an AnnData holds expression, and on which scale: decided by all of its values.

* ``counts``: non-negative integers;
* ``linear``: non-negative, not integers, with a largest value above 30 (volume-normalised counts, say) or one depth for
  all observations (normalised without a logarithm);
* ``log``: other non-negative values;
* ``scaled``: some are negative (z-scores, residuals, components). That is no expression, which is then looked for in
  ``adata.raw``.

``uns["log1p"]`` decides nothing; a warning says where it contradicts the values.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from stxtools import _keys
from stxtools._validate import check_in
from stxtools._warn import at_caller

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

_LOG_MAX = 30.0  # log1p of 1e13: no log-normalised matrix holds more
_ONE_DEPTH = 1e-4  # relative range of the depths after scanpy's normalize_total, with room for float32
_FEW = 10  # observations of which one depth says nothing
_AT_ONCE = 4_000_000  # values that are looked at at a time


@dataclass(frozen=True)
class Survey:
    """What the values of a matrix, or of some of its rows, say about their scale.

    ``depth`` is the sum of each observation; ``seen`` says in how many observations each gene is not 0.
    """

    lowest: float
    highest: float
    whole: bool
    depth: NDArray[np.float64]
    seen: NDArray[np.int64]

    @classmethod
    def of(cls, matrix: sparse.csr_matrix) -> Survey:
        """Look at all values."""
        data, depth = matrix.data, np.asarray(matrix.sum(axis=1), dtype=np.float64).ravel()
        seen = np.zeros(matrix.shape[1], dtype=np.int64)
        if data.size == 0:
            return cls(0.0, 0.0, True, depth, seen)
        for part in _parts(data):
            seen += np.bincount(matrix.indices[part][data[part] != 0], minlength=len(seen))
        return cls(float(data.min()), float(data.max()), _whole(data), depth, seen)

    @classmethod
    def joined(cls, parts: Sequence[Survey]) -> Survey:
        """Put together what was seen chunk by chunk."""
        return cls(
            min(p.lowest for p in parts),
            max(p.highest for p in parts),
            all(p.whole for p in parts),
            np.concatenate([p.depth for p in parts]),
            np.sum([p.seen for p in parts], axis=0),
        )

    @property
    def scale(self) -> str:
        """``"counts"``, ``"linear"``, ``"log"`` or ``"scaled"``."""
        if self.lowest < 0:
            return "scaled"
        if self.whole:
            return "counts"
        return "linear" if self.highest > _LOG_MAX or self._one_depth() else "log"

    def _one_depth(self) -> bool:
        depth = self.depth[self.depth > 0]
        return len(depth) >= _FEW and float(np.ptp(depth)) <= _ONE_DEPTH * float(depth.mean())


def _whole(data: NDArray[Any]) -> bool:
    if data.dtype.kind in "bui":
        return True
    return all(np.array_equal(data[part], np.rint(data[part])) for part in _parts(data))


def _parts(data: NDArray[Any]) -> Iterator[slice]:
    return (slice(start, start + _AT_ONCE) for start in range(0, data.size, _AT_ONCE))


@dataclass(frozen=True)
class Expression:
    """A matrix, as read and as stored, its scale, and where it was found."""

    matrix: Any
    stored: Any
    scale: str
    source: str
    survey: Survey

    @property
    def record(self) -> dict[str, str]:
        """What ``params`` keep of it."""
        return {"expression_scale": self.scale, "expression_source": self.source}


def to_csr(matrix: Any) -> sparse.csr_matrix:
    """Return ``matrix`` as CSR, read into memory if it is not (a new wrapper; data are shared where they can be)."""
    if hasattr(matrix, "to_memory"):  # backed
        matrix = matrix.to_memory()
    elif hasattr(matrix, "dask") and hasattr(matrix, "compute"):  # a dask array
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
    if not np.isfinite(out.data).all():
        raise ValueError("The expression matrix holds NaN or infinite values; fill or drop them first.")
    return out


def stored_matrix(adata: AnnData, layer: str | None) -> tuple[Any, str]:
    """Return ``layers[layer]``, or ``layers["counts"]`` where there is one, or ``X``, as stored, and which it is."""
    if layer is not None:
        check_in(adata, "layers", layer, "layer")
        return adata.layers[layer], f"layers[{layer!r}]"
    if _keys.COUNTS in adata.layers:
        return adata.layers[_keys.COUNTS], f"layers[{_keys.COUNTS!r}]"
    if adata.X is None:
        raise ValueError("`adata.X` is empty (None); put expression there or name a `layer`.")
    return adata.X, "X"


def find_expression(
    adata: AnnData,
    layer: str | None = None,
    *,
    read: Callable[[Any], Any] = to_csr,
    survey: Callable[[Any], Survey] = Survey.of,
    scaled: bool = False,
) -> Expression:
    """Return the matrix that holds expression, unchanged.

    Parameters
    ----------
    adata
        Annotated data.
    layer
        Layer to take; by default ``layers["counts"]`` if there, else ``X``, else (with a warning) ``raw``.
    read
        What is done to a stored matrix before it is looked at.
    survey
        How the values are looked at.
    scaled
        Whether negative values are taken where nothing else is there and no layer was named.

    Raises
    ------
    ValueError
        If the values are scaled and there are no others.
    """
    stored, source = stored_matrix(adata, layer)
    matrix = read(stored)
    seen = survey(matrix)
    if seen.scale != "scaled":
        if source == "X":
            _check_marker(adata, seen)
        return Expression(matrix, stored, seen.scale, source, seen)
    if source != "X":
        why = "nothing else is read where a layer was named" if layer is not None else "the layer's name says counts"
    else:
        other, why = _raw_matrix(adata)
        if other is not None:
            values = read(other)
            instead = survey(values)
            if instead.scale != "scaled":
                warnings.warn(
                    f"`adata.X` holds negative values, as after scaling, which are not expression: `adata.raw` is read "
                    f"instead (scale: {instead.scale}). Counts in `adata.layers['counts']` would come first.",
                    UserWarning,
                    stacklevel=at_caller(),
                )
                return Expression(values, other, instead.scale, "raw.X", instead)
            why = "`adata.raw` holds negative values, too"
    if scaled and layer is None:
        return Expression(matrix, stored, "scaled", source, seen)
    raise ValueError(
        f"`adata.{source}` holds negative values (from {seen.lowest:.3g} to {seen.highest:.3g}), as after scaling or "
        f"centring: they are not expression, counts or logarithms, and {why}. Put raw counts into "
        "`adata.layers['counts']`, keep log values before you scale (`adata.raw = adata`), or name a `layer` that "
        "holds either. Calls with `use_rep=` read scaled values as features: `use_rep='X'`, or a key of `adata.obsm`."
    )


def with_expression_in_x(adata: AnnData, found: Expression) -> AnnData:
    """Return ``adata``, or a copy whose ``X`` holds the expression that was found beside a scaled ``X``."""
    beside = found.source == "raw.X" or (found.source == f"layers[{_keys.COUNTS!r}]" and adata.X is not None)
    if not beside or Survey.of(to_csr(adata.X)).scale != "scaled":
        return adata
    out = adata.copy()
    out.X, out.raw = found.matrix, None
    out.layers.pop(_keys.COUNTS, None)
    if found.scale != "log":
        out.uns.pop("log1p", None)
    return out


def _check_marker(adata: AnnData, seen: Survey) -> None:
    if "log1p" not in adata.uns or seen.scale == "log" or seen.highest == 0:
        return
    found = "integers" if seen.scale == "counts" else f"no logarithms (the largest is {seen.highest:.4g})"
    warnings.warn(
        f"`adata.uns['log1p']` says that `adata.X` holds logarithms, but its values are {found}: they are taken as "
        f"{seen.scale if seen.scale == 'counts' else 'linear expression'}. If the entry is out of date, "
        "`del adata.uns['log1p']`; if not, name the `layer` with expression.",
        UserWarning,
        stacklevel=at_caller(),
    )


def _raw_matrix(adata: AnnData) -> tuple[Any, str]:
    """Return ``raw`` for the genes of ``adata``, or None and why not."""
    if adata.raw is None:
        return None, "there is no `adata.layers['counts']` and no `adata.raw`"
    names = adata.raw.var_names
    if names.equals(adata.var_names):
        return adata.raw.X, ""
    if not names.is_unique:
        return None, "`adata.raw` names genes twice"
    at: NDArray[np.int64] = names.get_indexer(adata.var_names)
    if (at < 0).any():
        return None, f"`adata.raw` lacks {int((at < 0).sum())} of the {adata.n_vars} genes"
    matrix = adata.raw.X
    if type(matrix).__module__.partition(".")[0] in {"anndata", "h5py", "zarr"}:  # in a file
        matrix = to_csr(matrix)
    return matrix[:, at], ""
