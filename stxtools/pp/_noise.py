"""Add noise, for robustness studies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy import sparse

from .. import _keys
from .._representation import expression_scale, stored_matrix, stored_representation, to_csr
from .._slots import Slots, provenance
from .._validate import check_adata, check_bool, check_choice, check_int, check_key_added, check_number

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

_BLOCK = 4_000_000  # molecules redistributed at a time


def add_noise(
    adata: AnnData,
    level: float,
    *,
    kind: Literal["gaussian", "counts"] = "gaussian",
    layer: str | None = None,
    use_rep: str | None = None,
    key_added: str | None = None,
    random_state: int = 0,
    copy: bool = False,
) -> AnnData | None:
    """Add noise whose size is a fraction of what is there.

    ``kind="gaussian"`` adds ``level * sd * N(0, 1)`` with the standard deviation ``sd`` of the gene (or of the
    feature of ``use_rep``) over all observations. In an expression matrix only the stored, non-zero values
    move, and none below 0: zeros stay zeros and sparse stays sparse. Integers stay integers (rounded up or
    down at random, so that the mean is kept). A matrix with negative values (z-scores) and a ``use_rep`` get
    noise in every entry.

    ``kind="counts"`` takes each molecule away with probability ``level`` and gives every observation as many
    back, drawn from the genes' shares in the whole data set. Depth stays; at ``level=1`` nothing of an
    observation's own expression is left.

    Parameters
    ----------
    adata
        Annotated data.
    level
        Size of the noise, a fraction from 0 to 1.
    kind
        ``"gaussian"`` or ``"counts"`` (which needs integer counts).
    layer
        Layer to read. If None, ``X`` for Gaussian noise, and ``layers["counts"]`` where there is one, else
        ``X``, for count noise.
    use_rep
        ``obsm`` key to read instead of expression (Gaussian only).
    key_added
        Name of the layer (``obsm`` entry with ``use_rep``) that is written with ``copy=False``;
        ``"noise"`` if None.
    random_state
        Seed.
    copy
        Return a noised copy: its ``X`` (``obsm[use_rep]`` with ``use_rep``) holds the noised values. Where ``X``
        was noised, the copy has no ``layers["counts"]`` and no ``obsm["X_pca"]`` that are free of noise, so that
        no later call reads them.

    Returns
    -------
    None, or the noised copy with ``copy=True``. Sets:

    ``layers["noise"]`` : (n_obs, n_vars), or ``obsm["noise"]`` : float32 (n_obs, n_features)
        The noised values (``copy=False``).
    ``uns["noise"]["params"]`` : dict
        Parameters, seed and versions.

    Raises
    ------
    KeyError
        If ``layer`` or ``use_rep`` is missing.
    ValueError
        If ``level`` is not a fraction, or count noise is asked for values that are not counts.

    Examples
    --------
    >>> import stxtools as st
    >>> adata = st.datasets.synthetic_tissue(n_obs=500)
    >>> noised = st.pp.add_noise(adata, 0.1, kind="counts", copy=True)
    >>> bool(noised.X.sum() == adata.X.sum())
    True
    """
    check_adata(adata)
    level = check_number("level", level, minimum=0, maximum=1)
    check_choice("kind", kind, ("gaussian", "counts"))
    random_state, copy = check_int("random_state", random_state, minimum=0), check_bool("copy", copy)
    key = check_key_added(key_added, _keys.NOISE)
    if use_rep is not None and (kind == "counts" or layer is not None):
        what = 'kind="counts"' if kind == "counts" else "layer"
        raise ValueError(f"`use_rep` and `{what}` exclude each other: a representation holds no counts and no layers.")
    rng = np.random.default_rng(random_state)
    params = provenance(level=level, kind=kind, layer=layer, use_rep=use_rep, random_state=random_state)
    slots = Slots(uns={key: {"params": params}})
    if use_rep is not None:
        if use_rep == "X":
            raise ValueError("`use_rep='X'`: leave `use_rep` out to add noise to expression.")
        values = stored_representation(adata, use_rep).values
        noise = rng.standard_normal(values.shape, dtype=np.float32)
        noised: Any = values + np.float32(level) * values.std(axis=0) * noise
        slots.obsm[use_rep if copy else key] = noised
    else:
        source = _source(adata, kind, layer)
        noised = _noised(source, level, kind, rng)
        if copy:
            slots.X = noised
        else:
            slots.layers[key] = noised
    if not copy:
        slots.write(adata)
        return None
    target = adata.copy()
    if use_rep is None:
        if _keys.COUNTS in target.layers:
            if kind == "counts":
                target.layers[_keys.COUNTS] = noised.copy()
            else:
                del target.layers[_keys.COUNTS]
        if _keys.X_PCA in target.obsm:
            del target.obsm[_keys.X_PCA]
        if kind == "counts":
            target.uns.pop("log1p", None)  # X holds counts now
    slots.write(target)
    return target


def _source(adata: AnnData, kind: str, layer: str | None) -> Any:
    if kind == "counts" or layer is not None:
        return stored_matrix(adata, layer)
    if adata.X is None:
        raise ValueError("`adata.X` is empty (None); put expression there or name a `layer`.")
    return adata.X


def _noised(source: Any, level: float, kind: str, rng: np.random.Generator) -> Any:
    matrix = to_csr(source).copy()
    matrix.sum_duplicates()
    integers = expression_scale(matrix) == "counts" and bool((matrix.data == np.rint(matrix.data)).all())
    if kind == "counts":
        if not integers:
            raise ValueError(
                "`kind='counts'` needs integer counts; the values found are not. Name the `layer` that holds counts, "
                "or use `kind='gaussian'`."
            )
        out = _thin_and_refill(matrix, level, rng)
    else:
        out = _gaussian(matrix, level, rng, integers=integers)
    return out if sparse.issparse(source) else out.toarray()


def _gaussian(
    matrix: sparse.csr_matrix, level: float, rng: np.random.Generator, *, integers: bool
) -> sparse.csr_matrix:
    n = matrix.shape[0]
    mean = np.asarray(matrix.mean(axis=0, dtype=np.float64)).ravel()
    second = np.bincount(matrix.indices, weights=matrix.data.astype(np.float64) ** 2, minlength=matrix.shape[1]) / n
    sd = np.sqrt(np.maximum(second - mean**2, 0.0))
    dtype = matrix.dtype if integers or matrix.dtype.kind == "f" else np.float32
    if matrix.nnz and matrix.data.min() < 0:
        dense = matrix.toarray()
        return sparse.csr_matrix((dense + level * sd * rng.standard_normal(dense.shape)).astype(dtype))
    values = matrix.data + level * sd[matrix.indices] * rng.standard_normal(matrix.nnz)
    if integers:
        values = np.floor(values + rng.uniform(size=len(values))) if level > 0 else values
    matrix = sparse.csr_matrix((np.maximum(values, 0.0).astype(dtype), matrix.indices, matrix.indptr), matrix.shape)
    matrix.eliminate_zeros()
    return matrix


def _thin_and_refill(matrix: sparse.csr_matrix, level: float, rng: np.random.Generator) -> sparse.csr_matrix:
    share = np.cumsum(np.asarray(matrix.sum(axis=0, dtype=np.float64)).ravel())
    counts = matrix.data.astype(np.int64)
    lost = rng.binomial(counts, level)
    kept = sparse.csr_matrix((counts - lost, matrix.indices, matrix.indptr), shape=matrix.shape)
    per_row = np.diff(np.r_[0, np.cumsum(lost)][matrix.indptr])
    blocks = []
    for rows in np.split(np.arange(len(per_row)), _cuts(per_row)):
        total = int(per_row[rows].sum())
        gene = np.searchsorted(share, rng.uniform(0, share[-1] if len(share) else 0, size=total), side="right")
        row = np.repeat(np.arange(len(rows)), per_row[rows])
        gained = sparse.coo_matrix((np.ones(total, dtype=np.int64), (row, gene)), shape=(len(rows), matrix.shape[1]))
        blocks.append(gained.tocsr())
    out = (kept + sparse.vstack(blocks, format="csr")).tocsr().astype(matrix.dtype)
    out.eliminate_zeros()
    out.sort_indices()
    return out


def _cuts(per_row: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where to cut the rows so that a block redistributes about ``_BLOCK`` molecules."""
    block = np.cumsum(per_row) // _BLOCK
    return np.flatnonzero(np.diff(block)) + 1
