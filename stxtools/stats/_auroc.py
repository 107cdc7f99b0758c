"""Exact areas under the ROC curve of all genes from a sparse matrix (Mann-Whitney)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from stxtools._spatial.matrices import row_view
from stxtools._types import Bools, Floats

_AT_ONCE = 2_000_000  # values


def aurocs(matrix: sparse.csr_matrix, labels: Sequence[Bools]) -> Floats:
    """AUROC of every gene of a matrix (observations x genes) for each label against the rest: genes x labels."""
    inside = np.stack(labels, axis=1).astype(np.float64)
    n1 = inside.sum(axis=0)
    n0 = len(inside) - n1
    if not (n1 * n0).all():
        raise ValueError("An AUROC needs observations on both sides.")
    out = np.empty((matrix.shape[1], len(labels)))
    by_gene = sparse.csr_matrix(matrix.T)
    by_gene.eliminate_zeros()
    ends = by_gene.indptr.astype(np.int64)
    first = 0
    while first < len(out):  # blocks of genes: sorting takes eight times the memory of the values
        last = max(first + 1, int(np.searchsorted(ends, ends[first] + _AT_ONCE, side="right")) - 1)
        ranks, zero_rank = midranks(row_view(by_gene, slice(first, last)))
        ones = np.broadcast_to(1.0, ranks.data.shape)
        stored = sparse.csr_matrix((ones, ranks.indices, ranks.indptr), shape=ranks.shape) @ inside
        total = ranks @ inside + (n1 - stored) * zero_rank[:, None]  # sums of halves: exact
        out[first:last] = (total - n1 * (n1 + 1) / 2.0) / (n1 * n0)
        first = last
    return out


def midranks(by_gene: sparse.csr_matrix) -> tuple[sparse.csr_matrix, Floats]:
    """Ranks of stored values (genes x observations, no zeros), ties shared, and the rank of each gene's zeros."""
    n_genes, n_obs = by_gene.shape
    data, per_gene = by_gene.data, np.diff(by_gene.indptr)
    gene = np.repeat(np.arange(n_genes), per_gene)
    ends = np.cumsum(per_gene)
    # gene by gene: several times as fast as a sort by two keys; equal values share a rank in whatever order
    order = np.concatenate([e - n + np.argsort(data[e - n : e]) for n, e in zip(per_gene, ends, strict=True)])
    value = data[order]
    new = np.r_[True, (value[1:] != value[:-1]) | (gene[1:] != gene[:-1])] if len(value) else np.zeros(0, bool)
    start = np.flatnonzero(new)
    size = np.diff(np.r_[start, len(value)])
    position = start.astype(np.float64) + (size + 1) / 2.0  # mean of the 1-based positions of a run of ties
    rank = np.repeat(position, size) - (ends - per_gene)[gene]
    n_zero = n_obs - per_gene
    rank += np.where(value > 0, n_zero[gene], 0)
    ranks = np.empty(len(value))
    ranks[order] = rank
    zero_rank = np.bincount(gene[data < 0], minlength=n_genes) + (n_zero + 1) / 2.0
    return sparse.csr_matrix((ranks, by_gene.indices, by_gene.indptr), shape=by_gene.shape), zero_rank
