"""A U-Net that reads the class logits of simpler classifiers and corrects them (auto-context)."""

from __future__ import annotations

from torch import Tensor, nn

from ._unet import UNet

WIDTH, DEPTH, SIGMAS = 16, 2, (0.0, 1.0, 2.0)


class Refiner(nn.Module):
    """Logits in, logits out: what the U-Net adds is nothing before training (Tu and Bai 2010; He et al. 2016)."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.unet = UNet(n_classes, width=WIDTH, depth=DEPTH, sigmas=SIGMAS)
        self.head = nn.Conv2d(WIDTH, n_classes, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, occupied: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (B, K, H, W) and features (B, width, H, W)."""
        features = self.unet(x, occupied)
        return x + self.head(features), features
