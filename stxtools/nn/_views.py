"""What the U-Net learns from: views at random (turned, scaled, mirrored, masked), and whole sections to judge it by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from ._tiles import PixelRaster

WHOLE = 65_536  # pixels up to which a section is validated as a whole, and that its windows have together beyond
_WINDOW = 128
_EPOCHS, _EPOCHS_LARGE, _MANY_VIEWS = 10, 30, 4


@dataclass(frozen=True)
class Augmentation:
    """How training views differ from the raster."""

    rotation: float = 180.0  # largest rotation in degrees; 180 means any angle
    scaling: float = 0.25  # views are enlarged or shrunk by a factor between ``1 / (1 + scaling)`` and ``1 + scaling``
    reflect: bool = True  # whether half of the views are mirrored
    drop: float = 0.1  # share of pixels whose features are hidden from the network


def _uniform(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator))


def affine_grid(
    shape: tuple[int, int], size: int, centre: tuple[float, float], generator: torch.Generator, how: Augmentation,
    device: torch.device | None = None,
) -> Tensor:  # fmt: skip
    """Sampling grid (1, size, size, 2) of a random view around ``centre`` (row, column)."""
    angle = math.radians(how.rotation) * (2 * _uniform(generator) - 1)
    zoom = (1 + how.scaling) ** (2 * _uniform(generator) - 1)
    mirror = -1.0 if how.reflect and _uniform(generator) < 0.5 else 1.0
    at = (torch.arange(size, dtype=torch.float32, device=device) - (size - 1) / 2) / zoom
    rows, cols = torch.meshgrid(at, at * mirror, indexing="ij")
    cos, sin = math.cos(angle), math.sin(angle)
    y = centre[0] + cos * rows - sin * cols
    x = centre[1] + sin * rows + cos * cols
    height, width = shape
    # grid_sample's coordinates with align_corners=False: -1 and 1 are the outer edges of the raster
    return torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)[None]


def resample(values: Tensor, weight: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    """Sample ``values`` (C, H, W), known where ``weight`` (1, H, W) is positive, and the weight; 0 where unknown."""
    stack = torch.cat([values * weight, weight])[None]
    out = F.grid_sample(stack, grid, mode="bilinear", padding_mode="zeros", align_corners=False)[0]
    weight_out = out[-1:]
    known = weight_out > 0.25
    return out[:-1] / weight_out.clamp_min(1e-6) * known, weight_out * known


def block_mask(
    shape: tuple[int, int], share: float, block: int, generator: torch.Generator, device: torch.device | None = None
) -> Tensor:
    """Boolean (H, W): square blocks of ``block`` pixels chosen with probability ``share``."""
    rows, cols = -(-shape[0] // block), -(-shape[1] // block)
    coarse = (torch.rand((rows, cols), generator=generator) < share).to(device)
    fine = coarse.repeat_interleave(block, 0).repeat_interleave(block, 1)
    return fine[: shape[0], : shape[1]]


class RandomViews(Dataset[dict[str, Tensor]]):
    """Random views of sections; the view of an item depends on seed, epoch and index alone."""

    def __init__(
        self, sections: Sequence[PixelRaster], size: int, length: int, how: Augmentation, seed: int, twins: bool = False
    ) -> None:
        self.sections, self.size, self.length, self.how = list(sections), size, length, how
        self.seed, self.twins, self.epoch = seed, twins, 0
        counts = torch.tensor([len(s.flat) for s in self.sections], dtype=torch.float64)
        self.share = (counts / counts.sum()).cumsum(0)
        # a view reaches this far from its middle: half its diagonal, shrunk to the largest, and a pixel to interpolate
        self.reach = math.ceil(size / 2 * math.sqrt(2) * (1 + how.scaling)) + 2

    def place(self, device: torch.device) -> None:
        """Make the views on ``device``."""
        self.sections = [s.to(device) for s in self.sections]

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose views are drawn."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(hash((self.seed, self.epoch, index)) % (2**63))
        draw = torch.rand((), generator=generator, dtype=torch.float64)
        which = min(int(torch.searchsorted(self.share, draw)), len(self.sections) - 1)
        centre = self._centre(which, generator)
        item = self._view(which, centre, generator)
        if self.twins:
            item |= {f"{k}2": v for k, v in self._view(which, centre, generator).items()}
        return item

    def _centre(self, which: int, generator: torch.Generator) -> tuple[float, float]:
        """Middle of a section that fits into a view, else an occupied pixel at random."""
        section = self.sections[which]
        height, width = section.shape
        if max(height, width) <= self.size and not self.twins:
            return (height - 1) / 2, (width - 1) / 2
        pixel = int(section.flat[int(torch.randint(len(section.flat), (), generator=generator))])
        return float(pixel // width), float(pixel % width)

    def _view(self, which: int, centre: tuple[float, float], generator: torch.Generator) -> dict[str, Tensor]:
        section, device = self.sections[which], self.sections[which].x.device
        top, left = (max(int(c) - self.reach, 0) for c in centre)  # the window that the view can reach
        end = [min(math.ceil(c) + self.reach + 1, length) for c, length in zip(centre, section.shape, strict=True)]
        shape = (end[0] - top, end[1] - left)
        s = section.window(top, left, *shape)
        grid = affine_grid(shape, self.size, (centre[0] - top, centre[1] - left), generator, self.how, device)
        x, occupied = resample(s["x"], s["occupied"], grid)
        hidden = (torch.rand(occupied.shape, generator=generator) < self.how.drop).to(device)
        view = {"clean": x, "present": (occupied > 0).float()}
        view["occupied"] = view["present"] * ~hidden
        view["x"] = x * view["occupied"]
        view["block"] = block_mask((self.size, self.size), 0.3, 4, generator, device)[None].float()
        if "target" in s:
            view["target"], weight = resample(s["target"], s["weight"], grid)
            view["weight"] = weight * view["present"]
        return view


def view_size(sections: Sequence[PixelRaster], stride: int, largest: int) -> int:
    """Side of the training views: the longest side of the sections, at most ``largest``, a multiple of ``stride``."""
    side = min(max(max(s.shape) for s in sections), largest)
    return -(-side // stride) * stride


def usual_epochs(sections: Sequence[PixelRaster], size: int) -> int:
    """Epochs that the tissue takes: more where it holds many views of ``size`` pixels, for each then shows little."""
    return _EPOCHS_LARGE if sum(len(s.flat) for s in sections) > _MANY_VIEWS * size**2 else _EPOCHS


class _Whole(Dataset[list[Tensor]]):
    """Whole sections with their held-out pixels; windows of those that are large."""

    def __init__(self, sections: Sequence[PixelRaster]) -> None:
        self.sections = [s for s in sections if s.val_weight is not None and bool(s.val_weight.sum() > 0)]
        self.windows = [(i, where) for i, s in enumerate(self.sections) for where in _judged_windows(s)]

    def place(self, device: torch.device) -> None:
        """Make the windows on ``device``."""
        self.sections = [s.to(device) for s in self.sections]

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> list[Tensor]:
        section, where = self.windows[index]
        s = self.sections[section].window(*where)
        return [s["x"], s["occupied"], s["target"], s["val_weight"]]


def _judged_windows(s: PixelRaster) -> list[tuple[int, int, int, int]]:
    """All of a small section, or some windows spread evenly over those of a large one that are well occupied."""
    height, width = s.shape
    if height * width <= WHOLE or s.val_weight is None:
        return [(0, 0, height, width)]
    across = -(-width // _WINDOW)
    number = s.flat // width // _WINDOW * across + s.flat % width // _WINDOW
    held = torch.bincount(number, weights=s.val_weight)
    full = torch.nonzero(held >= held[held > 0].median())[:, 0]
    count = min(WHOLE // _WINDOW**2, len(full))
    chosen = full[((torch.arange(count) + 0.5) * len(full) / count).long()].tolist()
    return [(n // across * _WINDOW, n % across * _WINDOW, _WINDOW, _WINDOW) for n in chosen]


def whole_loader(sections: Sequence[PixelRaster]) -> DataLoader[list[Tensor]] | None:
    """Whole sections one by one, or None if nothing is held out."""
    dataset = _Whole(sections)
    return DataLoader(dataset, batch_size=1) if len(dataset) else None
