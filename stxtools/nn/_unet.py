"""The U-Net (Ronneberger et al. 2015) that reads an expression raster."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._layers import ChannelNorm, GaussianPyramid, he_init


class ConvBlock(nn.Module):
    """Two convolutions, each followed by channel normalisation and ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, dropout: float) -> None:
        super().__init__()
        pad = kernel_size // 2
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, kernel_size, padding=pad),
            ChannelNorm(out_channels),
            nn.ReLU(),
            nn.Dropout2d(dropout),
            nn.Conv2d(out_channels, out_channels, kernel_size, padding=pad),
            ChannelNorm(out_channels),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H, W)."""
        return self.body(x)


class UNet(nn.Module):
    """U-Net over a multi-scale view of the raster; one feature vector per pixel."""

    def __init__(
        self,
        in_channels: int,
        *,
        width: int = 32,
        depth: int = 2,
        kernel_size: int = 3,
        dropout: float = 0.1,
        sigmas: Sequence[float] = (0.0, 1.0, 2.0),
    ) -> None:
        super().__init__()
        self.depth, self.width, self.kernel_size = depth, width, kernel_size
        self.pyramid = GaussianPyramid(sigmas)
        widths = [width * 2**i for i in range(depth + 1)]
        self.stem = nn.Conv2d(in_channels * len(self.pyramid.sigmas) + 1, width, 1)
        self.down = nn.ModuleList(
            ConvBlock(widths[max(i - 1, 0)], widths[i], kernel_size, dropout) for i in range(depth + 1)
        )
        self.up = nn.ModuleList(
            ConvBlock(widths[i + 1] + widths[i], widths[i], kernel_size, dropout) for i in range(depth - 1, -1, -1)
        )
        he_init(self)

    @property
    def stride(self) -> int:
        """Rasters are padded to multiples of this many pixels."""
        return 2**self.depth

    @property
    def receptive_field(self) -> int:
        """Largest distance in pixels from which an output pixel can be influenced (an upper bound)."""
        blocks = 3 * self.stride - 2  # of level i, each reaches 2**i times as far: two up to the lowest, which has one
        return self.pyramid.radius + self.kernel_size // 2 * 2 * blocks + 2 * self.stride

    def forward(self, x: Tensor, occupied: Tensor) -> Tensor:
        """Return features (B, width, H, W) of a raster (B, C, H, W); ``occupied`` is 1 where it holds observations."""
        height, width = x.shape[-2:]
        pad = (0, -width % self.stride, 0, -height % self.stride)
        x, occupied = F.pad(x, pad), F.pad(occupied, pad)
        # channels last from here on: a CPU convolves faster, and each change of the order is a copy
        scales = self.pyramid(x.contiguous(memory_format=torch.channels_last), occupied)
        h = self.stem(torch.cat([scales, occupied[:, 0, ..., None].permute(0, 3, 1, 2)], dim=1))
        skips = []
        for i, block in enumerate(self.down):
            h = block(h if i == 0 else F.avg_pool2d(h, 2))
            skips.append(h)
        skips.pop()
        for block in self.up:
            h = F.interpolate(h, scale_factor=2, mode="nearest")
            h = block(torch.cat([h, skips.pop()], dim=1))
        return h[..., :height, :width]


class SegmentationNet(nn.Module):
    """U-Net with a pixel classifier: logits of the compartments."""

    def __init__(self, unet: UNet, n_classes: int) -> None:
        super().__init__()
        self.unet = unet
        self.head = nn.Conv2d(unet.width, n_classes, 1)
        nn.init.xavier_uniform_(self.head.weight)
        if self.head.bias is not None:
            nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor, occupied: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (B, K, H, W) and features (B, width, H, W)."""
        features = self.unet(x, occupied)
        return self.head(features), features
