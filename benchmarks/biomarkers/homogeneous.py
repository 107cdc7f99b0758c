"""Double dipping: groups found in homogeneous tissue."""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse
from sklearn.mixture import GaussianMixture

import stxtools as st


def tissue(seed: int, depth: float, n_obs: int = 5000, n_vars: int = 300) -> ad.AnnData:
    """Return Poisson counts of one profile at random positions; log depth has standard deviation ``depth``."""
    rng = np.random.default_rng(seed)
    rate = 0.02 + 0.8 * rng.gamma(0.6, 1.0, n_vars)
    size = rng.lognormal(0.0, depth, n_obs)
    out = ad.AnnData(sparse.csr_matrix(rng.poisson(size[:, None] * rate).astype(np.float32)))
    out.obs_names, out.var_names = [f"cell{i}" for i in range(n_obs)], [f"gene{i}" for i in range(n_vars)]
    out.obsm["spatial"] = rng.uniform(0, 10 * np.sqrt(n_obs), (n_obs, 2))
    return out


def mixture(adata: ad.AnnData, layer: str, seed: int) -> pd.Categorical:
    """Find four clusters by a Gaussian mixture on 15 components, without coordinates."""
    work = ad.AnnData(adata.layers[layer].copy(), var=adata.var[[]])
    st.pp.normalize(work)
    model = GaussianMixture(4, n_init=2, random_state=seed).fit(work.obsm["X_pca"][:, :15])
    return pd.Categorical(model.predict(work.obsm["X_pca"][:, :15]).astype(str))


def wilcoxon(adata: ad.AnnData, key: str) -> float:
    import scanpy as sc

    logged = ad.AnnData(adata.X.copy(), obs=adata.obs[[key]].copy(), var=adata.var[[]])
    sc.pp.normalize_total(logged)
    sc.pp.log1p(logged)
    sc.tl.rank_genes_groups(logged, key, method="wilcoxon")
    return float((sc.get.rank_genes_groups_df(logged, None)["pvals_adj"] < 0.05).mean())


def called(adata: ad.AnnData, key: str, **kwargs: object) -> float:
    st.tl.biomarkers(adata, key, show_progress=False, **kwargs)
    return float((adata.uns["biomarkers"]["pvals_adj"] < 0.05).mean())


def double_dipping(depth: float, n: int, *, segment: bool) -> list[dict[str, str]]:
    rows: dict[str, list[tuple[float, float, float]]] = {}
    for seed in range(n):
        adata = tissue(seed, depth)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            st.pp.split_counts(adata)
            adata.layers["all"] = adata.X
            adata.obs["same"] = mixture(adata, "all", seed)
            adata.obs["half"] = mixture(adata, "split_train", seed)
            rows.setdefault("Gaussian mixture on PCs", []).append(
                (wilcoxon(adata, "same"), called(adata, "same"), called(adata, "half", layer="split_test"))
            )
            if segment:
                st.tl.segment(adata, n_segments=4, show_progress=False)
                rows.setdefault("`tl.segment`", []).append(
                    (wilcoxon(adata, "segment"), called(adata, "segment", protect=None), called(adata, "segment"))
                )
    names = ("Wilcoxon", "`tl.biomarkers`, unprotected", "protected")
    return [
        {"groups": key, "standard deviation of log depth": f"{depth:g}"}
        | {name: f"{np.mean(column):.4f}" for name, column in zip(names, zip(*found, strict=True), strict=True)}
        for key, found in rows.items()
    ]
