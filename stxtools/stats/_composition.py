"""What the tissue's composition explains: expression components, and tests of genes given them.

A gene's difference between a region and the rest is judged given covariates: cell types, or the section's
leading expression components. Components are taken without the tested gene, so that no gene explains itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, sparse
from scipy.sparse.linalg import eigsh

Floats = NDArray[np.float64]

N_COMPS = 20
_OBS_PER_COMPONENT = 50
MAX_GENES = 2000
_BLOCK = 8192  # observations made dense at a time, of MAX_GENES genes at most


def n_components(n_obs: int) -> int:
    """Return how many components stand for the composition of a section: fewer in a small one."""
    return int(np.clip(n_obs // _OBS_PER_COMPONENT, 2, N_COMPS))


def without_depth_of(matrix: sparse.csr_matrix, genes: NDArray[np.int64]) -> sparse.csr_matrix:
    """Scale depth-normalised log expression again so that ``genes`` no longer count in any observation's depth.

    Where a few genes make a difference in depth, dividing by depth moves all others the other way. A matrix that
    was not normalised by depth comes back as it is.
    """
    if matrix.nnz == 0 or matrix.data.min() < 0:
        return matrix
    linear = sparse.csr_matrix((np.expm1(matrix.data.astype(np.float64)), matrix.indices, matrix.indptr), matrix.shape)
    depth = np.asarray(linear.sum(axis=1)).ravel()
    positive = depth[depth > 0]
    if np.ptp(positive) > 1e-2 * positive.mean():
        return matrix
    counted = np.ones(matrix.shape[1])
    counted[genes] = 0.0
    kept = np.asarray(linear @ counted).ravel()
    middle = float(np.median(kept[kept > 0])) if (kept > 0).any() else 1.0
    factor = np.divide(middle, kept, out=np.zeros_like(kept), where=kept > 0)
    data = np.log1p(linear.data * np.repeat(factor, np.diff(matrix.indptr))).astype(np.float32)
    return sparse.csr_matrix((data, matrix.indices, matrix.indptr), shape=matrix.shape)


@dataclass(frozen=True)
class Nuisance:
    """Centred covariates of a section (observations x q), and what each gene adds to them (genes x q, or zero)."""

    scores: Floats
    loadings: Floats


class ExpressionSpace:
    """Second moments of a section's most variable genes, from which components without given genes are cheap."""

    def __init__(self, matrix: sparse.csr_matrix, variance: Floats, max_genes: int = MAX_GENES) -> None:
        self._n_genes = matrix.shape[1]
        top = np.argsort(-variance, kind="stable")[:max_genes]
        self._genes = np.sort(top[variance[top] > 0])
        self._matrix = sparse.csr_matrix(matrix[:, self._genes])
        n = matrix.shape[0]
        self._mean = np.asarray(self._matrix.mean(axis=0, dtype=np.float64)).ravel()
        moments = np.zeros((len(self._genes), len(self._genes)))
        for start in range(0, n, _BLOCK):
            block = self._matrix[start : start + _BLOCK].toarray().astype(np.float32)
            moments += block.T @ block
        self._covariance = moments / n - np.outer(self._mean, self._mean)

    def components(self, n_comps: int, without: NDArray[np.int64] | None = None) -> Nuisance:
        """Return the leading principal components of the genes that are not in ``without``."""
        kept = np.arange(len(self._genes))
        if without is not None and len(without):
            kept = kept[~np.isin(self._genes, without)]
        n_comps = min(n_comps, len(kept) - 1, self._matrix.shape[0] - 3)
        if n_comps < 1:
            return Nuisance(np.zeros((self._matrix.shape[0], 0)), np.zeros((self._n_genes, 0)))
        vectors = _leading(self._covariance[np.ix_(kept, kept)], n_comps)
        loadings = np.zeros((self._n_genes, n_comps))
        loadings[self._genes[kept]] = vectors
        wide = np.zeros((len(self._genes), n_comps))
        wide[kept] = vectors
        return Nuisance(np.asarray(self._matrix @ wide) - self._mean @ wide, loadings)


def _leading(covariance: Floats, k: int) -> Floats:
    n = len(covariance)
    if n <= max(200, 4 * k):
        vectors = linalg.eigh(covariance, subset_by_index=[n - k, n - 1])[1]
    else:
        vectors = eigsh(covariance, k=k, which="LA", v0=np.ones(n))[1]
    return np.ascontiguousarray(vectors[:, ::-1])


class PartialCorrelation:
    """Correlation of every gene with a label, both freed of covariates; the gene's own share of them is left out.

    With leading components Z = Y V of centred expression Y, gene j is judged given ``Z - y_j v_j'``: the components of
    all other genes. All that is needed of it follows from Z by rank-one updates, so that no residual is ever stored.

    Parameters
    ----------
    by_gene
        Genes x observations.
    nuisance
        Covariates.
    """

    def __init__(self, by_gene: sparse.csr_matrix, nuisance: Nuisance) -> None:
        self._by_gene = by_gene
        z, v = nuisance.scores, nuisance.loadings
        n, q = z.shape
        mean = np.asarray(by_gene.sum(axis=1), dtype=np.float64).ravel() / n
        self.total = np.asarray(by_gene.multiply(by_gene).sum(axis=1), dtype=np.float64).ravel() - n * mean**2
        cross = np.asarray(by_gene @ z)
        gram = z.T @ z
        ridge = 1e-6 * max(float(np.trace(gram)) / max(q, 1), 1e-12) * np.eye(q)
        self._z, self._common = z, not v.any()
        if self._common:
            own: Floats = gram[None] + ridge
        else:
            own = (
                gram[None]
                - v[:, :, None] * cross[:, None, :]
                - cross[:, :, None] * v[:, None, :]
                + self.total[:, None, None] * v[:, :, None] * v[:, None, :]
                + ridge
            )
        self._inverse = np.linalg.inv(own)
        gene = cross - v * self.total[:, None]
        self._weight = np.einsum("gij,gj->gi", np.broadcast_to(self._inverse, (len(gene), q, q)), gene)
        self.residual = self.total - np.einsum("gi,gi->g", gene, self._weight)
        self.known = (self.total > 0) & (self.residual > 1e-4 * self.total)
        if not self._common:
            self._scale = 1.0 + np.einsum("gi,gi->g", self._weight, v)
            self._v_inverse = np.einsum("gi,gij->gj", v, self._inverse)
            self._v_inverse_v = np.einsum("gi,gi->g", self._v_inverse, v)

    def __call__(self, labels: NDArray[np.floating]) -> tuple[Floats, Floats]:
        """Return correlations and the labels' residual sums of squares, (genes x labels) both.

        ``labels`` (observations x labels) are centred.
        """
        q = self._z.shape[1]
        total = np.asarray(self._by_gene @ labels.astype(np.float32), dtype=np.float64)
        explained = self._z.T @ labels
        pairs = (explained[:, None, :] * explained[None, :, :]).reshape(q * q, -1)
        spread = np.einsum("nb,nb->b", labels, labels, dtype=np.float64)
        left = spread - self._inverse.reshape(-1, q * q) @ pairs
        if self._common:
            numerator = total - self._weight @ explained
        else:
            numerator = total * self._scale[:, None] - self._weight @ explained
            left += 2.0 * total * (self._v_inverse @ explained) - total**2 * self._v_inverse_v[:, None]
        left = np.maximum(left, 1e-9 * spread)
        residual = np.where(self.known, self.residual, 1.0)[:, None]
        r = np.where(self.known[:, None], numerator / np.sqrt(left * residual), 0.0)
        return np.clip(r, -1.0, 1.0), np.broadcast_to(left, r.shape)


def design_matrix(columns: Floats) -> Nuisance | None:
    """Centre and scale given covariates (observations x q); constant ones are dropped. None where none is left.

    The genes' own loadings are zero: covariates that were made from expression may explain the tested gene by itself.
    """
    centred = columns - columns.mean(axis=0)
    size = centred.std(axis=0)
    kept = centred[:, size > 1e-12] / size[size > 1e-12]
    if not kept.shape[1]:
        return None
    u, s, _ = np.linalg.svd(kept, full_matrices=False)
    u = u[:, s > 1e-8 * s[0]] * np.sqrt(len(kept))
    return Nuisance(u, np.zeros((0, u.shape[1])))


def join_nuisance(parts: list[Nuisance], n_genes: int) -> Nuisance:
    """Put covariates beside each other."""
    loadings = [p.loadings if len(p.loadings) else np.zeros((n_genes, p.scores.shape[1])) for p in parts]
    return Nuisance(np.concatenate([p.scores for p in parts], axis=1), np.concatenate(loadings, axis=1))
