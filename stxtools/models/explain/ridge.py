"""Attribution of the ridge that decides on other sections: its logits are sums over genes."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import softmax

from stxtools.models.ensemble.evidence import RIDGE_SCALE
from stxtools.models.ensemble.gene_classifier import GeneClassifier
from stxtools.models.ensemble.gene_means import GeneSection

Floats = NDArray[np.float64]

_POINTS = 16  # of the path from the mean expression (Gauss-Legendre)


class RidgeEvidence:
    """The ridge on one section: ``logits`` (n, K), which are ``intercept`` (K,) at the section's mean expression.

    It decides most where a model is applied. Networks beside it blur which genes count.
    """

    def __init__(self, model: GeneClassifier, section: GeneSection) -> None:
        self._means, members, ours = model.solved(section)
        self._genes = [model.moments.genes[i] for i in ours]
        scale = model.factor * RIDGE_SCALE
        self._coef, self.intercept = [scale * w for w in members.ridge], scale * members.ridge_intercept
        self.logits = self.intercept + np.sum(self._means.projected(self._coef), axis=0)

    def parts(self, group: int, others: list[int], side: Floats) -> tuple[Floats, pd.Series]:
        """Return no gradient with respect to features, and what each gene adds to the log odds of ``group``."""
        gradient = np.zeros_like(self.logits)
        gradient[:, group] = 1
        for at, weight in zip(*np.polynomial.legendre.leggauss(_POINTS), strict=True):
            logits = self.intercept + (at + 1) / 2 * (self.logits - self.intercept)
            gradient[:, others] -= weight / 2 * softmax(logits[:, others], axis=1)
        parts = self._means.parts(self._coef, gradient * side[:, None])
        return np.zeros((len(side), 0)), pd.Series(parts, self._genes)
