"""Smooth variation of genes, which generalised least squares (Aitken 1936) weighs down.

The covariance of genes over a section is modelled as ``1 / W + c B diag(f ** -1.5) B'``: noise of observations with
weights W, and functions B of the lowest frequencies f. Where ``B' W B`` is the identity, the inverse is
``W - A diag(s / (1 + s)) A'`` with ``A = W B``, ``s = c f ** -1.5``. One strength c serves all genes of a section:
with its own, a gene whose effect is large and smooth would have the effect taken for noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from stxtools._spatial.matrices import row_view
from stxtools._spatial.threads import in_threads
from stxtools._types import Array, Csr, Floats, Floats32, Ints

N_FUNCTIONS = 120
_OBS_PER_FUNCTION = 10
_POWER = 1.5
_STRENGTHS = np.r_[0.0, np.geomspace(0.5, 3e4, 14)]
_ROWS = 16384  # observations at a time
_MOST_THREADS = 4


def chunks(n: int) -> list[slice]:
    """Divide ``n`` observations into chunks whose intermediate results fit into the processor's cache."""
    return [slice(i, i + _ROWS) for i in range(0, n, _ROWS)]


def cross_products(left: Array, right: Array) -> Floats:
    """Return ``left' right`` of columns by observation: products in the precision of ``left``, sums in float64."""
    out = np.zeros((left.shape[1], right.shape[1]))
    for rows in chunks(len(left)):
        out += left[rows].T @ right[rows].astype(left.dtype)
    return out


def row_chunks(matrix: Csr) -> Iterator[tuple[slice, Csr]]:
    """Yield chunks of rows, which share the memory of the matrix."""
    for rows in chunks(matrix.shape[0]):
        yield rows, row_view(matrix, rows)


def sum_chunks(function: Callable[[slice, Csr], Sequence[Array]], matrix: Csr) -> list[Floats]:
    """Return the sums of ``function(rows, part)`` over chunks of rows, in threads: scipy's products use one."""
    out: list[Floats] = []
    for terms in in_threads(lambda part: function(*part), row_chunks(matrix), _MOST_THREADS):
        out = out or [np.zeros(term.shape) for term in terms]
        for total, term in zip(out, terms, strict=True):
            total += term
    return out


def gene_sums(matrix: Csr, values: Array, function: Callable[[Array], Array] = np.asarray) -> Floats:
    """Return ``function(matrix)' values`` (genes x columns of ``values``) by chunks of observations."""

    def products(rows: slice, part: Csr) -> list[Array]:
        part.data = function(part.data)
        return [np.asarray(part.T @ values[rows])]

    return sum_chunks(products, matrix)[0]


def mean_and_variance(matrix: Csr) -> tuple[Floats, Floats]:
    """Return the mean of every gene over the observations, and its variance."""
    n = matrix.shape[0]
    ones = np.ones((n, 1))
    mean = gene_sums(matrix, ones)[:, 0] / n
    return mean, residual_squares(gene_sums(matrix, ones, np.square)[:, 0] / n, mean**2)


@dataclass(frozen=True)
class SmoothBasis:
    """Smooth functions of position, and their frequencies, from 0 for the constant.

    ``values`` (observations x K) are the functions, orthonormal under the ``weight`` of observations, times the weight.
    """

    weight: Floats32
    values: Floats32
    frequency: Floats

    def sums(self, matrix: Csr) -> GeneSums:
        """Return the sums over genes that tests need besides those over labels."""
        smooth = gene_sums(matrix, self.values)
        smooth[:, :1] = gene_sums(matrix, self.values[:, :1].astype(np.float64))  # centres: float32 is too coarse
        return GeneSums(matrix, gene_sums(matrix, self.weight[:, None], np.square)[:, 0], smooth)

    def strengths(self, genes: GeneSums) -> Floats:
        """Return the maximum-likelihood strength c of each gene, NaN where its variance is 0."""
        return self.fit_strengths(genes.smooth[:, 1:], residual_squares(genes.square, genes.smooth[:, 0] ** 2))

    def fit_strengths(self, smooth: Floats, square: Floats, n_covariates: int = 0) -> Floats:
        """Fit strengths (Whittle 1953) to coefficients of smooth functions (genes x K - 1) and sums of squares."""
        smooth = smooth**2
        df = max(len(self.weight) - len(self.frequency) - n_covariates, 1)
        white = residual_squares(square, smooth.sum(axis=1)) / df
        ratio = smooth / np.maximum(white, 1e-300)[:, None]
        spread = 1.0 + _STRENGTHS[:, None] * self.frequency[1:] ** -_POWER
        loss = np.log(spread).sum(axis=1) + np.einsum("gk,ck->gc", ratio, 1.0 / spread)
        return np.where(white > 0, _STRENGTHS[np.argmin(loss, axis=1)], np.nan)

    def metric(self, strengths: Floats) -> Metric:
        """Return the metric that weighs smooth variation down as much as the median of genes needs."""
        known = strengths[~np.isnan(strengths)]
        smooth = (np.median(known) if len(known) else 0.0) * self.frequency[1:] ** -_POWER
        return Metric(self, np.r_[1.0, smooth / (1.0 + smooth)] if smooth.any() else np.ones(1))


@dataclass(frozen=True)
class GeneSums:
    """Genes (observations x genes), their weighted sums of squares, and their products with the smooth functions."""

    matrix: Csr
    square: Floats
    smooth: Floats


@dataclass(frozen=True)
class Metric:
    """Inner products ``x' (W - A diag(shrink) A') y``: W the weights of observations, A (observations x K) smooth.

    The first column of A is the constant, taken out whole: inner products are of centred values. Functions beyond the
    length of ``shrink`` are not weighed down.
    """

    basis: SmoothBasis
    shrink: Floats

    def weighted(self, smooth: Floats) -> Floats:
        """Return the first rows of ``A' x``, weighted."""
        return self.shrink[:, None] * smooth[: len(self.shrink)]

    def squares(self, genes: GeneSums) -> Floats:
        """Return each gene's sum of squares."""
        smooth = np.einsum("gk,k->g", genes.smooth[:, : len(self.shrink)] ** 2, self.shrink)
        return residual_squares(genes.square, smooth)


def residual_squares(squares: Floats, explained: Floats) -> Floats:
    """Return the difference of sums of squares; 0 where it is rounding of float32."""
    residual = squares - explained
    return np.where(residual > 1e-6 * squares, residual, 0.0)


def smooth_basis(xy: Floats, weight: Floats32) -> SmoothBasis:
    """Return cosines on the box of the positions, orthogonalised from low to high frequency; linear in observations."""
    low, span = xy.min(axis=0), np.ptp(xy, axis=0)
    n_functions = min(N_FUNCTIONS, len(xy) // _OBS_PER_FUNCTION)
    longest = float(span.max())
    if n_functions == 0 or longest == 0:
        constant = (weight / np.sqrt(weight.sum(dtype=np.float64)))[:, None].astype(np.float32)
        return SmoothBasis(weight, constant, np.zeros(1))
    side = np.where(span > 0, span, longest)
    orders = [np.arange(N_FUNCTIONS + 1) if s > 0 else np.zeros(1, dtype=np.int64) for s in span]
    waves = np.stack(np.meshgrid(*orders, indexing="ij"), axis=-1).reshape(-1, 2)
    frequency = np.hypot(*(waves * longest / side).T)
    chosen = np.argsort(frequency, kind="stable")[: n_functions + 1]
    waves, frequency = waves[chosen], frequency[chosen]
    orders = [np.arange(most + 1) for most in waves.max(axis=0)]

    def cosines(rows: slice) -> Floats:
        angle = np.pi * (xy[rows] - low) / side
        x, y = (np.cos(angle[:, axis, None] * orders[axis])[:, waves[:, axis]] for axis in range(2))
        return np.asarray(x * y)

    gram = np.zeros((len(chosen), len(chosen)))
    for rows in chunks(len(xy)):
        values = cosines(rows)
        gram += values.T @ (weight[rows, None] * values)
    kept, triangle = _gram_schmidt(gram)
    basis = np.empty((len(xy), len(kept)), dtype=np.float32)
    for rows in chunks(len(xy)):
        basis[rows] = weight[rows, None] * (cosines(rows)[:, kept] @ triangle)
    return SmoothBasis(weight, basis, frequency[kept])


def _gram_schmidt(gram: Floats) -> tuple[Ints, Floats]:
    """Return the functions that are independent of earlier ones, and the triangle that orthonormalises them."""
    coefficients: Floats = np.zeros((0, len(gram)))
    kept: list[int] = []
    for k in range(len(gram)):
        row = np.eye(len(gram))[k]
        for _ in range(2):  # once more against rounding
            row = row - (coefficients @ gram @ row) @ coefficients
        square = float(row @ gram @ row)
        if square > 1e-6 * gram[k, k] > 0:
            kept.append(k)
            coefficients = np.concatenate([coefficients, row[None] / np.sqrt(square)])
    return np.array(kept, dtype=np.int64), coefficients[:, kept].T
