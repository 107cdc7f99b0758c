"""Pixel networks with a bounded receptive field: the U-Net (Ronneberger et al. 2015), and a student network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_SQUEEZED = 16  # channels after the first projection


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each pixel, which is the same in a tile and in the whole raster."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class GaussianPyramid(nn.Module):
    """Gaussian smoothing at several scales (pixels; 0 for none), normalised by the occupied pixels."""

    def __init__(self, sigmas: Sequence[float]) -> None:
        super().__init__()
        self.sigmas = tuple(float(s) for s in sigmas)
        for i, sigma in enumerate(self.sigmas):
            self.register_buffer(f"kernel{i}", _gaussian(sigma), persistent=False)

    @property
    def radius(self) -> int:
        """Radius of the largest kernel in pixels."""
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
    at = torch.arange(-radius, radius + 1, dtype=torch.float32, device="cpu")  # not on the meta device
    kernel = torch.exp(-0.5 * (at / max(sigma, 1e-6)) ** 2)
    return kernel / kernel.sum()


def _blur(x: Tensor, kernel: Tensor) -> Tensor:
    """Blur by a separable depthwise convolution; channels last, which is 6 to 30 times faster on a CPU."""
    channels, radius = x.shape[1], kernel.numel() // 2
    kernel = kernel.to(x.dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    x = F.conv2d(x, kernel[:, None].expand(channels, 1, -1, 1), padding=(radius, 0), groups=channels)
    return F.conv2d(x, kernel.expand(channels, 1, 1, -1), padding=(0, radius), groups=channels)


def he_init(module: nn.Module) -> None:
    """Apply He initialisation (He et al. 2015) to convolutions, with biases of zero."""
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
    """U-Net on the raster at several smoothing scales; one feature vector per pixel."""

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
        """Number of pixels to a multiple of which rasters are padded."""
        return 2**self.depth

    @property
    def receptive_field(self) -> int:
        """Upper bound of the distance in pixels from which an output pixel can be influenced."""
        blocks = 3 * self.stride - 2  # two at level i, with a reach of 2**i each, and one at the lowest level
        return self.pyramid.radius + self.kernel_size // 2 * 2 * blocks + 2 * self.stride

    def forward(self, x: Tensor, occupied: Tensor) -> Tensor:
        """Return features (B, width, H, W) of a raster (B, C, H, W); ``occupied`` is 1 where it holds observations."""
        height, width = x.shape[-2:]
        pad = (0, -width % self.stride, 0, -height % self.stride)
        x, occupied = F.pad(x, pad), F.pad(occupied, pad)
        # channels last throughout: convolutions are faster on a CPU, and each change of the order is a copy
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
    """U-Net with a linear classifier of pixels."""

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
    """Two-layer perceptron on the raster at several smoothing scales; classifies pixels for one or more tasks."""

    stride = 1

    def __init__(self, in_channels: int, sizes: Sequence[int], *, width: int, sigmas: Sequence[float]) -> None:
        super().__init__()
        self.sizes, self.width = list(sizes), width  # numbers of classes of the tasks
        self.pyramid = GaussianPyramid(sigmas)
        self.squeeze = nn.Conv2d(in_channels, min(_SQUEEZED, in_channels), 1, bias=False)
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
        """The network itself, as that of a :class:`SegmentationNet`."""
        return self

    @property
    def receptive_field(self) -> int:
        """Largest distance in pixels from which an output pixel can be influenced."""
        return self.pyramid.radius

    def forward(self, x: Tensor, occupied: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log probabilities of each task (B, K, H, W), and features (B, width, H, W)."""
        x = self.squeeze(x.contiguous(memory_format=torch.channels_last))
        features = self.body(torch.cat([self.pyramid(x, occupied), occupied], dim=1))
        parts = self.head(features).split(self.sizes, dim=1)
        return torch.cat([part.log_softmax(dim=1) for part in parts], dim=1), features

    def from_means(self, means: Tensor) -> tuple[Tensor, ...]:
        """Return the logits of each task (B, K) from smoothed channels of single pixels (B, n_scales * C)."""
        n = len(means)
        scales = means.reshape(n * len(self.pyramid.sigmas), -1)[:, :, None, None]
        squeezed = self.squeeze(scales).reshape(n, -1, 1, 1)
        features = self.body(torch.cat([squeezed, torch.ones_like(squeezed[:, :1])], dim=1))
        return self.head(features)[:, :, 0, 0].split(self.sizes, dim=1)


class Smoother(nn.Module):
    """The smoothed channels in the form of a segmentation network, for :func:`predict_pixels`."""

    def __init__(self, student: PyramidMLP) -> None:
        super().__init__()
        self.unet = student

    def forward(self, x: Tensor, occupied: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mask in place of logits, and the smoothed channels."""
        return occupied, self.unet.pyramid(x, occupied)
