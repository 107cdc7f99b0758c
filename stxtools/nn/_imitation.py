"""Training of a student: it imitates its teacher's answers."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from ._recipe import Training
from ._student import PyramidMLP
from ._training import Task
from ._unet import SegmentationNet


class Imitation(Task):
    """Cross-entropy of the student's classes with the teacher's probabilities (Hinton et al. 2015)."""

    def __init__(self, net: SegmentationNet, training: Training) -> None:
        super().__init__(training)
        self.net = net

    def logits(self, means: Tensor) -> Tensor:
        """(B, F) -> (B, K)."""
        student: PyramidMLP = self.net.unet  # type: ignore[assignment]
        return self.net.head(student.from_means(means)[:, :, None, None])[:, :, 0, 0]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Loss of a batch of pixels."""
        means, target = batch
        return self.record(-(target * F.log_softmax(self.logits(means), dim=1)).sum(dim=1).mean())

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """The same on pixels held out."""
        means, target = batch
        loss = -(target * F.log_softmax(self.logits(means), dim=1)).sum(dim=1).mean()
        self.log("val_loss", loss, batch_size=len(means))
