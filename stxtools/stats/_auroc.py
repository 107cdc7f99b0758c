"""Exact areas under the ROC curve of all genes from a sparse matrix (Mann-Whitney)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse


def midranks(by_gene: sparse.csr_matrix) -> tuple[sparse.csr_matrix, NDArray[np.float64]]:
    """Ranks of every gene's values over the observations, ties shared.

    Parameters
    ----------
    by_gene
        Genes x observations without stored zeros.

    Returns
    -------
    The ranks of the stored values, and per gene the rank that all its zeros share.
    """
    n_genes, n_obs = by_gene.shape
    per_gene = np.diff(by_gene.indptr)
    gene = np.repeat(np.arange(n_genes), per_gene)
    order = np.lexsort((by_gene.data, gene))
    value = by_gene.data[order]
    new = np.r_[True, (value[1:] != value[:-1]) | (gene[1:] != gene[:-1])] if len(value) else np.zeros(0, bool)
    start = np.flatnonzero(new)
    size = np.diff(np.r_[start, len(value)])
    position = start.astype(np.float64) + (size + 1) / 2.0  # mean of the 1-based positions of a run of ties
    rank = np.repeat(position, size) - by_gene.indptr[gene]
    n_zero = n_obs - per_gene
    rank += np.where(value > 0, n_zero[gene], 0)
    ranks = np.empty(len(value))
    ranks[order] = rank
    n_negative = np.bincount(gene[by_gene.data < 0], minlength=n_genes)
    return (
        sparse.csr_matrix((ranks, by_gene.indices, by_gene.indptr), shape=by_gene.shape),
        n_negative + (n_zero + 1) / 2.0,
    )


def auroc_from_ranks(
    ranks: sparse.csr_matrix, zero_rank: NDArray[np.float64], label: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """AUROC of every gene for ``label`` against the rest, from :func:`midranks`."""
    n1 = int(label.sum())
    n0 = len(label) - n1
    if n1 == 0 or n0 == 0:
        raise ValueError("An AUROC needs observations on both sides.")
    rows = np.repeat(np.arange(ranks.shape[0]), np.diff(ranks.indptr))
    inside = label[ranks.indices]
    stored = np.bincount(rows[inside], minlength=ranks.shape[0])
    total = np.bincount(rows[inside], ranks.data[inside], minlength=ranks.shape[0]) + (n1 - stored) * zero_rank
    return np.asarray((total - n1 * (n1 + 1) / 2.0) / (float(n1) * n0), dtype=np.float64)
