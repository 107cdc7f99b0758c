"""Rasters of sections with the targets of the pseudo-labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from stxtools.models._section import Section
from stxtools.nn._tiles import PixelRaster
from stxtools.nn._views import block_mask

if TYPE_CHECKING:
    from .pseudo_labels import PseudoLabels

_CHOICES = 8  # hold-outs among which the first is taken that misses no class


def target_rasters(
    sections: Sequence[Section], pseudo_labels: PseudoLabels, scale: NDArray[np.floating], seed: int
) -> tuple[list[PixelRaster], list[NDArray[np.int64]]]:
    """Rasters with targets, and each observation's pixel; some blocks are held out for early stopping."""
    out, members, end = [], [], 0
    for i, section in enumerate(sections):
        rows = slice(end, end + section.n_obs)
        end = rows.stop
        raster, member = section.raster(scale)
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
