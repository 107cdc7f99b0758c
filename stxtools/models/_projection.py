"""Genes to features: the linear map a model was trained with, applied to other gene panels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from stxtools._types import Floats, Floats32, Ints, Reals

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
        ours, theirs = matched(self.genes, names)
        if len(theirs) == logged.shape[1]:  # all are read: put the loadings in their order, no copy of the values
            out: Reals = np.asarray(logged @ self.components[ours[np.argsort(theirs)]])
        else:
            out = np.asarray(logged[:, theirs] @ self.components[ours])
        out = out - self.mean[ours] @ self.components[ours]
        precision = self._precision(ours)
        if precision is not None:
            out = np.linalg.solve(precision, out.T).T
        return np.ascontiguousarray(out, dtype=np.float32)

    def loadings(self, names: Sequence[str]) -> tuple[Ints, Floats]:
        """Return which of ``names`` are read, and what each adds to the features, (n_found, n_features)."""
        ours, theirs = matched(self.genes, names)
        precision = self._precision(ours)
        components = self.components[ours]
        return theirs, components if precision is None else np.asarray(np.linalg.solve(precision, components.T).T)

    def _precision(self, ours: Ints) -> Floats | None:
        """Precision of the posterior where genes are missing."""
        if len(ours) == len(self.genes) or self.variance is None:
            return None
        components = self.components[ours]
        scaled = components if self.gene_scale is None else components * self.gene_scale[ours, None]
        return scaled.T @ scaled + np.diag(max(self.noise, 1e-9) / POOLED / np.maximum(self.variance, 1e-12))
