"""Figure 3: attention and attribution of the framework, the U-Net alone and the graph network alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import experiments
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import report
import squidpy as sq
import torch
from anndata import AnnData

import stxtools as st

_TRUTH = "compartment"
PANELS = {
    _TRUTH: "truth", f"{_TRUTH}_pred": "framework: prediction", "attention": "framework: attention between regions",
    "attention_saliency": "framework: saliency", "unet_saliency": "U-Net alone: saliency",
    "gnn_attention": "GNN alone, on spots: attention",
}  # fmt: skip


def attention_figure(out: Path, work: Path, *, quick: bool) -> AnnData:
    """Train the three models on all labels, draw attention and saliency, and return the tissue."""
    adata = experiments.generated("visium", 1_000 if quick else 2_500)(0)
    how: dict[str, Any] = {"show_progress": False}
    st.tl.segment(adata, labels_key=_TRUTH, key_added="guide", **how)
    st.tl.region_graph(adata, "guide")
    st.tl.multitask(adata, "disease", _TRUTH, save_model=work / "attention.stx", **how)
    st.tl.attention_fidelity(
        adata, work / "attention.stx", task="classification", methods=["attention"], shares=[0.5], **how
    )
    st.tl.segment(adata, labels_key=_TRUTH, save_model=work / "unet.stx", copy=True, **how)
    adata.obs["unet_saliency"] = unet_saliency(st.models.Segmenter.load(work / "unet.stx"), adata)
    spots = adata.copy()
    st.tl.region_graph(spots, "guide", max_size=1)
    spots_alone = {"unet": False, "ensemble": ("network",)}
    st.tl.multitask(spots, None, _TRUTH, params=spots_alone, key_added="spots", **how)
    adata.obs["gnn_attention"] = spots.obs["attention"]
    for ax, (key, title) in zip(plt.subplots(2, 3, figsize=(14, 8))[1].flat, PANELS.items(), strict=True):
        if key in adata.uns["regions"].obsp:
            st.pl.attention(adata, key, title=title, ax=ax)
        elif isinstance(adata.obs[key].dtype, pd.CategoricalDtype):
            st.pl.segment(adata, key, title=title, ax=ax)
        else:  # clipped at a percentile: a few spots dominate
            top = adata.obs[key].quantile(0.99)
            sq.pl.spatial_scatter(adata, color=key, shape=None, cmap="magma_r", vmax=top, title=title, ax=ax)
    report.save(out, "figure3")
    return adata


def unet_saliency(model: st.models.Segmenter, adata: AnnData) -> np.ndarray:
    """Return the norm of the gradient of the predicted class's logit at each spot's own pixel, as for the framework."""
    assert model.net is not None
    assert model.projection is not None
    st.pp.rasterize(adata)
    grid = next(v for v in adata.uns["raster"].values() if "shape" in v)
    logged = st.pp.normalize(adata, target_sum=model.projection.target_sum, show_progress=False, copy=True)
    features = model.projection.transform(logged.X, list(adata.var_names))
    section = st.models.Section(
        "tissue", features, adata.obsm["raster"], tuple(grid["shape"]), lambda: None, adata.obsm["spatial"]
    )
    centred = model.scaling.centred(section)
    x = torch.from_numpy(section.to_raster(centred.features / model.scaling.scale))[None].requires_grad_(True)
    logits = model.net.eval()(x, torch.from_numpy(section.occupied())[None])[0][0].flatten(1)[:, section.flat_pixels]
    (gradient,) = torch.autograd.grad((logits.max(dim=0).values - logits.mean(dim=0)).sum(), x)
    return gradient[0].flatten(1)[:, section.flat_pixels].norm(dim=0).numpy()
