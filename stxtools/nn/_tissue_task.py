"""Training of the framework: several tasks at once, without labels, and the U-Net's pretraining."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ._losses import nt_xent, reconstruction_error, soft_cross_entropy, weighted_mse
from ._recipe import Training
from ._tissue import GraphTensors, TissueModule, TissueOutput
from ._training import Task
from ._unet import UNet
from ._views import block_mask
from ._weighting import TaskWeighting

STEPS = 6  # an epoch, at least
PART_STEPS = 12  # an epoch, at least, where sections are learned from in parts
JUDGED = 4  # parts on which early stopping is judged
_TEMPERATURE = 0.5


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
    """A task over whole sections, one a step."""

    least_steps = STEPS

    def __init__(self, graphs: Sequence[GraphTensors], training: Training) -> None:
        super().__init__(training)
        self.graphs = list(graphs)

    def setup(self, stage: str) -> None:
        """Move the sections to the device once."""
        self.graphs = [g.to(self.device) for g in self.graphs]

    def loaders(self, seed: int) -> tuple[DataLoader[Any], DataLoader[Any] | None]:
        """Training and validation loaders; the batch is a section's index and a seed."""
        learned, judged = self._learned(), self.judged()
        train = DataLoader(_Graphs(learned, self._steps(learned), seed), batch_size=None)
        val = DataLoader(_Graphs(judged, len(judged), seed + 1), batch_size=None) if judged else None
        return train, val

    def _steps(self, learned: list[int]) -> int:
        return max(len(learned), self.least_steps)

    def _learned(self) -> list[int]:
        return list(range(len(self.graphs)))

    def judged(self) -> list[int]:
        """Sections on which the validation loss is measured."""
        return list(range(len(self.graphs)))


class TissueTask(GraphTask):
    r"""Training of :class:`TissueModule` on labels.

    The loss is :math:`L = \alpha L_{biomarker} + \beta L_{classification}` (and :math:`\gamma L_{expression}`), with
    further weights by ``weighting``. Each :math:`L` is the cross-entropy (expression: the mean squared error) of the
    observations plus ``region_loss`` times that of the regions.
    """

    def __init__(
        self,
        module: TissueModule,
        graphs: Sequence[GraphTensors],
        training: Training,
        weighting: TaskWeighting,
        region_loss: float = 0.5,
    ) -> None:
        super().__init__(graphs, training)
        self.module, self.weighting, self.region_loss = module, weighting, region_loss
        # the tasks of which each section has labels: read here once, for the host would wait in every step
        self.labelled = {which: [_labelled(g, which) for g in self.graphs] for which in ("weight", "val_weight")}
        self.task_losses: dict[str, list[Tensor]] = {}
        self._last: tuple[int, int, dict[str, Tensor]] | None = None

    def _learned(self) -> list[int]:
        found = [i for i, tasks in enumerate(self.labelled["weight"]) if tasks]
        return found or super()._learned()

    def judged(self) -> list[int]:
        return [i for i, tasks in enumerate(self.labelled["val_weight"]) if tasks]

    def uninformed_loss(self) -> float:
        """Loss, on what is held out (on all labels where nothing is), of predicting the shares of the classes."""
        which = "val_weight" if self.judged() else "weight"
        shares = {task: self._class_shares(task) for task in self.weighting.tasks}
        total = []
        for i in self.judged() or self._learned():
            g = self.graphs[i]
            logits = {t: shares[t].expand(len(g.nodes), -1) for t in shares}
            at_obs = {t: shares[t].expand(len(rows), -1) for t, rows in g.obs_targets.items() if t in shares}
            empty = g.nodes[:0]
            out = TissueOutput(empty, empty, logits, at_obs, empty, empty, empty, empty)
            total.append(float(self._total(self.losses(i, out, which))))
        return sum(total) / max(len(total), 1)

    def _class_shares(self, task: str) -> Tensor:
        """Logarithm of the classes' shares among the labels learned from; zeros for values."""
        parts = [g for g in self.graphs if task in g.obs_targets]
        count = sum((g.obs_targets[task] * g.obs_weight[task][:, None]).sum(dim=0) for g in parts)
        if task in self.weighting.squared or not isinstance(count, Tensor):
            return torch.zeros_like(self.graphs[0].targets[task][0])
        return ((count + 1) / (count + 1).sum()).log()

    def losses(self, index: int, out: TissueOutput, which: str) -> dict[str, Tensor]:
        """Task -> loss, for the tasks of which this section has labels."""
        g, found = self.graphs[index], {}
        for task in (t for t in self.weighting.tasks if t in self.labelled[which][index]):
            measure = weighted_mse if task in self.weighting.squared else soft_cross_entropy
            weight, obs_weight = getattr(g, which)[task], getattr(g, f"obs_{which}").get(task)
            loss = self.region_loss * measure(out.logits[task], g.targets[task], weight)
            if obs_weight is not None and task in out.obs_logits:
                loss = loss + measure(out.obs_logits[task], g.obs_targets[task], obs_weight)
            found[task] = loss
        return found

    def training_step(self, batch: tuple[int, int], batch_idx: int) -> Tensor | None:
        """Weighted loss of one section."""
        index, seed = batch
        g = self.graphs[index]
        turn = int(torch.randint(8, (), generator=torch.Generator().manual_seed(seed)))
        out = self.module(g, turn=turn)
        losses = self.losses(index, out, "weight")
        if not losses:
            return None
        for task, loss in losses.items():
            self.task_losses.setdefault(task, []).append(loss.detach())
        self._last = (index, turn, {task: loss.detach() for task, loss in losses.items()})
        return self.record(self.weighting.combine(losses, out.states))

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Let the weighting see what the step did."""
        if self._last is not None:
            index, turn, before = self._last
            again = lambda: self.losses(index, self.module(self.graphs[index], turn=turn), "weight")  # noqa: E731
            self.weighting.after_step(before, again)
            self._last = None

    def loss(self, batch: tuple[int, int], held_out: bool = False) -> Tensor:
        """Loss on what is held out, with the user's factors alone: learned weights would change the yardstick."""
        return self._total(self.losses(batch[0], self.module(self.graphs[batch[0]]), "val_weight"))

    def _total(self, losses: dict[str, Tensor]) -> Tensor:
        factors = dict(zip(self.weighting.tasks, self.weighting.get_buffer("factors"), strict=True))
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
    weights = [*getattr(g, which).items(), *getattr(g, f"obs_{which}").items()]
    return {task for task, weight in weights if bool((weight > 0).any())}


class EmbeddingTask(GraphTask):
    """Training of :class:`TissueModule` without labels.

    ``"masked"``: features of hidden regions are reconstructed from the others through the states and Z.
    ``"contrastive"``: in two views of the graph, with features and edges hidden at random, a region's two states
    should be nearer to each other than to any other state (GRACE; Zhu et al. 2020).

    A section that was cut into parts is learned from by its parts, one a step, in random order; the loss looks at a
    part's own regions, not at its halo, and Z is then the part's. Some of the parts are judged.
    """

    def __init__(
        self, module: TissueModule, graphs: Sequence[GraphTensors], training: Training, objective: str, hide: float
    ) -> None:
        super().__init__([piece for g in graphs for piece in g.pieces()], training)
        self.module, self.objective, self.hide = module, objective, hide
        self.sections = len(graphs)
        channels = module.readout.gate.in_features
        self.projector = nn.Sequential(nn.Linear(channels, channels), nn.ELU(), nn.Linear(channels, channels))

    def _order(self) -> list[int]:
        """All pieces, in an order that jumps over the tissue where sections were cut."""
        n = len(self.graphs)
        whole = n == self.sections
        return list(range(n)) if whole else torch.randperm(n, generator=torch.Generator().manual_seed(n)).tolist()

    def _learned(self) -> list[int]:
        return self._order()

    def _steps(self, learned: list[int]) -> int:
        return max(self.sections, STEPS if len(learned) == self.sections else PART_STEPS)

    def judged(self) -> list[int]:
        return self._order()[: max(self.sections, JUDGED)]

    def loss(self, batch: tuple[int, int], held_out: bool = False) -> Tensor:
        """Loss of one section, or of a part of one; other regions are hidden in what is judged."""
        g, generator = self.graphs[batch[0]], torch.Generator().manual_seed(batch[1])
        return self._masked(g, generator) if self.objective == "masked" else self._contrastive(g, generator)

    def _masked(self, g: GraphTensors, generator: torch.Generator) -> Tensor:
        hidden = torch.rand(len(g.nodes), generator=generator) < self.hide
        hidden[int(torch.randint(g.judged, (), generator=generator))] = True
        judged = torch.nonzero(hidden[: g.judged])[:, 0].to(g.nodes.device)
        out = self.module(g, hidden.to(g.nodes.device))
        return (out.reconstruction - g.nodes)[judged].square().mean()

    def _contrastive(self, g: GraphTensors, generator: torch.Generator) -> Tensor:
        a, b = (self.projector(self._view(g, generator)[: g.judged]) for _ in range(2))
        rows = torch.randperm(len(a), generator=generator)[:2048].to(a.device)  # of a large section, a sample
        return nt_xent(torch.cat([a[rows], b[rows]]), _TEMPERATURE)

    def _view(self, g: GraphTensors, generator: torch.Generator) -> Tensor:
        keep = (torch.rand(g.nodes.shape[1], generator=generator) >= self.hide).to(g.nodes)
        kept = torch.nonzero(torch.rand(g.edges.shape[1], generator=generator) >= self.hide)[:, 0].to(g.edges.device)
        return self.module.gnn(g.nodes * keep, g.edges[:, kept])[0]


class UNetPretraining(GraphTask):
    """Blocks of each raster are hidden from the U-Net and predicted from what surrounds them."""

    def __init__(self, unet: UNet, channels: int, graphs: Sequence[GraphTensors], training: Training) -> None:
        super().__init__(graphs, training)
        self.unet = unet
        self.decoder = nn.Conv2d(unet.width, channels, 1)

    def judged(self) -> list[int]:
        return []

    def loss(self, batch: tuple[int, int], held_out: bool = False) -> Tensor:
        """Mean squared error at the hidden pixels that hold observations."""
        g, generator = self.graphs[batch[0]], torch.Generator().manual_seed(batch[1])
        if g.x is None or g.occupied is None:
            raise ValueError("Pretraining the U-Net takes sections with a raster.")
        shape = (g.x.shape[1], g.x.shape[2])
        hidden = block_mask(shape, 0.3, 4, generator, g.x.device).to(g.x)[None]
        keep, judged = (g.occupied * (1 - hidden))[None], (g.occupied * hidden)[None]
        return reconstruction_error(self.unet, self.decoder, g.x[None], keep, g.x[None], judged)
