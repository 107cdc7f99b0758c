"""Genes to features: the linear map a model was trained with, applied to other gene panels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from stxtools._types import Floats, Floats32, Ints

POOLED = 7  # observations: a spot and the ring around it


def matched(genes: Sequence[str], names: Sequence[str]) -> tuple[Ints, Ints]:
    """Positions in ``genes``, and in ``names``, of those that both have, in the order of ``genes``."""
    place = {str(name): i for i, name in enumerate(names)}
    pairs = [(i, place[gene]) for i, gene in enumerate(genes) if gene in place]
    ours, theirs = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    return ours, theirs


@dataclass(frozen=True)
class GeneProjection:
    """Centred linear projection of log-normalised expression."""

    genes: list[str]
    mean: Floats  # log expression in training, (n_genes,)
    components: Floats  # loadings, (n_genes, n_features)
    target_sum: float = 1e4  # depth of the training data, to which other sections are brought before the logarithm
    variance: Floats | None = None  # of the features in training, (n_features,)
    noise: float = 0.0  # mean variance of a gene, divided by its scale if it has one, that the features leave
    gene_scale: Floats | None = None  # what genes were divided by, which ``components`` include

    def transform(self, logged: sparse.csr_matrix, names: Sequence[str]) -> Floats32:
        """Project log expression (n, len(names)), normalised to ``target_sum``.

        Where genes are missing, the features are the posterior mean given those that are there, under the normal
        model of probabilistic PCA (Tipping and Bishop 1999); the noise is that of a mean over ``POOLED``
        observations, because features are averaged in space before they are used.
        """
        theirs, loadings = self.loadings(names)
        if len(theirs) == logged.shape[1]:  # all are read: put the loadings in their order, no copy of the values
            out = logged @ loadings[np.argsort(theirs)]
        else:
            out = logged[:, theirs] @ loadings
        mean = self.mean[matched(self.genes, names)[0]] @ loadings
        return np.ascontiguousarray(np.asarray(out) - mean, dtype=np.float32)

    def loadings(self, names: Sequence[str]) -> tuple[Ints, Floats]:
        """Return which of ``names`` are read, and what each adds to the features, (n_found, n_features)."""
        ours, theirs = matched(self.genes, names)
        components = self.components[ours]
        if len(ours) == len(self.genes) or self.variance is None:
            return theirs, components
        scaled = components if self.gene_scale is None else components * self.gene_scale[ours, None]
        noise = max(self.noise, 1e-9) / POOLED / np.maximum(self.variance, 1e-12)
        return theirs, np.asarray(np.linalg.solve(scaled.T @ scaled + np.diag(noise), components.T).T)
