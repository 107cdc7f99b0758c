"""Training of pixel networks: masked and contrastive pretraining, segmentation from soft targets, imitation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ._losses import nt_xent, reconstruction_error, soft_cross_entropy
from ._recipe import Training
from ._student import PyramidMLP
from ._training import Task
from ._unet import SegmentationNet, UNet

_TEMPERATURE = 0.2


class MaskedPretraining(Task):
    """Blocks of the raster are hidden and predicted from what surrounds them (masked reconstruction)."""

    def __init__(self, unet: UNet, channels: int, training: Training) -> None:
        super().__init__(training)
        self.unet = unet
        self.decoder = nn.Conv2d(unet.width, channels, 1)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Mean squared error of the hidden pixels' smoothed features."""
        keep = batch["occupied"] * (1 - batch["block"])
        hidden = batch["present"] * batch["block"]
        return self.record(reconstruction_error(self.unet, self.decoder, batch["x"], keep, batch["clean"], hidden))


class ContrastivePretraining(Task):
    """Two views of a place should agree, those of other places should not (SimCLR; Chen et al. 2020)."""

    def __init__(self, unet: UNet, channels: int, training: Training) -> None:
        super().__init__(training)
        self.unet = unet
        self.projector = nn.Sequential(nn.Linear(unet.width, unet.width), nn.ReLU(), nn.Linear(unet.width, unet.width))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """NT-Xent loss of a batch of twin views."""
        z = torch.cat([self._embed(batch["x"], batch["occupied"]), self._embed(batch["x2"], batch["occupied2"])])
        return self.record(nt_xent(z, _TEMPERATURE))

    def _embed(self, x: Tensor, occupied: Tensor) -> Tensor:
        features = self.unet(x, occupied) * occupied
        return self.projector(features.sum(dim=(2, 3)) / occupied.sum(dim=(2, 3)).clamp_min(1))


class SegmentationTask(Task):
    """Cross-entropy of the U-Net's compartments with soft targets, weighted by pixel."""

    def __init__(self, net: SegmentationNet, training: Training) -> None:
        super().__init__(training)
        self.net = net

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Weighted cross-entropy of random views."""
        logits, _ = self.net(batch["x"], batch["occupied"])
        return self.record(soft_cross_entropy(logits, batch["target"], batch["weight"][:, 0]))

    def validation_step(self, batch: list[Any], batch_idx: int) -> None:
        """The same on the pixels held out, of a whole section."""
        x, occupied, target, weight = batch
        logits, _ = self.net(x, occupied)
        self.log("val_loss", soft_cross_entropy(logits, target, weight[:, 0]), batch_size=1)


class Imitation(Task):
    """Cross-entropy of a student's classes with a teacher's probabilities (Hinton et al. 2015), summed over tasks."""

    def __init__(self, net: PyramidMLP, training: Training) -> None:
        super().__init__(training)
        self.net = net

    def loss(self, batch: list[Tensor]) -> Tensor:
        """Mean over pixels; the probabilities of the tasks stand side by side."""
        means, target = batch
        parts = zip(self.net.from_means(means), target.split(self.net.sizes, dim=1), strict=True)
        even = torch.ones(len(means), device=means.device)
        return torch.stack([soft_cross_entropy(found, wanted, even) for found, wanted in parts]).sum()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Loss of a batch of pixels."""
        return self.record(self.loss(batch))

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """The same on pixels held out."""
        self.log("val_loss", self.loss(batch), batch_size=len(batch[0]))
