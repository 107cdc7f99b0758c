"""False positive rate of `st.tl.describe` on random compartments."""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pandas as pd
from regions import random_region

import stxtools as st

NAMES = np.array(["a", "b", "c", "d"])


def resources(adata: ad.AnnData, rng: np.random.Generator) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Draw sets of 20 genes and pairs of genes at random from the genes detected in 50 observations."""
    seen = adata.var_names[np.asarray((adata.X > 0).sum(axis=0)).ravel() >= 50]
    sets = [(f"set {i}", gene) for i in range(100) for gene in rng.choice(seen, min(20, len(seen) // 4), replace=False)]
    pairs = pd.DataFrame(rng.choice(seen, (200, 2)), columns=["ligand", "receptor"])
    return pd.DataFrame(sets, columns=["source", "target"]), pairs[pairs["ligand"] != pairs["receptor"]]


def described(adata: ad.AnnData, length: float, n: int, seed: int) -> list[dict[str, str]]:
    """Return the shares called for four random compartments (overlaps of two random regions), ``n`` times."""
    rng = np.random.default_rng(seed)
    sets, pairs = resources(adata, rng)
    found = []
    for _ in range(n):
        one, two = (random_region(adata.obsm["spatial"], length, rng) for _ in range(2))
        work = adata.copy()
        work.obs["compartment"] = pd.Categorical(NAMES[one * 2 + two])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            st.tl.biomarkers(work, "compartment", n_null=50, show_progress=False)
            st.tl.describe(work, "compartment", net=sets, resource=pairs, show_progress=False)
        found.append(work.uns["describe_evidence"])
    table = pd.concat(found)
    return [
        {"kind": str(kind), "tests": str(len(part)), "p ≤ 0.05": f"{(part['pvals'] <= 0.05).mean():.3f}",
         "p ≤ 0.005": f"{(part['pvals'] <= 0.005).mean():.4f}", "FDR 5 %": f"{(part['pvals_adj'] <= 0.05).mean():.4f}"}
        for kind, part in table.groupby("kind")
    ]  # fmt: skip
