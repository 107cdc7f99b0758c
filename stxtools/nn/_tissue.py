"""The joint framework: U-Net features at observations and pooled by region, message passing, readout, heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from stxtools._spatial.blocks import Subgraph

from ._gnn import Readout, RegionGNN, scatter
from ._unet import UNet


class Target(NamedTuple):
    """Label shares or values to learn, (n, K), and how much each row counts in training and in validation, (n,)."""

    values: Tensor
    weight: Tensor
    val_weight: Tensor


@dataclass
class GraphTensors:
    """One section as a graph of regions, with the observations in them."""

    nodes: Tensor  # features of the regions, (R, F)
    edges: Tensor  # directed edges, rows source and target, (2, E)
    x: Tensor | None = None  # raster (C, H, W) and where it is known (1, H, W), or None without a U-Net
    occupied: Tensor | None = None
    pixel: Tensor | None = None  # flat pixel and region of each observation that belongs to a region, (n,)
    region: Tensor | None = None
    own: Tensor | None = None  # what each of them reads of its neighbourhoods, (n, d), or None
    targets: dict[str, Target] = field(default_factory=dict)  # task -> that of the regions, and of the observations
    obs_targets: dict[str, Target] = field(default_factory=dict)
    # parts that are passed through the graph network one at a time where nothing is learned; empty: all at once
    parts: list[Subgraph] = field(default_factory=list)
    core: tuple[int, int] | None = None  # of a part taken as a graph of its own, as that of :class:`Subgraph`

    @property
    def judged(self) -> int:
        """Number of regions, the first ones, that a loss may use."""
        return len(self.nodes) if self.core is None else self.core[0]

    def to(self, device: torch.device) -> GraphTensors:
        """Return a copy on ``device``."""
        return GraphTensors(**tree_map(lambda v: v.to(device) if hasattr(v, "to") else v, vars(self)))


@dataclass
class TissueOutput:
    """Output of the framework for a section."""

    states: Tensor
    z: Tensor
    logits: dict[str, Tensor]
    obs_logits: dict[str, Tensor]
    reconstruction: Tensor
    edges: Tensor
    attention: Tensor
    inputs: Tensor


class TissueModule(nn.Module):
    """U-Net (optional), reader of neighbourhoods (optional), GNN, readout, decoder and two heads a task."""

    def __init__(
        self, node_features: int, gnn: RegionGNN, channels: int, unet: UNet | None, tasks: dict[str, int], *,
        own: int = 0, width: int = 64, dropout: float = 0.3, input_dropout: float = 0.3,
    ) -> None:  # fmt: skip
        super().__init__()
        self.unet, self.gnn = unet, gnn
        self.readout = Readout(channels)
        self.decoder = nn.Sequential(
            nn.Linear(2 * channels, 2 * channels), nn.ELU(), nn.Linear(2 * channels, node_features)
        )
        self.mask_token = nn.Parameter(torch.zeros(node_features))
        self.reader: nn.Module | None = None
        if own:
            self.reader = nn.Sequential(
                nn.Dropout(input_dropout), nn.Linear(own, width), nn.LayerNorm(width), nn.GELU(), nn.Dropout(dropout)
            )
        at_obs = (width if own else 0) + (unet.width if unet is not None else 0)
        self.heads = nn.ModuleDict({name: nn.Linear(2 * channels, k) for name, k in tasks.items()})
        self.obs_heads = nn.ModuleDict({name: nn.Linear(at_obs, k) for name, k in tasks.items() if at_obs})
        for head in (*self.heads.values(), *self.obs_heads.values()):
            nn.init.xavier_uniform_(head.get_parameter("weight"))

    def forward(self, g: GraphTensors, hidden: Tensor | None = None, turn: int = 0) -> TissueOutput:
        """Run the framework on one section, the features of ``hidden`` regions (R,) replaced by a learned token."""
        nodes = g.nodes if hidden is None else torch.where(hidden[:, None], self.mask_token, g.nodes)
        at_obs = self.observe(g, turn)
        if at_obs is not None:
            nodes = torch.cat([nodes, pooled(at_obs, g)], dim=1)
        parts = () if self.training else g.parts
        states, z, logits, edges, attention = self.pass_messages(nodes, g.edges, parts=parts, core=g.core)
        obs_logits = {}
        if at_obs is not None:
            obs_logits = {name: found[g.region] + self.obs_heads[name](at_obs) for name, found in logits.items()}
        reconstruction = self.decoder(torch.cat([states, z.expand_as(states)], dim=1))
        return TissueOutput(states, z, logits, obs_logits, reconstruction, edges, attention, nodes)

    def pass_messages(
        self, nodes: Tensor, edges: Tensor, gate: Tensor | None = None, parts: Sequence[Subgraph] = (),
        core: tuple[int, int] | None = None,
    ) -> tuple[Tensor, Tensor, dict[str, Tensor], Tensor, Tensor]:  # fmt: skip
        """From node features to states, Z, outputs of the regions, and attention."""
        states, at, attention = self.gnn.by_parts(nodes, parts) if parts else self.gnn(nodes, edges, gate, core)
        z = self.readout(states)
        both = torch.cat([states, z.expand_as(states)], dim=1)
        return states, z, {name: head(both) for name, head in self.heads.items()}, at, attention

    def observe(self, g: GraphTensors, turn: int = 0) -> Tensor | None:
        """Features of the observations by reader and U-Net, (n, d); None without either."""
        parts = []
        if self.reader is not None and g.own is not None:
            parts.append(self.reader(g.own))
        if self.unet is not None and g.x is not None and g.occupied is not None:
            x, occupied = _turn(g.x[None], turn), _turn(g.occupied[None], turn)
            parts.append(_turn_back(self.unet(x, occupied), turn)[0].flatten(1)[:, g.pixel].T)
        return torch.cat(parts, dim=1) if parts else None


def pooled(at_obs: Tensor, g: GraphTensors) -> Tensor:
    """Mean over the observations of each region, (R, d): gradients reach whatever made the features."""
    return scatter(at_obs, g.region, dim_size=len(g.nodes), reduce="mean")


def _turn(x: Tensor, turn: int) -> Tensor:
    x = x.flip(-1) if turn >= 4 else x
    return torch.rot90(x, turn % 4, (-2, -1))


def _turn_back(x: Tensor, turn: int) -> Tensor:
    x = torch.rot90(x, -(turn % 4), (-2, -1))
    return x.flip(-1) if turn >= 4 else x
