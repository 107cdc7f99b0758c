"""Figure 3: what the framework, the U-Net alone and the graph network alone look at, on the same tissue."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import experiments
import report
from anndata import AnnData

import stxtools as st
from stxtools._data.regions import received_attention
from stxtools._data.sections import Geometry
from stxtools.models.baselines.registry import baseline
from stxtools.tl._evaluation._data import FeatureSource, evaluation_sections, read_features

_TRUTH = "compartment"
PANELS = {
    _TRUTH: "truth", f"{_TRUTH}_pred": "framework: prediction", "attention": "framework: attention between regions",
    "attention_saliency": "framework: saliency", "unet_saliency": "U-Net alone: saliency",
    "gnn_attention": "GNN alone, on spots: attention",
}  # fmt: skip


def attention_figure(out: Path, work: Path, *, quick: bool) -> AnnData:
    """Train the three on all labels, draw what each looks at, and return the tissue."""
    adata = experiments.generated("visium", 1_000 if quick else 2_500)(0)
    how: dict[str, Any] = {"show_progress": False}
    st.tl.segment(adata, labels_key=_TRUTH, key_added="guide", **how)
    st.tl.region_graph(adata, "guide")
    st.tl.multitask(adata, "disease", _TRUTH, save_model=work / "attention.stx", **how)
    st.tl.attention_fidelity(
        adata, work / "attention.stx", task="classification", methods=["attention"], shares=[0.5], **how
    )
    where = Geometry(adata, "spatial", None)
    sections = evaluation_sections(*read_features(adata, FeatureSource(None, None, 0)), where)
    labels = {"region": [adata.obs[_TRUTH].cat.codes.to_numpy().astype("int64")]}
    classes = {"region": len(adata.obs[_TRUTH].cat.categories)}
    unet: Any = baseline("unet").fit(sections, labels, classes)
    adata.obs["unet_saliency"] = unet.saliency(sections)["region"][0]
    gnn: Any = baseline("gnn").fit(sections, labels, classes)
    adata.obs["gnn_attention"] = received_attention(gnn.attention(sections)[0])
    st.pl.attention(adata, key=list(PANELS), title=list(PANELS.values()), show=False)
    report.save(out, "figure3")
    return adata
