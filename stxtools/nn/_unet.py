"""Networks of pixels, of blocks with a bounded reach: the U-Net (Ronneberger et al. 2015), and a student of it.

A pixel of the output depends on a window only, so that tiles give the same result.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SQUEEZED = 16  # channels that are smoothed: genes of a disease are not among the first few


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
        self, in_channels: int, *, width: int = 32, depth: int = 2, kernel_size: int = 3, dropout: float = 0.1,
        sigmas: Sequence[float] = (0.0, 1.0, 2.0),
    ) -> None:  # fmt: skip
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
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, occupied: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (B, K, H, W) and features (B, width, H, W)."""
        features = self.unet(x, occupied)
        return self.head(features), features


class PyramidMLP(nn.Module):
    """Two-layer perceptron on the raster at several smoothing scales, that classifies pixels for one or more tasks."""

    stride = 1

    def __init__(self, in_channels: int, sizes: Sequence[int], *, width: int, sigmas: Sequence[float]) -> None:
        super().__init__()
        self.sizes, self.width = list(sizes), width  # numbers of classes of the tasks
        self.pyramid = GaussianPyramid(sigmas)
        self.squeeze = nn.Conv2d(in_channels, min(SQUEEZED, in_channels), 1, bias=False)
        self.body = nn.Sequential(
            nn.Conv2d(self.squeeze.out_channels * len(sigmas) + 1, width, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 1),
            nn.ReLU(inplace=True),
        )
        he_init(self)
        nn.init.orthogonal_(self.squeeze.weight)
        self.head = nn.Conv2d(width, sum(sizes), 1)
        nn.init.xavier_uniform_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    @property
    def unet(self) -> PyramidMLP:
        """Itself: it stands in for a segmentation network and its U-Net."""
        return self

    @property
    def receptive_field(self) -> int:
        """Distance in pixels from which an output pixel can be influenced."""
        return self.pyramid.radius

    def forward(self, x: Tensor, occupied: Tensor) -> tuple[Tensor, Tensor]:
        """Return each task's logarithmic probabilities (B, K, H, W), and features (B, width, H, W)."""
        x = self.squeeze(x.contiguous(memory_format=torch.channels_last))
        features = self.body(torch.cat([self.pyramid(x, occupied), occupied], dim=1))
        parts = self.head(features).split(self.sizes, dim=1)
        return torch.cat([part.log_softmax(dim=1) for part in parts], dim=1), features

    def from_means(self, means: Tensor) -> tuple[Tensor, ...]:
        """Return the logits of each task (B, K) of pixels from the means of all channels (B, n_scales * C) at them."""
        n = len(means)
        scales = means.reshape(n * len(self.pyramid.sigmas), -1)[:, :, None, None]
        squeezed = self.squeeze(scales).reshape(n, -1, 1, 1)
        features = self.body(torch.cat([squeezed, torch.ones_like(squeezed[:, :1])], dim=1))
        return self.head(features)[:, :, 0, 0].split(self.sizes, dim=1)


class Means(nn.Module):
    """The means alone in the form of a segmentation network, to be read at the pixels of a raster."""

    def __init__(self, student: PyramidMLP) -> None:
        super().__init__()
        self.unet = student

    def forward(self, x: Tensor, occupied: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mask in place of logits, and the means."""
        return occupied, self.unet.pyramid(x, occupied)
