"""Covariates of a test: columns, or the section's leading expression components without the tested gene."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, sparse
from scipy.sparse.linalg import eigsh

from stxtools._spatial.kernels import add_products, label_sums, symmetric
from stxtools._types import Array, Csr, Floats, Ints, Reals

from ._null_model import PackedLabels, n_words
from ._smooth import GeneSums, Metric, cross_products, row_chunks, sum_chunks

N_COMPS = 20
_OBS_PER_COMPONENT = 50
MAX_GENES = 2000
_BLOCK = 4096  # observations whose products are summed at a time
_PANEL, _LABELS = 128, 32  # genes and labels of one matrix product


@dataclass(frozen=True)
class Covariates:
    """Covariates of effects: whether the section's composition, and columns (observations x covariates)."""

    composition: bool = False
    columns: Floats | None = None

    def take(self, rows: Ints) -> Covariates:
        """Return the covariates of the observations ``rows``."""
        return self if self.columns is None else replace(self, columns=self.columns[rows])


def n_components(n_obs: int) -> int:
    """Return the number of components that stand for the composition; small sections have fewer."""
    return int(np.clip(n_obs // _OBS_PER_COMPONENT, 2, N_COMPS))


def rescale(matrix: Csr, factor: Floats) -> Csr:
    """Multiply log expression of every observation by a factor on the linear scale."""
    data = np.empty(matrix.nnz, dtype=np.float32)
    done = 0
    for rows, part in row_chunks(matrix):
        linear = np.expm1(part.data.astype(np.float64))
        data[done : done + part.nnz] = np.log1p(linear * np.repeat(factor[rows], np.diff(part.indptr)))
        done += part.nnz
    return sparse.csr_matrix((data, matrix.indices, matrix.indptr), shape=matrix.shape)


class Depths:
    """Depth of observations with all genes and without some, accumulated over chunks of rows."""

    def __init__(self, n_genes: int, without: Ints) -> None:
        self._counted = np.ones((n_genes, 2))
        self._counted[without, 1] = 0.0
        self._lowest, self._depths = np.inf, [np.zeros((0, 2))]

    def add(self, logged: Csr) -> Depths:
        """Add the next observations."""
        self._lowest = min(self._lowest, float(logged.data.min(initial=np.inf)))
        for _, part in row_chunks(logged):
            part.data = np.expm1(part.data.astype(np.float64))
            self._depths.append(np.asarray(part @ self._counted))
        return self

    def factor(self) -> Floats | None:
        """Return the factor of every observation, None where expression was not normalised by depth."""
        depth, kept = np.concatenate(self._depths).T
        positive = depth[depth > 0]
        if len(positive) == 0 or self._lowest < 0 or np.ptp(positive) > 1e-2 * positive.mean():
            return None
        target = float(np.median(kept[kept > 0])) if (kept > 0).any() else 1.0
        return np.divide(target, kept, out=np.zeros_like(kept), where=kept > 0)


@dataclass(frozen=True)
class Nuisance:
    """Centred covariates of a section (observations x q), and each gene's loading on them (genes x q, or zero)."""

    scores: Floats
    loadings: Floats

    @classmethod
    def empty(cls, n_obs: int, n_genes: int) -> Nuisance:
        """Return no covariates."""
        return cls(np.zeros((n_obs, 0)), np.zeros((n_genes, 0)))

    def with_columns(self, columns: Floats) -> Nuisance:
        """Add columns, orthogonalised, without constant ones; loadings are 0, as they may contain the tested gene."""
        centred = columns - columns.mean(axis=0)
        scale = centred.std(axis=0)
        varying = centred[:, scale > 1e-12] / scale[scale > 1e-12]
        if not varying.shape[1]:
            return self
        u, s, _ = np.linalg.svd(varying, full_matrices=False)
        u = u[:, s > 1e-8 * s[0]] * np.sqrt(len(varying))
        zeros = np.zeros((len(self.loadings), u.shape[1]))
        return Nuisance(np.concatenate([self.scores, u], axis=1), np.concatenate([self.loadings, zeros], axis=1))


ReadRows = Callable[[Ints, int], Iterator[Csr]]  # of some genes, by blocks of a size


class ExpressionSpace:
    """Second moments of a section's most variable genes, from which components without some genes follow cheaply."""

    def __init__(self, read: ReadRows, n_obs: int, mean: Floats, variance: Floats, max_genes: int = MAX_GENES) -> None:
        self._read, self._n_obs, self._n_genes = read, n_obs, len(mean)
        top = np.argsort(-variance, kind="stable")[:max_genes]
        self._genes = np.sort(top[variance[top] > 0])
        products = np.zeros((len(self._genes), len(self._genes)))
        for block in read(self._genes, _BLOCK):
            add_products(block, products)
        mean = mean[self._genes]
        self._covariance = symmetric(products) / self._n_obs - np.outer(mean, mean)

    def components(
        self, n_comps: int, without: Ints | None = None, read: ReadRows | None = None, order: Ints | None = None
    ) -> Nuisance:
        """Return the leading components of genes not in ``without``; ``order``: row in the scores of each row read."""
        kept = np.flatnonzero(~np.isin(self._genes, () if without is None else without))
        n_comps = min(n_comps, len(kept) - 1, self._n_obs - 3)
        if n_comps < 1:
            return Nuisance.empty(self._n_obs, self._n_genes)
        covariance, n = self._covariance[np.ix_(kept, kept)], len(kept)
        if n <= max(200, 4 * n_comps):
            vectors = linalg.eigh(covariance, subset_by_index=[n - n_comps, n - 1])[1]
        else:
            vectors = eigsh(covariance, k=n_comps, which="LA", v0=np.ones(n), tol=1e-4)[1]
        loadings = np.zeros((self._n_genes, n_comps))
        loadings[self._genes[kept]] = vectors[:, ::-1]
        loadings_read, scores, stop = loadings[self._genes], np.empty((self._n_obs, n_comps)), 0
        for block in (read or self._read)(self._genes, _BLOCK):
            rows = slice(stop, stop + block.shape[0])
            scores[rows if order is None else order[rows]] = block @ loadings_read
            stop = rows.stop
        scores -= scores.mean(axis=0)
        return Nuisance(scores, loadings)


class Adjustment:
    """Covariates of a test in a metric."""

    def __init__(self, nuisance: Nuisance, metric: Metric) -> None:
        self.metric, self.scores, self.loadings = metric, nuisance.scores, nuisance.loadings
        self.n_covariates = n = self.scores.shape[1]
        weight = metric.basis.weight[:, None]
        self.smooth = cross_products(metric.basis.values, self.scores)
        gram = self.scores.T @ (weight * self.scores) - self._smooth_part(self.smooth)
        self.inverse = np.linalg.inv(gram + 1e-6 * max(float(np.trace(gram)) / max(n, 1), 1e-12) * np.eye(n))

    def _smooth_part(self, smooth: Floats) -> Floats:
        return self.smooth[: len(self.metric.shrink)].T @ self.metric.weighted(smooth)

    def labels(self, packed: PackedLabels, n_labels: int) -> LabelSums:
        """Return the sums over the first ``n_labels`` labels that correlations need."""
        basis = self.metric.basis
        smooth = packed.smooth(basis, n_labels)
        products = packed.sums(self.scores, n_labels, basis.weight) - self._smooth_part(smooth)
        explained = self.inverse @ products
        root, share = np.sqrt(basis.weight.sum(dtype=np.float64)), packed.share
        square = (1 - 2 * share) * root * smooth[0] + share * (1 - share) * root**2
        weighted = self.metric.weighted(smooth)
        residual = square - (weighted * smooth[: len(weighted)]).sum(axis=0) - (explained * products).sum(axis=0)
        return LabelSums(packed.words[:, : n_words(n_labels)], share, weighted, explained, square, residual)


@dataclass(frozen=True)
class LabelSums:
    """Sums over labels, which are bits (observations x words) less the ``share`` of ones."""

    words: NDArray[np.uint64]
    share: float
    smooth: Floats  # products with the smooth functions, weighted by the metric
    explained: Floats  # coefficients of the covariates
    square: Floats  # sums of squares
    residual: Floats  # those that smooth functions and covariates leave


class PartialCorrelation:
    """Partial correlation of every gene with labels, given covariates without the gene's own part.

    With leading components Z = Y V of centred expression Y, gene y is tested given ``Z - y v'``: the components of all
    other genes. Their Gram matrix is that of Z with a change of rank two, so that products with Z give the result
    (Woodbury's identity). Inner products are those of a metric.

    In the code: ``vv``, ``s`` and ``k`` are the entries of the 2 x 2 matrix of that change, ``det`` its determinant;
    ``cross`` are the products of y and Z, ``v`` (in a call) the coefficients of a label on Z along v, and ``d`` the
    product of y and the label that Z leaves.
    """

    def __init__(self, genes: GeneSums, block: slice, adjustment: Adjustment, labels: LabelSums) -> None:
        self._genes, self._adjustment, self._labels = genes, adjustment, labels
        self._v = adjustment.loadings[block]
        self.n_covariates = adjustment.n_covariates
        weight, scores = adjustment.metric.basis.weight, adjustment.scores

        def products(rows: slice, part: Csr) -> tuple[Array, ...]:
            by_gene, words = part.tocsc(), np.ascontiguousarray(labels.words[rows])
            sums = label_sums(by_gene.indptr, by_gene.indices, by_gene.data, weight[rows], words, labels.share)
            return sums, part.T @ (weight[rows, None] * scores[rows])

        self._sums, cross = sum_chunks(products, genes.matrix)
        smooth = genes.smooth[:, : len(labels.smooth)]
        self._cross = cross = cross - panel_product(smooth, adjustment.metric.weighted(adjustment.smooth))
        self._sums -= panel_product(smooth, labels.smooth) + panel_product(cross, labels.explained)
        total, coefficients = adjustment.metric.squares(genes), panel_product(cross, adjustment.inverse)
        self._vv = np.einsum("gi,gi->g", panel_product(self._v, adjustment.inverse), self._v)
        self._s = np.einsum("gi,gi->g", coefficients, self._v) - 1.0
        self._k = np.einsum("gi,gi->g", coefficients, cross) - total
        self._det = self._vv * self._k - self._s**2
        self.residual = self._k / self._det
        self.known = (total > 0) & (self.residual > 1e-4 * total)

    def strengths(self) -> Floats:
        """Return the maximum-likelihood strength of each gene's smooth variation given the covariates."""
        k, s, det = (x[:, None] for x in (self._k, self._s, self._det))
        coefficients = panel_product(k * self._v - s * self._cross, self._adjustment.inverse)
        smooth = s * self._genes.smooth[:, 1:] + panel_product(coefficients, self._adjustment.smooth[1:].T)
        strengths = self._adjustment.metric.basis.fit_strengths(smooth / det, self.residual, self.n_covariates)
        return np.where(self.known, strengths, np.nan)

    def __call__(self, columns: slice = slice(None)) -> tuple[Floats, Floats]:
        """Return correlations with the labels ``columns``, and their residual sums of squares (both genes x labels)."""
        v, d = panel_product(self._v, self._labels.explained[:, columns]), self._sums[:, columns]
        k, s, vv, det = (x[:, None] for x in (self._k, self._s, self._vv, self._det))
        label_ss = self._labels.residual[columns] + (k * v**2 + 2.0 * s * v * d + vv * d**2) / det
        label_ss = np.maximum(label_ss, 1e-9 * self._labels.square[columns])
        residual = np.where(self.known, self.residual, 1.0)[:, None]
        r = np.where(self.known[:, None], (k * v + s * d) / det / np.sqrt(label_ss * residual), 0.0)
        return np.clip(r, -1.0, 1.0), label_ss


def panel_product(genes: Reals, other: Reals) -> Floats:
    """Matrix product whose rows are equal to the bit for any number and order of genes: all panels have one size."""
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
