"""Training of the joint network: multi-task, self-supervised, and pretraining of its U-Net."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from math import inf
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ._options import Training
from ._segmentation import reconstruction_error, soft_cross_entropy, weighted_mse
from ._tissue import GraphTensors, TissueModule
from ._training import Task
from ._unet import UNet
from ._views import block_mask
from ._weighting import TaskWeighting

_MIN_STEPS = 6  # per epoch
_MIN_PART_STEPS = 18  # per epoch, where sections are cut into parts
_VAL_PARTS = 4  # at least


class _SectionSteps(Dataset[tuple[int, int]]):
    """Index of a section and a random seed for each step."""

    def __init__(self, indices: Sequence[int], steps: int, seed: int) -> None:
        self.indices, self.steps, self.seed, self.epoch = list(indices), steps, seed, 0

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> tuple[int, int]:
        step = self.epoch * self.steps + index
        return self.indices[step % len(self.indices)], self.seed * 1_000_003 + step


class GraphTask(Task):
    """A task on graphs, one per step; ``train_indices`` and ``val_indices`` are those for training and validation."""

    def __init__(self, graphs: Sequence[GraphTensors], training: Training) -> None:
        super().__init__(training)
        self.graphs = list(graphs)
        self.train_indices = self.val_indices = list(range(len(self.graphs)))
        self.steps = max(len(self.graphs), _MIN_STEPS)

    def setup(self, device: torch.device) -> None:
        """Move the graphs to the device."""
        self.graphs = [g.to(device) for g in self.graphs]

    def loaders(self, seed: int) -> tuple[DataLoader[Any], DataLoader[Any] | None]:
        """Return the training and the validation loader, of indices and seeds."""
        train = _SectionSteps(self.train_indices, self.steps, seed)
        val = _SectionSteps(self.val_indices, len(self.val_indices), seed + 1)
        return DataLoader(train, batch_size=None), DataLoader(val, batch_size=None) if self.val_indices else None


class TissueTask(GraphTask):
    r"""Supervised training of :class:`TissueModule`.

    The loss is :math:`L = \alpha L_{biomarker} + \beta L_{classification}` (and :math:`\gamma L_{expression}`), with
    further weights by ``weighting``. Each :math:`L` is the cross-entropy (expression: the mean squared error) of the
    observations plus ``region_loss`` times that of the regions.
    """

    def __init__(
        self, module: TissueModule, graphs: Sequence[GraphTensors], training: Training, weighting: TaskWeighting,
        region_loss: float = 0.5,
    ) -> None:  # fmt: skip
        super().__init__(graphs, training)
        self.module, self.weighting, self.region_loss = module, weighting, region_loss
        # tasks with labels, read once: in every step, the host would wait for the device
        self.labelled = {which: [_labelled_tasks(g, which) for g in self.graphs] for which in ("weight", "val_weight")}
        self.train_indices = [i for i in self.train_indices if self.labelled["weight"][i]] or self.train_indices
        self.val_indices = [i for i in self.val_indices if self.labelled["val_weight"][i]]
        self.steps = max(len(self.train_indices), _MIN_STEPS)
        self.task_losses: dict[str, list[Tensor]] = {}
        self._last: tuple[int, int, dict[str, Tensor]] | None = None

    def uninformed_loss(self) -> float:
        """Return the validation (else the training) loss of predicting the class frequencies."""
        which, indices = ("val_weight", self.val_indices) if self.val_indices else ("weight", self.train_indices)
        prior = {task: self._log_prior(task) for task in self.weighting.tasks}
        total = 0.0
        for i in indices:
            g = self.graphs[i]
            logits, obs_logits = (
                {task: prior[task].expand_as(targets[task].values) for task in prior}
                for targets in (g.targets, g.obs_targets)
            )
            total += float(self._total(self.losses(i, logits, obs_logits, which)))
        return total / max(len(indices), 1)

    def _log_prior(self, task: str) -> Tensor:
        """Log class frequencies among the training labels, with one pseudo-count; zeros for values."""
        if task in self.weighting.squared:
            return torch.zeros_like(self.graphs[0].targets[task].values[0])
        labels = [g.obs_targets[task] for g in self.graphs]
        sums = [(label.values * label.weight[:, None]).sum(dim=0) for label in labels]
        count = torch.stack(sums).sum(dim=0) + 1
        return (count / count.sum()).log()

    def losses(
        self, index: int, logits: dict[str, Tensor], obs_logits: dict[str, Tensor], which: str
    ) -> dict[str, Tensor]:
        """Task -> loss, for the tasks with labels in this section."""
        g, losses = self.graphs[index], {}
        for task in (t for t in self.weighting.tasks if t in self.labelled[which][index]):
            loss = weighted_mse if task in self.weighting.squared else soft_cross_entropy
            of_regions, of_obs = (
                loss(outputs[task], targets[task].values, getattr(targets[task], which))
                for outputs, targets in ((logits, g.targets), (obs_logits, g.obs_targets))
            )
            losses[task] = self.region_loss * of_regions + of_obs
        return losses

    def training_step(self, batch: tuple[int, int]) -> Tensor | None:
        """Return the weighted loss of one section."""
        index, seed = batch
        turn = int(torch.randint(8, (), generator=torch.Generator().manual_seed(seed)))
        states, losses = self._forward(index, turn, "weight")
        if not losses:
            return None
        for task, loss in losses.items():
            self.task_losses.setdefault(task, []).append(loss.detach())
        self._last = (index, turn, {task: loss.detach() for task, loss in losses.items()})
        return self.weighting.combine(losses, states)

    def after_step(self) -> None:
        """Update the weighting of the losses."""
        if self._last is not None:
            index, turn, before = self._last
            self.weighting.after_step(before, lambda: self._forward(index, turn, "weight")[1])
            self._last = None

    def loss(self, batch: tuple[int, int]) -> Tensor:
        """Return the validation loss with fixed factors: with learned weights, epochs could not be compared."""
        return self._total(self._forward(batch[0], 0, "val_weight")[1])

    def _forward(self, index: int, turn: int, which: str) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the states of a section's regions, and the losses."""
        out = self.module(self.graphs[index], turn=turn)
        return out.states, self.losses(index, out.logits, out.obs_logits, which)

    def _total(self, losses: dict[str, Tensor]) -> Tensor:
        factors = dict(zip(self.weighting.tasks, self.weighting.factors, strict=True))
        return torch.stack([factors[task] * loss for task, loss in losses.items()]).sum()

    def extra_metrics(self) -> dict[str, float]:
        """Return loss and weight of each task in the epoch that ends."""
        row = {f"loss_{t}": sum(torch.stack(losses).tolist()) / len(losses) for t, losses in self.task_losses.items()}
        self.task_losses = {}
        return row | {f"weight_{task}": weight for task, weight in self.weighting.current().items()}


def convergence(history: Sequence[dict[str, Any]], uninformed: float, *, validated: bool) -> dict[str, Any]:
    """Return the epoch whose weights were kept, its loss, and whether it is lower than that of predicting frequencies.

    The loss is that of held-out labels; without any (``validated`` false) the training loss, which says less.
    """
    losses = [float(row["val_loss" if validated else "loss"]) for row in history]
    best, lowest = 0, inf
    for epoch, loss in enumerate(losses):
        if loss < lowest - Training.min_delta:
            best, lowest = epoch, loss
    return {
        "converged": bool(losses[best] < uninformed), "best_epoch": best, "epochs": len(losses),
        "loss": losses[best], "uninformed_loss": float(uninformed),
        "judged_on": "held-out labels" if validated else "training labels",
    }  # fmt: skip


def _labelled_tasks(g: GraphTensors, which: str) -> set[str]:
    targets = [*g.targets.items(), *g.obs_targets.items()]
    return {task for task, target in targets if bool((getattr(target, which) > 0).any())}


class EmbeddingTask(GraphTask):
    """Self-supervised training of :class:`TissueModule`: hidden regions are reconstructed from the others.

    Each part of a section is a training step, in random order; the loss excludes the part's halo, and Z is the
    embedding of the part. Some of the parts are for validation, too.
    """

    def __init__(self, module: TissueModule, graphs: Sequence[GraphTensors], training: Training, hide: float) -> None:
        graphs = [g for g in graphs if len(g.nodes)]  # a section may lie outside all regions
        parts = ([GraphTensors(g.nodes[p.nodes], p.edges, core=p.core) for p in g.parts] or [g] for g in graphs)
        super().__init__(list(chain.from_iterable(parts)), training)
        self.module, self.hide = module, hide
        sections, n = len(graphs), len(self.graphs)
        self.steps = max(sections, _MIN_STEPS if n == sections else _MIN_PART_STEPS)
        if n > sections:
            self.train_indices = torch.randperm(n, generator=torch.Generator().manual_seed(n)).tolist()
        self.val_indices = self.train_indices[: max(sections, _VAL_PARTS)]

    def loss(self, batch: tuple[int, int]) -> Tensor:
        """Mean squared error of the hidden regions, at least one."""
        g, generator = self.graphs[batch[0]], torch.Generator().manual_seed(batch[1])
        hidden = torch.rand(len(g.nodes), generator=generator) < self.hide
        hidden[int(torch.randint(g.n_core, (), generator=generator))] = True
        rows = torch.nonzero(hidden[: g.n_core])[:, 0].to(g.nodes.device)
        out = self.module(g, hidden.to(g.nodes.device))
        return (out.reconstruction[rows] - g.nodes[rows]).square().mean()


class UNetPretraining(GraphTask):
    """Masked reconstruction: blocks of each raster are predicted from their surroundings."""

    def __init__(self, unet: UNet, channels: int, graphs: Sequence[GraphTensors], training: Training) -> None:
        super().__init__(graphs, training)
        self.unet = unet
        self.decoder = nn.Conv2d(unet.width, channels, 1)
        self.val_indices = []

    def loss(self, batch: tuple[int, int]) -> Tensor:
        """Mean squared error at the masked pixels that hold observations."""
        g, generator = self.graphs[batch[0]], torch.Generator().manual_seed(batch[1])
        if g.x is None or g.occupied is None:
            raise ValueError("Pretraining the U-Net takes sections with a raster.")
        mask = block_mask((g.x.shape[1], g.x.shape[2]), 0.3, 4, generator, g.x.device).to(g.x)[None]
        visible, masked = (g.occupied * (1 - mask))[None], (g.occupied * mask)[None]
        return reconstruction_error(self.unet, self.decoder, g.x[None], visible, g.x[None], masked)
