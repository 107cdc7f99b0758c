"""Neighbourhood means of genes, each gene standardised within its section: what sections of other donors share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.spatial import cKDTree

FloatArray = NDArray[np.float64]

SIZES = (19, 61)  # nearest observations, itself included
SAMPLE = 8000  # observations in which a section is measured: more do not change a standard deviation
EXPRESSED = 0.02  # mean log expression below which a gene is noise
_CONSTANT = 1e-5  # standard deviation of a gene that does not vary, but for rounding
_CHUNK = 65_536


@dataclass(frozen=True)
class GeneSection:
    """Log-normalised expression of a section.

    - ``logged``: Observations x genes.
    - ``genes``: Names of the genes.
    - ``xy``: Coordinates, (n, 2).
    """

    logged: sparse.csr_matrix
    genes: Sequence[str]
    xy: NDArray[np.float64]

    def taken(self, rows: NDArray[np.int64]) -> GeneSection:
        """Return the section with its observations in another order."""
        return replace(self, logged=self.logged[rows], xy=self.xy[rows])


class GeneMeans:
    """Means over the nearest observations of some genes of a section, standardised within it.

    Nothing of the size observations x genes is made, but for :attr:`sample` of the observations.

    - ``section``: The section.
    - ``genes``: Columns of the genes to read.
    """

    def __init__(self, section: GeneSection, genes: NDArray[np.int64]) -> None:
        self.logged = section.logged[:, genes].astype(np.float32)
        n = len(section.xy)
        size = min(max(SIZES), n)
        tree = cKDTree(section.xy)
        parts = [
            tree.query(section.xy[start : start + _CHUNK], k=size, workers=-1)[1].astype(np.int32)
            for start in range(0, n, _CHUNK)
        ]
        self._near = np.concatenate(parts).reshape(n, size)
        self.sample = np.unique(np.linspace(0, n - 1, min(n, SAMPLE)).astype(np.int64))
        means = [self._mean(self.logged, size, self.sample).toarray() for size in SIZES]
        self.centre = [m.mean(axis=0, dtype=np.float64) for m in means]
        spread = [m.std(axis=0, dtype=np.float64) for m in means]
        self.scale = [np.where(s > _CONSTANT, s, np.inf) for s in spread]  # what is constant says nothing
        self._means = means

    @property
    def n_obs(self) -> int:
        """Number of observations."""
        return len(self._near)

    def standardised(self) -> NDArray[np.float32]:
        """Return the features of the sample: all genes' means at the first size, then at the second, (m, 2 g)."""
        parts = [(m - c) / s for m, c, s in zip(self._means, self.centre, self.scale, strict=True)]
        return np.concatenate(parts, axis=1).astype(np.float32)

    def structure(self) -> FloatArray:
        """Share of each gene's variance that survives averaging, 0 where it is hardly expressed, (g,)."""
        rows = self.logged[self.sample]
        mean = np.asarray(rows.mean(axis=0), dtype=np.float64).ravel()
        variance = np.asarray(rows.multiply(rows).mean(axis=0), dtype=np.float64).ravel() - mean**2
        share = np.square(self._means[0].std(axis=0, dtype=np.float64)) / np.maximum(variance, 1e-9)
        return np.where((mean > EXPRESSED) & (variance > 0), share, 0.0)

    def projected(self, coef: Sequence[FloatArray]) -> FloatArray:
        """Return the products of the standardised means at each size with its ``coef`` (g, k), side by side."""
        out = []
        for size, centre, scale, w in zip(SIZES, self.centre, self.scale, coef, strict=True):
            part = np.asarray(self.logged @ (w / scale[:, None]).astype(np.float32))
            out.append(self._mean(part, size).astype(np.float64) - (centre / scale) @ w)
        return np.concatenate(out, axis=1)

    def components(self, axes: FloatArray) -> FloatArray:
        """Return components at both sizes, standardised, (n, 2 k)."""
        z = self.projected([axes, axes])
        return (z - z.mean(axis=0)) / (z.std(axis=0) + 1e-9)

    def axes(self, n_comps: int) -> FloatArray:
        """Principal axes of the section's own standardised means at the smaller size, (g, k)."""
        z = ((self._means[0] - self.centre[0]) / self.scale[0]).astype(np.float64)
        return leading_axes(z.T @ z / len(z), n_comps)

    def _mean(self, values, size: int, rows: NDArray[np.int64] | None = None):  # type: ignore[no-untyped-def]
        near = self._near[:, :size] if rows is None else self._near[rows, :size]
        m, size = near.shape
        pool = sparse.csr_matrix(
            (np.full(m * size, 1 / size, np.float32), near.ravel(), np.arange(0, m * size + 1, size)),
            shape=(m, self.n_obs),
        )
        return pool @ values


def leading_axes(covariance: FloatArray, n_comps: int) -> FloatArray:
    """Eigenvectors of the largest eigenvalues, signs fixed, (g, k)."""
    axes = np.linalg.eigh(covariance)[1][:, ::-1][:, :n_comps]
    sign = np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    return np.ascontiguousarray(axes * np.where(sign == 0, 1, sign))
