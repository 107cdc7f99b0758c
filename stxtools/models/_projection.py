"""Genes to features: the linear map a model was trained with, applied to other gene panels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse


@dataclass(frozen=True)
class GeneProjection:
    """Centred linear projection of log-normalised expression.

    Attributes
    ----------
    genes
        Gene names, in the order of the rows of ``components``.
    mean
        Mean log expression of the genes in training, (n_genes,).
    components
        Loadings, (n_genes, n_features).
    target_sum
        Depth to which expression was normalised before the logarithm: that of the training data, so that
        a shallower section is brought to the same scale.
    """

    genes: list[str]
    mean: NDArray[np.float64]
    components: NDArray[np.float64]
    target_sum: float = 1e4

    def match(self, names: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Positions of the shared genes in this projection and in ``names``."""
        place = {str(name): i for i, name in enumerate(names)}
        pairs = [(i, place[gene]) for i, gene in enumerate(self.genes) if gene in place]
        ours, theirs = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
        return ours, theirs

    def transform(self, logged: sparse.csr_matrix, names: Sequence[str]) -> NDArray[np.float32]:
        """Project log expression (n, len(names)), normalised to ``target_sum``.

        A missing gene counts as if it stood at its training mean.
        """
        ours, theirs = self.match(names)
        components = self.components[ours]
        out = np.asarray(logged[:, theirs] @ components) - self.mean[ours] @ components
        return np.ascontiguousarray(out, dtype=np.float32)

    def to_file(self) -> tuple[dict[str, Any], dict[str, NDArray[np.float64]]]:
        """Return what a model file keeps: plain values and arrays."""
        arrays = {"projection.mean": self.mean, "projection.components": self.components}
        return {"genes": self.genes, "target_sum": self.target_sum}, arrays

    @classmethod
    def from_file(cls, config: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> GeneProjection | None:
        """Return the projection of a model file, or None if the model reads a stored representation."""
        if config.get("genes") is None:
            return None
        mean, components = arrays["projection.mean"], arrays["projection.components"]
        return cls(list(config["genes"]), mean, components, float(config["target_sum"]))
