"""Losses: cross-entropy with soft targets, squared errors, masked reconstruction and contrastive learning."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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
