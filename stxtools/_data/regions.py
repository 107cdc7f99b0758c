"""Region graph in, graph results out: what embed and multitask share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from stxtools import _keys
from stxtools._checks import check_key
from stxtools._slots import Slots, categorical
from stxtools._types import Array, Floats32, Ints
from stxtools._validate import check_in, libraries, listing, stored_library_key
from stxtools.models.ensemble.gene_means import GeneSection
from stxtools.models.tissuenet.inputs import RegionSection, region_means

from .sections import Geometry, make_sections


class Regions:
    """Region graph of an AnnData, checked against its observations."""

    def __init__(
        self, adata: AnnData, regions_key: str, spatial_key: str, library_key: str | bool | None = None
    ) -> None:
        obs_key = _keys.region_id(check_key("regions_key", regions_key))
        hint = "Run `st.tl.region_graph(adata)` first."
        check_in(adata, "uns", regions_key, "regions_key", hint)
        check_in(adata, "obs", obs_key, "regions_key", hint)
        named = None if library_key is None else libraries(adata, library_key)
        graph = adata.uns[regions_key]
        if not hasattr(graph, "obsp") or not {"n_obs", "segment", "library"} <= set(graph.obs):
            raise TypeError(f"`adata.uns[{regions_key!r}]` is not the AnnData of `st.tl.region_graph`. {hint}")
        params = graph.uns.get("params", {})
        made_with, segment_key = stored_library_key(params), str(params.get("segment_key", ""))
        self.where = Geometry(adata, spatial_key, made_with)
        self.names = pd.Index(graph.obs_names.astype(str))
        self.adjacency = sparse.csr_matrix(graph.obsp[_keys.CONNECTIVITIES])
        column = adata.obs[obs_key].astype(object)
        self.region = self.names.get_indexer(column.where(column.notna(), "")).astype(np.int64)
        size = np.bincount(self.region[self.region >= 0], minlength=len(self.names))
        if (self.region < 0).sum() > column.isna().sum() or not np.array_equal(size, np.asarray(graph.obs["n_obs"])):
            raise ValueError(
                f"`adata.obs[{obs_key!r}]` and `adata.uns[{regions_key!r}]` do not belong together (was one of them "
                "subset since?); run `st.tl.region_graph(adata)` again."
            )
        known = self.region >= 0
        for key, column in ((segment_key, "segment"), (made_with, "library")):
            if key not in adata.obs:
                continue
            now = adata.obs[key][known].astype(object).to_numpy().astype(str)
            then = graph.obs[column].astype(object).to_numpy()[self.region[known]].astype(str)
            if not np.array_equal(now, then):
                raise ValueError(
                    f"`adata.obs[{key!r}]` has changed since the region graph was made; run "
                    "`st.tl.region_graph(adata)` again."
                )
        self.library = np.zeros(len(self), dtype=np.int64)
        self.library[self.region[known]] = self.where.libs.codes[known]
        if named is not None:
            libs, pairs = self.where.libs, np.unique(np.stack([named.codes, self.where.libs.codes]), axis=1).shape[1]
            if not (pairs == len(np.unique(named.codes)) == len(np.unique(libs.codes))):
                raise ValueError(
                    f"`adata.obs[{library_key!r}]` names {len(named)} section(s) ({listing(named.names)}), the region "
                    f"graph in `adata.uns[{regions_key!r}]` was made for {len(libs)} ({listing(libs.names)}), divided "
                    f"otherwise. Run `st.tl.region_graph(adata, library_key={library_key!r})` again, or name the "
                    "column that it was made with."
                )

    def __len__(self) -> int:
        return len(self.names)

    def rows(self, index: int) -> Ints:
        """Regions of section ``index``."""
        return np.flatnonzero(self.library == index)

    def to_obs(self, values: Array) -> Floats32:
        """Values of the regions at their observations; NaN outside any region."""
        out = np.full((len(self.region), *values.shape[1:]), np.nan, dtype=np.float32)
        known = self.region >= 0
        out[known] = values[self.region[known]]
        return out

    def join(self, parts: Sequence[Array]) -> Floats32:
        """Put arrays of the regions of each section back together."""
        out = np.empty((len(self), *parts[0].shape[1:]), dtype=np.float32)
        for i, part in enumerate(parts):
            out[self.rows(i)] = part
        return out


def node_features(values: Floats32, regions: Regions) -> Floats32:
    """Mean of ``values`` (n_obs, C) in every region, (R, C)."""
    return region_means(regions.region, values, np.ones(len(values), dtype=bool), len(regions))[0]


def region_sections(
    values: Floats32, regions: Regions, labels: Mapping[str, Ints] | None = None, *,
    nodes: Floats32 | None = None, genes: sparse.csr_matrix | None = None,
    expression: Floats32 | None = None, by_name: Sequence[GeneSection] | None = None,
) -> list[RegionSection]:  # fmt: skip
    """Split features, regions, labels and genes by section into :class:`stxtools.models.RegionSection`."""
    nodes = node_features(values, regions) if nodes is None else nodes
    out = []
    for i, section in enumerate(make_sections(values, regions.where)):
        obs, rows = regions.where.parts[i], regions.rows(i)
        local = np.full(len(regions) + 1, -1, dtype=np.int64)
        local[rows] = np.arange(len(rows))
        own = {task: codes[obs] for task, codes in (labels or {}).items()}
        near = regions.adjacency[rows][:, rows].tocsr()
        read, learned = (None if part is None else part[obs] for part in (genes, expression))
        named = None if by_name is None else by_name[i]
        out.append(RegionSection(section, local[regions.region[obs]], nodes[rows], near, own, read, learned, named))
    return out


def predicted_class(proba: Floats32, names: list[str]) -> pd.Categorical:
    """Class with the largest probability, missing outside any region."""
    known = np.isfinite(proba).all(axis=1)
    return categorical(np.where(known, proba.argmax(axis=1), -1), names)


def graph_slots(
    call: str, regions_key: str, predictions: Sequence[Any], regions: Regions
) -> tuple[Slots, pd.DataFrame]:
    """Embeddings and attention of the regions and, carried over, of the observations; and the sections' embeddings."""
    edges, rows = [p.attention.tocoo() for p in predictions], [regions.rows(i) for i in range(len(predictions))]
    to = np.concatenate([at[coo.row] for at, coo in zip(rows, edges, strict=True)])
    of = np.concatenate([at[coo.col] for at, coo in zip(rows, edges, strict=True)])
    values = np.concatenate([coo.data for coo in edges])
    attention = sparse.csr_matrix((values, (to, of)), shape=(len(regions), len(regions)), dtype=np.float32)
    around = to != of  # a region gets a mean share of attention from the regions around it
    total, count = (np.bincount(of[around], w, minlength=len(regions)) for w in (values[around], None))
    received = (total / np.maximum(count, 1)).astype(np.float32)
    states = regions.join([p.states for p in predictions])
    z = np.stack([p.z for p in predictions])
    outside = regions.region < 0
    slots = Slots(
        call, obs={_keys.ATTENTION: regions.to_obs(received)}, obsm={_keys.X_GNN: regions.to_obs(states)},
        missing={f"obs/{_keys.ATTENTION}": outside, f"obsm/{_keys.X_GNN}": outside},
    )  # fmt: skip
    slots.inner[regions_key] = Slots(
        call, obs={_keys.ATTENTION: received}, obsm={_keys.X_GNN: states}, obsp={_keys.ATTENTION: attention}
    )
    names = [f"Z{i}" for i in range(z.shape[1])]
    return slots, pd.DataFrame(z, index=pd.Index(regions.where.libs.names), columns=names)
