"""Message passing on the region graph: GATv2 attention or the sum over neighbours."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stxtools._spatial.blocks import Subgraph

with warnings.catch_warnings():  # raised while PyTorch Geometric is imported
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated")
    from torch_geometric.nn import GATv2Conv, GCNConv
    from torch_geometric.typing import OptTensor
    from torch_geometric.utils import degree
    from torch_geometric.utils import scatter as scatter


class GatedGATv2(GATv2Conv):
    """GATv2 (Brody et al. 2022) with a gate on every message, whose gradient is the importance of an edge."""

    def __init__(self, in_channels: int, out_channels: int, heads: int) -> None:
        super().__init__(in_channels, out_channels, heads=heads, add_self_loops=False)

    def edge_update(
        self, x_j: Tensor, x_i: Tensor, edge_attr: OptTensor, index: Tensor, ptr: OptTensor, dim_size: int | None
    ) -> Tensor:
        """Attention times the gate (``edge_attr``)."""
        alpha = super().edge_update(x_j, x_i, None, index, ptr, dim_size)
        return alpha if edge_attr is None else alpha * edge_attr[:, None]


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
                layer = GatedGATv2(a, b // heads, heads)
                for linear in (layer.lin_l, layer.lin_r):
                    nn.init.xavier_uniform_(linear.weight)
                self.convs.append(layer)
                self.skips.append(nn.Linear(a, b))
                self.norms.append(nn.LayerNorm(b))

    def forward(
        self, h: Tensor, edges: Tensor, gate: Tensor | None = None, core: tuple[int, int] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return states (R, out), and attention of the last layer as edges (2, E') and weights (E',).

        With ``core`` (see :class:`Subgraph`; without ``gate``) only those of the core.
        """
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
            return h, edges, 1 / degree(edges[1], len(h), h.dtype)[edges[1]]
        return h, messages, alpha.mean(dim=1)

    def by_parts(self, h: Tensor, parts: Sequence[Subgraph]) -> tuple[Tensor, Tensor, Tensor]:
        """Run :meth:`forward` on one part after the other, whose halos must reach as many steps as there are layers."""
        outputs = [self(h[part.nodes], part.edges, core=part.core) for part in parts]
        states, local_edges, attention = zip(*outputs, strict=True)
        order = torch.cat([part.nodes[: part.core[0]] for part in parts]).argsort()
        edges = [part.nodes[local] for part, local in zip(parts, local_edges, strict=True)]
        return torch.cat(states)[order], torch.cat(edges, dim=1), torch.cat(attention)


class Readout(nn.Module):
    """Gated sum of the node states, the embedding Z of a section (Li et al. 2016)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Linear(channels, 1)
        self.value = nn.Linear(channels, channels)

    def forward(self, h: Tensor) -> Tensor:
        """(R, d) -> (d,)."""
        return (self.gate(h).softmax(dim=0) * self.value(h)).sum(dim=0)
