"""Compartments of one time matched with those of the next."""

from __future__ import annotations

from importlib.util import find_spec
from itertools import chain, pairwise, product

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from scipy.spatial.distance import cdist

from stxtools import _keys
from stxtools._api import public
from stxtools._checks import check_int, check_seed
from stxtools._data.chunks import to_csr
from stxtools._data.regions import Regions
from stxtools._progress import progress, progress_bar
from stxtools._slots import Slots, categorical, free_key, provenance
from stxtools._spatial.matrices import column_moments
from stxtools._types import Floats, Ints
from stxtools._validate import categories, check_adata, stored_library_key, value_per_unit
from stxtools.models.transport import (
    HALF,
    Coupling,
    Nodes,
    Shared,
    couple,
    discriminant_features,
    events,
    graph_distances,
    lineages,
    shared_mass,
)
from stxtools.stats._meta_analysis import adjust_bh

from ._subject_values import time_of

_STRUCTURE = 2.0  # weight of the distances along the region graph
# penalty of unmatched mass: a compartment keeps half of its mass where it differs from its counterpart half as much
# (squared) as compartments of one time from their nearest
_SLACK = 0.36
_MAX_PAIRS = 20  # of sections, between two times
_PERMUTATIONS = 999
_N_GENES = 1000  # those that vary most between regions
_N_COUNTERPARTS = 3  # of a region, in the table
_MIN_SHARE = 0.05  # of a region's mass

Plans = dict[tuple[int, int], Floats]  # by the two sections


@public
@progress_bar({"matching sections": 1})
def track(
    adata: AnnData, time_key: str, *, subject_key: str | None = None, regions_key: str = _keys.REGIONS,
    max_regions: int = 200, spatial_key: str = _keys.SPATIAL, library_key: str | bool | None = None,
    key_added: str | None = None, random_state: int = 0, show_progress: bool | None = None, copy: bool = False,
) -> AnnData | None:  # fmt: skip
    """Track compartments across time points by optimal transport: which continue, split, merge, appear or disappear.

    Regions of two consecutive time points are matched by fused unbalanced Gromov-Wasserstein transport (Thual et al.
    2022) of expression, standardised within sections, and of distances along the region graph, which do not depend on
    rotation or scale. Mass without a counterpart stays unmatched. Compartment names need not agree between time points.
    Matches are correspondences, not lineages of cells: the sections come from different animals. Several sections per
    time point make them much more reliable. Needs the package POT: ``pip install 'stxtools[time]'``.

    Parameters
    ----------
    subject_key
        Column of ``obs`` with the subject of each section. If subjects recur at the next time point, only sections of
        the same subject are matched; by default all pairs of sections are.
    max_regions
        Maximum number of regions per section; if there are more, adjacent regions of a compartment are merged.

    Examples
    --------
    >>> adata = st.datasets.synthetic_series(3, 2, obs_per_section=200)
    >>> st.tl.region_graph(adata, "compartment", library_key="section", max_size=20)
    >>> st.tl.track(adata, "time")
    >>> table = adata.uns["track"]["links"]
    """
    check_adata(adata, copy=copy)
    key = free_key(adata, "tl.track", key_added, _keys.TRACK, obs=["", "_next", "_previous"], uns=[""])
    seed = check_seed(random_state)
    max_regions = check_int("max_regions", max_regions, minimum=2)
    if find_spec("ot") is None:
        raise ImportError("`st.tl.track` needs the package POT: `pip install 'stxtools[time]'`.")
    regions = Regions(adata, regions_key, spatial_key, library_key)
    libs = regions.where.libs
    times = time_of(adata, time_key, libs, "library_key")
    if np.isnan(times).any():
        missing = libs.names[int(np.argmax(np.isnan(times)))]
        raise ValueError(
            f"Section {missing!r} has no time in `adata.obs[{time_key!r}]`; drop the section, or set its time."
        )
    subject = np.full(len(libs), -1)
    if subject_key is not None:
        subject = value_per_unit(libs, *categories(adata, subject_key, "subject_key"), subject_key)

    rng = np.random.default_rng(seed)
    steps, time = np.unique(times, return_inverse=True)
    graph = adata.uns[regions_key]
    problem = TransportProblem(graph, regions, time, max_regions, seed)
    pairs = [_section_pairs(time, step, subject, rng) for step in range(len(steps) - 1)]
    plans: Plans = {}
    with progress(sum(map(len, pairs)), "matching sections", show_progress) as bar:
        for pair in chain.from_iterable(pairs):
            plans[pair] = problem.plan(*pair)
            bar.update(1)
    names = [str(c) for c in graph.obs["segment"].cat.categories]
    shared = []
    for step in pairs:
        couplings = {(i, j): problem.coupling(i, j, plans[i, j]) for i, j in step}
        shared.append(shared_mass(couplings, (len(names), len(names)), _PERMUTATIONS, rng))
    lineage = _lineages(problem, time, shared, len(names))

    slots = Slots("tl.track")
    slots.uns[key] = {
        "links": pd.concat([_links(one, *two, names) for one, two in zip(shared, pairwise(steps), strict=True)],
                           ignore_index=True),
        "compartments": _compartments(shared, steps, lineage, names),
        "regions": problem.counterparts(plans, libs.names),
        "params": provenance(
            time_key=time_key, subject_key=subject_key, regions_key=regions_key, max_regions=max_regions,
            spatial_key=spatial_key, random_state=seed,
            library_key=stored_library_key(graph.uns["params"]), n_pairs=[len(step) for step in pairs],
        ),
    }  # fmt: skip
    known = regions.region >= 0
    codes = np.full(adata.n_obs, -1)
    node = problem.node[regions.region[known]]
    codes[known] = lineage[time[problem.nodes.section[node]], problem.nodes.compartment[node]]
    slots.obs[key] = categorical(codes, [str(i + 1) for i in range(int(lineage.max()) + 1)])
    for name, forward in ((f"{key}_next", True), (f"{key}_previous", False)):
        slots.obs[name] = regions.to_obs(problem.matched_share(plans, forward=forward)[problem.node])
        slots.missing[f"obs/{name}"] = None
    return slots.write(adata, copy)


def _section_pairs(time: Ints, step: int, subject: Ints, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Pairs of sections of a time and the next: those of one subject where there are any, else a sample of all."""
    pairs = list(product(np.flatnonzero(time == step).tolist(), np.flatnonzero(time == step + 1).tolist()))
    pairs = [(i, j) for i, j in pairs if subject[i] == subject[j] >= 0] or pairs
    if len(pairs) <= _MAX_PAIRS:
        return pairs
    return [pairs[i] for i in np.sort(rng.choice(len(pairs), _MAX_PAIRS, replace=False))]


def _lineages(problem: TransportProblem, time: Ints, shared: list[Shared], n: int) -> Ints:
    """Lineage of each compartment at each time, (n_times, n_compartments); -1 where it is absent."""
    at = np.unique(time[problem.nodes.section] * n + problem.nodes.compartment)
    links = [(np.searchsorted(at, step * n + i), np.searchsorted(at, (step + 1) * n + j))
             for step, one in enumerate(shared) for i, j in np.argwhere(one.links)]  # fmt: skip
    out = np.full((len(shared) + 1) * n, -1)
    out[at] = lineages(len(at), links)
    return out.reshape(-1, n)


def _links(shared: Shared, start: float, end: float, names: list[str]) -> pd.DataFrame:
    """One row for each pair of compartments, and for each that appears or disappears."""
    i, j = np.nonzero((shared.before[:, None] > 0) & (shared.after[None] > 0))
    label = np.array([*names, ""], dtype=object)
    table = pd.DataFrame({
        "time_from": start, "time_to": end, "source": label[i], "target": label[j],
        "event": np.where(shared.links, events(shared.links), "none")[i, j], "mass": shared.mass[i, j],
        "forward": shared.forward[i, j], "backward": shared.backward[i, j], "pvals": shared.pvals[i, j],
        "pvals_adj": adjust_bh(shared.pvals[i, j]),
    })  # fmt: skip
    parts = [table]
    for event, side, direction, share, total in (
        ("disappears", "source", "forward", shared.forward.sum(axis=1), shared.before),
        ("appears", "target", "backward", shared.backward.sum(axis=0), shared.after),
    ):
        lost = np.flatnonzero((total > 0) & (share < HALF))
        columns = {"time_from": start, "time_to": end, "source": "", "target": "", "event": event}
        columns |= {side: label[lost], "mass": (total * (1 - share))[lost], direction: 1 - share[lost]}
        parts.append(pd.DataFrame(columns))
    return pd.concat([part for part in parts if len(part)], ignore_index=True)[list(table.columns)]


def _compartments(shared: list[Shared], steps: Floats, lineage: Ints, names: list[str]) -> pd.DataFrame:
    """Each compartment at each time: lineage, share of the sections, share of it with a counterpart on either side."""
    none = np.full(len(names), np.nan)
    share = np.array([*(one.before for one in shared), shared[-1].after])
    forward = np.array([*(one.forward.sum(axis=1) for one in shared), none])
    backward = np.array([none, *(one.backward.sum(axis=0) for one in shared)])
    time, compartment = known = np.nonzero(lineage >= 0)
    return pd.DataFrame({
        "time": steps[time], "compartment": np.array(names, dtype=object)[compartment],
        "lineage": np.array([str(x + 1) for x in lineage[known]], dtype=object), "share": share[known],
        "previous": np.minimum(backward[known], 1), "next": np.minimum(forward[known], 1),
    })  # fmt: skip


class TransportProblem:
    """What is transported: regions or, where a section has more than ``max_regions``, groups of one compartment's.

    ``node`` is that of each region; a node has the name of its largest region; ``edges`` join touching nodes.
    """

    def __init__(self, graph: AnnData, regions: Regions, time: Ints, max_regions: int, seed: int) -> None:
        size = np.asarray(graph.obs["n_obs"], dtype=np.float64)
        compartment = np.asarray(graph.obs["segment"].cat.codes, dtype=np.int64)
        xy = np.asarray(graph.obsm[_keys.SPATIAL], dtype=np.float64)
        self.node = node = _merge_regions(xy, size, regions.library, compartment, max_regions, seed)
        n = int(node.max()) + 1
        member = sparse.csr_matrix((size, (node, np.arange(len(node)))), shape=(n, len(node)))
        total = np.asarray(member.sum(axis=1)).ravel()
        by_size = np.lexsort((-size, node))
        largest = by_size[np.unique(node[by_size], return_index=True)[1]]
        expression, mean = to_csr(graph.X), sparse.diags(1 / total) @ member
        variable = np.sort(np.argsort(-column_moments(expression)[1], kind="stable")[:_N_GENES])
        means = np.asarray((mean @ expression[:, variable]).toarray(), dtype=np.float64)
        self.nodes = Nodes(means, total, regions.library[largest], compartment[largest], time)
        self.names, self.features = np.asarray(regions.names, dtype=object)[largest], discriminant_features(self.nodes)
        centre, touching = mean @ xy, ((member != 0) @ regions.adjacency @ (member != 0).T).tocoo()
        distinct = touching.row != touching.col
        i, j = touching.row[distinct], touching.col[distinct]
        length = np.maximum(np.linalg.norm(centre[i] - centre[j], axis=1), 1e-12)
        self.edges = sparse.csr_matrix((length, (i, j)), shape=(n, n))

    def rows(self, section: int) -> Ints:
        """Nodes of a section."""
        return np.flatnonzero(self.nodes.section == section)

    def weight(self, section: int) -> Floats:
        """Share of each node in its section."""
        size = self.nodes.size[self.rows(section)]
        return size / size.sum()

    def plan(self, one: int, two: int) -> Floats:
        """Mass that nodes of two sections share."""
        rows, weights = (self.rows(one), self.rows(two)), (self.weight(one), self.weight(two))
        cost = cdist(self.features[rows[0]], self.features[rows[1]], "sqeuclidean")
        distances = [graph_distances(self.edges[r][:, r], w) for r, w in zip(rows, weights, strict=True)]
        return couple(cost, (distances[0], distances[1]), weights, _STRUCTURE, _SLACK)

    def coupling(self, one: int, two: int, plan: Floats) -> Coupling:
        """A plan with the compartments and the weights of its rows and columns."""
        before, after = (self.nodes.compartment[self.rows(section)] for section in (one, two))
        return Coupling(plan, before, after, self.weight(one), self.weight(two))

    def matched_share(self, plans: Plans, *, forward: bool) -> Floats:
        """Share of the mass of each node with a counterpart at the next (or previous) time; NaN without such a time."""
        total, count = np.zeros(len(self.names)), np.zeros(len(self.names))
        for pair, plan in plans.items():
            section = pair[0] if forward else pair[1]
            rows = self.rows(section)
            total[rows] += np.minimum(plan.sum(axis=1 if forward else 0) / self.weight(section), 1.0)
            count[rows] += 1
        return np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)

    def counterparts(self, plans: Plans, libraries: list[str]) -> pd.DataFrame:
        """Best counterparts of every node, with the share of its mass that they take."""
        parts = []
        for (one, two), plan in plans.items():
            share = plan / self.weight(one)[:, None]
            best = np.argsort(-share, axis=1, kind="stable")[:, :_N_COUNTERPARTS]
            row, rank = np.nonzero(np.take_along_axis(share, best, axis=1) >= _MIN_SHARE)
            column = best[row, rank]
            parts.append(pd.DataFrame({
                "library_from": libraries[one], "library_to": libraries[two],
                "region_from": self.names[self.rows(one)][row], "region_to": self.names[self.rows(two)][column],
                "probability": np.minimum(share[row, column], 1.0),
            }))  # fmt: skip
        return pd.concat(parts, ignore_index=True)


def _merge_regions(xy: Floats, size: Floats, section: Ints, compartment: Ints, most: int, seed: int) -> Ints:
    """Node of each region: itself, or one of about ``most`` compact groups within the compartments of its section."""
    from sklearn.cluster import KMeans

    node, n_nodes = np.empty(len(xy), dtype=np.int64), 0
    for pair in np.unique(np.stack([section, compartment], axis=1), axis=0):
        rows = np.flatnonzero((section == pair[0]) & (compartment == pair[1]))
        n_regions = np.count_nonzero(section == pair[0])
        k = len(rows) if n_regions <= most else max(1, int(most * len(rows) / n_regions))
        means = KMeans(k, n_init=1, random_state=seed)
        label = means.fit_predict(xy[rows], sample_weight=size[rows]) if k < len(rows) else np.arange(k)
        node[rows] = n_nodes + label
        n_nodes += k
    return np.unique(node, return_inverse=True)[1].ravel().astype(np.int64)
