"""Training of the U-Net: masked and contrastive pretraining, then segmentation from soft targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from ._augment import Augmentation, affine_grid, block_mask, resample
from ._training import Task, Training
from ._unet import SegmentationNet, UNet


@dataclass
class RasterTensors:
    """One section as tensors.

    Attributes
    ----------
    x
        Standardised features, (C, H, W); zero where no observation lies.
    occupied
        1 where observations lie, (1, H, W).
    target
        Class probabilities to learn, (K, H, W), or None for pretraining.
    weight, val_weight
        How much a pixel counts in training and in validation, (1, H, W).
    """

    x: Tensor
    occupied: Tensor
    target: Tensor | None = None
    weight: Tensor | None = None
    val_weight: Tensor | None = None


class RandomViews(Dataset[dict[str, Tensor]]):
    """Random views of sections; the view of an item depends on seed, epoch and index alone."""

    def __init__(
        self,
        sections: Sequence[RasterTensors],
        size: int,
        length: int,
        how: Augmentation,
        seed: int,
        twins: bool = False,
    ) -> None:
        self.sections, self.size, self.length, self.how = list(sections), size, length, how
        self.seed, self.twins, self.epoch = seed, twins, 0
        counts = torch.stack([s.occupied.sum() for s in self.sections]).double()
        self.share = (counts / counts.sum()).cumsum(0)
        self.pixels = [torch.nonzero(s.occupied[0]) for s in self.sections]

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
        height, width = self.sections[which].occupied.shape[-2:]
        if max(height, width) <= self.size and not self.twins:
            return (height - 1) / 2, (width - 1) / 2
        pixels = self.pixels[which]
        row, col = pixels[int(torch.randint(len(pixels), (), generator=generator))].tolist()
        return float(row), float(col)

    def _view(self, s: RasterTensors, centre: tuple[float, float], generator: torch.Generator) -> dict[str, Tensor]:
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


def view_size(sections: Sequence[RasterTensors], stride: int, largest: int) -> int:
    """Side of the training views: the longest side of the sections, at most ``largest``, a multiple of ``stride``."""
    side = min(max(max(s.occupied.shape[-2:]) for s in sections), largest)
    return -(-side // stride) * stride


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
    """Whole sections with their held-out pixels."""

    def __init__(self, sections: Sequence[RasterTensors]) -> None:
        self.sections = [s for s in sections if s.val_weight is not None and bool(s.val_weight.sum() > 0)]

    def __len__(self) -> int:
        return len(self.sections)

    def __getitem__(self, index: int) -> list[Tensor]:
        s = self.sections[index]
        return [s.x, s.occupied, s.target, s.val_weight]  # type: ignore[list-item]


def view_loader(
    sections: Sequence[RasterTensors],
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


def whole_loader(sections: Sequence[RasterTensors]) -> DataLoader[list[Tensor]] | None:
    """Whole sections one by one, or None if nothing is held out."""
    dataset = _Whole(sections)
    return DataLoader(dataset, batch_size=1) if len(dataset) else None


@torch.no_grad()
def predict_section(net: SegmentationNet, section: RasterTensors, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return class probabilities (K, H, W) and features (width, H, W) of a whole section, on the CPU."""
    net = net.to(device).eval()
    logits, features = net(section.x[None].to(device), section.occupied[None].to(device))
    return logits.softmax(dim=1)[0].cpu(), features[0].cpu()
