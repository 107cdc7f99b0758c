"""What the tissue's composition explains: expression components, and tests of genes given them.

A gene's difference between a region and the rest is judged given covariates: cell types, or the section's
leading expression components. Components are taken without the tested gene, so that no gene explains itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, sparse
from scipy.sparse.linalg import eigsh

Floats = NDArray[np.float64]

N_COMPS = 20
_OBS_PER_COMPONENT = 50
MAX_GENES = 2000
_BLOCK = 4096  # observations made dense at a time, of MAX_GENES genes at most
_PANEL, _LABELS = 128, 32  # genes and labels in a product


def n_components(n_obs: int) -> int:
    """Return how many components stand for the composition of a section: fewer in a small one."""
    return int(np.clip(n_obs // _OBS_PER_COMPONENT, 2, N_COMPS))


def rescaled(matrix: sparse.csr_matrix, factor: Floats) -> sparse.csr_matrix:
    """Multiply every observation by a factor on the linear scale."""
    linear = np.expm1(matrix.data.astype(np.float64))
    data = np.log1p(linear * np.repeat(factor, np.diff(matrix.indptr))).astype(np.float32)
    return sparse.csr_matrix((data, matrix.indices, matrix.indptr), shape=matrix.shape)


class Depths:
    """Depth of observations with all genes, and without some: row by row, so that rows may come in pieces.

    Parameters
    ----------
    n_genes
        Number of genes.
    without
        Sets of genes that are not to count.
    """

    def __init__(self, n_genes: int, without: Sequence[NDArray[np.int64]]) -> None:
        self._counted = np.ones((len(without), n_genes))
        for counted, genes in zip(self._counted, without, strict=True):
            counted[genes] = 0.0
        self._lowest, self._depth, self._kept = np.inf, [np.zeros(0)], [np.zeros((len(without), 0))]

    def add(self, logged: sparse.csr_matrix) -> Depths:
        """Read the next observations."""
        if logged.nnz:
            self._lowest = min(self._lowest, float(logged.data.min()))
        data = np.expm1(logged.data.astype(np.float64))
        linear = sparse.csr_matrix((data, logged.indices, logged.indptr), logged.shape)
        self._depth.append(np.asarray(linear.sum(axis=1)).ravel())
        self._kept.append(np.stack([np.asarray(linear @ counted).ravel() for counted in self._counted]))
        return self

    def factors(self) -> list[Floats | None]:
        """Return, for each set of genes, what observations are to be multiplied by.

        None where expression was not normalised by depth.
        """
        depth = np.concatenate(self._depth)
        positive = depth[depth > 0]
        linear = 0 <= self._lowest < np.inf and len(positive) > 0
        if not linear or np.ptp(positive) > 1e-2 * positive.mean():
            return [None] * len(self._counted)
        out: list[Floats | None] = []
        for kept in np.concatenate(self._kept, axis=1):
            middle = float(np.median(kept[kept > 0])) if (kept > 0).any() else 1.0
            out.append(np.divide(middle, kept, out=np.zeros_like(kept), where=kept > 0))
        return out


@dataclass(frozen=True)
class Nuisance:
    """Centred covariates of a section (observations x q), and what each gene adds to them (genes x q, or zero).

    ``common`` says that no gene adds anything; by default it follows from the loadings.
    """

    scores: Floats
    loadings: Floats
    common: bool | None = None

    def of(self, genes: slice) -> Nuisance:
        """Return the same covariates for some of the genes."""
        common = not self.loadings.any() if self.common is None else self.common
        return Nuisance(self.scores, self.loadings[genes], common)


class Rows(Protocol):
    """Log expression of a section, read by rows."""

    @property
    def shape(self) -> tuple[int, int]:
        """Observations and genes."""

    def mean(self, genes: NDArray[np.int64]) -> Floats:
        """Mean of some genes."""

    def blocks(self, genes: NDArray[np.int64], size: int) -> Iterator[sparse.csr_matrix]:
        """Yield ``size`` observations of some genes at a time, in the order in which they are stored."""

    def placed(self, values: Floats) -> Floats:
        """Bring values of the observations, which are rows, from this order into that of the section."""


class MatrixRows:
    """Rows of a matrix in memory."""

    def __init__(self, matrix: sparse.csr_matrix) -> None:
        self._matrix, self.shape = matrix, matrix.shape
        self._genes: NDArray[np.int64] | None = None
        self._chosen = matrix

    def _columns(self, genes: NDArray[np.int64]) -> sparse.csr_matrix:
        if self._genes is None or not np.array_equal(genes, self._genes):
            self._genes, self._chosen = genes, sparse.csr_matrix(self._matrix[:, genes])
        return self._chosen

    def mean(self, genes: NDArray[np.int64]) -> Floats:
        """Mean of some genes."""
        return np.asarray(self._columns(genes).mean(axis=0, dtype=np.float64)).ravel()

    def blocks(self, genes: NDArray[np.int64], size: int) -> Iterator[sparse.csr_matrix]:
        """Yield ``size`` observations of some genes at a time, in order."""
        chosen = self._columns(genes)
        for start in range(0, chosen.shape[0], size):
            yield chosen[start : start + size]

    def placed(self, values: Floats) -> Floats:
        """Return ``values``: a section in memory is read in its own order."""
        return values


class ExpressionSpace:
    """Second moments of a section's most variable genes, from which components without given genes are cheap."""

    def __init__(self, matrix: sparse.csr_matrix | Rows, variance: Floats, max_genes: int = MAX_GENES) -> None:
        self._rows: Rows = MatrixRows(matrix) if sparse.issparse(matrix) else matrix
        shape: tuple[int, int] = self._rows.shape
        self._n_obs, self._n_genes = shape
        top = np.argsort(-variance, kind="stable")[:max_genes]
        self._genes = np.sort(top[variance[top] > 0])
        self._mean = self._rows.mean(self._genes)
        moments = np.zeros((len(self._genes), len(self._genes)))
        for rows in self._rows.blocks(self._genes, _BLOCK):
            block = rows.toarray().astype(np.float64, copy=False)
            moments += block.T @ block
        self._covariance = moments / self._n_obs - np.outer(self._mean, self._mean)

    def components(self, n_comps: int, without: NDArray[np.int64] | None = None) -> Nuisance:
        """Return the leading principal components of the genes that are not in ``without``."""
        kept = np.arange(len(self._genes))
        if without is not None and len(without):
            kept = kept[~np.isin(self._genes, without)]
        n_comps = min(n_comps, len(kept) - 1, self._n_obs - 3)
        if n_comps < 1:
            return Nuisance(np.zeros((self._n_obs, 0)), np.zeros((self._n_genes, 0)))
        vectors = _leading(self._covariance[np.ix_(kept, kept)], n_comps)
        loadings = np.zeros((self._n_genes, n_comps))
        loadings[self._genes[kept]] = vectors
        wide = np.zeros((len(self._genes), n_comps))
        wide[kept] = vectors
        scores = np.concatenate([np.asarray(rows @ wide) for rows in self._rows.blocks(self._genes, _BLOCK)])
        return Nuisance(self._rows.placed(scores - self._mean @ wide), loadings)


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
    columns
        The same matrix by column, where products with many labels are faster that way.
    """

    def __init__(
        self, by_gene: sparse.csr_matrix, nuisance: Nuisance, columns: sparse.csc_matrix | None = None
    ) -> None:
        self._by_gene = by_gene if columns is None else columns
        z, v = nuisance.scores, nuisance.loadings
        n, q = z.shape
        mean = np.asarray(by_gene.sum(axis=1), dtype=np.float64).ravel() / n
        self.total = np.asarray(by_gene.multiply(by_gene).sum(axis=1), dtype=np.float64).ravel() - n * mean**2
        cross = np.asarray(self._by_gene @ z)
        gram = z.T @ z
        ridge = 1e-6 * max(float(np.trace(gram)) / max(q, 1), 1e-12) * np.eye(q)
        self._z, self._common = z, (not v.any() if nuisance.common is None else nuisance.common)
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
        inverse = self._inverse.reshape(len(self._inverse), q * q)
        left = spread - (inverse @ pairs if self._common else _product(inverse, pairs))
        if self._common:
            numerator = total - _product(self._weight, explained)
        else:
            numerator = total * self._scale[:, None] - _product(self._weight, explained)
            left += 2.0 * total * _product(self._v_inverse, explained) - total**2 * self._v_inverse_v[:, None]
        left = np.maximum(left, 1e-9 * spread)
        residual = np.where(self.known, self.residual, 1.0)[:, None]
        r = np.where(self.known[:, None], numerator / np.sqrt(left * residual), 0.0)
        return np.clip(r, -1.0, 1.0), np.broadcast_to(left, r.shape)


def _product(genes: NDArray[np.floating], other: NDArray[np.floating]) -> Floats:
    """Product whose rows do not depend, to the bit, on how many genes there are and where a gene stands.

    BLAS takes other ways for few rows or columns and at the edges: here it always meets panels of one size.
    """
    rows, columns = len(genes), other.shape[1]
    if columns < _LABELS:
        other = np.concatenate([other, np.zeros((len(other), _LABELS - columns))], axis=1)
    out = np.empty((rows, columns))
    for start in range(0, rows, _PANEL):
        panel = genes[start : start + _PANEL]
        if len(panel) < _PANEL:
            panel = np.concatenate([panel, np.zeros((_PANEL - len(panel), genes.shape[1]))])
        out[start : start + _PANEL] = (panel @ other)[: rows - start, :columns]
    return out


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
