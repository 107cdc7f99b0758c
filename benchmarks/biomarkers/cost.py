"""Wall time and peak memory of each call in its own process."""

from __future__ import annotations

import multiprocessing as mp
import resource
import time
import warnings

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

import stxtools as st


def generated(n_vars: int, n_obs: int, seed: int = 0) -> ad.AnnData:
    rng = np.random.default_rng(seed)
    rate = rng.gamma(0.5, 0.6 if n_vars > 1000 else 0.8, n_vars)
    blocks = [sparse.csr_matrix(rng.poisson(rate, (min(5000, n_obs - i), n_vars)).astype(np.float32))
              for i in range(0, n_obs, 5000)]  # fmt: skip
    out = ad.AnnData(sparse.vstack(blocks, format="csr"))
    side = np.sqrt(n_obs)
    out.obsm["spatial"] = rng.uniform(0, side, (n_obs, 2))
    out.obs["region"] = pd.Categorical(np.where(out.obsm["spatial"][:, 0] < side / 3, "in", "out"))
    return out


def _run(call: str, n_vars: int, n_obs: int, queue: mp.Queue) -> None:
    warnings.simplefilter("ignore")
    adata = generated(n_vars, n_obs)
    start = time.perf_counter()
    if call.startswith("st.tl.biomarkers"):
        covariates = "composition" if "composition" in call else None
        st.tl.biomarkers(adata, "region", groups=["in"], covariates=covariates, show_progress=False)
    else:
        import scanpy as sc

        sc.pp.normalize_total(adata)
        sc.pp.log1p(adata)
        if call == "sc.tl.rank_genes_groups":
            sc.tl.rank_genes_groups(adata, "region", groups=["in"], method="wilcoxon")
        else:
            import squidpy as sq

            sq.gr.spatial_neighbors(adata, coord_type="generic", n_neighs=6)
            sq.gr.spatial_autocorr(adata, mode="moran", n_jobs=1, show_progress_bar=False)
    queue.put((time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6))


CALLS = ("st.tl.biomarkers", "st.tl.biomarkers, composition", "sc.tl.rank_genes_groups", "sq.gr.spatial_autocorr")


def cost(n_vars: int, n_obs: int, calls: tuple[str, ...] = CALLS) -> list[dict[str, str]]:
    rows = []
    context = mp.get_context("spawn")
    for call in calls:
        queue = context.Queue()
        process = context.Process(target=_run, args=(call, n_vars, n_obs, queue))
        process.start()
        process.join()
        seconds, memory = queue.get() if process.exitcode == 0 else (float("nan"), float("nan"))
        size = f"{n_vars:,} x {n_obs:,}"
        spent = {"time": f"{seconds:.0f} s", "memory": f"{memory:.1f} GB"}
        rows.append({"call": call, "genes x observations": size, **spent})
    return rows
