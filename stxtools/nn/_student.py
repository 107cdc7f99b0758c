"""A network small enough for very large sections: one perceptron on spatial means, applied pixel by pixel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ._unet import GaussianPyramid, he_init

SQUEEZED = 16  # channels that are smoothed: genes of a disease are not among the first few


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
