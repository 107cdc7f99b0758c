"""The genes that can colour the map, and their expression."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from stxtools import _keys
from stxtools._data.expression import Expression, log_chunks

from .words import FDR

if TYPE_CHECKING:
    from anndata import AnnData

    from .table import BiomarkerTable

_N = 100


def leading_genes(adata: AnnData, table: BiomarkerTable | None, layer: str | None) -> list[str]:
    """Return the first biomarkers of every group in turn; without any, the genes of the largest variance."""
    read = _expression(adata, layer)
    if read is None:
        return []
    if table is None:
        n, sums, squares = adata.n_obs, np.zeros(adata.n_vars), np.zeros(adata.n_vars)
        for total, square in log_chunks(read, _moments):
            sums, squares = sums + total, squares + square
        names = adata.var_names[np.argsort(-(squares / n - (sums / n) ** 2), kind="stable")]
    else:
        higher = table.rows["scores"] > 0
        parts = [
            table.rows[higher],
            table.rows[~higher][::-1],
        ]  # the lowest come last
        turns = [part.groupby("group", sort=False, observed=True).cumcount() for part in parts]
        rows, turn = pd.concat(parts), pd.concat([turns[0], 2 * turns[1]])
        names = rows["names"].to_numpy()[np.lexsort((turn, rows["pvals_adj"] > FDR))]
    known = set(adata.var_names)
    return [str(name) for name in dict.fromkeys(names) if name in known][:_N]


def expression_of(adata: AnnData, genes: Sequence[str], layer: str | None) -> sparse.csc_matrix:
    """Return log-normalised expression, observations x genes."""
    if not genes:
        return sparse.csc_matrix((adata.n_obs, 0))
    read = _expression(adata, layer)
    if read is None:
        raise ValueError("`genes` are given, but `adata` holds no expression; put it into `X` or name a `layer`.")
    at = adata.var_names.get_indexer(list(genes))
    return sparse.vstack([part[:, at] for part in log_chunks(read, _as_it_is)]).tocsc()


def _expression(adata: AnnData, layer: str | None) -> Expression | None:
    """Return the expression, None where ``X`` is empty or holds something else, such as components."""
    if layer is None and adata.X is None and _keys.COUNTS not in adata.layers:
        return None
    read = Expression(adata, layer, scaled=True, in_memory=False)
    return None if read.scale == "scaled" else read


def _moments(chunk: sparse.csr_matrix, rows: slice) -> tuple[Any, Any]:
    return np.asarray(chunk.sum(axis=0)).ravel(), np.asarray(chunk.multiply(chunk).sum(axis=0)).ravel()


def _as_it_is(chunk: sparse.csr_matrix, rows: slice) -> sparse.csr_matrix:
    return chunk
