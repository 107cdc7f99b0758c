"""Region graphs that are too large to be passed through the network at once."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from stxtools._settings import settings
from stxtools._spatial.subgraphs import subgraphs
from stxtools.nn._gnn import GraphPart

from .inputs import RegionSection
from .params import TissueNetParams

_PART = 4096  # regions of a part: on a graph of 20,000, twelve steps an epoch then embed as well as six with all
_COPIES = 10  # arrays of one value an edge and channel that a layer keeps for its gradient
_SMALLEST = 256  # regions of a part, however little memory is allowed


def graph_parts(s: RegionSection, params: TissueNetParams) -> list[GraphPart]:
    """Parts of a graph of more than ``max_nodes`` regions, or than fit into ``settings.max_memory``; else none."""
    most = min(params.max_nodes, fitting_regions(s, params))
    if len(s.nodes) <= most:
        return []
    size = min(most, _PART)
    return [
        GraphPart(torch.from_numpy(part.nodes), part.core, torch.from_numpy(part.edges))
        for part in subgraphs(s.adjacency, region_centres(s), size, params.layers)
    ]


def fitting_regions(s: RegionSection, params: TissueNetParams) -> int:
    """Regions whose edges and states fit into ``settings.max_memory`` while the network learns."""
    edges = s.adjacency.nnz / max(len(s.nodes), 1) + 1
    width = params.hidden * (params.layers - 1) + params.out_channels
    per_region = 4 * (_COPIES * edges * width + 4 * s.nodes.shape[1])
    return max(int(settings.max_memory * 2**30 / per_region), _SMALLEST)


def region_centres(s: RegionSection) -> NDArray[np.float64]:
    """Mean position of the observations of each region, (R, 2)."""
    inside, n = s.region >= 0, len(s.nodes)
    count = np.maximum(np.bincount(s.region[inside], minlength=n), 1)
    sums = [np.bincount(s.region[inside], s.section.xy[inside, axis], minlength=n) for axis in range(2)]
    return np.stack(sums, axis=1) / count[:, None]
