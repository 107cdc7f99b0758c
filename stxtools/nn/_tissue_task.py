"""Training of the framework: several tasks at once, without labels, and the U-Net's pretraining."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ._losses import reconstruction_error, soft_cross_entropy, weighted_mse
from ._recipe import Training
from ._tissue import GraphTensors, TissueModule
from ._training import Task
from ._unet import UNet
from ._views import block_mask
from ._weighting import TaskWeighting

STEPS = 6  # an epoch, at least
PART_STEPS = 18  # an epoch, at least, where sections are learned from in parts
JUDGED = 4  # parts on which early stopping is judged


class _Graphs(Dataset[tuple[int, int]]):
    """Indices of sections with a seed for the random choices of a step."""

    def __init__(self, indices: Sequence[int], steps: int, seed: int) -> None:
        self.indices, self.steps, self.seed, self.epoch = list(indices), steps, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> tuple[int, int]:
        step = self.epoch * self.steps + index
        return self.indices[step % len(self.indices)], self.seed * 1_000_003 + step


class GraphTask(Task):
    """A task over whole sections, one a step: ``learned`` and ``judged`` are those for training and validation."""

    def __init__(self, graphs: Sequence[GraphTensors], training: Training) -> None:
        super().__init__(training)
        self.graphs = list(graphs)
        self.learned, self.judged = [list(range(len(self.graphs))) for _ in range(2)]
        self.steps = max(len(self.graphs), STEPS)

    def setup(self, device: torch.device) -> None:
        """Move the sections to the device once."""
        self.graphs = [g.to(device) for g in self.graphs]

    def loaders(self, seed: int) -> tuple[DataLoader[Any], DataLoader[Any] | None]:
        """Training and validation loaders; the batch is a section's index and a seed."""
        val = _Graphs(self.judged, len(self.judged), seed + 1)
        return (
            DataLoader(_Graphs(self.learned, self.steps, seed), batch_size=None),
            DataLoader(val, batch_size=None) if self.judged else None,
        )


class TissueTask(GraphTask):
    r"""Training of :class:`TissueModule` on labels.

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
        # the tasks of which each section has labels: read here once, for the host would wait in every step
        self.labelled = {which: [_labelled(g, which) for g in self.graphs] for which in ("weight", "val_weight")}
        self.learned = [i for i in self.learned if self.labelled["weight"][i]] or self.learned
        self.judged = [i for i in self.judged if self.labelled["val_weight"][i]]
        self.steps = max(len(self.learned), STEPS)
        self.task_losses: dict[str, list[Tensor]] = {}
        self._last: tuple[int, int, dict[str, Tensor]] | None = None

    def uninformed_loss(self) -> float:
        """Loss, on what is held out (on all labels where nothing is), of predicting the shares of the classes."""
        which = "val_weight" if self.judged else "weight"
        shares = {task: self._class_shares(task) for task in self.weighting.tasks}
        total, chosen = 0.0, self.judged or self.learned
        for i in chosen:
            g = self.graphs[i]
            logits, at_obs = (
                {t: s.expand_as(to[t].values) for t, s in shares.items()} for to in (g.targets, g.obs_targets)
            )
            total += float(self._total(self.losses(i, logits, at_obs, which)))
        return total / max(len(chosen), 1)

    def _class_shares(self, task: str) -> Tensor:
        """Logarithm of the classes' shares among the labels learned from; zeros for values."""
        if task in self.weighting.squared:
            return torch.zeros_like(self.graphs[0].targets[task].values[0])
        labels = [g.obs_targets[task] for g in self.graphs]
        seen = [(label.values * label.weight[:, None]).sum(dim=0) for label in labels]
        count = torch.stack(seen).sum(dim=0) + 1
        return (count / count.sum()).log()

    def losses(
        self, index: int, logits: dict[str, Tensor], obs_logits: dict[str, Tensor], which: str
    ) -> dict[str, Tensor]:
        """Task -> loss, for the tasks of which this section has labels."""
        g, found = self.graphs[index], {}
        for task in (t for t in self.weighting.tasks if t in self.labelled[which][index]):
            measure = weighted_mse if task in self.weighting.squared else soft_cross_entropy
            at_regions, at_obs = (
                measure(outputs[task], targets[task].values, getattr(targets[task], which))
                for outputs, targets in ((logits, g.targets), (obs_logits, g.obs_targets))
            )
            found[task] = self.region_loss * at_regions + at_obs
        return found

    def training_step(self, batch: tuple[int, int]) -> Tensor | None:
        """Weighted loss of one section."""
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
        """Let the weighting see what the step did."""
        if self._last is not None:
            index, turn, before = self._last
            self.weighting.after_step(before, lambda: self._forward(index, turn, "weight")[1])
            self._last = None

    def loss(self, batch: tuple[int, int], held_out: bool = False) -> Tensor:
        """Loss on what is held out, with the user's factors alone: learned weights would change the yardstick."""
        return self._total(self._forward(batch[0], 0, "val_weight")[1])

    def _forward(self, index: int, turn: int, which: str) -> tuple[Tensor, dict[str, Tensor]]:
        """States of a section's regions, and the losses."""
        out = self.module(self.graphs[index], turn=turn)
        return out.states, self.losses(index, out.logits, out.obs_logits, which)

    def _total(self, losses: dict[str, Tensor]) -> Tensor:
        factors = dict(zip(self.weighting.tasks, self.weighting.factors, strict=True))
        return torch.stack([factors[task] * loss for task, loss in losses.items()]).sum()

    def extra_metrics(self) -> dict[str, float]:
        """Loss and weight of each task in the epoch that ends."""
        row = {f"loss_{t}": sum(torch.stack(losses).tolist()) / len(losses) for t, losses in self.task_losses.items()}
        self.task_losses = {}
        return row | {f"weight_{task}": weight for task, weight in self.weighting.current().items()}


def convergence(history: Sequence[dict[str, Any]], uninformed: float, *, held_out: bool) -> dict[str, Any]:
    """Outcome of a training: the epoch kept, its loss, and whether that beats predicting the shares of the classes.

    Judged on held-out labels; without any (``held_out`` false) on the training loss, which says less.
    """
    losses = [float(row["val_loss" if held_out else "loss"]) for row in history]
    best = min(range(len(losses)), key=lambda i: losses[i] if losses[i] == losses[i] else float("inf"))
    return {
        "converged": bool(losses[best] < uninformed), "best_epoch": best, "epochs": len(losses),
        "loss": losses[best], "uninformed_loss": float(uninformed),
        "judged_on": "held-out labels" if held_out else "training labels",
    }  # fmt: skip


def _labelled(g: GraphTensors, which: str) -> set[str]:
    targets = [*g.targets.items(), *g.obs_targets.items()]
    return {task for task, target in targets if bool((getattr(target, which) > 0).any())}


class EmbeddingTask(GraphTask):
    """Training of :class:`TissueModule` without labels: hidden regions are reconstructed from the others.

    A section that was cut into parts is learned from by its parts, one a step, in random order; the loss looks at a
    part's own regions, not at its halo, and Z is then the part's. Some of the parts are judged.
    """

    def __init__(self, module: TissueModule, graphs: Sequence[GraphTensors], training: Training, hide: float) -> None:
        graphs = [g for g in graphs if len(g.nodes)]  # a section may lie outside all regions
        pieces = ([GraphTensors(g.nodes[p.nodes], p.edges, core=p.core) for p in g.parts] or [g] for g in graphs)
        super().__init__([piece for own in pieces for piece in own], training)
        self.module, self.hide = module, hide
        sections, n = len(graphs), len(self.graphs)
        self.steps = max(sections, STEPS if n == sections else PART_STEPS)
        if n > sections:  # an order that jumps over the tissue
            self.learned = torch.randperm(n, generator=torch.Generator().manual_seed(n)).tolist()
        self.judged = self.learned[: max(sections, JUDGED)]

    def loss(self, batch: tuple[int, int], held_out: bool = False) -> Tensor:
        """Mean squared error of the hidden regions of a section, or of a part of one; one at least is hidden."""
        g, generator = self.graphs[batch[0]], torch.Generator().manual_seed(batch[1])
        hidden = torch.rand(len(g.nodes), generator=generator) < self.hide
        hidden[int(torch.randint(g.judged, (), generator=generator))] = True
        judged = torch.nonzero(hidden[: g.judged])[:, 0].to(g.nodes.device)
        out = self.module(g, hidden.to(g.nodes.device))
        return (out.reconstruction[judged] - g.nodes[judged]).square().mean()


class UNetPretraining(GraphTask):
    """Blocks of each raster are hidden from the U-Net and predicted from what surrounds them."""

    def __init__(self, unet: UNet, channels: int, graphs: Sequence[GraphTensors], training: Training) -> None:
        super().__init__(graphs, training)
        self.unet = unet
        self.decoder = nn.Conv2d(unet.width, channels, 1)
        self.judged = []

    def loss(self, batch: tuple[int, int], held_out: bool = False) -> Tensor:
        """Mean squared error at the hidden pixels that hold observations."""
        g, generator = self.graphs[batch[0]], torch.Generator().manual_seed(batch[1])
        if g.x is None or g.occupied is None:
            raise ValueError("Pretraining the U-Net takes sections with a raster.")
        shape = (g.x.shape[1], g.x.shape[2])
        hidden = block_mask(shape, 0.3, 4, generator, g.x.device).to(g.x)[None]
        keep, judged = (g.occupied * (1 - hidden))[None], (g.occupied * hidden)[None]
        return reconstruction_error(self.unet, self.decoder, g.x[None], keep, g.x[None], judged)
