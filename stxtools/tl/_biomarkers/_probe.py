"""Attribution without a model: that of a linear probe of the groups."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from stxtools._data.expression import AT_HAND
from stxtools._data.gene_blocks import GeneBlocks
from stxtools._data.representation import (
    GRAM_ROWS,
    N_TOP_GENES,
    axes_of_rows,
    lanczos_pays,
    principal_axes,
    select_genes,
)
from stxtools._validate import Libraries
from stxtools.stats._design import Design
from stxtools.stats._expression import equal_blocks
from stxtools.stats._probe import Moments, contrast_weights, explain_discriminant

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_COMPS = 100  # a biomarker is a small part of the variance: with 20 components it is ranked worse
_FEW = 3  # observations in which a gene must be seen


class LinearProbe:
    """Expression PCs of the tested observations, and each design's attribution on them.

    - ``expression``: What is tested.
    - ``names``: Names of the observations.
    - ``codes``, ``libs``: Group and section of every observation.
    - ``seed``: Seed of the PCA.
    """

    def __init__(
        self, expression: GeneBlocks, names: NDArray[np.str_], codes: NDArray[np.int64], libs: Libraries, seed: int
    ) -> None:
        self._expression, self._libraries, self._codes = expression, libs.codes, codes
        self._genes = _chosen_genes(expression, names, seed)
        if len(self._genes) == 0:
            return
        n_obs = expression.shape[0]
        n_comps = min(int(np.clip(n_obs // 10, 2, _COMPS)), len(self._genes), n_obs - 1)
        mean, self._components = _axes(expression, self._genes, n_comps, seed)
        self._moments = Moments(codes, libs.codes, n_comps)
        start, offset = 0, mean @ self._components
        for rows in _row_blocks(expression, self._genes):
            values = (np.asarray(rows @ self._components) - offset).astype(np.float32)
            self._moments.add(slice(start, start + len(values)), values)
            start += len(values)

    def differences(self, designs: list[Design]) -> list[NDArray[np.float64]]:
        """Mean difference of every gene in each design, free of differences between sections."""
        out = [np.zeros(self._expression.shape[1]) for _ in designs]
        if len(self._genes) == 0:
            return out
        for genes in self._expression.slices:
            block = self._expression.block(genes)
            for design, found in zip(designs, out, strict=True):
                found[genes] = np.asarray(self._weight(design) @ block).ravel()
        return out

    def _weight(self, design: Design) -> NDArray[np.float64]:
        inside, outside = design.sides(self._codes)
        used = (inside | outside) & np.isin(self._libraries, design.libraries)
        weight = np.zeros(len(used))
        weight[used] = contrast_weights(inside[used], self._libraries[used] if design.kind == "within" else None)
        return weight

    def __call__(self, designs: list[Design]) -> list[NDArray[np.float64]]:
        """Return one number per gene for each design; absolute values sum to 1."""
        out = []
        for design, difference in zip(designs, self.differences(designs), strict=True):
            found = np.zeros(self._expression.shape[1])
            if len(self._genes):
                pooled = self._moments.pooled(
                    design.code, design.reference, design.libraries, centred=design.kind == "within"
                )
                found[self._genes] = explain_discriminant(pooled, self._components, difference[self._genes])
            out.append(found)
        return out


def _chosen_genes(expression: GeneBlocks, names: NDArray[np.str_], seed: int) -> NDArray[np.int64]:
    """Genes of the PCA; of a very large matrix the variable ones are chosen from a random part of the observations."""
    read, n_obs = expression.read, expression.shape[0]
    seen = np.flatnonzero(read.survey.seen >= min(_FEW, n_obs))
    if len(seen) <= N_TOP_GENES:
        return seen
    return select_genes(read.sample(names, seed), read.scale)


def _row_blocks(expression: GeneBlocks, genes: NDArray[np.int64]) -> Iterator[sparse.csr_matrix]:
    return equal_blocks((piece for _, piece in expression.rows(genes)), GRAM_ROWS)


def _axes(
    expression: GeneBlocks, genes: NDArray[np.int64], n_comps: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    n_values = int(expression.read.survey.seen[genes].sum())
    shape = (expression.shape[0], len(genes))
    if n_values <= AT_HAND and lanczos_pays(shape, n_values, n_comps):
        matrix = sparse.vstack(list(_row_blocks(expression, genes)), format="csr")
        return principal_axes(sparse.csr_matrix(matrix), n_comps, random_state=seed)
    return axes_of_rows(_row_blocks(expression, genes), shape, n_comps)
