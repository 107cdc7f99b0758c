"""Sections as rasters of occupied pixels: centred and scaled features, and the targets of the pseudo-labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from stxtools.models._section import Section
from stxtools.nn._tiles import PixelRaster
from stxtools.nn._views import block_mask

if TYPE_CHECKING:
    from .pseudo_labels import PseudoLabels

PRIOR_OBS = 20
_CHOICES = 8  # hold-outs among which the first is taken that misses no class


def centred(features: NDArray[np.float32], centre: NDArray[np.float32]) -> NDArray[np.float32]:
    """Take the section's own mean out: the simplest account of depth, staining and donor.

    The mean of a small section is drawn towards that of the training data, as if ``PRIOR_OBS`` more
    observations lay there.
    """
    n = len(features)
    mean = (n * features.mean(axis=0) + PRIOR_OBS * centre) / (n + PRIOR_OBS)
    return (features - mean).astype(np.float32)


@dataclass(frozen=True)
class FeatureScaling:
    """Mean of the training sections, and the standard deviation within them."""

    # mean and standard deviation of each feature, (C,)
    centre: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, dtype=np.float32))
    scale: NDArray[np.float32] = field(default_factory=lambda: np.ones(0, dtype=np.float32))

    @classmethod
    def of(cls, sections: Sequence[Section]) -> FeatureScaling:
        """Measure the features of ``sections``."""
        centre = np.concatenate([s.features for s in sections]).mean(axis=0)
        raw = cls(centre, np.ones_like(centre))
        return cls(centre, np.concatenate([raw.centred(s).features for s in sections]).std(axis=0) + 1e-6)

    @property
    def n_features(self) -> int:
        """Length of a feature vector."""
        return len(self.centre)

    def centred(self, section: Section) -> Section:
        """Take the section's own mean out, as :func:`centred` does."""
        return replace(section, features=centred(section.features, self.centre))

    def raster(self, section: Section) -> tuple[PixelRaster, NDArray[np.int64]]:
        """Raster of the centred and scaled section, and each observation's place among its pixels."""
        return section_raster(self.centred(section), self.scale)


def section_raster(section: Section, scale: NDArray[np.floating]) -> tuple[PixelRaster, NDArray[np.int64]]:
    """Raster of the features over ``scale``, and each observation's place among its pixels."""
    flat, member = section.occupied_pixels()
    x = section.pooled(section.features / scale, member)
    return PixelRaster(section.shape, torch.from_numpy(flat), torch.from_numpy(x)), member


def target_rasters(
    sections: Sequence[Section], pseudo_labels: PseudoLabels, scale: NDArray[np.floating], seed: int
) -> tuple[list[PixelRaster], list[NDArray[np.int64]]]:
    """Rasters with targets, and each observation's pixel; some blocks are held out for early stopping."""
    out, members, end = [], [], 0
    for i, section in enumerate(sections):
        rows = slice(end, end + section.n_obs)
        end = rows.stop
        raster, member = section_raster(section, scale)
        weight = torch.from_numpy(section.pooled(pseudo_labels.weight[rows, None], member)[:, 0])
        target = torch.from_numpy(section.pooled(pseudo_labels.target[rows], member, pseudo_labels.weight[rows] + 1e-9))
        labelled = section.pooled(pseudo_labels.labelled[rows, None].astype(np.float64), member)[:, 0] > 0
        held = _held_out(raster, target * weight[:, None], torch.from_numpy(labelled), seed + i)
        raster.target, raster.weight, raster.val_weight = target, weight * ~held, weight * held
        out.append(raster)
        members.append(member)
    return out, members


def _held_out(raster: PixelRaster, mass: torch.Tensor, labelled: torch.Tensor, seed: int) -> torch.Tensor:
    """One block in ten, without labelled pixels: a random choice that misses no class, if one is soon found.

    Early stopping would otherwise keep weights that have lost a class without labels.
    """
    best, most = torch.zeros_like(labelled), -1.0
    for attempt in range(_CHOICES):
        generator = torch.Generator().manual_seed(seed + 1000 * attempt)
        held = block_mask(raster.shape, 0.1, 4, generator).flatten()[raster.flat] & ~labelled
        least = float((mass[held].sum(dim=0) / mass.sum(dim=0).clamp_min(1e-9)).min())
        if least > most:
            best, most = held, least
        if most > 0.03:
            break
    return best
