"""Integrated gradients (Sundararajan et al. 2017) of the log odds of a class, for the U-Net and the ridge of genes."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from scipy.special import softmax

from stxtools._types import Floats
from stxtools.models._section import Section
from stxtools.models.ensemble.gene_classifier import RIDGE_SCALE, GeneClassifier
from stxtools.models.ensemble.gene_means import GeneSection
from stxtools.models.segmenter.model import Segmenter
from stxtools.nn._tiles import tile_margin, tile_side, tiles

_POINTS = 16  # Gauss-Legendre nodes; attributions then sum to within 2 % of the difference of the log odds


class SegmenterAttribution:
    """Attribution of a Segmenter's log odds on a section, with the mean expression as the baseline."""

    def __init__(self, model: Segmenter, section: Section) -> None:
        self.net, self.scale = model.fitted_net().eval(), model.scaling.scale
        self.section = model.scaling.centred(section)  # what the network reads; its mean need not be 0

    def attribute(self, group: int, others: list[int], weight: Floats) -> tuple[Floats, pd.Series]:
        """Return the gradient of the weighted log odds by the features of each observation, (n, C), and no genes."""
        from captum.attr import IntegratedGradients

        section = self.section
        z = section.features / self.scale
        x, occupied = torch.from_numpy(section.to_raster(z)), torch.from_numpy(section.occupied())
        baseline = torch.from_numpy(z.mean(axis=0))[:, None, None] * occupied
        count = np.bincount(section.flat_pixels, minlength=section.shape[0] * section.shape[1])
        weights = np.bincount(section.flat_pixels, weight, minlength=len(count))
        pixel_weight = torch.from_numpy(weights.astype(np.float32))
        gradient, flat = torch.zeros_like(x), torch.from_numpy(section.occupied_pixels()[0])
        side, margin = tile_side(self.net.unet, len(x)), tile_margin(self.net.unet)
        for core, (top, left, height, width) in tiles(flat, section.shape, side, margin):  # explains the core alone
            at = flat[core]
            w = torch.zeros(height, width)
            w[at // section.shape[1] - top, at % section.shape[1] - left] = pixel_weight[at]
            if not bool((w != 0).any()):
                continue
            rows, columns = slice(top, top + height), slice(left, left + width)
            mask = occupied[None, :, rows, columns]

            def log_odds(values: torch.Tensor, mask: torch.Tensor = mask, w: torch.Tensor = w) -> torch.Tensor:
                logits, _ = self.net(values, mask.expand(len(values), -1, -1, -1))
                odds = logits[:, group] - torch.logsumexp(logits[:, others], dim=1)
                return (odds * w).sum(dim=(1, 2))

            explainer = IntegratedGradients(log_odds, multiply_by_inputs=False)
            values, start = (raster[None, :, rows, columns] for raster in (x, baseline))
            attribution = explainer.attribute(values, start, n_steps=_POINTS, internal_batch_size=1)
            gradient[:, rows, columns] += attribution[0].detach().float()
        per_obs = gradient.flatten(1).numpy().T / np.maximum(count, 1)[:, None]
        return per_obs[section.flat_pixels].astype(np.float64) / self.scale, pd.Series(dtype=np.float64)


class RidgeAttribution:
    """Attribution of the ridge regression of genes on a section: ``logits`` (n, K), ``intercept`` (K,) at the mean."""

    def __init__(self, model: GeneClassifier, section: GeneSection) -> None:
        self._means, members, ours = model.solve_for(section)
        self._genes = [model.moments.genes[i] for i in ours]
        scale = model.factor * RIDGE_SCALE
        self._coef, self.intercept = [scale * w for w in members.ridge], scale * members.ridge_intercept
        self.logits = self.intercept + np.sum(self._means.projected(self._coef), axis=0)

    def attribute(self, group: int, others: list[int], weight: Floats) -> tuple[Floats, pd.Series]:
        """Return no gradient by features, and the contribution of each gene to the weighted log odds of ``group``."""
        gradient = np.zeros_like(self.logits)
        gradient[:, group] = 1
        for node, node_weight in zip(*np.polynomial.legendre.leggauss(_POINTS), strict=True):
            logits = self.intercept + (node + 1) / 2 * (self.logits - self.intercept)
            gradient[:, others] -= node_weight / 2 * softmax(logits[:, others], axis=1)
        contributions = self._means.parts(self._coef, gradient * weight[:, None])
        return np.zeros((len(weight), 0)), pd.Series(contributions, self._genes)
