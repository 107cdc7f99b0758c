"""Linear projection of genes to features, applied to other gene panels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from stxtools._types import Floats, Floats32, Ints

_POOLED = 7  # observations: a spot and its neighbours


def matched(genes: Sequence[str], names: Sequence[str]) -> tuple[Ints, Ints]:
    """Return the positions in ``genes``, and in ``names``, of those in both, in the order of ``genes``."""
    position = {str(name): i for i, name in enumerate(names)}
    pairs = [(i, position[gene]) for i, gene in enumerate(genes) if gene in position]
    ours, theirs = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    return ours, theirs


@dataclass(frozen=True)
class GeneProjection:
    """Centred linear projection of log-normalised expression."""

    genes: list[str]
    mean: Floats  # log expression in training, (n_genes,)
    components: Floats  # loadings, (n_genes, n_features)
    target_sum: float = 1e4  # to which counts are normalised before the logarithm
    variance: Floats | None = None  # of the features in training, (n_features,)
    noise: float = 0.0  # mean residual variance of a (scaled) gene
    gene_scale: Floats | None = None  # by which genes were divided; included in ``components``

    def transform(self, logged: sparse.csr_matrix, names: Sequence[str]) -> Floats32:
        """Project log expression (n, len(names)), normalised to ``target_sum``.

        If genes are missing, the features are the posterior mean of probabilistic PCA (Tipping and Bishop 1999) given
        the others. The noise is that of a mean over some observations, since features are later averaged in space.
        """
        theirs, loadings = self.loadings(names)
        if len(theirs) == logged.shape[1]:  # all are read: reorder the loadings instead of copying the values
            out = logged @ loadings[np.argsort(theirs)]
        else:
            out = logged[:, theirs] @ loadings
        mean = self.mean[matched(self.genes, names)[0]] @ loadings
        return np.ascontiguousarray(np.asarray(out) - mean, dtype=np.float32)

    def loadings(self, names: Sequence[str]) -> tuple[Ints, Floats]:
        """Return the positions of the genes that are read in ``names``, and their loadings, (n_read, n_features)."""
        ours, theirs = matched(self.genes, names)
        components = self.components[ours]
        if len(ours) == len(self.genes) or self.variance is None:
            return theirs, components
        scaled = components if self.gene_scale is None else components * self.gene_scale[ours, None]
        noise = max(self.noise, 1e-9) / _POOLED / np.maximum(self.variance, 1e-12)
        return theirs, np.asarray(np.linalg.solve(scaled.T @ scaled + np.diag(noise), components.T).T)
