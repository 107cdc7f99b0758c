"""A network small enough for very large sections: one perceptron on spatial means, applied pixel by pixel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ._layers import GaussianPyramid, he_init
from ._unet import SegmentationNet

SQUEEZED = 16  # channels that are smoothed: genes of a disease are not among the first few


class PyramidMLP(nn.Module):
    """Two-layer perceptron on the raster at several smoothing scales; stands in for a :class:`UNet`.

    Trained graph or convolution networks can often be reduced to it (SIGN, Frasca et al. 2020; GLNN, Zhang et al.
    2022). A linear map takes the channels to a few first: training can then read means that are made once.
    """

    stride = 1

    def __init__(
        self,
        in_channels: int,
        *,
        width: int = 16,
        sigmas: Sequence[float] = (0.0, 1.0, 2.0, 4.0),
    ) -> None:
        super().__init__()
        self.width = width
        self.pyramid = GaussianPyramid(sigmas)
        self.n_scales = len(self.pyramid.sigmas)
        self.squeeze = nn.Conv2d(in_channels, min(SQUEEZED, in_channels), 1, bias=False)
        self.body = nn.Sequential(
            nn.Conv2d(self.squeeze.out_channels * self.n_scales + 1, width, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 1),
            nn.ReLU(inplace=True),
        )
        he_init(self)
        nn.init.orthogonal_(self.squeeze.weight)

    @property
    def receptive_field(self) -> int:
        """Distance in pixels from which an output pixel can be influenced."""
        return self.pyramid.radius

    def forward(self, x: Tensor, occupied: Tensor) -> Tensor:
        """Return features, (B, width, H, W)."""
        x = self.squeeze(x.contiguous(memory_format=torch.channels_last))
        return self.body(torch.cat([self.pyramid(x, occupied), occupied], dim=1))

    def from_means(self, means: Tensor) -> Tensor:
        """Return features (B, width) of pixels from the means of all channels (B, n_scales * C) at them."""
        n = len(means)
        scales = means.reshape(n * self.n_scales, -1)[:, :, None, None]
        squeezed = self.squeeze(scales).reshape(n, -1, 1, 1)
        return self.body(torch.cat([squeezed, torch.ones_like(squeezed[:, :1])], dim=1))[:, :, 0, 0]


class Means(nn.Module):
    """The means alone in the form of a segmentation network, to be read at the pixels of a raster."""

    def __init__(self, student: PyramidMLP) -> None:
        super().__init__()
        self.unet = student

    def forward(self, x: Tensor, occupied: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mask in place of logits, and the means."""
        return occupied, self.unet.pyramid(x, occupied)


class JointNet(SegmentationNet):
    """Pixel classifier of several tasks at once: the logits of each are its logarithmic probabilities.

    A softmax over all of them then gives each task's probabilities, divided by the number of tasks.
    """

    def __init__(self, unet: PyramidMLP, sizes: Sequence[int]) -> None:
        super().__init__(unet, sum(sizes))  # type: ignore[arg-type]
        self.sizes = list(sizes)

    def forward(self, x: Tensor, occupied: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (B, K, H, W) and features (B, width, H, W)."""
        logits, features = super().forward(x, occupied)
        return torch.cat([part.log_softmax(dim=1) for part in logits.split(self.sizes, dim=1)], dim=1), features
