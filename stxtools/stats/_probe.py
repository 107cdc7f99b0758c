"""Exact integrated gradients of a linear probe of a region, per gene."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stxtools._types import Array, Bools, Floats, Ints


def contrast_weights(label: Bools, blocks: Ints | None = None) -> Floats:
    """Weights of observations whose weighted sum is a mean difference without differences between blocks (sections)."""
    weight = np.where(label, 1.0 / max(int(label.sum()), 1), -1.0 / max(int((~label).sum()), 1))
    if blocks is None:
        return weight
    codes = np.unique(blocks, return_inverse=True)[1]
    return weight - (np.bincount(codes, weight) / np.bincount(codes))[codes]


def explain_discriminant(pooled: Floats, components: Floats, difference: Floats, shrinkage: float = 0.1) -> Floats:
    """Integrated gradients (Sundararajan et al. 2017) of a discriminant on principal components, per gene.

    For a linear score ``w . x`` they are ``w_j (mean_group,j - mean_reference,j)``; absolute values sum to 1, or are 0.
    ``pooled`` is the covariance of the components within the two classes; of it ``shrinkage`` is replaced by a multiple
    of the identity.
    """
    ridge = float(np.trace(pooled)) / len(pooled)
    if ridge <= 0:
        return np.zeros(len(components))
    weight = np.linalg.solve(
        (1 - shrinkage) * pooled + shrinkage * ridge * np.eye(len(pooled)), components.T @ difference
    )
    return normed((components @ weight) * difference)


def normed(values: Floats) -> Floats:
    """Divide values by the sum of their absolute values; zeros stay."""
    norm = float(np.abs(values).sum())
    return values / norm if norm > 0 else np.zeros_like(values)


class ComponentMoments:
    """Sums and products of components by group (``codes``, -1: none) and section; they give any pooled covariance."""

    def __init__(self, codes: Ints, blocks: Ints, n_comps: int) -> None:
        used = codes >= 0
        self._cells, cell = np.unique(np.stack([blocks[used], codes[used]]), axis=1, return_inverse=True)
        self._cell = np.full(len(codes), -1)
        self._cell[used] = cell.reshape(-1)
        n = self._cells.shape[1]
        self._count = np.bincount(self._cell[used], minlength=n).astype(np.float64)
        self._sum, self._products = np.zeros((n, n_comps)), np.zeros((n, n_comps, n_comps))

    def add(self, rows: slice, values: Array) -> None:
        """Read the components of consecutive observations."""
        cell, x = self._cell[rows], np.asarray(values, dtype=np.float64)
        for i in np.unique(cell[cell >= 0]):
            part = x[cell == i]
            self._sum[i] += part.sum(axis=0)
            self._products[i] += part.T @ part

    def pooled(self, group: int, reference: int | None, blocks: Sequence[int], *, centred: bool) -> Floats:
        """Pooled covariance within group and reference (None: the rest); ``centred``: less the sections' means."""
        block, code = self._cells
        inside, outside = code == group, (code != group) if reference is None else (code == reference)
        among = np.isin(block, list(blocks))
        sides, used = (inside & among, outside & among), (inside | outside) & among
        shift = np.zeros_like(self._sum)
        for b in np.unique(block[used]) if centred else ():
            here = used & (block == b)
            shift[here] = self._sum[here].sum(axis=0) / self._count[here].sum()
        n, total = self._count[:, None], self._sum - self._count[:, None] * shift
        cross = self._sum[:, :, None] * shift[:, None, :]
        products = self._products - cross - cross.transpose(0, 2, 1) + (n * shift)[:, :, None] * shift[:, None, :]
        scatter = products[used].sum(axis=0)
        for side in sides:
            mean = total[side].sum(axis=0)
            scatter -= np.outer(mean, mean) / max(self._count[side].sum(), 1.0)
        return scatter / max(self._count[used].sum() - 2, 1)
