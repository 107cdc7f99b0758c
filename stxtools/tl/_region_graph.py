"""Connected regions of the compartments, and their adjacency graph."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy import sparse

from stxtools import _keys
from stxtools._api import public
from stxtools._checks import check_int, check_seed
from stxtools._colors import colors_slot, stored_colors
from stxtools._data.chunks import is_out_of_core
from stxtools._data.expression import Expression, GeneBlocks
from stxtools._data.representation import log_normalize, median_depth
from stxtools._data.sections import Geometry
from stxtools._progress import progress_bar, stage
from stxtools._slots import Slots, categorical, check_free, provenance
from stxtools._spatial.blocks import bounded_components
from stxtools._spatial.graph import contact_lengths, observation_area
from stxtools._spatial.points import position_order
from stxtools._types import Ints
from stxtools._validate import categories, check_adata, check_in, check_key_added, inherited_library_key

_Chunk = tuple[Ints, Ints, sparse.csr_matrix]  # regions, observations among which theirs are, log expression of these
_Means = tuple[Ints, sparse.csr_matrix]  # regions and their mean log expression

_CHUNK_SIZE = 65_536  # observations whose expression is averaged at a time
_LARGE = 2**24  # values of a matrix whose memory returns to the system once it is freed; that of small ones may not


@public
@progress_bar({"finding regions": 2, "describing regions": 1})
def region_graph(
    adata: AnnData, segment_key: str = _keys.SEGMENT, *, max_size: int | None = 50, connectivity_key: str | None = None,
    layer: str | None = None, spatial_key: str = _keys.SPATIAL, library_key: str | bool | None = None,
    random_state: int = 0, key_added: str | None = None, show_progress: bool | None = None, copy: bool = False,
) -> AnnData | None:  # fmt: skip
    """Split compartments into connected regions and build the adjacency graph of the regions.

    A region is a set of observations of one compartment and one section that are connected through spatial
    neighbours; no edge crosses sections. The result is an AnnData with one row per region, which scanpy and squidpy
    functions accept.

    Parameters
    ----------
    segment_key
        Column of ``obs`` with the compartments, or any other classes; missing values belong to no region.
    max_size
        Maximum number of observations in a region; larger regions are split into connected parts of similar size.
        None: no limit.
    connectivity_key
        Key of ``obsp`` with spatial neighbours, such as squidpy's ``"spatial_connectivities"``. By default lattice
        neighbours, or for scattered cells a Delaunay triangulation without long edges.
    key_added
        Key of ``uns`` for the AnnData; by default ``"regions"``. Regions are then in ``obs["{key_added}_region"]``.

    Examples
    --------
    >>> adata = st.datasets.synthetic_tissue(n_obs=500)
    >>> st.tl.region_graph(adata, "compartment")
    >>> bool(adata.uns["regions"].obs["n_obs"].max() <= 50)
    True
    """
    check_adata(adata, layer=layer, copy=copy)
    key = check_key_added(key_added, _keys.REGIONS)
    obs_key = _keys.region_id(key)
    check_free(adata, "tl.region_graph", obs=[obs_key], uns=[key])
    hint = "Run `st.tl.segment(adata)` first, or name a column with classes."
    check_in(adata, "obs", segment_key, "segment_key", hint)
    random_state = check_seed(random_state)
    max_size = None if max_size is None else check_int("max_size", max_size, minimum=1)
    library_key = inherited_library_key(adata, segment_key, library_key)
    codes, names = categories(adata, segment_key, "segment_key", min_classes=1)

    where = Geometry(adata, spatial_key, library_key)
    graph = where.graph if connectivity_key is None else _given_graph(adata, connectivity_key, where)
    stage("finding regions")
    region = _regions(graph, codes, where, np.asarray(adata.obs_names, dtype=str), max_size, random_state)
    stage("describing regions")
    read = Expression(adata, layer, allow_scaled=True, in_memory=False)
    regions, labels = _region_adata(adata, region, codes, names, graph, where, read)
    regions.uns["params"] = provenance(
        segment_key=segment_key, max_size=max_size, connectivity_key=connectivity_key, layer=layer,
        **read.record, spatial_key=spatial_key, library_key=library_key, random_state=random_state,
    )  # fmt: skip
    colors = stored_colors(adata, segment_key)  # of all categories, also unused ones
    if set(names) <= set(colors):
        regions.uns[_keys.colors("segment")] = colors_slot({name: colors[name] for name in names})
    return Slots("tl.region_graph", obs={obs_key: categorical(region, labels)}, uns={key: regions}).write(adata, copy)


def _given_graph(adata: AnnData, connectivity_key: str, where: Geometry) -> sparse.csr_matrix:
    """Return the distances along the edges of ``obsp[connectivity_key]`` within sections."""
    check_in(adata, "obsp", connectivity_key, "connectivity_key", "See squidpy's `gr.spatial_neighbors_*`.")
    coo = sparse.coo_matrix(adata.obsp[connectivity_key])
    keep = (where.libs.codes[coo.row] == where.libs.codes[coo.col]) & (coo.row != coo.col) & (coo.data != 0)
    i, j = coo.row[keep], coo.col[keep]
    length = np.maximum(np.linalg.norm(where.xy[i] - where.xy[j], axis=1), 1e-12)
    graph = sparse.csr_matrix((length, (i, j)), shape=coo.shape)
    return graph.maximum(graph.T).tocsr()


def _regions(
    graph: sparse.csr_matrix, codes: Ints, where: Geometry, names: NDArray[np.str_], max_size: int | None, seed: int
) -> Ints:
    """Return the region of every observation (-1: none), numbered by section and compartment.

    Observations are sorted by position: neither regions nor their numbers depend on the order of rows.
    """
    order = position_order(where.xy, names)
    rank_of = np.argsort(order)
    coo = graph.tocoo()
    same = (codes[coo.row] == codes[coo.col]) & (codes[coo.row] >= 0)
    ends = rank_of[coo.row[same]], rank_of[coo.col[same]]
    within = sparse.csr_matrix((coo.data[same], ends), shape=graph.shape)
    component = bounded_components(within, max_size or len(order), np.random.default_rng(seed))
    known = np.flatnonzero(codes[order] >= 0)
    if not len(known):
        raise ValueError("No observation has a class, so there are no regions.")
    _, first, member = np.unique(component[known], return_index=True, return_inverse=True)
    rows = order[known[first]]
    number = np.argsort(np.lexsort((first, codes[rows], where.libs.codes[rows])))
    region = np.full(len(codes), -1, dtype=np.int64)
    region[order[known]] = number[member]
    return region


def _region_adata(
    adata: AnnData, region: Ints, codes: Ints, names: list[str], graph: sparse.csr_matrix,
    where: Geometry, read: Expression,
) -> tuple[AnnData, list[str]]:  # fmt: skip
    known = np.flatnonzero(region >= 0)
    n_regions = int(region.max()) + 1
    member = sparse.csr_matrix((np.ones(len(known)), (region[known], known)), shape=(n_regions, len(region)))
    size = np.asarray(member.sum(axis=1)).ravel()
    mean = sparse.csr_matrix(sparse.diags(1 / size) @ member)
    first = known[np.unique(region[known], return_index=True)[1]]
    labels = [f"r{i}" for i in range(n_regions)]
    sections = (where.libs.codes, where.grids, where.meshes)
    obs = pd.DataFrame({
        "segment": categorical(codes[first], names),
        "library": categorical(where.libs.codes[first], where.libs.names),
        "n_obs": size.astype(np.int64),
        "area": member @ observation_area(*sections),
    }, index=pd.Index(labels))  # fmt: skip
    contact = _sum_between(contact_lengths(graph, *sections), region, n_regions)
    contact.eliminate_zeros()
    centre, coo = mean @ where.xy, _sum_between(graph, region, n_regions).tocoo()
    distance = np.linalg.norm(centre[coo.row] - centre[coo.col], axis=1)
    edges = [sparse.csr_matrix((x, (coo.row, coo.col)), shape=contact.shape) for x in (np.ones(coo.nnz), distance)]
    out = AnnData(
        _region_means(mean, region, read), obs=obs, var=pd.DataFrame(index=adata.var_names.copy()),
        obsm={_keys.SPATIAL: centre},
        obsp={_keys.CONNECTIVITIES: edges[0], _keys.DISTANCES: edges[1], _keys.CONTACT: contact},
    )  # fmt: skip
    return out, labels


def _sum_between(values: sparse.csr_matrix, region: Ints, n_regions: int) -> sparse.csr_matrix:
    """Sum symmetric ``values`` of pairs of observations over pairs of different regions."""
    coo = sparse.triu(values, k=1, format="coo")
    ends = np.sort(np.c_[region[coo.row], region[coo.col]], axis=1)
    apart = (ends[:, 0] != ends[:, 1]) & (ends[:, 0] >= 0)
    total = sparse.csr_matrix((coo.data[apart], tuple(ends[apart].T)), shape=(n_regions, n_regions))
    return sparse.csr_matrix(total + total.T)


def _region_means(mean: sparse.csr_matrix, region: Ints, read: Expression) -> sparse.csr_matrix:
    """Average the log expression of every region, in chunks: there is no second matrix of all observations."""
    out_of_core = is_out_of_core(read.matrix)
    merged: list[_Means] = []
    small: list[_Means] = []
    for regions, rows, logged in _chunks_on_disk(mean, region, read) if out_of_core else _chunks(mean, read):
        small.append((regions, sparse.csr_matrix(mean[regions][:, rows] @ logged).astype(np.float32)))
        if sum(means.nnz for _, means in small) >= _LARGE:
            merged.append(_merge(small))
            small.clear()
    merged += [_merge(small)] if small else []
    return _assemble(merged, (mean.shape[0], int(read.matrix.shape[1])))


def _merge(parts: list[_Means]) -> _Means:
    regions, means = zip(*parts, strict=True)
    return np.concatenate(regions), sparse.vstack(means, format="csr")


def _chunks(mean: sparse.csr_matrix, read: Expression) -> Iterator[_Chunk]:
    """Yield chunks of regions of a matrix in memory."""
    target = median_depth(read.summary.depth)
    ends = np.searchsorted(mean.indptr, np.arange(0, mean.nnz + _CHUNK_SIZE, _CHUNK_SIZE)).clip(max=mean.shape[0])
    for first, last in pairwise(np.unique(ends).tolist()):
        rows = np.unique(mean[first:last].indices)
        yield np.arange(first, last), rows, log_normalize(read.matrix[rows], read.scale, target_sum=target)


def _chunks_on_disk(mean: sparse.csr_matrix, region: Ints, read: Expression) -> Iterator[_Chunk]:
    """Yield chunks out of core, in one pass; observations are kept until the last one of their region is read."""
    last = np.maximum.reduceat(mean.indices, mean.indptr[:-1])  # observation of each region
    by_last = np.argsort(last, kind="stable")
    rows, logged = np.zeros(0, dtype=np.int64), sparse.csr_matrix((0, read.matrix.shape[1]), dtype=np.float32)
    for block, chunk in GeneBlocks(read).rows():
        rows, logged = np.r_[rows, block.start : block.stop], sparse.vstack([logged, chunk], format="csr")
        first_complete, end_complete = np.searchsorted(last[by_last], [block.start, block.stop])
        yield by_last[first_complete:end_complete], rows, logged
        incomplete = (region[rows] >= 0) & (last[region[rows]] >= block.stop)
        rows, logged = rows[incomplete], logged[incomplete]


def _assemble(parts: list[_Means], shape: tuple[int, int]) -> sparse.csr_matrix:
    """Return the matrix of all regions; parts are freed one by one, which takes half the memory of vstack."""
    length = np.zeros(shape[0], dtype=np.int64)
    for rows, part in parts:
        length[rows] = np.diff(part.indptr)
    start = np.r_[0, np.cumsum(length)]
    data, indices = np.empty(start[-1], dtype=np.float32), np.empty(start[-1], dtype=np.int32)
    while parts:
        rows, part = parts.pop()
        position = np.repeat(start[rows] - part.indptr[:-1], length[rows]) + np.arange(part.nnz)
        data[position], indices[position] = part.data, part.indices
    return sparse.csr_matrix((data, indices, start), shape=shape)
