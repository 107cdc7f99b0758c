"""Tasks of the segmentation benchmark. Each yields rows of a tidy table."""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import _baselines
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
    "no pretraining": {"pretrain": "none"},
    "contrastive pretraining": {"pretrain": "contrastive"},
    "one scale of input": {"sigmas": (0.0,)},
}


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = 10) -> float:
    """Return the expected calibration error: mean gap between confidence and accuracy over bins of equal width."""
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [abs(confidence[place == b].mean() - right[place == b].mean()) * (place == b).mean() for b in set(place)]
    return float(sum(gaps))


def score(adata: ad.AnnData, truth: str, found: object, *, named: bool = False, few: pd.Series | None = None) -> Row:
    """Return ARI over all annotated spots, and accuracy and calibration error over those without a given label."""
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
    """Run `tl.segment` and return its wall time in seconds."""
    start = time.perf_counter()
    st.tl.segment(adata, *args, **kwargs, **QUIET)
    return time.perf_counter() - start


def few_labels(case: Case, data: Path, seed: int) -> Iterator[Row]:
    """Few labels: baselines and `tl.segment`."""
    adata = case.read(data)
    few = case.few_labels(adata, seed)
    adata.obs["few"] = few
    names = sorted(few.dropna().unique())
    codes = pd.Categorical(few, categories=names).codes.astype(np.int64)
    x, xy = _baselines.components(adata, case.use_rep), adata.obsm["spatial"]
    simple = {"nearest label": _baselines.nearest_label(xy, codes), "LDA": _baselines.lda(x, xy, codes)}
    for method, found in simple.items():
        labels = np.array(names, dtype=object)[found]
        yield {"method": method, **score(adata, case.truth, labels, named=True, few=few)}
    seconds = timed(adata, labels_key="few", use_rep=case.use_rep, random_state=seed)
    result = score(adata, case.truth, adata.obs["segment"], named=True, few=few)
    yield {"method": "`tl.segment`", "seconds": seconds, **result}


def class_shares(case: Case, data: Path, seed: int) -> Iterator[Row]:
    """Scribbles, and the share of each class: true, and multiplied or divided by 1.3 at random (two draws)."""
    if case.few is None:
        return
    adata, rng = case.read(data), np.random.default_rng(seed)
    true = adata.obs[case.truth].value_counts(normalize=True)
    wrong = [true * 1.3 ** rng.choice([-1, 1], len(true)) for _ in range(2)]
    given = [("no shares", None), ("true shares", true), *(("shares 30 % off", w / w.sum()) for w in wrong)]
    for method, shares in given:
        how: dict[str, Any] = {} if shares is None else {"class_shares": shares.to_dict()}
        timed(adata, labels_key=case.few, use_rep=case.use_rep, random_state=seed, **how)
        yield {"method": method, **score(adata, case.truth, adata.obs["segment"])}


def number_given(case: Case, data: Path, seed: int) -> Iterator[Row]:
    """No labels, number of segments given: a baseline and `tl.segment`."""
    adata = case.read(data)
    k, x = adata.obs[case.truth].nunique(), _baselines.components(adata, case.use_rep)
    simple = _baselines.mixture(x, adata.obsm["spatial"], k, seed)
    yield {"method": "neighbour mean, tied mixture", **score(adata, case.truth, simple)}
    seconds = timed(adata, k, use_rep=case.use_rep, random_state=seed)
    yield {
        "method": "`tl.segment`", "seconds": seconds, **score(adata, case.truth, adata.obs["segment"]),
        "codes": " ".join(map(str, adata.obs["segment"].cat.codes)),
    }  # fmt: skip


def number_not_given(case: Case, data: Path, seed: int) -> Iterator[Row]:
    """No labels, number of segments not given."""
    adata = case.read(data)
    seconds = timed(adata, use_rep=case.use_rep, random_state=seed)
    yield {"method": "`tl.segment`", "seconds": seconds, **score(adata, case.truth, adata.obs["segment"])}


def ablations(case: Case, data: Path, seed: int) -> Iterator[Row]:
    """Ablations: `tl.segment` with one parameter changed, with few labels and without labels."""
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
        yield {"method": "labels, H&E channels added", **score(adata, case.truth, adata.obs["segment"])}
        timed(adata, k, **how)
        yield {"method": "no labels, H&E channels added", **score(adata, case.truth, adata.obs["segment"])}


def shallow_counts(case: Case, data: Path, seed: int) -> Iterator[Row]:
    """Counts thinned to 25 % and 10 %, with few labels and without labels."""
    if case.use_rep is not None:
        return
    full = case.read(data)
    for share in (1.0, 0.25, 0.1):
        adata = full if share == 1 else thinned(full, share, seed)
        adata.obs["few"] = case.few_labels(adata, seed)
        timed(adata, labels_key="few", random_state=seed)
        yield {"method": f"labels, {share:.0%} of the counts", **score(adata, case.truth, adata.obs["segment"])}
        timed(adata, adata.obs[case.truth].nunique(), random_state=seed)
        yield {"method": f"no labels, {share:.0%} of the counts", **score(adata, case.truth, adata.obs["segment"])}


def transfer(pair: tuple[Case, Case], data: Path, seed: int) -> Iterator[Row]:
    """A model of one fully labelled section applied to another, with all its genes and with 316 of them."""
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
    ours = (_baselines.components(train), train.obsm["spatial"])
    for panel, other in (("", new), (", 316 genes", shared_panel(new, projection.genes, 316, seed))):
        logged = sc.pp.normalize_total(other, target_sum=projection.target_sum, copy=True)
        sc.pp.log1p(logged)
        theirs = (projection.transform(logged.X, list(other.var_names)), other.obsm["spatial"])
        for method, found in _baselines.transferred(ours, codes, theirs, seed).items():
            yield {"method": method + panel, **score(other, truth, np.array(names)[found], named=True)}
        st.tl.segment(other, model=model)
        yield {"method": "`tl.segment`" + panel, **score(other, truth, other.obs["segment"], named=True)}


def pretraining(cases: tuple[Case, ...], data: Path, seed: int) -> Iterator[Row]:
    """A U-Net pretrained on several sections, compared with one pretrained on the section alone."""
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
    "class shares": class_shares,
    "no labels, number given": number_given,
    "no labels, number not given": number_not_given,
    "ablations": ablations,
    "shallow counts": shallow_counts,
}


def run(task: str, cases: tuple[Case, ...], data: Path, seed: int) -> list[dict[str, Any]]:
    """Run one task on one section (or pair) with one seed, in a process of its own."""
    if task == "transfer":
        rows = list(transfer((cases[0], cases[1]), data, seed))
        place = f"{cases[0].name} to {cases[1].name.removeprefix('dlpfc_')}"
    elif task == "pretraining":
        rows, place = list(pretraining(cases, data, seed)), ""
    else:
        rows, place = list(SINGLE[task](cases[0], data, seed)), cases[0].name
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return [{"section": place, "task": task, "seed": seed, "peak_gb": round(peak, 2), **row} for row in rows]
