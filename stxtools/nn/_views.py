"""Data of the U-Net: random views (rotated, scaled, reflected, masked) for training, whole sections for validation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from ._tiles import PixelRaster

MAX_VALIDATION_PIXELS = 65_536  # of a section; a larger one is validated on some windows
_WINDOW = 128
_EPOCHS, _EPOCHS_LARGE, _MANY_VIEWS = 10, 30, 4


@dataclass(frozen=True)
class Augmentation:
    """Random transformations of training views."""

    rotation: float = 180.0  # largest rotation in degrees; 180 means any angle
    scaling: float = 0.25  # the zoom is between ``1 / (1 + scaling)`` and ``1 + scaling``
    reflect: bool = True  # with a probability of 0.5
    drop: float = 0.1  # share of masked pixels


def _uniform(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator))


def affine_grid(
    shape: tuple[int, int], size: int, centre: tuple[float, float], generator: torch.Generator,
    augmentation: Augmentation, device: torch.device | None = None,
) -> Tensor:  # fmt: skip
    """Sampling grid (1, size, size, 2) of a random view around ``centre`` (row, column)."""
    angle = math.radians(augmentation.rotation) * (2 * _uniform(generator) - 1)
    zoom = (1 + augmentation.scaling) ** (2 * _uniform(generator) - 1)
    mirror = -1.0 if augmentation.reflect and _uniform(generator) < 0.5 else 1.0
    at = (torch.arange(size, dtype=torch.float32, device=device) - (size - 1) / 2) / zoom
    rows, cols = torch.meshgrid(at, at * mirror, indexing="ij")
    cos, sin = math.cos(angle), math.sin(angle)
    y = centre[0] + cos * rows - sin * cols
    x = centre[1] + sin * rows + cos * cols
    height, width = shape
    # grid_sample's coordinates with align_corners=False: -1 and 1 are the outer edges of the raster
    return torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)[None]


def resample(values: Tensor, weight: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    """Sample ``values`` (C, H, W), known where ``weight`` (1, H, W) is positive, and the weight; 0 elsewhere."""
    stack = torch.cat([values * weight, weight])[None]
    out = F.grid_sample(stack, grid, mode="bilinear", padding_mode="zeros", align_corners=False)[0]
    weight_out = out[-1:]
    known = weight_out > 0.25
    return out[:-1] / weight_out.clamp_min(1e-6) * known, weight_out * known


def block_mask(
    shape: tuple[int, int], share: float, block: int, generator: torch.Generator, device: torch.device | None = None
) -> Tensor:
    """Random mask (H, W) of square blocks with a side of ``block`` pixels, each chosen with probability ``share``."""
    rows, cols = -(-shape[0] // block), -(-shape[1] // block)
    coarse = (torch.rand((rows, cols), generator=generator) < share).to(device)
    fine = coarse.repeat_interleave(block, 0).repeat_interleave(block, 1)
    return fine[: shape[0], : shape[1]]


class RandomViews(Dataset[dict[str, Tensor]]):
    """Random views of sections, determined by seed, epoch and index."""

    def __init__(
        self, sections: Sequence[PixelRaster], size: int, length: int, augmentation: Augmentation, seed: int,
        pairs: bool = False,
    ) -> None:  # fmt: skip
        self.sections, self.size, self.length, self.augmentation = list(sections), size, length, augmentation
        self.seed, self.pairs, self.epoch = seed, pairs, 0
        counts = torch.tensor([len(s.flat) for s in self.sections], dtype=torch.float64)
        self.share = (counts / counts.sum()).cumsum(0)
        # pixels from the centre of a view: half its diagonal at the smallest zoom, and a margin for interpolation
        self.reach = math.ceil(size / 2 * math.sqrt(2) * (1 + augmentation.scaling)) + 2

    def set_device(self, device: torch.device) -> None:
        """Make the views on ``device``."""
        self.sections = [s.to(device) for s in self.sections]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(hash((self.seed, self.epoch, index)) % (2**63))
        draw = torch.rand((), generator=generator, dtype=torch.float64)
        which = min(int(torch.searchsorted(self.share, draw)), len(self.sections) - 1)
        centre = self._centre(which, generator)
        item = self._view(which, centre, generator)
        if self.pairs:
            item |= {f"{k}2": v for k, v in self._view(which, centre, generator).items()}
        return item

    def _centre(self, which: int, generator: torch.Generator) -> tuple[float, float]:
        """Return the centre of a section that fits into a view, else a random occupied pixel."""
        section = self.sections[which]
        height, width = section.shape
        if max(height, width) <= self.size and not self.pairs:
            return (height - 1) / 2, (width - 1) / 2
        pixel = int(section.flat[int(torch.randint(len(section.flat), (), generator=generator))])
        return float(pixel // width), float(pixel % width)

    def _view(self, which: int, centre: tuple[float, float], generator: torch.Generator) -> dict[str, Tensor]:
        section, device = self.sections[which], self.sections[which].x.device
        top, left = (max(int(c) - self.reach, 0) for c in centre)
        end = [min(math.ceil(c) + self.reach + 1, length) for c, length in zip(centre, section.shape, strict=True)]
        shape = (end[0] - top, end[1] - left)
        s = section.window(top, left, *shape)
        grid = affine_grid(shape, self.size, (centre[0] - top, centre[1] - left), generator, self.augmentation, device)
        x, occupied = resample(s["x"], s["occupied"], grid)
        dropped = (torch.rand(occupied.shape, generator=generator) < self.augmentation.drop).to(device)
        view = {"clean": x, "present": (occupied > 0).float()}
        view["occupied"] = view["present"] * ~dropped
        view["x"] = x * view["occupied"]
        view["block"] = block_mask((self.size, self.size), 0.3, 4, generator, device)[None].float()
        if "target" in s:
            view["target"], weight = resample(s["target"], s["weight"], grid)
            view["weight"] = weight * view["present"]
        return view


def view_size(sections: Sequence[PixelRaster], stride: int, largest: int) -> int:
    """Return the side of training views: that of the largest section up to ``largest``, a multiple of ``stride``."""
    side = min(max(max(s.shape) for s in sections), largest)
    return -(-side // stride) * stride


def default_epochs(sections: Sequence[PixelRaster], size: int) -> int:
    """Return the number of epochs: more for tissue much larger than a view with a side of ``size`` pixels."""
    return _EPOCHS_LARGE if sum(len(s.flat) for s in sections) > _MANY_VIEWS * size**2 else _EPOCHS


class _ValidationWindows(Dataset[dict[str, Tensor]]):
    """Sections with their validation pixels, as a whole or as windows."""

    def __init__(self, sections: Sequence[PixelRaster]) -> None:
        self.sections = [s for s in sections if s.val_weight is not None and bool(s.val_weight.sum() > 0)]
        self.windows = [(i, window) for i, s in enumerate(self.sections) for window in _validation_windows(s)]

    def set_device(self, device: torch.device) -> None:
        """Make the windows on ``device``."""
        self.sections = [s.to(device) for s in self.sections]

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        section, window = self.windows[index]
        s = self.sections[section].window(*window)
        return s | {"weight": s["val_weight"]}


def _validation_windows(s: PixelRaster) -> list[tuple[int, int, int, int]]:
    """Return the whole of a small section, or evenly spread windows of a large one with much validation data."""
    height, width = s.shape
    if height * width <= MAX_VALIDATION_PIXELS or s.val_weight is None:
        return [(0, 0, height, width)]
    per_row = -(-width // _WINDOW)
    number = s.flat // width // _WINDOW * per_row + s.flat % width // _WINDOW
    weight = torch.bincount(number, weights=s.val_weight)
    candidates = torch.nonzero(weight >= weight[weight > 0].median())[:, 0]
    count = min(MAX_VALIDATION_PIXELS // _WINDOW**2, len(candidates))
    chosen = candidates[((torch.arange(count) + 0.5) * len(candidates) / count).long()].tolist()
    return [(n // per_row * _WINDOW, n % per_row * _WINDOW, _WINDOW, _WINDOW) for n in chosen]


def validation_loader(sections: Sequence[PixelRaster]) -> DataLoader[dict[str, Tensor]] | None:
    """Return a loader of the validation pixels, or None without any."""
    dataset = _ValidationWindows(sections)
    return DataLoader(dataset, batch_size=1) if len(dataset) else None
