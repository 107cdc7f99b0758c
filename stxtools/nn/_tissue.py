"""The joint network: features of observations, pooled by region; message passing, readout and heads."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from stxtools._spatial.blocks import Subgraph

from ._unet import UNet

with warnings.catch_warnings():  # raised while PyTorch Geometric is imported
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated")
    from torch_geometric.nn import GATv2Conv, GCNConv
    from torch_geometric.typing import OptTensor
    from torch_geometric.utils import degree, scatter


class GatedGATv2(GATv2Conv):
    """GATv2 (Brody et al. 2022) with a gate on every message, whose gradient is the importance of an edge."""

    def edge_update(
        self, x_j: Tensor, x_i: Tensor, edge_attr: OptTensor, index: Tensor, ptr: OptTensor, dim_size: int | None
    ) -> Tensor:
        """Attention times the gate (``edge_attr``)."""
        alpha = super().edge_update(x_j, x_i, None, index, ptr, dim_size)
        return alpha if edge_attr is None else alpha * edge_attr[:, None]


def _remove_generated(layer: Any) -> None:
    """Remove the files of code that PyTorch Geometric generates for a layer, loads, and leaves behind."""
    for method in (layer.propagate, layer.edge_updater):
        file = Path(method.__code__.co_filename)
        if file.parent == Path(tempfile.gettempdir()):
            file.unlink(missing_ok=True)


class Messages(NamedTuple):
    """States of the regions (R, d), and the attention of the last layer: edges (2, E') and their weights (E',)."""

    states: Tensor
    edges: Tensor
    attention: Tensor


class RegionGNN(nn.Module):
    r"""Layers of message passing over regions, ``"gatv2"`` (Brody et al. 2022; attention, residual) or ``"sum"``.

    The sum is :math:`h_v^{(l+1)} = \sigma\big(\sum_{u \in N(v)} W^{(l)} h_u^{(l)} + b^{(l)}\big)` with Xavier
    initialisation; ``N(v)`` are the neighbours without ``v`` itself.
    """

    def __init__(
        self, in_channels: int, *, hidden: int = 64, out_channels: int = 32, layers: int = 2,
        conv: Literal["gatv2", "sum"] = "gatv2", heads: int = 4, dropout: float = 0.1,
    ) -> None:  # fmt: skip
        super().__init__()
        self.kind, self.dropout = conv, dropout
        widths = [in_channels] + [hidden] * (layers - 1) + [out_channels]
        self.convs, self.skips, self.norms = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for a, b in pairwise(widths):
            if conv == "sum":
                self.convs.append(GCNConv(a, b, add_self_loops=False, normalize=False))
            else:
                layer = GatedGATv2(a, b // heads, heads, add_self_loops=False)
                for linear in (layer.lin_l, layer.lin_r):
                    nn.init.xavier_uniform_(linear.weight)
                self.convs.append(layer)
                self.skips.append(nn.Linear(a, b))
                self.norms.append(nn.LayerNorm(b))
            _remove_generated(type(self.convs[-1]))

    def forward(
        self, h: Tensor, edges: Tensor, gate: Tensor | None = None, core: tuple[int, int] | None = None
    ) -> Messages:
        """Pass messages; with ``core`` (see :class:`Subgraph`; without ``gate``) return only those of the core."""
        # PyTorch Geometric's own self-loops would make the host wait for the device in every layer
        loops = torch.arange(len(h) if self.kind == "gatv2" else 0, device=h.device).expand(2, -1)
        gate = None if gate is None else torch.cat([gate, gate.new_ones(loops.shape[1])])
        last = len(self.convs) - 1
        conv: Any
        for i, conv in enumerate(self.convs):
            h = receivers = F.dropout(h, self.dropout, self.training)
            if i == last and core is not None:
                receivers, edges, loops = h[: core[0]], edges[:, : core[1]], loops[:, : core[0]]
            messages = torch.cat([edges, loops], dim=1)
            if self.kind == "sum":
                h = conv(h, messages, gate)[: len(receivers)]
                h = F.relu(h) if i < last else h
            else:
                out, (_, alpha) = conv((h, receivers), messages, gate, return_attention_weights=True)
                h = self.norms[i](out + self.skips[i](receivers))
                h = F.elu(h) if i < last else h
        if self.kind == "sum":
            return Messages(h, edges, 1 / degree(edges[1], len(h), h.dtype)[edges[1]])
        return Messages(h, messages, alpha.mean(dim=1))

    def by_parts(self, h: Tensor, parts: Sequence[Subgraph]) -> Messages:
        """Run :meth:`forward` on one part after the other, whose halos must reach as many steps as there are layers."""
        outputs = [self(h[part.nodes], part.edges, core=part.core) for part in parts]
        states, local_edges, attention = zip(*outputs, strict=True)
        order = torch.cat([part.nodes[: part.core[0]] for part in parts]).argsort()
        edges = [part.nodes[local] for part, local in zip(parts, local_edges, strict=True)]
        return Messages(torch.cat(states)[order], torch.cat(edges, dim=1), torch.cat(attention))


class Readout(nn.Module):
    """Gated sum of the node states, the embedding Z of a section (Li et al. 2016)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Linear(channels, 1)
        self.value = nn.Linear(channels, channels)

    def forward(self, h: Tensor) -> Tensor:
        """(R, d) -> (d,)."""
        return (self.gate(h).softmax(dim=0) * self.value(h)).sum(dim=0)


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
        (states, edges, attention), z, logits = self.pass_messages(nodes, g.edges, parts=parts, core=g.core)
        obs_logits = {}
        if observed is not None:
            obs_logits = {task: logits[task][g.region] + head(observed) for task, head in self.obs_heads.items()}
        reconstruction = self.decoder(torch.cat([states, z.expand_as(states)], dim=1))
        return TissueOutput(states, z, logits, obs_logits, reconstruction, edges, attention, nodes)

    def pass_messages(
        self, nodes: Tensor, edges: Tensor, gate: Tensor | None = None, parts: Sequence[Subgraph] = (),
        core: tuple[int, int] | None = None,
    ) -> tuple[Messages, Tensor, dict[str, Tensor]]:  # fmt: skip
        """Return what the graph network gives, Z, and the logits of the regions."""
        passed: Messages = self.gnn.by_parts(nodes, parts) if parts else self.gnn(nodes, edges, gate, core)
        z = self.readout(passed.states)
        both = torch.cat([passed.states, z.expand_as(passed.states)], dim=1)
        return passed, z, {task: head(both) for task, head in self.heads.items()}

    def observe(self, g: GraphTensors, turn: int = 0) -> Tensor | None:
        """Return the features of the observations by reader and U-Net, (n, d); None without either."""
        parts = []
        if self.reader is not None and g.features is not None:
            parts.append(self.reader(g.features))
        if self.unet is not None and g.x is not None and g.occupied is not None:
            features = self.unet(_turn(g.x[None], turn), _turn(g.occupied[None], turn))
            back = turn if turn >= 4 else -turn % 4  # a reflection is its own inverse
            parts.append(_turn(features, back)[0].flatten(1)[:, g.pixel].T)
        return torch.cat(parts, dim=1) if parts else None


def pooled(observed: Tensor, g: GraphTensors) -> Tensor:
    """Average the features of the observations in each region, (R, d)."""
    return scatter(observed, g.region, dim_size=len(g.nodes), reduce="mean")


def _turn(x: Tensor, turn: int) -> Tensor:
    """Apply one of the eight rotations and reflections of a square grid."""
    x = x.flip(-1) if turn >= 4 else x
    return torch.rot90(x, turn % 4, (-2, -1))
