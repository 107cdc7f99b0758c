"""Attribution of the ridge that decides on other sections: its logits are sums over genes."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from stxtools.models.ensemble.evidence import RIDGE_SCALE
from stxtools.models.ensemble.gene_classifier import GeneClassifier
from stxtools.models.ensemble.gene_means import GeneSection

Floats = NDArray[np.float64]

_STEPS = 32


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
        from captum.attr import IntegratedGradients

        weight = torch.from_numpy(side)

        def evidence(logits: torch.Tensor) -> torch.Tensor:
            odds = logits[..., group] - torch.logsumexp(logits[..., others], dim=-1)
            return (odds * weight).sum(dim=-1)

        ends = (torch.from_numpy(a)[None] for a in (self.logits, np.zeros_like(self.logits) + self.intercept))
        found = IntegratedGradients(evidence, multiply_by_inputs=False).attribute(*ends, n_steps=_STEPS)
        return np.zeros((len(side), 0)), pd.Series(self._means.parts(self._coef, found[0].numpy()), self._genes)
