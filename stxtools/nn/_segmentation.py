"""Losses, and training of pixel networks: masked and contrastive pretraining, segmentation, distillation."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._options import Training
from ._training import Task
from ._unet import PyramidMLP, SegmentationNet, UNet

_TEMPERATURE = 0.2


def soft_cross_entropy(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean of -sum_k target_k log p_k; classes in dimension 1: (B, K, ...), (B, K, ...), (B, ...)."""
    loss = -(target * F.log_softmax(logits, dim=1)).sum(dim=1)
    return (loss * weight).sum() / weight.sum().clamp_min(1e-6)


def weighted_mse(values: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean over rows of the mean squared error; (R, K), (R, K), (R,)."""
    return ((values - target).square().mean(dim=1) * weight).sum() / weight.sum().clamp_min(1e-6)


def reconstruction_error(
    unet: nn.Module, decoder: nn.Module, x: Tensor, visible: Tensor, target: Tensor, masked: Tensor
) -> Tensor:
    """Mean squared error of ``target`` (B, C, H, W) at ``masked`` pixels, predicted from the ``visible`` ones."""
    error = (decoder(unet(x * visible, visible)) - target).square().mean(dim=1, keepdim=True)
    return (error * masked).sum() / masked.sum().clamp_min(1)


def nt_xent(z: Tensor, temperature: float) -> Tensor:
    """NT-Xent loss (Chen et al. 2020) of embeddings (2B, d) whose rows i and i + B are positive pairs."""
    z = F.normalize(z, dim=1)
    n = len(z)
    similarity = z @ z.T / temperature
    similarity = similarity.masked_fill(torch.eye(n, dtype=torch.bool, device=z.device), float("-inf"))
    positive = (torch.arange(n, device=z.device) + n // 2) % n
    return F.cross_entropy(similarity, positive)


class MaskedPretraining(Task):
    """Masked reconstruction: blocks of the raster are predicted from their surroundings."""

    def __init__(self, unet: UNet, channels: int, training: Training) -> None:
        super().__init__(training)
        self.unet = unet
        self.decoder = nn.Conv2d(unet.width, channels, 1)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Mean squared error at the masked pixels."""
        visible = batch["occupied"] * (1 - batch["block"])
        masked = batch["present"] * batch["block"]
        return reconstruction_error(self.unet, self.decoder, batch["x"], visible, batch["clean"], masked)


class ContrastivePretraining(Task):
    """Contrastive learning of two views of each location (SimCLR; Chen et al. 2020)."""

    def __init__(self, unet: UNet, channels: int, training: Training) -> None:
        super().__init__(training)
        self.unet = unet
        self.projector = nn.Sequential(nn.Linear(unet.width, unet.width), nn.ReLU(), nn.Linear(unet.width, unet.width))

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """NT-Xent loss of a batch of pairs of views."""
        z = torch.cat([self._embed(batch["x"], batch["occupied"]), self._embed(batch["x2"], batch["occupied2"])])
        return nt_xent(z, _TEMPERATURE)

    def _embed(self, x: Tensor, occupied: Tensor) -> Tensor:
        features = self.unet(x, occupied) * occupied
        return self.projector(features.sum(dim=(2, 3)) / occupied.sum(dim=(2, 3)).clamp_min(1))


class SegmentationTask(Task):
    """Segmentation from soft targets, weighted by pixel."""

    def __init__(self, net: SegmentationNet, training: Training) -> None:
        super().__init__(training)
        self.net = net

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Weighted cross-entropy of random views, or of windows with the validation pixels."""
        logits, _ = self.net(batch["x"], batch["occupied"])
        return soft_cross_entropy(logits, batch["target"], batch["weight"][:, 0])


class DistillationTask(Task):
    """Knowledge distillation: cross-entropy with a teacher's probabilities (Hinton et al. 2015), summed over tasks."""

    def __init__(self, net: PyramidMLP, training: Training) -> None:
        super().__init__(training)
        self.net = net

    def loss(self, batch: list[Tensor]) -> Tensor:
        """Mean over pixels; the probabilities of the tasks are concatenated."""
        means, target = batch
        tasks = zip(self.net.from_means(means), target.split(self.net.sizes, dim=1), strict=True)
        weight = torch.ones(len(means), device=means.device)
        return torch.stack([soft_cross_entropy(logits, proba, weight) for logits, proba in tasks]).sum()
