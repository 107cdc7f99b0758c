"""From gradients with respect to features to genes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from stxtools._data.chunks import LogExpression

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from stxtools.models import GeneProjection


def carried_to_genes(
    adata: AnnData,
    layer: str | None,
    projection: GeneProjection,
    gradient: NDArray[np.float64],
    parts: Sequence[NDArray[np.int64]],
) -> NDArray[np.float64]:
    """Return genes' parts of what features do: each gene's difference from its section's mean, times the gradient.

    Genes make features linearly, so that the parts follow exactly. Expression is read by chunks of rows.
    """
    logged = LogExpression(adata, layer, target_sum=projection.target_sum)
    centred = np.array(gradient)
    for rows in parts:  # (y - mean)' g = y' (g - mean of g)
        centred[rows] -= gradient[rows].mean(axis=0)
    theirs, loadings = projection.loadings([str(name) for name in adata.var_names])
    out = np.zeros(adata.n_vars)
    out[theirs] = (logged.weighted_sums(centred)[theirs] * loadings).sum(axis=1)
    return out
