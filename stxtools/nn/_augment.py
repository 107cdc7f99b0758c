"""Random views of a raster: rotation, scaling, reflection, crop, masked blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Augmentation:
    """How training views differ from the raster.

    - ``rotation``: Largest rotation in degrees; 180 means any angle.
    - ``scaling``: Views are enlarged or shrunk by a factor between ``1 / (1 + scaling)`` and ``1 + scaling``.
    - ``reflect``: Whether half of the views are mirrored.
    - ``drop``: Share of pixels whose features are hidden from the network.
    """

    rotation: float = 180.0
    scaling: float = 0.25
    reflect: bool = True
    drop: float = 0.1


def _uniform(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator))


def affine_grid(
    shape: tuple[int, int], size: int, centre: tuple[float, float], generator: torch.Generator, how: Augmentation
) -> Tensor:
    """Sampling grid (1, size, size, 2) of a random view around ``centre`` (row, column)."""
    angle = math.radians(how.rotation) * (2 * _uniform(generator) - 1)
    zoom = (1 + how.scaling) ** (2 * _uniform(generator) - 1)
    mirror = -1.0 if how.reflect and _uniform(generator) < 0.5 else 1.0
    at = (torch.arange(size, dtype=torch.float32) - (size - 1) / 2) / zoom
    rows, cols = torch.meshgrid(at, at * mirror, indexing="ij")
    cos, sin = math.cos(angle), math.sin(angle)
    y = centre[0] + cos * rows - sin * cols
    x = centre[1] + sin * rows + cos * cols
    height, width = shape
    # grid_sample's coordinates with align_corners=False: -1 and 1 are the outer edges of the raster
    return torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)[None]


def resample(values: Tensor, weight: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    """Sample ``values`` (C, H, W) known where ``weight`` (1, H, W) is positive, by normalised interpolation.

    Returns
    -------
    Values (C, size, size), zero where unknown, and weights (1, size, size).
    """
    stack = torch.cat([values * weight, weight])[None]
    out = F.grid_sample(stack, grid, mode="bilinear", padding_mode="zeros", align_corners=False)[0]
    weight_out = out[-1:]
    known = weight_out > 0.25
    return out[:-1] / weight_out.clamp_min(1e-6) * known, weight_out * known


def block_mask(shape: tuple[int, int], share: float, block: int, generator: torch.Generator) -> Tensor:
    """Boolean (H, W): square blocks of ``block`` pixels chosen with probability ``share``."""
    rows, cols = -(-shape[0] // block), -(-shape[1] // block)
    coarse = torch.rand((rows, cols), generator=generator) < share
    fine = coarse.repeat_interleave(block, 0).repeat_interleave(block, 1)
    return fine[: shape[0], : shape[1]]
