"""Calibration and power of `st.tl.biomarkers` on real sections; writes a markdown table.

    python benchmarks/biomarkers --data FOLDER --sections dlpfc_151673 xenium_breast_idc --out table.md

Null regions are Gaussian random fields (squared exponential, made from random Fourier features: not the generator
that the test itself draws from), cut at the 70 % quantile; the length scale is a multiple of the tissue's standard
deviation.
Power: the counts of 30 genes outside a region (length scale 0.5) are thinned binomially to 1 / fold change.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse, stats

import stxtools as st

FEATURES = 600
SHARE = 0.3
PLANTED = 30
MIN_SHARE_SEEN = 0.1  # planted genes are drawn from those seen in at least this share of observations


def random_region(xy: np.ndarray, length: float, rng: np.random.Generator) -> np.ndarray:
    frequency = rng.standard_normal((FEATURES, 2)) / (length * xy.std(axis=0).mean())
    value = np.cos(xy @ frequency.T + rng.uniform(0, 2 * np.pi, FEATURES)).sum(axis=1)
    return value > np.quantile(value, 1 - SHARE)


def test(adata: ad.AnnData, region: np.ndarray, seed: int) -> pd.DataFrame:
    adata.obs["region"] = pd.Categorical(np.where(region, "in", "out"))
    st.tl.biomarkers(adata, "region", groups=["in"], random_state=seed)
    return adata.uns["biomarkers"].set_index("names").loc[adata.var_names]


def wilcoxon(adata: ad.AnnData, region: np.ndarray) -> float:
    import scanpy as sc

    logged = adata.copy()
    sc.pp.normalize_total(logged)
    sc.pp.log1p(logged)
    logged.obs["region"] = pd.Categorical(np.where(region, "in", "out"))
    sc.tl.rank_genes_groups(logged, "region", groups=["in"], method="wilcoxon")
    return float((sc.get.rank_genes_groups_df(logged, "in")["pvals_adj"] < 0.05).mean())


@dataclass
class Calibration:
    called: list[float] = field(default_factory=list)
    pvals: list[np.ndarray] = field(default_factory=list)
    wilcoxon: list[float] = field(default_factory=list)

    def row(self) -> dict[str, str]:
        pooled = np.concatenate(self.pvals)
        return {
            "share called": f"{np.mean(self.called):.4f}",
            "regions with a call": f"{np.mean(np.array(self.called) > 0):.2f}",
            "KS distance": f"{stats.kstest(pooled, 'uniform').statistic:.3f}",
            "p < 0.01 (x nominal)": f"{np.mean(pooled < 0.01) / 0.01:.2f}",
            "Wilcoxon, share called": f"{np.mean(self.wilcoxon):.2f}",
        }


def calibration(adata: ad.AnnData, length: float, n: int, rng: np.random.Generator) -> dict[str, str]:
    out = Calibration()
    for i in range(n):
        region = random_region(adata.obsm["spatial"], length, rng)
        table = test(adata, region, i)
        seen = table["n_libraries"] > 0
        out.called.append(float((table["pvals_adj"] < 0.05).mean()))
        out.pvals.append(table.loc[seen, "pvals"].to_numpy())
        if i < 3:
            out.wilcoxon.append(wilcoxon(adata, region))
    return out.row()


def power(adata: ad.AnnData, fold: float, n: int, rng: np.random.Generator) -> dict[str, str]:
    counts = sparse.csr_matrix(adata.X)
    share_seen = np.bincount(counts.indices, minlength=adata.n_vars) / adata.n_obs
    candidates = np.flatnonzero(share_seen >= MIN_SHARE_SEEN)
    found, false = [], []
    for i in range(n):
        region = random_region(adata.obsm["spatial"], 0.5, rng)
        genes = rng.choice(candidates, PLANTED, replace=False)
        thinned = sparse.csc_matrix(counts)
        for g in genes:
            part = slice(thinned.indptr[g], thinned.indptr[g + 1])
            outside = ~region[thinned.indices[part]]
            values = thinned.data[part].copy()
            values[outside] = rng.binomial(values[outside].astype(int), 1 / fold)
            thinned.data[part] = values
        thinned.eliminate_zeros()
        planted = adata.copy()
        planted.X = sparse.csr_matrix(thinned)
        called = (test(planted, region, i)["pvals_adj"] < 0.05).to_numpy()
        found.append(called[genes].mean())
        false.append((called.sum() - called[genes].sum()) / max(called.sum(), 1))
    return {"power": f"{np.mean(found):.2f}", "false share": f"{np.mean(false):.3f}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=st.settings.datasetdir)
    parser.add_argument("--sections", nargs="+", default=["xenium_breast_idc", "dlpfc_151673"])
    parser.add_argument("--lengths", nargs="+", type=float, default=[0.1, 0.3, 0.6])
    parser.add_argument("--folds", nargs="*", type=float, default=[1.25, 1.5, 2.0, 4.0])
    parser.add_argument("--regions", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("biomarkers.md"))
    args = parser.parse_args()
    null_rows, power_rows = [], []
    for name in args.sections:
        adata = ad.read_h5ad(args.data / f"{name}.h5ad")
        adata.uns = {}
        adata.obsm["spatial"] = np.asarray(adata.obsm["spatial"], dtype=float)[:, :2]
        for length in args.lengths:
            start = time.perf_counter()
            row = calibration(adata, length, args.regions, np.random.default_rng([args.seed, round(100 * length)]))
            seconds = (time.perf_counter() - start) / args.regions
            null_rows.append({"section": name, "length": length, **row, "s per region": f"{seconds:.1f}"})
            write(args.out, args.regions, null_rows, power_rows)
        for fold in args.folds:
            row = power(adata, fold, args.regions, np.random.default_rng([args.seed, round(100 * fold), 1]))
            power_rows.append({"section": name, "fold change": fold, **row})
            write(args.out, args.regions, null_rows, power_rows)


def write(path: Path, n: int, null_rows: list[dict], power_rows: list[dict]) -> None:
    parts = [f"Null regions ({n} each):\n", markdown(null_rows)]
    if power_rows:
        parts += [f"\nPower, {PLANTED} planted genes ({n} regions each):\n", markdown(power_rows)]
    path.write_text("\n".join(parts) + "\n")


def markdown(rows: list[dict]) -> str:
    header = list(rows[0])
    lines = [header, ["---"] * len(header), *([str(r[h]) for h in header] for r in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    main()
