"""One method on one section, in the interpreter that has it: run by the benchmark, not by hand.

    python methods.py NAME section.h5ad K out.json

Each function takes an AnnData with counts in X and positions in obsm["spatial"] and returns one label per observation,
by the method's own tutorial and defaults; the number of classes is given. Time and peak memory of the call are noted,
imports and reading left out.
"""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("MPLBACKEND", "Agg")


def stxtools(adata: Any, k: int) -> np.ndarray:
    import stxtools as st

    st.tl.segment(adata, k, show_progress=False)
    return adata.obs["segment"].to_numpy()


def mean_mixture(adata: Any, k: int) -> np.ndarray:
    """Two rounds of averaging 20 components over six neighbours, and a tied mixture: what every method should beat."""
    import scanpy as sc
    from sklearn.mixture import GaussianMixture
    from sklearn.neighbors import kneighbors_graph

    sc.pp.highly_variable_genes(adata, n_top_genes=min(2000, adata.n_vars), flavor="seurat_v3")
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    sc.pp.pca(adata, n_comps=20)
    near = kneighbors_graph(adata.obsm["spatial"], 7, include_self=True)
    z = near @ (near @ adata.obsm["X_pca"]) / 49
    return GaussianMixture(k, covariance_type="tied", random_state=0, n_init=3).fit_predict(z)


def spagcn(adata: Any, k: int) -> np.ndarray:
    import SpaGCN

    xy = adata.obsm["spatial"]
    adata.X = adata.X.toarray()  # it reads sparse matrices by an attribute that scipy has no more
    x, y = xy[:, 0].tolist(), xy[:, 1].tolist()
    return np.asarray(
        SpaGCN.ez_mode.detect_spatial_domains_ez_mode(adata, None, x, y, x, y, n_clusters=k, histology=False)
    )


def spatialleiden(adata: Any, k: int) -> np.ndarray:
    import scanpy as sc
    import spatialleiden as sl
    import squidpy as sq

    sc.pp.highly_variable_genes(adata, n_top_genes=min(2000, adata.n_vars), flavor="seurat_v3")
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    sc.pp.pca(adata, n_comps=30)
    sc.pp.neighbors(adata)
    sq.gr.spatial_neighbors_knn(adata, n_neighs=10)
    adata.obsp["spatial_connectivities"] = sl.distance2connectivity(adata.obsp["spatial_distances"])
    sl.search_resolution(adata, k)
    return adata.obs["spatialleiden"].to_numpy()


def banksy(adata: Any, k: int) -> np.ndarray:
    import scanpy as sc
    from banksy.embed_banksy import generate_banksy_matrix
    from banksy.initialize_banksy import initialize_banksy
    from banksy_utils.umap_pca import pca_umap
    from sklearn.mixture import GaussianMixture

    sc.pp.highly_variable_genes(adata, n_top_genes=min(2000, adata.n_vars), flavor="seurat_v3")
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    adata = adata[:, adata.var["highly_variable"]].copy()
    adata.X = adata.X.toarray()
    adata.obs["x"], adata.obs["y"] = adata.obsm["spatial"].T
    made = initialize_banksy(
        adata, ("x", "y", "spatial"), 18, max_m=1, plt_edge_hist=False, plt_nbr_weights=False, plt_theta=False
    )
    made, _ = generate_banksy_matrix(adata, made, [0.8], 1, verbose=False)
    pca_umap(made, pca_dims=[20], plt_remaining_var=False)
    reduced = made["scaled_gaussian"][0.8]["adata"].obsm["reduced_pc_20"]
    return GaussianMixture(k, covariance_type="tied", random_state=0, n_init=3).fit_predict(reduced)


def graphst(adata: Any, k: int) -> np.ndarray:
    from GraphST import GraphST
    from GraphST.utils import clustering

    model = GraphST.GraphST(adata, device="cpu", random_seed=0)
    adata = model.train()
    clustering(adata, n_clusters=k, method="louvain", refinement=True)
    return adata.obs["domain"].to_numpy()


def cellcharter(adata: Any, k: int) -> np.ndarray:
    import cellcharter as cc
    import scanpy as sc
    import squidpy as sq

    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    sc.pp.pca(adata, n_comps=30)
    sq.gr.spatial_neighbors_delaunay(adata)
    cc.gr.remove_long_links(adata)
    cc.gr.aggregate_neighbors(adata, n_layers=3, use_rep="X_pca")
    model = cc.tl.Cluster(n_clusters=k, random_state=0)
    model.fit(adata, use_rep="X_cellcharter")
    return np.asarray(model.predict(adata, use_rep="X_cellcharter"))


# method -> the module that must be there, and what runs it
METHODS: dict[str, tuple[str, Callable[[Any, int], np.ndarray]]] = {
    "stxtools": ("stxtools", stxtools),
    "mean + mixture": ("scanpy", mean_mixture),
    "SpaGCN": ("SpaGCN", spagcn),
    "SpatialLeiden": ("spatialleiden", spatialleiden),
    "BANKSY (features) + mixture": ("banksy", banksy),
    "GraphST": ("GraphST", graphst),
    "CellCharter": ("cellcharter", cellcharter),
}


def main() -> None:
    name, source, k, out = sys.argv[1:5]
    module, method = METHODS[name]
    if importlib.util.find_spec(module) is None:
        Path(out).write_text(json.dumps({"missing": module}))
        return
    import anndata as ad

    __import__(module)
    adata = ad.read_h5ad(source)
    start, cpu = time.perf_counter(), time.process_time()
    labels = method(adata, int(k))
    found = {
        "seconds": time.perf_counter() - start,
        "cpu": time.process_time() - cpu,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "labels": [str(v) for v in labels],
    }
    Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
