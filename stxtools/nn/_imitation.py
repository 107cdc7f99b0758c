"""Training of a student: it imitates its teacher's answers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from ._recipe import Training
from ._student import PyramidMLP
from ._training import Task
from ._unet import SegmentationNet


class Imitation(Task):
    """Cross-entropy of the student's classes with the teacher's probabilities (Hinton et al. 2015), summed over tasks.

    ``sizes`` are the numbers of classes of the tasks; their probabilities stand side by side.
    """

    def __init__(self, net: SegmentationNet, training: Training, sizes: Sequence[int]) -> None:
        super().__init__(training)
        self.net, self.sizes = net, list(sizes)

    def logits(self, means: Tensor) -> Tensor:
        """(B, F) -> (B, K)."""
        student: PyramidMLP = self.net.unet  # type: ignore[assignment]
        return self.net.head(student.from_means(means)[:, :, None, None])[:, :, 0, 0]

    def loss(self, batch: list[Tensor]) -> Tensor:
        """Mean over pixels."""
        means, target = batch
        logits = self.logits(means).split(self.sizes, dim=1)
        parts = zip(logits, target.split(self.sizes, dim=1), strict=True)
        return sum(  # type: ignore[return-value]
            -(wanted * F.log_softmax(found, dim=1)).sum(dim=1).mean() for found, wanted in parts
        )

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Loss of a batch of pixels."""
        return self.record(self.loss(batch))

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """The same on pixels held out."""
        self.log("val_loss", self.loss(batch), batch_size=len(batch[0]))
