"""The tasks of the segmentation benchmark: each yields rows of a tidy table."""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import _floors
import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from _data import Case, shared_panel, thinned
from sklearn.metrics import accuracy_score, adjusted_rand_score

import stxtools as st

Row = dict[str, object]
QUIET: dict[str, Any] = {"show_progress": False}
ABLATIONS = {
    "depth 2": {"depth": 2},
    "without pretraining": {"pretrain": "none"},
    "contrastive pretraining": {"pretrain": "contrastive"},
    "one scale": {"sigmas": (0.0,)},
}


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error: mean gap between confidence and accuracy over bins of equal width."""
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [abs(confidence[place == b].mean() - right[place == b].mean()) * (place == b).mean() for b in set(place)]
    return float(sum(gaps))


def score(adata: ad.AnnData, truth: str, found: object, *, named: bool = False, few: pd.Series | None = None) -> Row:
    """ARI over all labelled spots; accuracy and calibration over those that were not scribbled on."""
    y = adata.obs[truth].astype(object)
    known, labels = y.notna().to_numpy(), np.asarray(found, dtype=str)
    out: Row = {"ARI": adjusted_rand_score(y[known].astype(str), labels[known]), "segments": len(set(labels))}
    if named:
        fresh = known & (few.isna().to_numpy() if few is not None else True)
        out["accuracy"] = accuracy_score(y[fresh].astype(str), labels[fresh])
        if found is adata.obs.get("segment"):
            right = y[fresh].astype(str).to_numpy() == labels[fresh]
            out["ECE"] = calibration_error(adata.obs["segment_confidence"].to_numpy()[fresh], right)
    return out


def timed(adata: ad.AnnData, *args: Any, **kwargs: Any) -> float:
    """Run `tl.segment`; return its seconds."""
    start = time.perf_counter()
    st.tl.segment(adata, *args, **kwargs, **QUIET)
    return time.perf_counter() - start


def few_labels(case: Case, data: Path, seed: int) -> Iterator[Row]:
    """A few labels: floors and the U-Net."""
    adata = case.read(data)
    few = case.few_labels(adata, seed)
    adata.obs["few"] = few
    names = sorted(few.dropna().unique())
    codes = pd.Categorical(few, categories=names).codes.astype(np.int64)
    x, xy = _floors.components(adata, case.use_rep), adata.obsm["spatial"]
    simple = {"nearest label": _floors.nearest_label(xy, codes), "LDA 19+61": _floors.lda(x, xy, codes)}
    for method, found in simple.items():
        labels = np.array(names, dtype=object)[found]
        yield {"method": method, **score(adata, case.truth, labels, named=True, few=few)}
    seconds = timed(adata, labels_key="few", use_rep=case.use_rep, random_state=seed)
    result = score(adata, case.truth, adata.obs["segment"], named=True, few=few)
    yield {"method": "st.tl.segment", "seconds": seconds, **result}


def k_known(case: Case, data: Path, seed: int) -> Iterator[Row]:
    """No labels, the number of segments given: a floor and the U-Net."""
    adata = case.read(data)
    k, x = adata.obs[case.truth].nunique(), _floors.components(adata, case.use_rep)
    yield {"method": "mean + mixture", **score(adata, case.truth, _floors.mixture(x, adata.obsm["spatial"], k, seed))}
    seconds = timed(adata, k, use_rep=case.use_rep, random_state=seed)
    yield {
        "method": "st.tl.segment", "seconds": seconds, **score(adata, case.truth, adata.obs["segment"]),
        "codes": " ".join(map(str, adata.obs["segment"].cat.codes)),
    }  # fmt: skip


def k_unknown(case: Case, data: Path, seed: int) -> Iterator[Row]:
    """Neither labels nor their number."""
    adata = case.read(data)
    seconds = timed(adata, use_rep=case.use_rep, random_state=seed)
    yield {"method": "st.tl.segment", "seconds": seconds, **score(adata, case.truth, adata.obs["segment"])}


def ablations(case: Case, data: Path, seed: int) -> Iterator[Row]:
    """The U-Net with one thing changed, with few labels and without any."""
    adata = case.read(data)
    adata.obs["few"] = case.few_labels(adata, seed)
    how: dict[str, Any] = {"use_rep": case.use_rep, "random_state": seed}
    k = adata.obs[case.truth].nunique()
    for name, changed in ABLATIONS.items():
        timed(adata, labels_key="few", params=changed, **how)
        yield {"method": f"labels, {name}", **score(adata, case.truth, adata.obs["segment"])}
        timed(adata, k, params=changed, **how)
        yield {"method": f"no labels, {name}", **score(adata, case.truth, adata.obs["segment"])}
    if case.image_key:
        how["image_key"] = case.image_key
        timed(adata, labels_key="few", **how)
        yield {"method": "labels, with H&E", **score(adata, case.truth, adata.obs["segment"])}
        timed(adata, k, **how)
        yield {"method": "no labels, with H&E", **score(adata, case.truth, adata.obs["segment"])}


def depth(case: Case, data: Path, seed: int) -> Iterator[Row]:
    """Counts thinned to a quarter and a tenth."""
    if case.use_rep is not None:
        return
    full = case.read(data)
    for share in (1.0, 0.25, 0.1):
        adata = full if share == 1 else thinned(full, share, seed)
        adata.obs["few"] = case.few_labels(adata, seed)
        timed(adata, labels_key="few", random_state=seed)
        yield {"method": f"labels, {share:.0%} of counts", **score(adata, case.truth, adata.obs["segment"])}
        timed(adata, adata.obs[case.truth].nunique(), random_state=seed)
        yield {"method": f"no labels, {share:.0%} of counts", **score(adata, case.truth, adata.obs["segment"])}


def transfer(pair: tuple[Case, Case], data: Path, seed: int) -> Iterator[Row]:
    """All labels of one section, a saved model, another section: the whole panel and 316 genes of it."""
    train, new = (case.read(data) for case in pair)
    truth = pair[0].truth
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.stx"
        timed(train, labels_key=truth, save_model=path, random_state=seed)
        model = st.models.Segmenter.load(path)
    names = [str(c) for c in sorted(train.obs[truth].dropna().unique())]
    codes = pd.Categorical(train.obs[truth].astype(object), categories=names).codes.astype(np.int64)
    projection = model.projection
    assert projection is not None
    ours = (_floors.components(train), train.obsm["spatial"])
    for panel, other in (("", new), (", 316 genes", shared_panel(new, projection.genes, 316, seed))):
        logged = sc.pp.normalize_total(other, target_sum=projection.target_sum, copy=True)
        sc.pp.log1p(logged)
        theirs = (projection.transform(logged.X, list(other.var_names)), other.obsm["spatial"])
        for method, found in _floors.transferred(ours, codes, theirs, seed).items():
            yield {"method": method + panel, **score(other, truth, np.array(names)[found], named=True)}
        st.tl.segment(other, model=model)
        yield {"method": "st.tl.segment" + panel, **score(other, truth, other.obs["segment"], named=True)}


def pretraining(cases: tuple[Case, ...], data: Path, seed: int) -> Iterator[Row]:
    """A U-Net pretrained on the other sections of the tissue, against one pretrained on the section itself."""
    sections = [case.read(data) for case in cases]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pretrained.stx"
        st.tl.pretrain(sections, save_model=path, random_state=seed, **QUIET)
        for case, adata in zip(cases, sections, strict=True):
            adata.obs["few"] = case.few_labels(adata, seed)
            for method, start in (("its own pretraining", {}), ("pretrained across sections", {"pretrained": path})):
                timed(adata, labels_key="few", random_state=seed, **start)
                yield {"section": case.name, "method": f"labels, {method}",
                       **score(adata, case.truth, adata.obs["segment"])}  # fmt: skip
                timed(adata, adata.obs[case.truth].nunique(), random_state=seed, **start)
                yield {"section": case.name, "method": f"no labels, {method}",
                       **score(adata, case.truth, adata.obs["segment"])}  # fmt: skip


SINGLE: dict[str, Callable[[Case, Path, int], Iterator[Row]]] = {
    "few labels": few_labels,
    "k known": k_known,
    "k unknown": k_unknown,
    "ablations": ablations,
    "depth": depth,
}


def run(task: str, cases: tuple[Case, ...], data: Path, seed: int) -> list[dict[str, Any]]:
    """Run one task on one section (or pair) with one seed: the body of a process of its own."""
    if task == "transfer":
        rows = list(transfer((cases[0], cases[1]), data, seed))
        place = f"{cases[0].name} to {cases[1].name.removeprefix('dlpfc_')}"
    elif task == "pretraining":
        rows, place = list(pretraining(cases, data, seed)), ""
    else:
        rows, place = list(SINGLE[task](cases[0], data, seed)), cases[0].name
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return [{"section": place, "task": task, "seed": seed, "peak_gb": round(peak, 2), **row} for row in rows]
