"""Attribution without a model: exact integrated gradients of a linear probe of the groups, by gene."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import sparse

from stxtools._data.expression import GeneBlocks
from stxtools._data.representation import (
    BLOCK,
    N_TOP_GENES,
    axes_of_rows,
    lanczos_pays,
    principal_axes,
    select_genes,
)
from stxtools._spatial.matrices import equal_blocks
from stxtools._types import Array, Csr, Floats, Ints
from stxtools.stats._design import Design

_COMPS = 100  # a biomarker is a small part of the variance: with 20 components it is ranked worse
_MOST = 3_000_000  # stored values above which second moments take less time than Lanczos steps
_FEW = 3  # observations in which a gene must be seen


def probe_attributions(
    expression: GeneBlocks, codes: Ints, library: Ints, designs: list[Design], seed: int
) -> list[Floats]:
    """Attribution on expression PCs, one number per gene for each design; absolute values sum to 1."""
    out = [np.zeros(expression.shape[1]) for _ in designs]
    genes, n_obs = _select_genes(expression, seed), expression.shape[0]
    if len(genes) == 0:
        return out
    n_comps = min(int(np.clip(n_obs // 10, 2, _COMPS)), len(genes), n_obs - 1)
    mean, components = _principal_axes(expression, genes, n_comps, seed)
    moments = ComponentMoments(codes, library, n_comps)
    start, offset = 0, mean @ components
    for rows in _row_blocks(expression, genes):
        moments.add(slice(start, start + rows.shape[0]), (np.asarray(rows @ components) - offset).astype(np.float32))
        start += rows.shape[0]
    weights = np.stack([contrast_weights(design, codes, library) for design in designs])
    differences = np.concatenate([np.asarray(weights @ expression.block(s)) for s in expression.slices], axis=1)
    for attribution, design, difference in zip(out, designs, differences, strict=True):
        attribution[genes] = explain_discriminant(moments.pooled(design), components, difference[genes])
    return out


def _select_genes(expression: GeneBlocks, seed: int) -> Ints:
    """Genes of the PCA; of a very large matrix the variable ones are chosen from a random part of the observations."""
    read = expression.read
    seen = np.flatnonzero(read.summary.n_cells >= min(_FEW, expression.shape[0]))
    return seen if len(seen) <= N_TOP_GENES else select_genes(read.sample(seed), read.scale)


def _principal_axes(expression: GeneBlocks, genes: Ints, n_comps: int, seed: int) -> tuple[Floats, Floats]:
    n_values = int(expression.read.summary.n_cells[genes].sum())
    shape, blocks = (expression.shape[0], len(genes)), _row_blocks(expression, genes)
    if n_values <= _MOST and lanczos_pays(shape, n_values, n_comps):
        matrix = sparse.vstack(list(blocks), format="csr")
        return principal_axes(sparse.csr_matrix(matrix), n_comps, random_state=seed)
    return axes_of_rows(blocks, shape, n_comps)


def _row_blocks(expression: GeneBlocks, genes: Ints) -> Iterator[Csr]:
    return equal_blocks((piece for _, piece in expression.rows(genes)), BLOCK)


class ComponentMoments:
    """Sums and products of components by group (``codes``, -1: none) and library; they give any pooled covariance."""

    def __init__(self, codes: Ints, library: Ints, n_comps: int) -> None:
        used = codes >= 0
        self._cells, cell = np.unique(np.stack([library[used], codes[used]]), axis=1, return_inverse=True)
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

    def pooled(self, design: Design) -> Floats:
        """Pooled covariance within both sides of a design; within libraries, less the libraries' means."""
        library, code = self._cells
        sides = [side & np.isin(library, design.libraries) for side in design.sides(code)]
        used = sides[0] | sides[1]
        shift = np.zeros_like(self._sum)
        for i in np.unique(library[used]) if design.kind == "within" else ():
            cells = used & (library == i)
            shift[cells] = self._sum[cells].sum(axis=0) / self._count[cells].sum()
        n, total = self._count[:, None], self._sum - self._count[:, None] * shift
        cross = self._sum[:, :, None] * shift[:, None, :]
        products = self._products - cross - cross.transpose(0, 2, 1) + (n * shift)[:, :, None] * shift[:, None, :]
        scatter = products[used].sum(axis=0)
        for side in sides:
            mean = total[side].sum(axis=0)
            scatter -= np.outer(mean, mean) / max(self._count[side].sum(), 1.0)
        return scatter / max(self._count[used].sum() - 2, 1)


def contrast_weights(design: Design, codes: Ints, library: Ints) -> Floats:
    """Weights of observations whose weighted sum is the mean difference; within libraries, free of theirs."""
    inside, outside = (side & np.isin(library, design.libraries) for side in design.sides(codes))
    weight = inside / max(inside.sum(), 1) - outside / max(outside.sum(), 1)
    if design.kind == "within":
        used = inside | outside
        mean = np.bincount(library, weight) / np.maximum(np.bincount(library, used), 1)
        weight[used] -= mean[library[used]]
    return weight


def explain_discriminant(pooled: Floats, components: Floats, difference: Floats, shrinkage: float = 0.1) -> Floats:
    """Integrated gradients (Sundararajan et al. 2017) of a discriminant on principal components, per gene.

    For a linear score ``w . x`` they are ``w_j (mean_group,j - mean_reference,j)``; absolute values sum to 1, or are 0.
    ``pooled`` is the covariance of the components within the two classes; ``shrinkage`` of it is replaced by a multiple
    of the identity.
    """
    ridge = float(np.trace(pooled)) / len(pooled)
    if ridge <= 0:
        return np.zeros(len(components))
    shrunken = (1 - shrinkage) * pooled + shrinkage * ridge * np.eye(len(pooled))
    weight = np.linalg.solve(shrunken, components.T @ difference)
    return normalized((components @ weight) * difference)


def normalized(values: Floats) -> Floats:
    """Divide by the sum of absolute values; zeros stay."""
    norm = float(np.abs(values).sum())
    return values / norm if norm > 0 else np.zeros_like(values)
