"""Region embeddings and attention by a graph network, without labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from stxtools import _keys
from stxtools._api import public
from stxtools._checks import check_seed
from stxtools._data.features import training_features
from stxtools._data.regions import Regions, graph_slots
from stxtools._progress import FEATURES, progress_bar, stage
from stxtools._slots import check_free, provenance
from stxtools._validate import check_adata, check_key_added

if TYPE_CHECKING:
    from stxtools.models import TissueNetParams


@public
@progress_bar({"loading PyTorch": 4, **FEATURES, "training the network": 4, "predicting": 0.1})
def embed(
    adata: AnnData, *, use_rep: str | None = None, layer: str | None = None, regions_key: str = _keys.REGIONS,
    spatial_key: str = _keys.SPATIAL, params: TissueNetParams | Mapping[str, Any] | None = None, random_state: int = 0,
    accelerator: str = "auto", devices: int | str = 1, show_progress: bool | None = None, key_added: str | None = None,
    copy: bool = False,
) -> AnnData | None:  # fmt: skip
    """Embed regions with a self-supervised graph neural network (GATv2, Brody et al. 2022).

    Nodes are the regions of :func:`region_graph`. Their features are the mean representation of their observations,
    and the U-Net features if :func:`segment` wrote them. The network learns to reconstruct masked regions from their
    neighbours, without labels, and pools the regions into one embedding Z of each section. Linear classifiers of
    regions gain nothing from it over these features.
    ``params={"conv": "sum"}`` replaces attention by a plain sum over neighbours.

    Examples
    --------
    >>> adata = st.datasets.synthetic_tissue(n_obs=600)
    >>> st.tl.region_graph(adata, "compartment", max_size=20)
    >>> st.tl.embed(adata)
    >>> adata.uns["regions"].obsm["X_gnn"].shape[1]
    32
    """
    stage("loading PyTorch")
    from stxtools.models import TissueNet

    check_adata(adata, layer=layer, copy=copy)
    key = check_key_added(key_added, _keys.EMBED)
    random_state = check_seed(random_state)
    check_free(adata, "tl.embed", obs=[_keys.ATTENTION], obsm=[_keys.X_GNN], uns=[key])
    model = TissueNet(params)

    regions = Regions(adata, regions_key, spatial_key)
    features = training_features(adata, use_rep, layer, random_state=random_state)
    values = features.values
    if use_rep is None and _keys.X_UNET in adata.obsm:
        values = np.concatenate([values, np.asarray(adata.obsm[_keys.X_UNET], dtype=np.float32)], axis=1)
    sections = features.sections(regions, of_nodes=values)
    model.fit(
        sections, random_state=random_state, accelerator=accelerator, devices=devices, show_progress=show_progress
    )

    slots, z = graph_slots("tl.embed", regions_key, model.predict(sections, accelerator=accelerator), regions)
    slots.uns[key] = {
        "params": provenance(
            use_rep=use_rep, layer=layer, **features.record, regions_key=regions_key, spatial_key=spatial_key,
            random_state=random_state, tissuenet=model.params_dict(),
        ),
        "history": pd.DataFrame(model.history),
        "Z": z,
    }  # fmt: skip
    return slots.write(adata, copy)
