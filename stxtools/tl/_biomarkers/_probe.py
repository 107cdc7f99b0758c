"""Attribution without a model: that of a linear probe of the groups."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
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
from stxtools._validate import Libraries
from stxtools.stats._design import Design
from stxtools.stats._probe import ComponentMoments, contrast_weights, explain_discriminant

_COMPS = 100  # a biomarker is a small part of the variance: with 20 components it is ranked worse
_MOST = 3_000_000  # stored values above which second moments take less time than Lanczos steps
_FEW = 3  # observations in which a gene must be seen


def probe_attributions(
    expression: GeneBlocks, codes: NDArray[np.int64], libs: Libraries, designs: list[Design], seed: int
) -> list[NDArray[np.float64]]:
    """Attribution on expression PCs, one number per gene for each design; absolute values sum to 1."""
    out = [np.zeros(expression.shape[1]) for _ in designs]
    genes, n_obs = _chosen_genes(expression, seed), expression.shape[0]
    if len(genes) == 0:
        return out
    n_comps = min(int(np.clip(n_obs // 10, 2, _COMPS)), len(genes), n_obs - 1)
    mean, components = _axes(expression, genes, n_comps, seed)
    moments = ComponentMoments(codes, libs.codes, n_comps)
    start, offset = 0, mean @ components
    for rows in _row_blocks(expression, genes):
        moments.add(slice(start, start + rows.shape[0]), (np.asarray(rows @ components) - offset).astype(np.float32))
        start += rows.shape[0]
    weights = np.stack([_weights(design, codes, libs.codes) for design in designs])
    differences = np.concatenate([np.asarray(weights @ expression.block(s)) for s in expression.slices], axis=1)
    for found, design, difference in zip(out, designs, differences, strict=True):
        pooled = moments.pooled(design.code, design.reference, design.libraries, centred=design.kind == "within")
        found[genes] = explain_discriminant(pooled, components, difference[genes])
    return out


def _weights(design: Design, codes: NDArray[np.int64], library: NDArray[np.int64]) -> NDArray[np.float64]:
    """Weights of observations that give mean differences free of differences between sections."""
    inside, outside = design.sides(codes)
    used = (inside | outside) & np.isin(library, design.libraries)
    weight = np.zeros(len(used))
    weight[used] = contrast_weights(inside[used], library[used] if design.kind == "within" else None)
    return weight


def _chosen_genes(expression: GeneBlocks, seed: int) -> NDArray[np.int64]:
    """Genes of the PCA; of a very large matrix the variable ones are chosen from a random part of the observations."""
    read, n_obs = expression.read, expression.shape[0]
    seen = np.flatnonzero(read.survey.seen >= min(_FEW, n_obs))
    if len(seen) <= N_TOP_GENES:
        return seen
    return select_genes(read.sample(seed), read.scale)


def _row_blocks(expression: GeneBlocks, genes: NDArray[np.int64]) -> Iterator[sparse.csr_matrix]:
    return equal_blocks((piece for _, piece in expression.rows(genes)), BLOCK)


def _axes(
    expression: GeneBlocks, genes: NDArray[np.int64], n_comps: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    n_values = int(expression.read.survey.seen[genes].sum())
    shape, blocks = (expression.shape[0], len(genes)), _row_blocks(expression, genes)
    if n_values <= _MOST and lanczos_pays(shape, n_values, n_comps):
        matrix = sparse.vstack(list(blocks), format="csr")
        return principal_axes(sparse.csr_matrix(matrix), n_comps, random_state=seed)
    return axes_of_rows(blocks, shape, n_comps)
