"""Logits of members that have not seen the observations: what the network that corrects them learns from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from stxtools._spatial.blocks import deal, spatial_blocks
from stxtools.models._section import Section
from stxtools.models.ensemble.evidence import Answers
from stxtools.models.ensemble.gene_means import FloatArray, GeneMeans
from stxtools.models.ensemble.moments import N_COMPS, moments_of
from stxtools.nn._tiles import PixelRaster

from .rasters import section_raster

_FOLDS, _BLOCKS, _DIVISIONS = 5, 25, 3
_FOLD_RANK = 128  # for a fold: as good, in half the time


@dataclass(frozen=True)
class Task:
    """Out-of-fold logits of a section and what they should be."""

    section: Section
    logits: FloatArray
    share: FloatArray
    weight: NDArray[np.float64]
    held: NDArray[np.bool_]

    def raster(self, inverse_temperature: float) -> PixelRaster:
        """Calibrated logits and their targets, by pixel."""
        raster, member = logit_raster(self.section, inverse_temperature * self.logits)
        pooled = self.section.pooled
        weight = torch.from_numpy(pooled(self.weight[:, None] / self.weight.max(), member)[:, 0])
        held = torch.from_numpy(pooled(self.held[:, None].astype(float), member)[:, 0] > 0.5)
        raster.target = torch.from_numpy(pooled(self.share, member, self.weight + 1e-12))
        raster.weight, raster.val_weight = weight * ~held, weight * held
        return raster


def out_of_fold(
    genes: Sequence[str],
    means: Sequence[GeneMeans],
    sections: Sequence[Section],
    shares: Sequence[FloatArray],
    weights: Sequence[NDArray[np.float64]],
    rng: np.random.Generator,
) -> Iterator[Task]:
    """Evidence as a new section would get it: from models that have not seen the block, or the section."""
    own = [m.components(m.axes(N_COMPS)) for m in means]
    whole = len(sections) > 1
    stops = int(rng.integers(len(sections)))  # section that ends the training
    chosen = np.arange(len(genes))
    for _ in range(1 if whole else _DIVISIONS):
        folds = [np.full(s.n_obs, i) for i, s in enumerate(sections)] if whole else [_blocks(sections[0].xy, rng)]
        found = [Answers(np.zeros_like(s), np.zeros_like(s)) for s in shares]
        for fold in range(len(sections) if whole else _FOLDS):
            seen = [np.where(f == fold, 0.0, w) for f, w in zip(folds, weights, strict=True)]
            if not any(w.any() for w in seen):
                continue
            members = moments_of(genes, means, shares, seen, rank=_FOLD_RANK).solve(chosen)
            for m, f, out in zip(means, folds, found, strict=True):
                left = f == fold
                if left.any():
                    answers, _ = Answers.of(members, m)
                    out.ridge[left], out.lda[left] = answers.ridge[left], answers.lda[left]
        for i, (section, answers) in enumerate(zip(sections, found, strict=True)):
            held = np.full(section.n_obs, i == stops) if whole else spatial_blocks(section.xy, 16) % 5 == 2
            for with_lda in (False, True):
                logits = answers.joined(own[i], with_lda=with_lda).logits
                yield Task(section, logits, shares[i], weights[i], held)


def _blocks(xy: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Fold of each observation; whole blocks, cut along random axes."""
    angle = rng.uniform(0, np.pi)
    turned = xy @ np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return deal(spatial_blocks(turned, _BLOCKS), _FOLDS, rng)


def calibrated(tasks: Sequence[Task]) -> float:
    """Inverse temperature with the lowest cross-entropy of the out-of-fold logits."""

    def loss(log_factor: float) -> float:
        losses = []
        for t in tasks:
            log_share = (t.share * log_softmax(np.exp(log_factor) * t.logits, axis=1)).sum(axis=1)
            losses.append(-float(t.weight @ log_share) / float(t.weight.sum()))
        return float(np.mean(losses))

    return float(np.exp(minimize_scalar(loss, bounds=(-3.0, 1.5), method="bounded").x))


def held_out_loss(rasters: Sequence[PixelRaster]) -> float:
    """Cross-entropy of the logits as they are, where the network is judged, as its training logs it."""
    losses = []
    for r in rasters:
        weight = r.val_weight
        if weight is not None and r.target is not None and float(weight.sum()) > 0:
            loss = -(r.target * r.x.log_softmax(dim=1)).sum(dim=1)
            losses.append(float((loss * weight).sum() / weight.sum()))
    return float(np.mean(losses)) if losses else np.nan


def logit_raster(section: Section, logits: FloatArray) -> tuple[PixelRaster, NDArray[np.int64]]:
    """Raster of the logits, and each observation's place among its pixels."""
    made = replace(section, features=logits.astype(np.float32))
    return section_raster(made, np.ones(logits.shape[1], dtype=np.float32))
