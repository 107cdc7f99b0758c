"""Regions of all sections as transport needs them: joined where they are many, with features and distances."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.spatial.distance import cdist

from stxtools import _keys
from stxtools._data.chunks import to_csr
from stxtools.models.transport import Nodes, couple, discriminant_features, graph_distances

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from stxtools._data.regions import Regions

_MOST_GENES = 1000  # those that vary most between regions
_BEST = 3  # counterparts of a region that the table lists
_LEAST = 0.05  # of a region's mass

Plans = dict[tuple[int, int], "NDArray[np.float64]"]  # by the two sections


@dataclass(frozen=True)
class Tissue:
    """Nodes of transport: regions, or groups of regions of one compartment.

    - ``group``: Node of each region; ``names``: name of the largest region of each node.
    - ``features``, ``edges``: Of the nodes, the latter with the distances of touching ones.
    """

    nodes: Nodes
    group: NDArray[np.int64]
    names: NDArray[Any]
    features: NDArray[np.float64]
    edges: sparse.csr_matrix

    @classmethod
    def of(cls, graph: AnnData, inp: Regions, time: NDArray[np.int64], most: int, seed: int) -> Tissue:
        """Join regions where a section has more than ``most``, and describe what there is then."""
        size = np.asarray(graph.obs["n_obs"], dtype=np.float64)
        compartment = np.asarray(graph.obs["segment"].cat.codes, dtype=np.int64)
        xy = np.asarray(graph.obsm[_keys.SPATIAL], dtype=np.float64)
        group = _joined(xy, size, inp.library, compartment, most, seed)
        n = int(group.max()) + 1
        member = sparse.csr_matrix((size, (group, np.arange(len(group)))), shape=(n, len(group)))
        total = np.asarray(member.sum(axis=1)).ravel()
        largest = np.lexsort((-size, group))
        first = largest[np.unique(group[largest], return_index=True)[1]]
        expression = to_csr(graph.X)
        mean = sparse.diags(1 / total) @ member
        nodes = Nodes(
            np.asarray((mean @ expression[:, _variable(expression)]).toarray(), dtype=np.float64), total,
            inp.library[first], compartment[first], time,
        )  # fmt: skip
        centre, touch = mean @ xy, ((member != 0) @ inp.adjacency @ (member != 0).T).tocoo()
        apart = touch.row != touch.col
        i, j = touch.row[apart], touch.col[apart]
        length = np.maximum(np.linalg.norm(centre[i] - centre[j], axis=1), 1e-12)
        edges = sparse.csr_matrix((length, (i, j)), shape=(n, n))
        return cls(nodes, group, np.asarray(inp.names, dtype=object)[first], discriminant_features(nodes), edges)

    def rows(self, section: int) -> NDArray[np.int64]:
        """Nodes of a section."""
        return np.flatnonzero(self.nodes.section == section)

    def weight(self, section: int) -> NDArray[np.float64]:
        """Share of each node in its section."""
        size = self.nodes.size[self.rows(section)]
        return size / size.sum()

    def distances(self, section: int) -> NDArray[np.float64]:
        """Distances along the region graph of a section."""
        rows = self.rows(section)
        return graph_distances(self.edges[rows][:, rows], self.weight(section))

    def plan(self, one: int, two: int, structure: float, slack: float) -> NDArray[np.float64]:
        """Mass that nodes of two sections share."""
        cost = cdist(self.features[self.rows(one)], self.features[self.rows(two)], "sqeuclidean")
        inside = (self.distances(one), self.distances(two))
        return couple(cost, inside, (self.weight(one), self.weight(two)), structure, slack)

    def kept(self, plans: Plans, *, forward: bool) -> NDArray[np.float64]:
        """Share of the mass of each node with a counterpart at the next (or previous) time; NaN without such a time."""
        total, count = np.zeros(len(self.names)), np.zeros(len(self.names))
        for pair, plan in plans.items():
            section = pair[0] if forward else pair[1]
            rows = self.rows(section)
            total[rows] += np.minimum(plan.sum(axis=1 if forward else 0) / self.weight(section), 1.0)
            count[rows] += 1
        return np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)

    def table(self, plans: Plans, libraries: list[str]) -> pd.DataFrame:
        """Best counterparts of every node, with the share of its mass that they take."""
        parts = []
        for (one, two), plan in plans.items():
            share = plan / self.weight(one)[:, None]
            best = np.argsort(-share, axis=1, kind="stable")[:, :_BEST]
            row, rank = np.nonzero(np.take_along_axis(share, best, axis=1) >= _LEAST)
            column = best[row, rank]
            parts.append(pd.DataFrame({
                "library_from": libraries[one], "library_to": libraries[two],
                "region_from": self.names[self.rows(one)][row], "region_to": self.names[self.rows(two)][column],
                "probability": np.minimum(share[row, column], 1.0),
            }))  # fmt: skip
        return pd.concat(parts, ignore_index=True)


def _variable(expression: sparse.csr_matrix) -> NDArray[np.int64]:
    """Genes that vary most between regions, in their order."""
    mean = np.asarray(expression.mean(axis=0)).ravel()
    variance = np.asarray(expression.multiply(expression).mean(axis=0)).ravel() - mean**2
    return np.sort(np.argsort(-variance, kind="stable")[:_MOST_GENES])


def _joined(
    xy: NDArray[np.float64], size: NDArray[np.float64], section: NDArray[np.int64], compartment: NDArray[np.int64],
    most: int, seed: int,
) -> NDArray[np.int64]:  # fmt: skip
    """Group of each region: itself, or one of about ``most`` compact groups within the compartments of its section."""
    from sklearn.cluster import KMeans

    group, next_free = np.empty(len(xy), dtype=np.int64), 0
    for code in np.unique(section):
        here = np.flatnonzero(section == code)
        parts = [here[compartment[here] == c] for c in np.unique(compartment[here])]
        for rows in parts:
            k = len(rows) if len(here) <= most else max(1, int(most * len(rows) / len(here)))
            if k < len(rows):
                label = KMeans(k, n_init=1, random_state=seed).fit(xy[rows], sample_weight=size[rows]).labels_
            else:
                label = np.arange(k)
            group[rows], next_free = next_free + label, next_free + k
    return np.unique(group, return_inverse=True)[1].ravel().astype(np.int64)
