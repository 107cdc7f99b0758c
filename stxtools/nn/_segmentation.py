"""Training of the U-Net: masked and contrastive pretraining, then segmentation from soft targets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from ._augment import Augmentation, affine_grid, block_mask, resample
from ._tiles import PixelRaster, RasterTensors
from ._training import Task, Training
from ._unet import SegmentationNet, UNet

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


class MaskedPretraining(Task):
    """Blocks of the raster are hidden and predicted from what surrounds them (masked reconstruction)."""

    def __init__(self, unet: UNet, channels: int, training: Training) -> None:
        super().__init__(training)
        self.unet = unet
        self.decoder = nn.Conv2d(unet.width, channels, 1)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Mean squared error of the hidden pixels' smoothed features."""
        keep = batch["occupied"] * (1 - batch["block"])
        out = self.decoder(self.unet(batch["x"] * keep, keep))
        hidden = batch["present"] * batch["block"]
        error = (out - batch["clean"]).square().mean(dim=1, keepdim=True)
        return self.record((error * hidden).sum() / hidden.sum().clamp_min(1))


class ContrastivePretraining(Task):
    """Two random views of the same place should agree, views of other places should not.

    SimCLR (Chen et al. 2020): normalised temperature-scaled cross-entropy over pooled features.
    """

    def __init__(self, unet: UNet, channels: int, training: Training, temperature: float = 0.2) -> None:
        super().__init__(training)
        self.unet, self.temperature = unet, temperature
        self.projector = nn.Sequential(nn.Linear(unet.width, unet.width), nn.ReLU(), nn.Linear(unet.width, unet.width))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """NT-Xent loss of a batch of twin views."""
        z = torch.cat([self._embed(batch["x"], batch["occupied"]), self._embed(batch["x2"], batch["occupied2"])])
        return self.record(nt_xent(z, self.temperature))

    def _embed(self, x: Tensor, occupied: Tensor) -> Tensor:
        features = self.unet(x, occupied) * occupied
        return self.projector(features.sum(dim=(2, 3)) / occupied.sum(dim=(2, 3)).clamp_min(1))


def nt_xent(z: Tensor, temperature: float) -> Tensor:
    """NT-Xent loss of embeddings (2B, d) whose rows i and i + B are twins."""
    z = F.normalize(z, dim=1)
    n = len(z)
    similarity = z @ z.T / temperature
    similarity = similarity.masked_fill(torch.eye(n, dtype=torch.bool, device=z.device), float("-inf"))
    twin = (torch.arange(n, device=z.device) + n // 2) % n
    return F.cross_entropy(similarity, twin)


class SegmentationTask(Task):
    """Cross-entropy of the U-Net's compartments with soft targets, weighted by pixel."""

    def __init__(self, net: SegmentationNet, training: Training) -> None:
        super().__init__(training)
        self.net = net

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Weighted cross-entropy of random views."""
        logits, _ = self.net(batch["x"], batch["occupied"])
        return self.record(soft_cross_entropy(logits, batch["target"], batch["weight"]))

    def validation_step(self, batch: list[Any], batch_idx: int) -> None:
        """The same on the pixels held out, of a whole section."""
        x, occupied, target, weight = batch
        logits, _ = self.net(x, occupied)
        self.log("val_loss", soft_cross_entropy(logits, target, weight), batch_size=1)


def soft_cross_entropy(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Mean over pixels of -sum_k target_k log p_k, weighted; (B, K, H, W), (B, K, H, W), (B, 1, H, W)."""
    loss = -(target * F.log_softmax(logits, dim=1)).sum(dim=1, keepdim=True)
    return (loss * weight).sum() / weight.sum().clamp_min(1e-6)


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
