"""Do markers found in some patients come back in others?"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

import stxtools as st

DEPTH = 50


def rank_biased_overlap(a: Sequence[str], b: Sequence[str], p: float, depth: int = DEPTH) -> float:
    """Rank-biased overlap (Webber et al. 2010), cut at ``depth`` and scaled so that equal lists have 1."""
    seen_a, seen_b, total = set(), set(), 0.0
    for d in range(1, depth + 1):
        seen_a.add(a[d - 1])
        seen_b.add(b[d - 1])
        total += p ** (d - 1) * len(seen_a & seen_b) / d
    return (1 - p) * total / (1 - p**depth)


def ours(adata: ad.AnnData, key: str, group: str) -> list[str]:
    several = adata.obs["library"].nunique() > 1
    st.tl.biomarkers(adata, key, groups=[group], library_key="library" if several else None, show_progress=False)
    return adata.uns["biomarkers"]["names"].tolist()


def wilcoxon(adata: ad.AnnData, key: str, group: str) -> list[str]:
    import scanpy as sc

    logged = adata.copy()
    sc.pp.normalize_total(logged)
    sc.pp.log1p(logged)
    sc.tl.rank_genes_groups(logged, key, groups=[group], method="wilcoxon")
    return sc.get.rank_genes_groups_df(logged, group)["names"].tolist()


def compare(first: ad.AnnData, second: ad.AnnData, key: str, group: str) -> dict[str, float]:
    out = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, rank in (("stxtools", ours), ("Wilcoxon", wilcoxon)):
            a, b = rank(first, key, group), rank(second, key, group)
            for p in (0.9, 0.98):
                out[f"{name}, p = {p}"] = rank_biased_overlap(a, b, p)
            out[f"{name}, shared of {DEPTH}"] = len(set(a[:DEPTH]) & set(b[:DEPTH])) / DEPTH
    return out


def read(folder: Path, name: str) -> ad.AnnData:
    adata = ad.read_h5ad(folder / f"{name}.h5ad")
    adata.uns, adata.layers = {}, {}
    adata.obs["library"] = name
    adata.obs_names = [f"{name}_{i}" for i in adata.obs_names]
    adata.obsm = {"spatial": np.asarray(adata.obsm["spatial"], dtype=float)[:, :2]}
    return adata


def replication(folder: Path) -> list[dict[str, str]]:
    rows = []
    patients = {p: read(folder, f"her2st_{p}1") for p in "ABCD"}
    for adata in patients.values():
        adata.obs["tumour"] = adata.obs["is_tumour"].astype(str)
    common = sorted(set.intersection(*(set(a.var_names) for a in patients.values())))
    patients = {p: a[a.obs["annotation"].notna(), common].copy() for p, a in patients.items()}
    for pair in ("AB-CD", "AC-BD", "AD-BC"):
        sides = [ad.concat([patients[p] for p in side]) for side in pair.split("-")]
        for group in ("tumour", "non-tumour"):
            found = compare(*sides, "tumour", group)
            rows.append({"data": f"HER2ST, {group}", "patients": pair} | {k: f"{v:.3f}" for k, v in found.items()})
    layers = [read(folder, f"dlpfc_{s}") for s in ("151673", "151675")]
    common = sorted(set(layers[0].var_names) & set(layers[1].var_names))
    layers = [a[a.obs["layer"].notna(), common].copy() for a in layers]
    found = pd.DataFrame([compare(*layers, "layer", name) for name in sorted(layers[0].obs["layer"].unique())]).mean()
    rows.append({"data": "DLPFC, mean of 7 layers", "patients": "151673-151675"}
                | {k: f"{v:.3f}" for k, v in found.items()})  # fmt: skip
    return rows
