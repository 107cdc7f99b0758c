"""Normalise, select genes and reduce dimensions, in scanpy's usual order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from anndata import AnnData
from scipy import sparse

from stxtools import _keys
from stxtools._api import public
from stxtools._checks import check_bool, check_int, check_number, check_seed
from stxtools._data.chunks import is_dask, map_row_chunks, to_csr
from stxtools._data.expression import Expression
from stxtools._data.representation import (
    N_COMPS,
    N_TOP_GENES,
    log_normalize,
    median_depth,
    principal_axes,
    select_genes,
)
from stxtools._progress import progress_bar, stage
from stxtools._slots import Slots, check_free, provenance
from stxtools._spatial.matrices import column_moments
from stxtools._types import Csr, Floats, Floats32
from stxtools._validate import check_adata, libraries


@public
@progress_bar({"normalising": 1, "choosing genes": 4, "computing components": 2})
def normalize(
    adata: AnnData, *, layer: str | None = None, target_sum: float | None = None, n_top_genes: int = N_TOP_GENES,
    n_comps: int = N_COMPS, scale: bool = False, library_key: str | bool | None = None, random_state: int = 0,
    show_progress: bool | None = None, copy: bool = False,
) -> AnnData | None:  # fmt: skip
    """Normalise counts, log-transform, select highly variable genes and compute a PCA.

    Equivalent to :func:`scanpy.pp.normalize_total`, :func:`scanpy.pp.log1p`, :func:`scanpy.pp.highly_variable_genes`
    (``seurat_v3`` on counts, ``seurat`` if the values are not integers) and :func:`scanpy.pp.pca` on the selected
    genes. Matrices stay sparse, and a dask array ``X`` stays lazy; if it is large, genes and components are computed
    on a random sample of observations.

    Parameters
    ----------
    adata
        Annotated data matrix with raw counts, or volume-normalised expression that is not log-transformed.
    target_sum
        Total counts of each observation after normalisation; by default the median of the totals before.
    n_top_genes
        Number of highly variable genes; all genes of a smaller panel. Genes expressed in fewer than three observations
        are never selected.
    n_comps
        Number of principal components; at most one less than the number of observations or of selected genes.
    scale
        Whether to divide the selected genes by their standard deviation before the PCA. ``X`` is not scaled.
    library_key
        Column of ``obs`` with the section of each observation: genes are ranked within each section of at least 20
        observations (scanpy's ``batch_key``). By default, or if ``False``, in all observations together.

    Examples
    --------
    >>> adata = st.datasets.synthetic_tissue(n_obs=500)
    >>> st.pp.normalize(adata, n_comps=10)
    >>> adata.obsm["X_pca"].shape
    (500, 10)
    """
    check_adata(adata, min_obs=2, layer=layer, copy=copy, genes=True)
    check_free(adata, "pp.normalize", uns=["normalize"])
    scale = check_bool("scale", scale)
    n_top_genes = check_int("n_top_genes", n_top_genes, minimum=1)
    n_comps = check_int("n_comps", n_comps, minimum=1)
    random_state = check_seed(random_state)
    if target_sum is not None:
        check_number("target_sum", target_sum, above=0)
    if adata.isbacked:
        raise ValueError("`adata` is backed by a file; load it first with `adata = adata.to_memory()`.")
    source = Expression(adata, layer, in_memory=False)
    _check_raw(source)
    sections = None if library_key is None else libraries(adata, library_key).codes
    stage("normalising")
    if is_dask(source.matrix):
        depth = source.summary.depth
        target = median_depth(depth) if target_sum is None else target_sum
        logged = _log_normalize_dask(source.matrix, depth, target)
        rows = source.sample_rows(random_state)
        counts = to_csr(source.matrix[rows])
        sample = log_normalize(counts, "counts", library_size=depth[rows], target_sum=target)
    else:
        rows, counts = np.arange(adata.n_obs), source.matrix
        sample = logged = log_normalize(counts, "counts", target_sum=target_sum)
        logged.indices, logged.indptr = logged.indices.copy(), logged.indptr.copy()  # `X` and a layer share nothing
    stage("choosing genes")
    genes = select_genes(counts, source.scale, n_top_genes, None if sections is None else sections[rows])
    stage("computing components")
    pca = _pca(sample[:, genes], n_comps, scale, random_state)
    scores = pca.scores
    if len(rows) < adata.n_obs:
        parts = map_row_chunks(logged, lambda chunk, _: pca.project(chunk[:, genes]))
        scores = np.concatenate(list(parts))

    selected = np.zeros(adata.n_vars, dtype=bool)
    selected[genes] = True
    loadings = np.zeros((adata.n_vars, pca.axes.shape[1]), dtype=np.float32)
    loadings[genes] = pca.axes
    pca_params = {
        "zero_center": True, "use_highly_variable": True, "mask_var": "highly_variable", "scale": scale,
        "random_state": random_state,
    }  # fmt: skip
    params = provenance(
        layer=layer, target_sum=target_sum, n_top_genes=n_top_genes, n_comps=n_comps, scale=scale,
        library_key=library_key, random_state=random_state, **source.record,
    )  # fmt: skip
    slots = Slots(
        "pp.normalize",
        replaces=("var/highly_variable", f"obsm/{_keys.X_PCA}", "varm/PCs", "uns/pca", "uns/log1p"),  # scanpy's slots
        X=logged.toarray() if isinstance(source.stored, np.ndarray) else logged,
        var={"highly_variable": selected},
        obsm={_keys.X_PCA: scores},
        varm={"PCs": loadings},
        uns={"pca": {**pca.variances, "params": pca_params}, "log1p": {}, "normalize": {"params": params}},
    )
    if _keys.COUNTS not in adata.layers:
        slots.layers[_keys.COUNTS] = source.stored.copy()
    return slots.write(adata, copy)


def _check_raw(source: Expression) -> None:
    """Raise if the expression is on the log scale, or 0 everywhere."""
    if source.scale == "log":
        raise ValueError(
            f"`adata.{source.source}` is not raw: its values range from {source.summary.minimum:g} to "
            f"{source.summary.maximum:g} and are not integers, so it has been log-normalised already. Put raw counts "
            "into `adata.layers['counts']` or name their `layer`; without counts, skip this call: `stxtools.tl` reads "
            "log values as they are."
        )
    if source.summary.maximum == 0:
        raise ValueError("No gene is expressed in any observation; there is nothing to normalise.")


def _log_normalize_dask(matrix: Any, depth: Floats, target: float) -> Any:
    from dask import array

    empty = np.zeros((0, 0)) if isinstance(matrix._meta, np.ndarray) else sparse.csr_matrix((0, 0))
    matrix = matrix.rechunk({1: -1})
    depths = array.from_array(depth[:, None], chunks=(matrix.chunks[0], 1))
    return array.map_blocks(
        _log_normalize_block, matrix, depths, target, dtype=np.float32, chunks=matrix.chunks,
        meta=empty.astype(np.float32),
    )  # fmt: skip


def _log_normalize_block(block: Any, depth: Floats, target: float) -> Any:
    logged = log_normalize(to_csr(block), "counts", library_size=depth.ravel(), target_sum=target)
    return logged.toarray() if isinstance(block, np.ndarray) else logged.copy()


@dataclass(frozen=True)
class _Pca:
    """Components of the selected genes; ``variances`` as scanpy stores them."""

    scores: Floats32
    axes: Floats
    variances: dict[str, Floats]
    deviation: Floats  # of each gene, where genes are scaled, else 1
    origin: Floats  # score of the mean expression

    def project(self, logged: Csr) -> Floats32:
        """Return the scores of other observations."""
        return (logged @ (self.axes / self.deviation[:, None]) - self.origin).astype(np.float32)


def _pca(logged: Csr, n_comps: int, scale: bool, random_state: int) -> _Pca:
    n_comps = min(n_comps, min(logged.shape) - 1)
    if n_comps < 1:
        raise ValueError(
            f"A PCA needs at least 2 observations and 2 genes expressed in three or more of them; found "
            f"{logged.shape[0]} and {logged.shape[1]}."
        )
    mean, variance = column_moments(logged)
    if variance.max() <= 1e-5 * max(float(np.square(mean).max()), 1e-12):
        raise ValueError("Every gene has the same expression in all observations; there is no variance for a PCA.")
    unbiased = logged.shape[0] / (logged.shape[0] - 1)
    deviation = np.ones(logged.shape[1])
    if scale:  # with the centring of the PCA this is the z-score, but sparse
        deviation = np.sqrt(np.where(variance > 0, variance * unbiased, 1.0))
        logged, variance = sparse.csr_matrix(logged @ sparse.diags(1 / deviation)), variance / deviation**2
    mean, axes = principal_axes(logged, n_comps, random_state=random_state, dtype=np.float32)
    origin = mean @ axes
    scores = logged @ axes - origin
    explained = scores.var(axis=0, ddof=1)
    variances = {"variance": explained, "variance_ratio": explained / (variance.sum() * unbiased)}
    return _Pca(np.ascontiguousarray(scores, dtype=np.float32), axes, variances, deviation, origin)
