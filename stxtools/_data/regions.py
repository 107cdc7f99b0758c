"""Region graph in, graph results out: what embed and multitask share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from stxtools import _keys
from stxtools._checks import check_key
from stxtools._slots import Slots, categorical
from stxtools._validate import categories, check_class_names, check_in, listing, stored_library_key

from .sections import Geometry, make_sections

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import NDArray


@dataclass(frozen=True)
class RegionInput:
    """Regions of an AnnData, checked: where the observations lie, and the region of each (-1: none)."""

    where: Geometry
    regions: AnnData
    region: NDArray[np.int64]
    library: NDArray[np.int64]

    def rows(self, index: int) -> NDArray[np.int64]:
        """Regions of section ``index``."""
        return np.flatnonzero(self.library == index)


def read_regions(adata: AnnData, regions_key: str, spatial_key: str) -> RegionInput:
    """Read ``obs["region_id"]`` and ``uns["regions"]`` and check that they belong together.

    Raises
    ------
    KeyError
        If there is no region graph yet.
    ValueError
        If observations, regions or sections were subset, renamed or changed after the graph was made.
    """
    obs_key = _keys.region_id(check_key("regions_key", regions_key))
    hint = "Run `st.tl.region_graph(adata)` first."
    check_in(adata, "uns", regions_key, "regions_key", hint)
    check_in(adata, "obs", obs_key, "regions_key", hint)
    regions = adata.uns[regions_key]
    if not hasattr(regions, "obsp") or not {"n_obs", "segment", "library"} <= set(regions.obs):
        raise TypeError(f"`adata.uns[{regions_key!r}]` is not the AnnData of `st.tl.region_graph`. {hint}")
    params = regions.uns.get("params", {})
    library_key = stored_library_key(params)
    where = Geometry(adata, spatial_key, library_key)
    names = pd.Index(regions.obs_names.astype(str))
    column = adata.obs[obs_key].astype(object)
    region = names.get_indexer(column.where(column.notna(), "")).astype(np.int64)
    size = np.bincount(region[region >= 0], minlength=len(names))
    if (region < 0).sum() > column.isna().sum() or not np.array_equal(size, np.asarray(regions.obs["n_obs"])):
        raise ValueError(
            f"`adata.obs[{obs_key!r}]` and `adata.uns[{regions_key!r}]` do not belong together (was one of them subset "
            "since?); run `st.tl.region_graph(adata)` again."
        )
    _check_segments(adata, regions, region, str(params.get("segment_key", "")))
    library = _section_of_regions(where, regions, region, library_key)
    return RegionInput(where, regions, region, library)


def _section_of_regions(
    where: Geometry, regions: AnnData, region: NDArray[np.int64], library_key: str | bool | None
) -> NDArray[np.int64]:
    """Index of every region's section, as its observations say, checked against what the graph says."""
    known = region >= 0
    library = np.zeros(regions.n_obs, dtype=np.int64)
    library[region[known]] = where.libs.codes[known]
    mixed = not np.array_equal(library[region[known]], where.libs.codes[known])
    now = np.asarray(where.libs.names, dtype=object)[library]
    then = regions.obs["library"].astype(str).to_numpy()
    if isinstance(library_key, str) and (mixed or not np.array_equal(now, then)):
        raise ValueError(
            f"The sections in `adata.obs[{library_key!r}]` ({listing(where.libs.names)}) are not those that the region "
            f"graph was made of ({listing(pd.unique(then))}; were they renamed since?); run "
            "`st.tl.region_graph(adata)` again."
        )
    return library


def _check_segments(adata: AnnData, regions: AnnData, region: NDArray[np.int64], segment_key: str) -> None:
    """Check that the compartments are still those that the regions were cut from."""
    if segment_key not in adata.obs:
        return
    known = region >= 0
    now = adata.obs[segment_key].astype(object).to_numpy()[known].astype(str)
    then = regions.obs["segment"].astype(object).to_numpy()[region[known]].astype(str)
    if not np.array_equal(now, then):
        raise ValueError(
            f"`adata.obs[{segment_key!r}]` has changed since the region graph was made; run "
            "`st.tl.region_graph(adata)` again."
        )


def node_features(values: NDArray[np.float32], inp: RegionInput) -> NDArray[np.float32]:
    """Mean of ``values`` (n_obs, C) in every region, (R, C)."""
    known = np.flatnonzero(inp.region >= 0)
    n = inp.regions.n_obs
    member = sparse.csr_matrix((np.ones(len(known)), (inp.region[known], known)), shape=(n, len(inp.region)))
    total = np.asarray(member @ values.astype(np.float64))
    return (total / np.asarray(member.sum(axis=1))).astype(np.float32)


def region_sections(
    values: NDArray[np.float32],
    nodes: NDArray[np.float32],
    inp: RegionInput,
    labels: dict[str, NDArray[np.int64]],
    *,
    genes: sparse.csr_matrix | None = None,
    expression: NDArray[np.float32] | None = None,
) -> list[Any]:
    """Split features, regions, labels and genes by section into :class:`stxtools.models.RegionSection`."""
    from stxtools.models import RegionSection

    adjacency = sparse.csr_matrix(inp.regions.obsp[_keys.CONNECTIVITIES])
    out = []
    for i, section in enumerate(make_sections(values, inp.where)):
        obs, rows = inp.where.parts[i], inp.rows(i)
        local = np.full(inp.regions.n_obs + 1, -1, dtype=np.int64)
        local[rows] = np.arange(len(rows))
        own = {task: codes[obs] for task, codes in labels.items()}
        near = adjacency[rows][:, rows].tocsr()
        read = None if genes is None else genes[obs]
        learned = None if expression is None else expression[obs]
        out.append(RegionSection(section, local[inp.region[obs]], nodes[rows], near, own, read, learned))
    return out


def classes_of(adata: AnnData, key: str, param: str) -> tuple[NDArray[np.int64], list[str]]:
    """Codes and names of a label column with two classes at least."""
    codes, names = categories(adata, key, param, min_classes=2)
    check_class_names(names, key)
    return codes, names


def called(proba: NDArray[np.float32], names: list[str]) -> pd.Categorical:
    """Class with the largest probability; missing where there is none."""
    known = np.isfinite(proba).all(axis=1)
    codes = np.full(len(proba), -1, dtype=np.int64)
    codes[known] = proba[known].argmax(axis=1)
    return categorical(codes, names)


@dataclass(frozen=True)
class GraphResult:
    """Results of all sections in the order of ``uns["regions"]``, and carried to the observations."""

    states: NDArray[np.float32]
    attention: sparse.csr_matrix
    received: NDArray[np.float32]
    z: pd.DataFrame
    region: NDArray[np.int64]

    def to_obs(self, values: NDArray[Any]) -> NDArray[Any]:
        """Values of the regions at their observations; NaN outside any region."""
        out = np.full((len(self.region), *values.shape[1:]), np.nan, dtype=np.float32)
        known = self.region >= 0
        out[known] = values[self.region[known]]
        return out


def gather(predictions: Sequence[Any], inp: RegionInput) -> GraphResult:
    """Put predictions section by section back together."""
    n = inp.regions.n_obs
    states = np.zeros((n, predictions[0].states.shape[1]), dtype=np.float32)
    rows_, cols_, data_ = [], [], []
    for i, prediction in enumerate(predictions):
        rows = inp.rows(i)
        states[rows] = prediction.states
        coo = prediction.attention.tocoo()
        rows_.append(rows[coo.row])
        cols_.append(rows[coo.col])
        data_.append(coo.data)
    attention = sparse.csr_matrix(
        (np.concatenate(data_), (np.concatenate(rows_), np.concatenate(cols_))), shape=(n, n), dtype=np.float32
    )
    z = pd.DataFrame(np.stack([p.z for p in predictions]), index=pd.Index(inp.where.libs.names))
    z.columns = [f"Z{i}" for i in range(z.shape[1])]
    return GraphResult(states, attention, received_attention(attention), z, inp.region)


def received_attention(attention: sparse.csr_matrix) -> NDArray[np.float32]:
    """Mean share of attention that a region gets from the regions around it; 0 without any."""
    coo = attention.tocoo()
    other = coo.row != coo.col
    total = np.bincount(coo.col[other], coo.data[other], minlength=attention.shape[0])
    count = np.bincount(coo.col[other], minlength=attention.shape[0])
    return (total / np.maximum(count, 1)).astype(np.float32)


def graph_slots(call: str, regions_key: str, result: GraphResult) -> Slots:
    """Embeddings and attention of the regions, in their AnnData and at the observations."""
    outside = result.region < 0
    slots = Slots(
        call,
        obs={_keys.ATTENTION: result.to_obs(result.received)},
        obsm={_keys.X_GNN: result.to_obs(result.states)},
        missing={f"obs/{_keys.ATTENTION}": outside, f"obsm/{_keys.X_GNN}": outside},
    )
    slots.inner[regions_key] = Slots(
        call,
        obs={_keys.ATTENTION: result.received},
        obsm={_keys.X_GNN: result.states},
        obsp={_keys.ATTENTION: result.attention},
    )
    return slots
