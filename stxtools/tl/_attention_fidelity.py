"""Faithfulness of attention, by the effect of removing edges and regions on the prediction."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from stxtools import _keys
from stxtools._api import public
from stxtools._checks import check_choice, check_int, check_names, check_number, check_seed
from stxtools._data.expression import without_genes
from stxtools._data.features import model_features
from stxtools._data.regions import Regions
from stxtools._progress import progress, progress_bar, stage
from stxtools._slots import Slots, check_free, provenance
from stxtools._validate import check_adata, check_key_added

if TYPE_CHECKING:
    from stxtools._types import Floats, Ints
    from stxtools.models import TissueNet
    from stxtools.models.explain.edges import RegionAttribution

_METHODS = ("attention", "attention_gradient", "occlusion", "gradient", "random")


@public
@progress_bar({"loading PyTorch": 4, "reading expression": 0.5, "removing edges": 6})
def attention_fidelity(
    adata: AnnData, model: str | os.PathLike[str] | TissueNet, *,
    task: Literal["biomarker", "classification"] | None = None, of: Literal["ensemble", "network"] = "ensemble",
    methods: Sequence[str] = _METHODS, shares: Sequence[float] = (0.2, 0.4, 0.6, 0.8), max_regions: int = 200,
    layer: str | None = None, regions_key: str = _keys.REGIONS, spatial_key: str = _keys.SPATIAL, random_state: int = 0,
    accelerator: str = "auto", show_progress: bool | None = None, key_added: str | None = None, copy: bool = False,
) -> AnnData | None:  # fmt: skip
    """Measure the faithfulness of attention: how much predictions depend on the edges with high attention.

    The incoming edges of a region are ranked by a score. The top edges are removed, or all others are, and the change
    in the region's class probabilities is measured; likewise for whole regions, whose features are replaced by the
    mean. For a faithful score, removing the top edges changes predictions much, and keeping only them changes little.
    The input of the graph network and the other members of the ensemble are held fixed.

    Parameters
    ----------
    task
        ``"biomarker"`` or ``"classification"``; by default the last task that the model was trained for.
    of
        Prediction to explain: ``"ensemble"``, as :func:`multitask` writes it for sections without labels, or
        ``"network"``, that of the network alone.
    methods
        Scores to compare: ``"attention"`` (of the last layer), ``"attention_gradient"`` (derivative of the logit with
        respect to a gate on the edge's messages in all layers), ``"occlusion"`` (change on removal of the edge),
        ``"gradient"`` (norm of the gradient with respect to the neighbour's features), ``"random"``. The first one
        other than ``"attention"`` is stored as corrected attention. A region's score is the sum over its edges, which
        even if random follows the number of its neighbours.
    shares
        Shares (0 to 1) of the edges, or of the regions, that are removed or kept.
    max_regions
        Maximum number of regions per section to examine, drawn at random.

    Examples
    --------
    >>> adata = st.datasets.synthetic_tissue(n_obs=600)
    >>> st.tl.region_graph(adata, "compartment", max_size=20)
    >>> st.tl.multitask(adata, None, "compartment", save_model="net.stx", params={"epochs": 2})
    >>> st.tl.attention_fidelity(adata, "net.stx", max_regions=5)
    >>> sorted(adata.uns["attention_fidelity"]["table"]["unit"].unique())
    ['edges', 'regions']
    """
    stage("loading PyTorch")
    from stxtools.models._base import model_of
    from stxtools.models.explain.edges import RegionAttribution

    check_adata(adata, layer=layer, copy=copy)
    key = check_key_added(key_added, _keys.FIDELITY)
    random_state = check_seed(random_state)
    check_free(adata, "tl.attention_fidelity", obs=[_keys.SALIENCY], uns=[key])
    max_regions = check_int("max_regions", max_regions, minimum=1)
    methods = check_names("methods", methods, "a method")
    for method in methods:
        check_choice("methods", method, _METHODS)
    shares = [check_number("shares", s, minimum=0, maximum=1) for s in np.ravel(np.asarray(shares, dtype=object))]
    if not methods or not shares:
        raise ValueError("`methods` and `shares` must each have at least one value.")
    regions = Regions(adata, regions_key, spatial_key)
    fitted: TissueNet = model_of(model, "TissueNet")
    explained, weight = _task_and_weight(fitted, task, of)

    features = model_features(*without_genes(adata, fitted.hidden_genes, layer), fitted)
    sections = features.sections(regions)
    rng = np.random.default_rng(random_state)
    corrected = next((m for m in methods if m != "attention"), methods[0])
    rows: list[dict[str, Any]] = []
    edges = []
    saliency = np.full(adata.n_obs, np.nan, dtype=np.float32)
    with progress(len(sections) * len(methods), "removing edges", show_progress) as bar:
        for i, section in enumerate(sections):
            attribution = RegionAttribution(
                fitted, section, explained, network_only=of == "network", accelerator=accelerator
            )
            saliency[regions.where.parts[i][section.region >= 0]] = attribution.saliency()
            degree = np.bincount(attribution.target, minlength=attribution.n)
            sample = np.sort(rng.permutation(np.flatnonzero(degree > 0))[:max_regions])
            for method in methods:
                scores = attribution.edge_scores(method, sample, rng)
                if len(sample):
                    rows += _rows(attribution, scores, sample, shares, regions.where.libs.names[i], method)
                if method == corrected:
                    known, index = np.isfinite(scores), regions.parts[i]
                    ends = index[attribution.target[known]], index[attribution.source[known]]
                    edges.append((scores[known], *ends))
                bar.update(1)

    fitted.fitted_net().to("cpu")
    from sklearn.preprocessing import normalize

    values, targets, sources = (np.concatenate(part) for part in zip(*edges, strict=True))
    matrix = sparse.csr_matrix((values, (targets, sources)), shape=(len(regions), len(regions)), dtype=np.float64)
    normalized = normalize(matrix, norm="l1").astype(np.float32)
    slots = Slots("tl.attention_fidelity", obs={_keys.SALIENCY: saliency})
    slots.missing[f"obs/{_keys.SALIENCY}"] = regions.region < 0
    slots.inner[regions_key] = Slots("tl.attention_fidelity", obsp={_keys.ATTENTION_CORRECTED: normalized})
    slots.uns[key] = {
        "table": pd.DataFrame(rows),
        "params": provenance(
            task=explained, methods=methods, shares=np.asarray(shares, dtype=float), max_regions=max_regions,
            layer=layer, regions_key=regions_key, spatial_key=spatial_key, random_state=random_state,
            corrected=corrected, of=of, network_weight=weight, **features.record,
        ),
    }  # fmt: skip
    return slots.write(adata, copy)


def _task_and_weight(model: TissueNet, task: str | None, of: str) -> tuple[str, float]:
    """Return the task to explain, and the weight of the network's logits in the explained prediction."""
    if not model.classes:
        raise ValueError("The model predicts no classes; train one that does with `st.tl.multitask`.")
    task = list(model.classes)[-1] if task is None else task
    check_choice("task", task, tuple(model.classes))
    check_choice("of", of, ("ensemble", "network"))
    weight = 1.0 if of == "network" else model.unlabelled_stack(task).weights.network
    if weight == 0:
        raise ValueError(
            f"The network has weight 0 in the ensemble that predicts {task!r}: neither attention nor edges change what "
            "is predicted. Train with `st.tl.multitask(..., ensemble=['network', ...])`, or explain the network's own "
            "prediction with `of='network'`."
        )
    return task, weight


def _rows(
    attribution: RegionAttribution, scores: Floats, regions: Ints, shares: Sequence[float], library: str, method: str
) -> list[dict[str, Any]]:
    """Return the changes after removing or keeping the top edges into ``regions``, and the top regions of all."""
    rows = []
    incoming = np.isin(attribution.target, regions)
    ranked = np.argsort(-attribution.node_scores(scores), kind="stable")
    for share in shares:
        top_edges = attribution.top_edges(scores, regions, share)
        top_regions = np.zeros(attribution.n, dtype=bool)
        top_regions[ranked[: int(np.ceil(share * attribution.n))]] = True
        for mode in ("remove", "keep"):
            kept = ~top_edges if mode == "remove" else top_edges | ~incoming
            hidden = top_regions if mode == "remove" else ~top_regions
            for unit, proba in (("edges", attribution.predict(kept)), ("regions", attribution.predict(hidden=hidden))):
                # the effect of a hidden region on its own prediction does not count
                judged = regions if unit == "edges" else regions[~hidden[regions]]
                change, flipped = attribution.change(proba, judged) if len(judged) else (np.nan, np.nan)
                rows.append({
                    "library": library, "unit": unit, "method": method, "mode": mode, "share": share,
                    "change": change, "flipped": flipped, "n_regions": len(judged),
                })  # fmt: skip
    return rows
