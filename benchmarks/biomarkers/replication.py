"""Replication of markers in other patients."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from scipy.stats import norm

import stxtools as st

DEPTH = 50
MIN_CELLS = 50  # of a region in each half


def rank_biased_overlap(a: Sequence[str], b: Sequence[str], p: float, depth: int = DEPTH) -> float:
    """Rank-biased overlap (Webber et al. 2010), cut at ``depth`` and scaled so that equal lists have 1."""
    seen_a, seen_b, total = set(), set(), 0.0
    for d in range(1, depth + 1):
        seen_a.add(a[d - 1])
        seen_b.add(b[d - 1])
        total += p ** (d - 1) * len(seen_a & seen_b) / d
    return (1 - p) * total / (1 - p**depth)


def orders(adata: ad.AnnData, key: str, group: str) -> tuple[dict[str, list[str]], set[str]]:
    """Return genes in three orders (table, ``rank_score``, Wilcoxon test), and those with a one-sided p ≤ 0.05."""
    import scanpy as sc

    several = adata.obs["library"].nunique() > 1
    st.tl.biomarkers(adata, key, groups=[group], library_key="library" if several else None, show_progress=False)
    table = adata.uns["biomarkers"]
    logged = adata.copy()
    sc.pp.normalize_total(logged)
    sc.pp.log1p(logged)
    sc.tl.rank_genes_groups(logged, key, groups=[group], method="wilcoxon")
    found = {
        "table": table["names"].tolist(),
        "`rank_score`": table.sort_values(["rank_score", "scores"], ascending=False, kind="stable")["names"].tolist(),
        "Wilcoxon": sc.get.rank_genes_groups_df(logged, group)["names"].tolist(),
    }
    return found, set(table["names"][norm.sf(table["scores"]) <= 0.05])


def compare(first: ad.AnnData, second: ad.AnnData, key: str, group: str) -> dict[str, float]:
    out = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (one, up_in_one), (two, up_in_two) = orders(first, key, group), orders(second, key, group)
    for name, a in one.items():
        b = two[name]
        for p in (0.9, 0.98):
            out[f"{name}, p = {p}"] = rank_biased_overlap(a, b, p)
        out[f"{name}, shared of {DEPTH}"] = len(set(a[:DEPTH]) & set(b[:DEPTH])) / DEPTH
        out[f"{name}, first gene holds"] = ((a[0] in up_in_two) + (b[0] in up_in_one)) / 2
    return out


def read(folder: Path, name: str) -> ad.AnnData:
    adata = ad.read_h5ad(folder / f"{name}.h5ad")
    adata.uns, adata.layers = {}, {}
    adata.obs["library"] = name
    adata.obs_names = [f"{name}_{i}" for i in adata.obs_names]
    adata.obsm = {"spatial": np.asarray(adata.obsm["spatial"], dtype=float)[:, :2]}
    return adata


def mean_row(data: str, split: str, found: list[dict[str, float]]) -> dict[str, str]:
    return {"data": data, "split": split} | {k: f"{v:.3f}" for k, v in pd.DataFrame(found).mean().items()}


def replication(folder: Path) -> list[dict[str, str]]:
    rows, every = [], []
    patients = {p: read(folder, f"her2st_{p}1") for p in "ABCD"}
    for adata in patients.values():
        adata.obs["tumour"] = adata.obs["is_tumour"].astype(str)
    common = sorted(set.intersection(*(set(a.var_names) for a in patients.values())))
    patients = {p: a[a.obs["annotation"].notna(), common].copy() for p, a in patients.items()}
    for group in ("tumour", "non-tumour"):
        for pair in ("AB-CD", "AC-BD", "AD-BC"):
            sides = [ad.concat([patients[p] for p in side]) for side in pair.split("-")]
            every.append(compare(*sides, "tumour", group))
            rows.append(mean_row(f"HER2ST, {group}", pair, every[-1:]))
    rows.append(mean_row("HER2ST, mean", "three splits", every))
    alone = [compare(patients[a], patients[b], "tumour", group)
             for a, b in combinations("ABCD", 2) for group in ("tumour", "non-tumour")]  # fmt: skip
    rows.append(mean_row("HER2ST, single patients, mean", "six pairs", alone))
    layers = [read(folder, f"dlpfc_{s}") for s in ("151673", "151675")]
    common = sorted(set(layers[0].var_names) & set(layers[1].var_names))
    layers = [a[a.obs["layer"].notna(), common].copy() for a in layers]
    found = [compare(*layers, "layer", name) for name in sorted(layers[0].obs["layer"].unique())]
    rows.append(mean_row("DLPFC, mean of 7 layers", "151673-151675", found))
    breast = read(folder, "xenium_breast_idc")
    breast = breast[breast.obs["region"].notna() & (np.asarray(breast.X.sum(axis=1)).ravel() > 0)].copy()
    halves = []
    for place in breast.obsm["spatial"].T:
        sides = [breast[(place > np.median(place)) == side].copy() for side in (False, True)]
        cells = pd.concat([side.obs["region"].value_counts() for side in sides], axis=1).min(axis=1, skipna=False)
        halves += [compare(*sides, "region", name) for name in sorted(cells.index[cells >= MIN_CELLS])]
    rows.append(mean_row("Xenium, mean of regions", "halves by x and y", halves))
    return rows
