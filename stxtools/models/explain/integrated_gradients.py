"""Integrated gradients (Sundararajan et al. 2017) of the evidence for a class, by a U-Net and by the ridge of genes."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
import torch
from scipy.special import softmax

from stxtools._types import Floats
from stxtools.models._section import Section
from stxtools.models.ensemble.adaptation import RIDGE_SCALE
from stxtools.models.ensemble.gene_classifier import GeneClassifier
from stxtools.models.ensemble.gene_means import GeneSection
from stxtools.models.segmenter.model import Segmenter

_POINTS = 16  # Gauss-Legendre points on the path; genes then sum to within 1 % of the logits' difference
_WINDOW = 256  # pixels; a longer raster is explained window by window


class SegmenterAttribution:
    """A Segmenter on one section: the evidence for a class, and its gradient on the path from the mean tissue."""

    def __init__(self, model: Segmenter, section: Section) -> None:
        self.net, self.scale, self.section = model.fitted_net().eval(), model.scaling.scale, section

    def parts(self, group: int, others: list[int], side: Floats) -> tuple[Floats, pd.Series]:
        """Return the gradient with respect to every observation's features, (n, C); no genes are read beside them."""
        from captum.attr import IntegratedGradients

        section = self.section
        z = (section.features - section.features.mean(axis=0)) / self.scale
        x, occupied = torch.from_numpy(section.to_raster(z)), torch.from_numpy(section.occupied())
        count = np.bincount(section.flat_pixels, minlength=section.shape[0] * section.shape[1])
        at_pixel = np.bincount(section.flat_pixels, side, minlength=len(count)).reshape(section.shape)
        weight = torch.from_numpy(at_pixel.astype(np.float32))
        gradient = torch.zeros_like(x)
        windows = ([slice(start, start + _WINDOW) for start in range(0, size, _WINDOW)] for size in section.shape)
        for rows, columns in product(*windows):
            here = weight[rows, columns]
            if not bool((here != 0).any()):
                continue
            known = occupied[None, :, rows, columns]

            def evidence(values: torch.Tensor, known: torch.Tensor = known, here: torch.Tensor = here) -> torch.Tensor:
                logits, _ = self.net(values, known.expand(len(values), -1, -1, -1))
                odds = logits[:, group] - torch.logsumexp(logits[:, others], dim=1)
                return (odds * here).sum(dim=(1, 2))

            explainer = IntegratedGradients(evidence, multiply_by_inputs=False)
            found = explainer.attribute(x[None, :, rows, columns], n_steps=_POINTS, internal_batch_size=1)
            gradient[:, rows, columns] = found[0].detach().float()
        share = gradient.flatten(1).numpy().T / np.maximum(count, 1)[:, None]
        return share[section.flat_pixels].astype(np.float64) / self.scale, pd.Series(dtype=np.float64)


class RidgeAttribution:
    """The ridge on one section: ``logits`` (n, K), which are ``intercept`` (K,) at the section's mean expression.

    It decides most where a model is applied. Networks beside it blur which genes count.
    """

    def __init__(self, model: GeneClassifier, section: GeneSection) -> None:
        self._means, members, ours = model.solve_for(section)
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
