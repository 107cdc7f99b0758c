"""The joint network: features of observations, pooled by region; message passing, readout and heads."""

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
    """Soft labels or values (n, K), and the weight of each row in training and in validation, (n,)."""

    values: Tensor
    weight: Tensor
    val_weight: Tensor


@dataclass
class GraphTensors:
    """A section as a graph of regions, with the observations in them."""

    nodes: Tensor  # features of the regions, (R, F)
    edges: Tensor  # directed edges, rows source and target, (2, E)
    x: Tensor | None = None  # raster (C, H, W) and its mask (1, H, W), or None without a U-Net
    occupied: Tensor | None = None
    pixel: Tensor | None = None  # flat pixel and region of each observation that belongs to a region, (n,)
    region: Tensor | None = None
    features: Tensor | None = None  # of their neighbourhoods, (n, d), or None
    targets: dict[str, Target] = field(default_factory=dict)  # task -> target of the regions, and of the observations
    obs_targets: dict[str, Target] = field(default_factory=dict)
    parts: list[Subgraph] = field(default_factory=list)  # for prediction part by part; empty: all at once
    core: tuple[int, int] | None = None  # of a part that is a graph of its own, as in :class:`Subgraph`

    @property
    def n_core(self) -> int:
        """Number of regions, the first ones, that are not in the halo of a part."""
        return len(self.nodes) if self.core is None else self.core[0]

    def to(self, device: torch.device) -> GraphTensors:
        """Return a copy on ``device``."""
        return GraphTensors(**tree_map(lambda v: v.to(device) if hasattr(v, "to") else v, vars(self)))


@dataclass
class TissueOutput:
    """Output of the network for a section."""

    states: Tensor
    z: Tensor
    logits: dict[str, Tensor]
    obs_logits: dict[str, Tensor]
    reconstruction: Tensor
    edges: Tensor
    attention: Tensor
    inputs: Tensor


class TissueModule(nn.Module):
    """U-Net and reader of neighbourhood features (both optional), GNN, readout, decoder and two heads per task."""

    def __init__(
        self, node_features: int, gnn: RegionGNN, channels: int, unet: UNet | None, tasks: dict[str, int], *,
        n_features: int = 0, width: int = 64, dropout: float = 0.3, input_dropout: float = 0.3,
    ) -> None:  # fmt: skip
        super().__init__()
        self.unet, self.gnn = unet, gnn
        self.readout = Readout(channels)
        self.decoder = nn.Sequential(
            nn.Linear(2 * channels, 2 * channels), nn.ELU(), nn.Linear(2 * channels, node_features)
        )
        self.mask_token = nn.Parameter(torch.zeros(node_features))
        self.reader: nn.Module | None = None
        if n_features:
            self.reader = nn.Sequential(
                nn.Dropout(input_dropout), nn.Linear(n_features, width),
                nn.LayerNorm(width), nn.GELU(), nn.Dropout(dropout),
            )  # fmt: skip
        obs_width = (width if n_features else 0) + (unet.width if unet is not None else 0)
        self.heads = nn.ModuleDict({name: nn.Linear(2 * channels, k) for name, k in tasks.items()})
        self.obs_heads = nn.ModuleDict({name: nn.Linear(obs_width, k) for name, k in tasks.items() if obs_width})
        for head in (*self.heads.values(), *self.obs_heads.values()):
            nn.init.xavier_uniform_(head.get_parameter("weight"))

    def forward(self, g: GraphTensors, hidden: Tensor | None = None, turn: int = 0) -> TissueOutput:
        """Run the network on a section; the features of ``hidden`` regions (R,) are replaced by the mask token."""
        nodes = g.nodes if hidden is None else torch.where(hidden[:, None], self.mask_token, g.nodes)
        observed = self.observe(g, turn)
        if observed is not None:
            nodes = torch.cat([nodes, pooled(observed, g)], dim=1)
        parts = () if self.training else g.parts
        states, z, logits, edges, attention = self.pass_messages(nodes, g.edges, parts=parts, core=g.core)
        obs_logits = {}
        if observed is not None:
            obs_logits = {task: logits[task][g.region] + head(observed) for task, head in self.obs_heads.items()}
        reconstruction = self.decoder(torch.cat([states, z.expand_as(states)], dim=1))
        return TissueOutput(states, z, logits, obs_logits, reconstruction, edges, attention, nodes)

    def pass_messages(
        self, nodes: Tensor, edges: Tensor, gate: Tensor | None = None, parts: Sequence[Subgraph] = (),
        core: tuple[int, int] | None = None,
    ) -> tuple[Tensor, Tensor, dict[str, Tensor], Tensor, Tensor]:  # fmt: skip
        """Return states, Z and logits of the regions, and edges with their attention."""
        states, edges, attention = self.gnn.by_parts(nodes, parts) if parts else self.gnn(nodes, edges, gate, core)
        z = self.readout(states)
        both = torch.cat([states, z.expand_as(states)], dim=1)
        return states, z, {task: head(both) for task, head in self.heads.items()}, edges, attention

    def observe(self, g: GraphTensors, turn: int = 0) -> Tensor | None:
        """Return the features of the observations by reader and U-Net, (n, d); None without either."""
        parts = []
        if self.reader is not None and g.features is not None:
            parts.append(self.reader(g.features))
        if self.unet is not None and g.x is not None and g.occupied is not None:
            features = self.unet(_turn(g.x[None], turn), _turn(g.occupied[None], turn))
            parts.append(_turn_back(features, turn)[0].flatten(1)[:, g.pixel].T)
        return torch.cat(parts, dim=1) if parts else None


def pooled(observed: Tensor, g: GraphTensors) -> Tensor:
    """Average the features of the observations in each region, (R, d)."""
    return scatter(observed, g.region, dim_size=len(g.nodes), reduce="mean")


def _turn(x: Tensor, turn: int) -> Tensor:
    """Apply one of the eight rotations and reflections of a square grid."""
    x = x.flip(-1) if turn >= 4 else x
    return torch.rot90(x, turn % 4, (-2, -1))


def _turn_back(x: Tensor, turn: int) -> Tensor:
    x = torch.rot90(x, -(turn % 4), (-2, -1))
    return x.flip(-1) if turn >= 4 else x
