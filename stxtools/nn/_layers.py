"""Building blocks whose output at a pixel depends on a bounded window only, so that tiles give the same result."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each pixel: a tile is normalised exactly as the full raster is."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class GaussianPyramid(nn.Module):
    """The raster at several smoothing scales (pixels; 0 keeps it as it is), averaged over occupied pixels only."""

    def __init__(self, sigmas: Sequence[float]) -> None:
        super().__init__()
        self.sigmas = tuple(float(s) for s in sigmas)
        for i, sigma in enumerate(self.sigmas):
            self.register_buffer(f"kernel{i}", _gaussian(sigma), persistent=False)

    @property
    def radius(self) -> int:
        """Largest distance in pixels from which a value can come."""
        return max((kernel.numel() // 2 for kernel in self.buffers()), default=0)

    def forward(self, x: Tensor, occupied: Tensor) -> Tensor:
        """(B, C, H, W) and (B, 1, H, W) -> (B, C * n_scales, H, W)."""
        x = x * occupied
        out = []
        for i, sigma in enumerate(self.sigmas):
            if sigma == 0:
                out.append(x)
                continue
            kernel: Tensor = getattr(self, f"kernel{i}")
            weight = _blur(occupied, kernel)
            out.append(_blur(x, kernel) / weight.clamp_min(1e-6) * (weight > 1e-6))
        return torch.cat(out, dim=1)


def _gaussian(sigma: float) -> Tensor:
    radius = max(1, round(2.5 * sigma)) if sigma > 0 else 0
    at = torch.arange(-radius, radius + 1, dtype=torch.float32, device="cpu")  # also within an outline
    kernel = torch.exp(-0.5 * (at / max(sigma, 1e-6)) ** 2)
    return kernel / kernel.sum()


def _blur(x: Tensor, kernel: Tensor) -> Tensor:
    """Separable depthwise blur with zero padding; in channels-last order, which is 6 to 30 times faster on a CPU."""
    channels, radius = x.shape[1], kernel.numel() // 2
    kernel = kernel.to(x.dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    x = F.conv2d(x, kernel[:, None].expand(channels, 1, -1, 1), padding=(radius, 0), groups=channels)
    return F.conv2d(x, kernel.expand(channels, 1, 1, -1), padding=(0, radius), groups=channels)


def he_init(module: nn.Module) -> None:
    """He initialisation of convolutions (He et al. 2015), biases at zero."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
