"""Training of the U-Net: masked and contrastive pretraining, then segmentation from soft targets."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._recipe import Training
from ._refiner import Refiner
from ._training import Task
from ._unet import SegmentationNet, UNet

_SCALE, _SHIFT, _NOISE = 0.3, 0.7, 0.5  # standard deviations of what is done to logits that a network reads


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


class RefinerTask(Task):
    """Cross-entropy with the labels, where the logits come scaled, shifted and noised as other sections' might."""

    def __init__(self, net: Refiner, training: Training) -> None:
        super().__init__(training)
        self.net = net

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Weighted cross-entropy of random views."""
        x, occupied = batch["x"], batch["occupied"]
        scale = torch.exp(_SCALE * torch.randn(len(x), 1, 1, 1, device=x.device))
        much = torch.rand(2, len(x), 1, 1, 1, device=x.device)
        shift = _SHIFT * much[0] * torch.randn(*x.shape[:2], 1, 1, device=x.device)
        noise = 2 * _NOISE * much[1] * torch.randn_like(x)
        logits, _ = self.net((scale * x + shift + noise) * occupied, occupied)
        return self.record(soft_cross_entropy(logits, batch["target"], batch["weight"]))

    def validation_step(self, batch: list[Any], batch_idx: int) -> None:
        """The same on the pixels held out, with the logits as they are."""
        x, occupied, target, weight = batch
        logits, _ = self.net(x, occupied)
        self.log("val_loss", soft_cross_entropy(logits, target, weight), batch_size=1)


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
