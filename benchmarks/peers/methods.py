"""Run one method on one section, in the interpreter in which it is installed (called by the benchmark).

    python methods.py NAME section.h5ad K out.json

Each function takes an AnnData with counts in X, positions in obsm["spatial"] and the name of the platform in
uns["platform"], and returns one label per observation. It follows the method's own tutorial and defaults; the number of
classes is given. Wall time and CPU time (user and system) are those of the call, without reading the file and importing
the method's package; peak memory is that of the whole process.

Peers that cluster their embedding with mclust's EEE model (an R package) use the same model from scikit-learn here: a
mixture of Gaussians that share one covariance, best of three starts.
"""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("MPLBACKEND", "Agg")


def stxtools(adata: Any, k: int) -> np.ndarray:
    import stxtools as st

    st.tl.segment(adata, k, show_progress=False)
    return adata.obs["segment"].to_numpy()


def stxtools_chooses(adata: Any, k: int) -> np.ndarray:
    """The number of segments is not given: `tl.segment` chooses it."""
    import stxtools as st

    st.tl.segment(adata, show_progress=False)
    return adata.obs["segment"].to_numpy()


def tied_mixture(z: np.ndarray, k: int) -> np.ndarray:
    from sklearn.mixture import GaussianMixture

    return GaussianMixture(k, covariance_type="tied", random_state=0, n_init=3).fit_predict(z)


def mean_mixture(adata: Any, k: int) -> np.ndarray:
    """Baseline: average 20 components twice over six neighbours and fit a tied mixture."""
    import scanpy as sc
    from sklearn.neighbors import kneighbors_graph

    sc.pp.highly_variable_genes(adata, n_top_genes=min(2000, adata.n_vars), flavor="seurat_v3")
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    sc.pp.pca(adata, n_comps=20)
    near = kneighbors_graph(adata.obsm["spatial"], 7, include_self=True)
    z = near @ (near @ adata.obsm["X_pca"]) / 49
    return tied_mixture(z, k)


def spagcn(adata: Any, k: int) -> np.ndarray:
    import SpaGCN

    xy = adata.obsm["spatial"]
    adata.X = adata.X.toarray()  # it uses an attribute of sparse matrices that scipy has removed
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
    return tied_mixture(reduced, k)


def graphst(adata: Any, k: int) -> np.ndarray:
    """Tutorial 1 (10x Visium, section 151673): all defaults, 20 components, labels smoothed over 50 spots.

    Its graph is a dense n x n matrix. The tutorial prints an ARI of 0.620, with mclust, on a GPU, and all 33,538 genes.
    """
    from GraphST import GraphST
    from GraphST.utils import refine_label
    from sklearn.decomposition import PCA

    adata = GraphST.GraphST(adata, device="cpu").train()
    reduced = PCA(n_components=20, random_state=42).fit_transform(adata.obsm["emb"])
    adata.obs["domain"] = tied_mixture(reduced, k).astype(str)
    return np.asarray(refine_label(adata, 50, key="domain"))


def stagate(adata: Any, k: int) -> np.ndarray:
    """Tutorial 1 (cortex): 3,000 genes, neighbours within 150 pixels (the six nearest spots), 1,000 epochs."""
    import scanpy as sc
    import STAGATE_pyG

    sc.pp.highly_variable_genes(adata, n_top_genes=min(3000, adata.n_vars), flavor="seurat_v3")
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    if adata.uns["platform"] == "visium":
        STAGATE_pyG.Cal_Spatial_Net(adata, rad_cutoff=150)
    else:
        STAGATE_pyG.Cal_Spatial_Net(adata, k_cutoff=6, model="KNN")
    adata = STAGATE_pyG.train_STAGATE(adata, device="cpu")
    return tied_mixture(adata.obsm["STAGATE"], k)


def cellcharter_clusters(adata: Any, use_rep: str, n_layers: int, k: int) -> np.ndarray:
    """Neighbours as in the package's tutorials: Delaunay, long links removed."""
    import cellcharter as cc
    import squidpy as sq

    sq.gr.spatial_neighbors(adata, coord_type="generic", delaunay=True)
    cc.gr.remove_long_links(adata)
    cc.gr.aggregate_neighbors(adata, n_layers=n_layers, use_rep=use_rep)
    clusters = cc.tl.Cluster(n_clusters=k, random_state=0, trainer_params={"accelerator": "cpu"})
    clusters.fit(adata, use_rep="X_cellcharter")
    return np.asarray(clusters.predict(adata, use_rep="X_cellcharter"))


def cellcharter_scvi(adata: Any, k: int) -> np.ndarray:
    """The authors' own runs on single cortex sections (CSOgroup/cellcharter_analyses, src/benchmarking/CellCharter).

    5,000 genes, scVI of 5 dimensions with early stopping, means over four rings of neighbours.
    """
    import scanpy as sc
    import scvi

    scvi.settings.seed = 0
    sc.pp.filter_genes(adata, min_counts=3)
    adata.layers["counts"] = adata.X.copy()
    sc.pp.normalize_total(adata, target_sum=1e6)
    sc.pp.log1p(adata)
    sc.pp.highly_variable_genes(
        adata, n_top_genes=min(5000, adata.n_vars), subset=True, layer="counts", flavor="seurat_v3"
    )
    scvi.model.SCVI.setup_anndata(adata, layer="counts")
    model = scvi.model.SCVI(adata, n_latent=5)
    model.train(
        early_stopping=True, accelerator="cpu", plan_kwargs={"optimizer": "AdamW", "reduce_lr_on_plateau": True}
    )
    adata.obsm["X_scVI"] = model.get_latent_representation(adata).astype(np.float32)
    return cellcharter_clusters(adata, "X_scVI", 4, k)


def cellcharter_pca(adata: Any, k: int) -> np.ndarray:
    """Not the authors' recipe: 30 components in place of scVI, three rings as in the package's tutorials."""
    import scanpy as sc

    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    sc.pp.pca(adata, n_comps=30)
    return cellcharter_clusters(adata, "X_pca", 3, k)


def novae_trained(adata: Any, k: int) -> np.ndarray:
    """Trained on the section alone, without the published weights, which have to be downloaded from a hub.

    All defaults, but one ring of neighbours for Visium, as its page "Usage advice" says.
    """
    import novae
    from scipy.spatial import cKDTree

    visium = adata.uns["platform"] == "visium"
    if visium:  # spots lie 100 um apart; it expects positions in um
        near = cKDTree(adata.obsm["spatial"]).query(adata.obsm["spatial"], 2)[0][:, 1]
        novae.settings.scale_to_microns = 100 / float(np.median(near))
    novae.spatial_neighbors(adata, technology="visium" if visium else None)
    hops = 1 if visium else 2
    model = novae.Novae(adata, n_hops_local=hops, n_hops_view=hops)
    model.fit()
    model.compute_representations()
    return adata.obs[model.assign_domains(n_domains=k)].astype(str).to_numpy()


# method -> the module that must be there, the distribution it comes from, and what runs it
METHODS: dict[str, tuple[str, str, Callable[[Any, int], np.ndarray]]] = {
    "stxtools": ("stxtools", "stxtools", stxtools),
    "stxtools (number not given)": ("stxtools", "stxtools", stxtools_chooses),
    "neighbour mean and tied mixture": ("scanpy", "scanpy", mean_mixture),
    "SpaGCN": ("SpaGCN", "SpaGCN", spagcn),
    "SpatialLeiden": ("spatialleiden", "spatialleiden", spatialleiden),
    "BANKSY (features) + mixture": ("banksy", "pybanksy", banksy),
    "CellCharter (PCA for scVI)": ("cellcharter", "cellcharter", cellcharter_pca),
    "CellCharter (scVI)": ("cellcharter", "cellcharter", cellcharter_scvi),
    "STAGATE + mixture": ("STAGATE_pyG", "stagate-modern", stagate),
    "GraphST + mixture": ("GraphST", "GraphST", graphst),
    "Novae (trained on the section)": ("novae", "novae", novae_trained),
}


def peak_gb() -> float:
    """The high-water mark of this process's memory; the one of getrusage would count the parent's, too."""
    status = Path("/proc/self/status")
    if status.exists():
        marks = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return int(marks[0]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    name, source, k, out = sys.argv[1:5]
    module, distribution, method = METHODS[name]
    if importlib.util.find_spec(module) is None:
        Path(out).write_text(json.dumps({"missing": module}))
        return
    import anndata as ad

    __import__(module)
    adata = ad.read_h5ad(source)
    start, before = time.perf_counter(), os.times()
    labels = method(adata, int(k))
    seconds, after = time.perf_counter() - start, os.times()
    found = {
        "seconds": seconds,
        "cpu": sum(after[:4]) - sum(before[:4]),
        "peak_gb": peak_gb(),
        "version": metadata.version(distribution),
        "labels": [str(v) for v in labels],
    }
    Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
