"""Region graph of an AnnData, and the results of the graph models as slots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from stxtools import _keys
from stxtools._checks import check_key, listing
from stxtools._slots import Slots, categorical
from stxtools._spatial.raster import split_rows
from stxtools._types import Array, Floats32
from stxtools._validate import check_in, libraries, params_of, stored_library_key
from stxtools.models.tissuenet.inputs import region_means

from .sections import Geometry


class Regions:
    """Region graph of an AnnData, checked to match its observations."""

    def __init__(
        self, adata: AnnData, regions_key: str, spatial_key: str, library_key: str | bool | None = None
    ) -> None:
        obs_key = _keys.region_id(check_key("regions_key", regions_key))
        hint = "Run `st.tl.region_graph(adata)` first."
        check_in(adata, "uns", regions_key, "regions_key", hint)
        check_in(adata, "obs", obs_key, "regions_key", hint)
        expected = None if library_key is None else libraries(adata, library_key)
        graph = adata.uns[regions_key]
        if not hasattr(graph, "obsp") or not {"n_obs", "segment", "library"} <= set(graph.obs):
            raise TypeError(f"`adata.uns[{regions_key!r}]` is not the AnnData of `st.tl.region_graph`. {hint}")
        params = params_of(graph)
        stored_key, segment_key = stored_library_key(params), str(params.get("segment_key", ""))
        self.where = Geometry(adata, spatial_key, stored_key)
        self.names = pd.Index(graph.obs_names.astype(str))
        self.adjacency = sparse.csr_matrix(graph.obsp[_keys.CONNECTIVITIES])
        column = adata.obs[obs_key].astype(object)
        self.region = self.names.get_indexer(column.where(column.notna(), "")).astype(np.int64)
        known = self.region >= 0
        size = np.bincount(self.region[known], minlength=len(self.names))
        if (~known).sum() > column.isna().sum() or not np.array_equal(size, np.asarray(graph.obs["n_obs"])):
            raise ValueError(
                f"`adata.obs[{obs_key!r}]` and `adata.uns[{regions_key!r}]` do not match (was one of them "
                "subset since?); run `st.tl.region_graph(adata)` again."
            )
        for key, name in ((segment_key, "segment"), (stored_key, "library")):
            if key not in adata.obs:
                continue
            current = adata.obs[key][known].astype(object).to_numpy().astype(str)
            stored = graph.obs[name].astype(object).to_numpy()[self.region[known]].astype(str)
            if not np.array_equal(current, stored):
                raise ValueError(
                    f"`adata.obs[{key!r}]` has changed since the region graph was made; run "
                    "`st.tl.region_graph(adata)` again."
                )
        self.library = np.zeros(len(self), dtype=np.int64)
        self.library[self.region[known]] = self.where.libs.codes[known]
        self.parts = split_rows(self.library, len(self.where.libs))  # regions of every section
        if expected is not None:
            libs = self.where.libs
            n_pairs = np.unique(np.stack([expected.codes, libs.codes]), axis=1).shape[1]
            if not (n_pairs == len(np.unique(expected.codes)) == len(np.unique(libs.codes))):
                raise ValueError(
                    f"`adata.obs[{library_key!r}]` names {len(expected)} section(s) ({listing(expected.names)}), but "
                    f"the region graph in `adata.uns[{regions_key!r}]` was made for {len(libs)} "
                    f"({listing(libs.names)}). Run `st.tl.region_graph(adata, library_key={library_key!r})` again, or "
                    "name the column that it was made with."
                )

    def __len__(self) -> int:
        return len(self.names)

    def to_obs(self, values: Array) -> Floats32:
        """Return values of the regions at their observations, NaN outside any region."""
        out = np.full((len(self.region), *values.shape[1:]), np.nan, dtype=np.float32)
        known = self.region >= 0
        out[known] = values[self.region[known]]
        return out

    def means(self, values: Floats32) -> Floats32:
        """Return the mean of values of the observations in every region, (R, C)."""
        return region_means(self.region, values, np.ones(len(values), dtype=bool), len(self))[0]

    def join(self, parts: Sequence[Array]) -> Floats32:
        """Concatenate values of the regions of every section in the order of the regions."""
        out = np.empty((len(self), *parts[0].shape[1:]), dtype=np.float32)
        for rows, part in zip(self.parts, parts, strict=True):
            out[rows] = part
        return out


def predicted_class(proba: Floats32, names: list[str]) -> pd.Categorical:
    """Return the most probable class, missing outside any region."""
    known = np.isfinite(proba).all(axis=1)
    return categorical(np.where(known, proba.argmax(axis=1), -1), names)


def graph_slots(
    call: str, regions_key: str, predictions: Sequence[Any], regions: Regions
) -> tuple[Slots, pd.DataFrame]:
    """Return slots with embeddings and attention of regions and observations, and a table of section embeddings."""
    edges = [p.attention.tocoo() for p in predictions]
    target = np.concatenate([rows[coo.row] for rows, coo in zip(regions.parts, edges, strict=True)])
    source = np.concatenate([rows[coo.col] for rows, coo in zip(regions.parts, edges, strict=True)])
    values = np.concatenate([coo.data for coo in edges])
    attention = sparse.csr_matrix((values, (target, source)), shape=(len(regions), len(regions)), dtype=np.float32)
    others = target != source  # mean attention that a region receives from its neighbours
    total = np.bincount(source[others], values[others], minlength=len(regions))
    count = np.bincount(source[others], minlength=len(regions))
    received = (total / np.maximum(count, 1)).astype(np.float32)
    states = regions.join([p.states for p in predictions])
    outside = regions.region < 0
    slots = Slots(
        call, obs={_keys.ATTENTION: regions.to_obs(received)}, obsm={_keys.X_GNN: regions.to_obs(states)},
        missing={f"obs/{_keys.ATTENTION}": outside, f"obsm/{_keys.X_GNN}": outside},
    )  # fmt: skip
    slots.inner[regions_key] = Slots(
        call, obs={_keys.ATTENTION: received}, obsm={_keys.X_GNN: states}, obsp={_keys.ATTENTION: attention}
    )
    z = pd.DataFrame(np.stack([p.z for p in predictions]), index=pd.Index(regions.where.libs.names)).add_prefix("Z")
    return slots, z
