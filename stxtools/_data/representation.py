"""Representations: log-normalised expression, its variable genes and principal components, or a key of ``obsm``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import linalg, sparse

from stxtools import _keys
from stxtools._spatial.matrices import column_moments, row_view, signed
from stxtools._types import Array, Csr, Floats, Floats32, Ints, Reals
from stxtools._validate import check_in
from stxtools.models._projection import GeneProjection

from .chunks import map_row_chunks

N_TOP_GENES = 2000
N_COMPS = 20
BLOCK = 4096  # observations per block of a covariance
_DENSE_SPEED, _SPARSE_SPEED = 2e10, 1e9  # multiply-adds per second of one core, in order of magnitude
_ROWS = 65_536  # observations whose logarithms are computed at a time
_MIN_BATCH = 20  # observations of a section for its own ranking of the genes
_MIN_GENES = 4  # that vary in a batch: with fewer, scanpy's loess crashes the process
_SPANS = (0.3, 0.5, 0.75, 1.0)  # shares of the genes in a local fit; scanpy uses the first
_REPRODUCED = 0.999  # share of the variance of the stored values that a projection must explain
_TARGET_SUM = 1e4  # scanpy's other usual depth


def log_normalize(
    matrix: Csr, scale: str, *, library_size: Array | None = None, target_sum: float | None = None
) -> Csr:
    """Return log1p of depth-normalised expression (float32), read-only: it shares the indices of ``matrix``."""
    data = matrix.data.astype(np.float32)
    if scale not in ("log", "scaled"):
        sums = matrix.sum(axis=1) if library_size is None else np.asarray(library_size, dtype=float)
        depth = np.asarray(sums).ravel()
        target = median_depth(depth) if target_sum is None else target_sum
        factor = np.divide(target, depth, out=np.zeros_like(depth, dtype=np.float64), where=depth > 0)
        factor = factor.astype(np.float32)
        for start in range(0, len(depth), _ROWS):
            ends = matrix.indptr[start : start + _ROWS + 1]
            values = data[ends[0] : ends[-1]]  # a view
            values *= np.repeat(factor[start : start + _ROWS], np.diff(ends))
            np.log1p(values, out=values)
    return sparse.csr_matrix((data, matrix.indices, matrix.indptr), shape=matrix.shape)


def median_depth(depth: Array) -> float:
    """Return the median of the positive depths."""
    positive = depth[depth > 0]
    return float(np.median(positive)) if positive.size else 1.0


def select_genes(matrix: Csr, scale: str, n_top_genes: int = N_TOP_GENES, batch: Ints | None = None) -> Ints:
    """Return indices of the genes to use: all of a small panel, else the most variable ones, as scanpy defines them."""
    n_cells = np.bincount(matrix.indices[matrix.data != 0], minlength=matrix.shape[1])
    expressed = np.flatnonzero(n_cells >= min(3, matrix.shape[0]))
    if len(expressed) == 0:
        raise ValueError("No gene is expressed in three or more observations; check `layer`.")
    if len(expressed) <= n_top_genes:
        return expressed
    values = matrix[:, expressed]
    large = np.zeros(0, dtype=np.int64) if batch is None else np.flatnonzero(np.bincount(batch) >= _MIN_BATCH)
    parts = [values[batch == b] for b in large] if len(large) > 1 else [values]
    return expressed[_variable_genes(parts, scale, n_top_genes)]


def _variable_genes(parts: list[Csr], scale: str, n_top_genes: int) -> Ints:
    """Return the genes that scanpy calls highly variable: by ``seurat_v3`` for counts, else by ``seurat``."""
    import scanpy as sc

    if scale != "counts":
        adata = AnnData(log_normalize(sparse.vstack(parts, format="csr"), scale))
        adata.obs["batch"] = pd.Categorical(np.repeat(np.arange(len(parts)), [part.shape[0] for part in parts]))
        sc.pp.highly_variable_genes(adata, n_top_genes=n_top_genes, batch_key="batch" if len(parts) > 1 else None)
        return np.flatnonzero(adata.var["highly_variable"])
    fitted = [AnnData(part) for part in parts if np.count_nonzero(column_moments(part)[1]) >= _MIN_GENES]
    if not fitted:
        variance = column_moments(sparse.csr_matrix(sparse.vstack(parts)))[1]
        return np.sort(np.argsort(-variance, kind="stable")[:n_top_genes])
    how: dict[str, Any] = {"flavor": "seurat_v3", "n_top_genes": n_top_genes, "inplace": False}
    for span in _SPANS:
        with suppress(ValueError):  # the loess is singular if many genes share a mean
            # by section: with a `batch_key`, the variances depend on the version of scanpy
            found = [sc.pp.highly_variable_genes(part, span=span, **how) for part in fitted]
            rank = pd.DataFrame([table["highly_variable_rank"].to_numpy() for table in found])
            order = pd.DataFrame({"rank": rank.median(), "n_missing": rank.isna().sum()})
            return np.sort(order.sort_values(["rank", "n_missing"]).index[:n_top_genes].to_numpy())
    raise ValueError("The variable genes cannot be determined: too many share a mean; name a `use_rep`.")


def residual_variance(logged: Csr, mean: Floats, values: Reals) -> float:
    """Return the mean variance per gene that the components do not explain."""
    total = float(logged.data @ logged.data) / logged.shape[0] - float(mean @ mean)
    return max(total - float(np.square(values).mean(axis=0).sum()), 0.0) / logged.shape[1]


def principal_axes(
    matrix: Csr, n_comps: int, *, random_state: int = 0, dtype: Any = np.float64
) -> tuple[Floats, Floats]:
    """Return the mean (n_vars,) and the first principal axes (n_vars, n_comps) of a sparse matrix."""
    if lanczos_pays(matrix.shape, matrix.nnz, n_comps):
        from sklearn.decomposition import PCA

        pca = PCA(n_comps, svd_solver="arpack", random_state=random_state).fit(matrix.astype(dtype, copy=False))
        return pca.mean_.astype(np.float64), signed(pca.components_.T.astype(np.float64))
    blocks = (row_view(matrix, slice(i, i + BLOCK)) for i in range(0, matrix.shape[0], BLOCK))
    return axes_of_rows(blocks, matrix.shape, n_comps)


def axes_of_rows(blocks: Iterable[Csr], shape: tuple[int, int], n_comps: int) -> tuple[Floats, Floats]:
    """Return mean and principal axes from the covariance of a matrix given in blocks of rows."""
    from stxtools._spatial.kernels import add_products, symmetric

    n_obs, n_vars = shape
    total, products = np.zeros(n_vars), np.zeros((n_vars, n_vars))
    for block in blocks:
        total += np.bincount(block.indices, block.data, n_vars)
        add_products(block, products)
    mean = total / n_obs
    covariance = (symmetric(products) - n_obs * np.outer(mean, mean)) / max(n_obs - 1, 1)
    axes = linalg.eigh(covariance, subset_by_index=[n_vars - n_comps, n_vars - 1])[1]
    return mean, signed(axes[:, ::-1])


def lanczos_pays(shape: tuple[int, int], n_values: int, n_comps: int) -> bool:
    """Whether Lanczos steps on a sparse matrix take fewer operations than its covariance."""
    n_obs, n_vars = shape
    dense_work = (n_obs * n_vars**2 + 10 * n_vars**3) / _DENSE_SPEED
    lanczos_work = 8 * n_comps * n_values / _SPARSE_SPEED
    return lanczos_work < dense_work and n_comps < min(n_obs, n_vars) - 1


def stored_representation(adata: AnnData, use_rep: str) -> Floats32:
    """Return ``obsm[use_rep]`` (or ``X`` for ``use_rep="X"``) as a dense float32 array."""
    if not isinstance(use_rep, str) or use_rep != "X":
        check_in(adata, "obsm", use_rep, "use_rep", "Use 'X' for the expression matrix itself.")
    values: Any = adata.X if use_rep == "X" else adata.obsm[use_rep]
    for method in ("to_memory", "compute", "toarray"):  # of backed, dask and sparse matrices
        values = getattr(values, method)() if hasattr(values, method) else values
    try:
        array = np.array(values, dtype=np.float32, order="C")  # the bits of sums depend on the order
    except (TypeError, ValueError) as err:
        raise TypeError(f"`use_rep={use_rep!r}` does not hold numbers: {err}") from err
    if array.ndim != 2 or array.shape[1] == 0:
        raise ValueError(f"`use_rep={use_rep!r}` has shape {array.shape}; expected (n_obs, n_features).")
    if not np.isfinite(array).all():
        raise ValueError(f"`use_rep={use_rep!r}` holds NaN or infinite values; fill or drop them first.")
    return array


def stored_projection(adata: AnnData, values: Floats32, matrix: Csr, scale: str) -> GeneProjection | None:
    """Return the linear map from log expression that reproduces the ``values`` of a stored PCA, if there is one."""
    centre = values.mean(axis=0, dtype=np.float64)
    centred = values - centre
    total = float(np.square(centred).sum())
    gene_sets = [*recorded_genes(adata, values.shape[1]).values(), np.arange(adata.n_vars)]
    # nothing in an AnnData says how its PCA was made: try what scanpy's users do
    for logged, target in _log_candidates(adata, matrix, scale):
        for genes in gene_sets:
            mean, spread, regression = _moments(logged, genes, centred)
            for divisor in (None, np.where(spread > 0, spread, 1.0)):  # without and with z-score
                components = regression if divisor is None else regression / divisor[:, None] ** 2
                scores = _scores(logged, genes, components) - mean @ components
                if np.square(scores - centred).sum() > (1 - _REPRODUCED) * total:
                    continue
                # the stored scores of a section may not have mean 0
                shift = np.linalg.lstsq(components.T, centre, rcond=None)[0]
                variance = float(np.square(spread).sum()) if divisor is None else len(genes)
                noise = max(variance - float(np.square(scores).mean(axis=0).sum()), 0.0) / len(genes)
                return GeneProjection(
                    [str(g) for g in adata.var_names[genes]], mean - shift, components, target, scores.var(axis=0),
                    noise, divisor,
                )  # fmt: skip
    return None


def recorded_genes(adata: AnnData, n_comps: int) -> dict[str, Ints]:
    """Return the sets of genes that an AnnData records as those of a stored PCA, by what they are."""
    sets: dict[str, Ints] = {}
    loadings = adata.varm.get("PCs")
    if loadings is not None and np.ndim(loadings) == 2 and np.shape(loadings)[1] >= n_comps:
        sets["genes with loadings"] = np.flatnonzero(np.asarray(loadings)[:, :n_comps].any(axis=1))
    if "highly_variable" in adata.var:
        sets["variable genes"] = np.flatnonzero(adata.var["highly_variable"].to_numpy(dtype=bool, na_value=False))
    return sets


def _log_candidates(adata: AnnData, matrix: Csr, scale: str) -> Iterator[tuple[Csr, float]]:
    """Yield log expression that the PCA may have used, and the depth to which counts were normalised for it."""
    if scale == "log":
        yield matrix, _depth_of_logs(matrix)
        return
    logs_in_x = _keys.COUNTS in adata.layers and adata.X is not None and "log1p" in adata.uns
    depth = median_depth(np.asarray(matrix.sum(axis=1)).ravel())
    for target in dict.fromkeys(([_depth_of_logs(adata.X)] if logs_in_x else []) + [depth, _TARGET_SUM]):
        yield log_normalize(matrix, scale, target_sum=target), target


def _depth_of_logs(matrix: Any) -> float:
    """Return the median depth before the logarithm."""

    def depth(chunk: Csr, _: slice) -> Floats:
        linear = chunk.astype(np.float64)
        linear.data = np.expm1(np.minimum(linear.data, 50.0))
        return np.asarray(linear.sum(axis=1)).ravel()

    return median_depth(np.concatenate(list(map_row_chunks(matrix, depth))))


def _moments(logged: Csr, genes: Ints, scores: Floats) -> tuple[Floats, Floats, Floats]:
    """Return mean and standard deviation of ``genes``, and their regression on centred ``scores``."""

    def sums(chunk: Csr, rows: slice) -> tuple[Any, ...]:
        part = chunk[:, genes].astype(np.float64)
        return part.sum(axis=0), part.multiply(part).sum(axis=0), part.T @ scores[rows]

    total, squares, products = (sum(parts) for parts in zip(*map_row_chunks(logged, sums), strict=True))
    mean, square = np.asarray(total).ravel() / len(scores), np.asarray(squares).ravel() / len(scores)
    regression = np.asarray(products) / np.maximum(np.square(scores).sum(axis=0), 1e-12)
    return mean, np.sqrt(np.maximum(square - mean**2, 0.0)), regression


def _scores(logged: Csr, genes: Ints, components: Floats) -> Floats:
    parts = map_row_chunks(logged, lambda chunk, _: chunk[:, genes].astype(np.float64) @ components)
    return np.concatenate(list(parts))
