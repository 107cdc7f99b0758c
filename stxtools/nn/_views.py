"""Training data of the U-Net: random views of sections, and whole sections for validation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ._augment import Augmentation, affine_grid, block_mask, resample
from ._tiles import PixelRaster, RasterTensors

WHOLE = 65_536  # pixels up to which a section is validated as a whole, and that its windows have together beyond
_WINDOW = 128
_EPOCHS, _EPOCHS_LARGE, _MANY_VIEWS = 12, 20, 4


class RandomViews(Dataset[dict[str, Tensor]]):
    """Random views of sections; the view of an item depends on seed, epoch and index alone."""

    def __init__(
        self,
        sections: Sequence[PixelRaster],
        size: int,
        length: int,
        how: Augmentation,
        seed: int,
        twins: bool = False,
    ) -> None:
        self.sections, self.size, self.length, self.how = list(sections), size, length, how
        self.seed, self.twins, self.epoch = seed, twins, 0
        counts = torch.tensor([len(s.flat) for s in self.sections], dtype=torch.float64)
        self.share = (counts / counts.sum()).cumsum(0)
        # a view reaches this far from its middle: half its diagonal, shrunk to the largest, and a pixel to interpolate
        self.reach = math.ceil(size / 2 * math.sqrt(2) * (1 + how.scaling)) + 2

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose views are drawn."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(hash((self.seed, self.epoch, index)) % (2**63))
        draw = torch.rand((), generator=generator, dtype=torch.float64)
        which = min(int(torch.searchsorted(self.share, draw)), len(self.sections) - 1)
        section = self.sections[which]
        centre = self._centre(which, generator)
        item = self._view(section, centre, generator)
        if self.twins:
            item |= {f"{k}2": v for k, v in self._view(section, centre, generator).items()}
        return item

    def _centre(self, which: int, generator: torch.Generator) -> tuple[float, float]:
        """Middle of a section that fits into a view, else an occupied pixel at random."""
        section = self.sections[which]
        height, width = section.shape
        if max(height, width) <= self.size and not self.twins:
            return (height - 1) / 2, (width - 1) / 2
        pixel = int(section.flat[int(torch.randint(len(section.flat), (), generator=generator))])
        return float(pixel // width), float(pixel % width)

    def _around(self, section: PixelRaster, centre: tuple[float, float]) -> tuple[RasterTensors, tuple[float, float]]:
        """Return the window that a view can reach, all of a small section, and the view's middle in it."""
        top, left = (max(int(c) - self.reach, 0) for c in centre)
        end = [min(math.ceil(c) + self.reach + 1, length) for c, length in zip(centre, section.shape, strict=True)]
        window = section.window(top, left, end[0] - top, end[1] - left)
        return window, (centre[0] - top, centre[1] - left)

    def _view(self, section: PixelRaster, centre: tuple[float, float], generator: torch.Generator) -> dict[str, Tensor]:
        s, centre = self._around(section, centre)
        grid = affine_grid(s.occupied.shape[-2:], self.size, centre, generator, self.how)  # type: ignore[arg-type]
        x, occupied = resample(s.x, s.occupied, grid)
        hidden = torch.rand(occupied.shape, generator=generator) < self.how.drop
        view = {"clean": x, "present": (occupied > 0).float()}
        view["occupied"] = view["present"] * ~hidden
        view["x"] = x * view["occupied"]
        view["block"] = block_mask((self.size, self.size), 0.3, 4, generator)[None].float()
        if s.target is not None and s.weight is not None:
            stacked, weight = resample(s.target, s.weight, grid)
            view["target"], view["weight"] = stacked, weight * view["present"]
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
        self.windows = [
            (s, where)
            for s in sections
            if s.val_weight is not None and bool(s.val_weight.sum() > 0)
            for where in _judged_windows(s)
        ]

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> list[Tensor]:
        section, where = self.windows[index]
        s = section.window(*where)
        return [s.x, s.occupied, s.target, s.val_weight]  # type: ignore[list-item]


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


def view_loader(
    sections: Sequence[PixelRaster],
    *,
    size: int,
    steps: int,
    batch_size: int,
    how: Augmentation,
    seed: int,
    twins: bool = False,
) -> DataLoader[dict[str, Tensor]]:
    """Batches of random views; ``steps`` of them make an epoch."""
    return DataLoader(RandomViews(sections, size, steps * batch_size, how, seed, twins), batch_size=batch_size)


def whole_loader(sections: Sequence[PixelRaster]) -> DataLoader[list[Tensor]] | None:
    """Whole sections one by one, or None if nothing is held out."""
    dataset = _Whole(sections)
    return DataLoader(dataset, batch_size=1) if len(dataset) else None
