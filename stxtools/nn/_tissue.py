"""The joint framework: U-Net features pooled by region, message passing, readout, heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from ._gnn import Readout, RegionGNN
from ._training import Task, Training
from ._unet import UNet


@dataclass
class GraphTensors:
    """One section as a graph of regions.

    Attributes
    ----------
    nodes
        Features of the regions, (R, F).
    edges
        Directed edges, rows source and target, (2, E).
    x, occupied
        Raster (C, H, W) and where it is known (1, H, W), or None without a U-Net.
    pixel, region
        Flat pixel and region of each observation that belongs to a region, (n,).
    targets
        Per task, label shares of the regions (R, K); rows of zeros where unlabelled.
    weight, val_weight
        Per task, how much a region counts in training and in validation, (R,).
    """

    nodes: Tensor
    edges: Tensor
    x: Tensor | None = None
    occupied: Tensor | None = None
    pixel: Tensor | None = None
    region: Tensor | None = None
    targets: dict[str, Tensor] = field(default_factory=dict)
    weight: dict[str, Tensor] = field(default_factory=dict)
    val_weight: dict[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> GraphTensors:
        """Return a copy on ``device``."""

        def move(value: Any) -> Any:
            if isinstance(value, dict):
                return {k: v.to(device) for k, v in value.items()}
            return None if value is None else value.to(device)

        return GraphTensors(**{k: move(v) for k, v in vars(self).items()})


@dataclass
class TissueOutput:
    """What the framework says of a section: states, Z, logits per task, attention edges and weights."""

    states: Tensor
    z: Tensor
    logits: dict[str, Tensor]
    reconstruction: Tensor
    edges: Tensor
    attention: Tensor


class TissueModule(nn.Module):
    """U-Net (optional), GNN, readout, decoder and one classifier a task.

    Parameters
    ----------
    node_features
        Length of the region features.
    gnn
        Message passing; it reads region features and pooled U-Net features side by side.
    unet
        U-Net whose feature map is averaged inside each region, or None.
    tasks
        Task name -> number of classes.
    channels
        Length of the states that ``gnn`` returns.
    """

    def __init__(
        self, node_features: int, gnn: RegionGNN, channels: int, unet: UNet | None, tasks: dict[str, int]
    ) -> None:
        super().__init__()
        self.unet, self.gnn = unet, gnn
        self.readout = Readout(channels)
        self.decoder = nn.Sequential(
            nn.Linear(2 * channels, 2 * channels), nn.ELU(), nn.Linear(2 * channels, node_features)
        )
        self.mask_token = nn.Parameter(torch.zeros(node_features))
        self.heads = nn.ModuleDict({name: nn.Linear(2 * channels, k) for name, k in tasks.items()})
        for head in self.heads.values():
            nn.init.xavier_uniform_(head.get_parameter("weight"))

    def forward(self, g: GraphTensors, hidden: Tensor | None = None, turn: int = 0) -> TissueOutput:
        """Run the framework on one section.

        Parameters
        ----------
        g
            The section.
        hidden
            Regions whose features are replaced by a learned token, boolean (R,).
        turn
            Quarter turns (0-3) and reflection (+4) of the raster before the U-Net; features are turned back.
        """
        nodes = g.nodes if hidden is None else torch.where(hidden[:, None], self.mask_token, g.nodes)
        if self.unet is not None:
            nodes = torch.cat([nodes, self._pooled(g, turn)], dim=1)
        states, edges, attention = self.gnn(nodes, g.edges)
        z = self.readout(states)
        both = torch.cat([states, z.expand_as(states)], dim=1)
        logits = {name: head(both) for name, head in self.heads.items()}
        return TissueOutput(states, z, logits, self.decoder(both), edges, attention)

    def _pooled(self, g: GraphTensors, turn: int) -> Tensor:
        """Mean of the U-Net's features over the observations of each region: gradients reach the U-Net."""
        x, occupied = _turn(g.x[None], turn), _turn(g.occupied[None], turn)  # type: ignore[index]
        features = _turn_back(self.unet(x, occupied), turn)[0].flatten(1)  # type: ignore[misc]
        at = features[:, g.pixel].T
        total = at.new_zeros(len(g.nodes), at.shape[1]).index_add(0, g.region, at)  # type: ignore[arg-type]
        count = torch.bincount(g.region, minlength=len(g.nodes)).clamp_min(1)  # type: ignore[arg-type]
        return total / count[:, None]


def _turn(x: Tensor, turn: int) -> Tensor:
    x = x.flip(-1) if turn >= 4 else x
    return torch.rot90(x, turn % 4, (-2, -1))


def _turn_back(x: Tensor, turn: int) -> Tensor:
    x = torch.rot90(x, -(turn % 4), (-2, -1))
    return x.flip(-1) if turn >= 4 else x


class _Graphs(Dataset[tuple[int, int]]):
    """Indices of sections with a seed for the random choices of a step."""

    def __init__(self, n: int, steps: int, seed: int) -> None:
        self.n, self.steps, self.seed, self.epoch = n, steps, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> tuple[int, int]:
        step = self.epoch * self.steps + index
        return step % self.n, self.seed * 1_000_003 + step


class TissueTask(Task):
    r"""Training of :class:`TissueModule`.

    With tasks, the loss is :math:`L = \alpha L_{biomarker} + \beta L_{classification}`, both
    cross-entropy. Without, features of hidden regions are reconstructed from the others (masked
    node reconstruction) through the states and Z.
    """

    def __init__(
        self,
        module: TissueModule,
        graphs: Sequence[GraphTensors],
        training: Training,
        weights: dict[str, float],
        hide: float,
    ) -> None:
        super().__init__(training)
        self.module, self.graphs, self.weights, self.hide = module, list(graphs), weights, hide

    def setup(self, stage: str) -> None:
        """Move the sections to the device once."""
        self.graphs = [g.to(self.device) for g in self.graphs]

    def loaders(self, seed: int) -> tuple[DataLoader[Any], DataLoader[Any] | None]:
        """Training and validation loaders; the batch is a section's index and a seed."""
        n = len(self.graphs)
        train = DataLoader(_Graphs(n, max(n, 4), seed), batch_size=None)
        judged = not self.weights or any(bool(w.sum() > 0) for g in self.graphs for w in g.val_weight.values())
        return train, DataLoader(_Graphs(n, n, seed + 1), batch_size=None) if judged else None

    def training_step(self, batch: tuple[int, int], batch_idx: int) -> Tensor:
        """Loss of one section."""
        index, seed = batch
        generator = torch.Generator().manual_seed(seed)
        return self.record(self._loss(self.graphs[index], generator, "weight", turn=True))

    def validation_step(self, batch: tuple[int, int], batch_idx: int) -> None:
        """Loss on the regions held out."""
        index, seed = batch
        generator = torch.Generator().manual_seed(seed)
        self.log("val_loss", self._loss(self.graphs[index], generator, "val_weight", turn=False), batch_size=1)

    def _loss(self, g: GraphTensors, generator: torch.Generator, which: str, *, turn: bool) -> Tensor:
        if not self.weights:
            hidden = (torch.rand(len(g.nodes), generator=generator) < self.hide).to(g.nodes.device)
            hidden[int(torch.randint(len(hidden), (), generator=generator))] = True
            out = self.module(g, hidden)
            return (out.reconstruction - g.nodes)[hidden].square().mean()
        out = self.module(g, turn=int(torch.randint(8, (), generator=generator)) if turn else 0)
        total = out.z.sum() * 0.0  # a section without labels contributes nothing
        for name, factor in self.weights.items():
            total = total + factor * share_cross_entropy(out.logits[name], g.targets[name], getattr(g, which)[name])
        return total


def share_cross_entropy(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean over regions of the cross-entropy with label shares; (R, K), (R, K), (R,)."""
    loss = -(target * F.log_softmax(logits, dim=1)).sum(dim=1)
    return (loss * weight).sum() / weight.sum().clamp_min(1e-6)
