"""Random regions, and genes planted in them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

import anndata as ad
import numpy as np
import pandas as pd
from oracle import KnownVariance
from scipy import sparse, stats

import stxtools as st

FEATURES = 600
SHARE = 0.3
PLANTED = 30
LENGTH = 0.5  # of the regions in which genes are planted
MIN_SHARE_SEEN = 0.1  # planted genes are drawn from those detected in at least this share of observations
FDR_OF = {"total": "pvals_adj", "given composition": "pvals_adj_composition"}


def random_region(xy: np.ndarray, length: float, rng: np.random.Generator) -> np.ndarray:
    """Threshold a Gaussian field (squared exponential, from random Fourier features) at the 70 % quantile.

    The test itself uses another generator. ``length`` is in standard deviations of the tissue.
    """
    frequency = rng.standard_normal((FEATURES, 2)) / (length * xy.std(axis=0).mean())
    value = np.cos(xy @ frequency.T + rng.uniform(0, 2 * np.pi, FEATURES)).sum(axis=1)
    return value > np.quantile(value, 1 - SHARE)


def test(adata: ad.AnnData, region: np.ndarray, seed: int) -> pd.DataFrame:
    """Test the region by `st.tl.biomarkers`, for both questions."""
    adata.obs["region"] = pd.Categorical(np.where(region, "in", "out"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        st.tl.biomarkers(adata, "region", groups=["in"], random_state=seed, show_progress=False)
    return adata.uns["biomarkers"].set_index("names").loc[adata.var_names]


def wilcoxon(adata: ad.AnnData, region: np.ndarray) -> float:
    import scanpy as sc

    logged = adata.copy()
    sc.pp.normalize_total(logged)
    sc.pp.log1p(logged)
    logged.obs["region"] = pd.Categorical(np.where(region, "in", "out"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sc.tl.rank_genes_groups(logged, "region", groups=["in"], method="wilcoxon")
    return float((sc.get.rank_genes_groups_df(logged, "in")["pvals_adj"] < 0.05).mean())


@dataclass
class Calibration:
    called: list[float] = field(default_factory=list)
    pvals: list[np.ndarray] = field(default_factory=list)
    wilcoxon: list[float] = field(default_factory=list)

    def row(self) -> dict[str, str]:
        pooled = np.concatenate(self.pvals)
        out = {
            "regions": str(len(self.called)),
            "genes called": f"{np.mean(self.called):.4f}",
            "regions with a call": f"{np.mean(np.array(self.called) > 0):.2f}",
            "Kolmogorov distance": f"{stats.kstest(pooled, 'uniform').statistic:.3f}",
            "p < 0.01, times nominal": f"{np.mean(pooled < 0.01) / 0.01:.2f}",
        }
        return out | ({"Wilcoxon: genes called": f"{np.mean(self.wilcoxon):.2f}"} if self.wilcoxon else {})


def calibration(adata: ad.AnnData, length: float, n: int, seed: int) -> list[dict[str, str]]:
    rng = np.random.default_rng([seed, round(100 * length)])
    out = {question: Calibration() for question in FDR_OF}
    for i in range(n):
        region = random_region(adata.obsm["spatial"], length, rng)
        table = test(adata, region, i)
        for question, fdr in FDR_OF.items():
            out[question].called.append(float((table[fdr] < 0.05).mean()))
            pvals = table.loc[table["n_libraries"] > 0, fdr.replace("_adj", "")]
            out[question].pvals.append(pvals.to_numpy())
        if i < 3:
            out["total"].wilcoxon.append(wilcoxon(adata, region))
    return [{"question": question} | found.row() for question, found in out.items()]


def plant(
    counts: sparse.csr_matrix, genes: np.ndarray, region: np.ndarray, fold: float, rng: np.random.Generator
) -> sparse.csr_matrix:
    """Thin the counts of ``genes`` outside ``region`` binomially to 1 / ``fold``."""
    out = sparse.csc_matrix(counts, copy=True)
    for g in genes:
        part = slice(out.indptr[g], out.indptr[g + 1])
        outside = ~region[out.indices[part]]
        values = out.data[part].copy()
        values[outside] = rng.binomial(values[outside].astype(int), 1 / fold)
        out.data[part] = values
    out.eliminate_zeros()
    return sparse.csr_matrix(out)


def known_variance(adata: ad.AnnData, n: int, seed: int) -> KnownVariance | None:
    """Return the oracle test for the regions in which genes are planted; none if ``n`` is 0."""
    rng = np.random.default_rng([seed, 99])
    return KnownVariance(lambda: random_region(adata.obsm["spatial"], LENGTH, rng), n) if n else None


def power(
    adata: ad.AnnData,
    fold: float,
    n: int,
    seed: int,
    min_share: float,
    oracle: KnownVariance | None = None,
) -> dict[str, str]:
    """Plant genes that are detected in at least ``min_share`` of the observations, in ``n`` regions."""
    rng = np.random.default_rng([seed, round(100 * fold), 1])
    counts = sparse.csr_matrix(adata.X)
    share_seen = np.bincount(counts.indices, minlength=adata.n_vars) / adata.n_obs
    candidates = np.flatnonzero(share_seen >= min_share)
    xy = adata.obsm["spatial"]
    found: dict[str, list[tuple[float, float]]] = {}

    def add(test_name: str, question: str, called: np.ndarray, genes: np.ndarray) -> None:
        hits = called[genes].sum()
        key = f"{test_name}{question}"
        found.setdefault(key, []).append((hits / len(genes), (called.sum() - hits) / max(called.sum(), 1)))

    for i in range(n):
        region = random_region(xy, LENGTH, rng)
        genes = rng.choice(candidates, PLANTED, replace=False)
        planted = ad.AnnData(plant(counts, genes, region, fold, rng), var=adata.var[[]])
        planted.obsm["spatial"] = xy
        table = test(planted, region, i)
        for question, fdr in FDR_OF.items():
            add("", question, (table[fdr] < 0.05).to_numpy(), genes)
        if oracle is not None:
            for question, called in oracle(planted.X, region).items():
                add("known null variance, ", question, called, genes)
    out = {"regions": str(n), "genes to choose from": str(len(candidates))}
    for key, values in found.items():
        hit, false = np.mean(values, axis=0)
        out |= {f"{key}: power": f"{hit:.3f}", f"{key}: false share": f"{false:.3f}"}
    return out
