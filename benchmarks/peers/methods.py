"""Run one method on one section, in the interpreter in which it is installed (called by the benchmark).

    python methods.py NAME section.h5ad K SEED out.json

Each function takes an AnnData with counts in X, positions in obsm["spatial"] and the name of the platform in
uns["platform"], and returns one label per observation. It follows its authors' recipe for that platform, which the
docstring names; the number of classes is given. Wall time and CPU time (user and system) are those of the call, without
reading the file and importing the method's package; peak memory is that of the whole process.

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
import traceback
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("MPLBACKEND", "Agg")
SPOTS = ("visium", "st")


def stxtools(adata: Any, k: int, seed: int) -> np.ndarray:
    import stxtools as st

    st.tl.segment(adata, k, random_state=seed, show_progress=False)
    return adata.obs["segment"].to_numpy()


def stxtools_chooses(adata: Any, k: int, seed: int) -> np.ndarray:
    """The number of segments is not given: `tl.segment` chooses it."""
    import stxtools as st

    st.tl.segment(adata, random_state=seed, show_progress=False)
    return adata.obs["segment"].to_numpy()


def tied_mixture(z: np.ndarray, k: int, seed: int) -> np.ndarray:
    from sklearn.mixture import GaussianMixture

    return GaussianMixture(k, covariance_type="tied", random_state=seed, n_init=3).fit_predict(z)


def log_counts(adata: Any, n_genes: int = 2000) -> None:
    """Mark the most variable genes, divide by the total counts and take logarithms."""
    import scanpy as sc

    sc.pp.highly_variable_genes(adata, n_top_genes=min(n_genes, adata.n_vars), flavor="seurat_v3")
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)


def mean_mixture(adata: Any, k: int, seed: int) -> np.ndarray:
    """Baseline: average 20 components twice over six neighbours and fit a tied mixture."""
    import scanpy as sc
    from sklearn.neighbors import kneighbors_graph

    log_counts(adata)
    sc.pp.pca(adata, n_comps=20)
    near = kneighbors_graph(adata.obsm["spatial"], 7, include_self=True)
    z = near @ (near @ adata.obsm["X_pca"]) / 49
    return tied_mixture(z, k, seed)


def spagcn(adata: Any, k: int, seed: int) -> np.ndarray:
    """`tutorial/tutorial_ez_mode.md`: all defaults, no image; spots are refined ("hexagon" or "square")."""
    import SpaGCN

    ez, platform = SpaGCN.ez_mode, adata.uns["platform"]
    xy = adata.obsm["spatial"]
    adata.X = adata.X.toarray()  # it uses an attribute of sparse matrices that scipy has removed
    x, y = xy[:, 0].tolist(), xy[:, 1].tolist()
    seeds = dict.fromkeys(("r_seed", "t_seed", "n_seed"), 100 + seed)
    found = ez.detect_spatial_domains_ez_mode(adata, None, x, y, x, y, n_clusters=k, histology=False, **seeds)
    if platform in SPOTS:
        shape = "hexagon" if platform == "visium" else "square"
        found = ez.spatial_domains_refinement_ez_mode(adata.obs_names.tolist(), list(found), x, y, shape=shape)
    return np.asarray(found)


def spatialleiden(adata: Any, k: int, seed: int) -> np.ndarray:
    """`docs/source/usage.md`: grid of 6 (Visium) or 4 neighbours (ST); else 10 neighbours and layer_ratio 1.8."""
    import scanpy as sc
    import spatialleiden as sl
    import squidpy as sq

    log_counts(adata)
    sc.pp.pca(adata, random_state=seed)
    sc.pp.neighbors(adata, random_state=seed)
    spatial: dict[str, Any] = {"random_state": seed}
    if adata.uns["platform"] in SPOTS:
        sq.gr.spatial_neighbors(adata, coord_type="grid", n_neighs=6 if adata.uns["platform"] == "visium" else 4)
    else:
        sq.gr.spatial_neighbors(adata, coord_type="generic", n_neighs=10)
        adata.obsp["spatial_connectivities"] = sl.distance2connectivity(adata.obsp["spatial_distances"])
        spatial.update(layer_ratio=1.8, directed=(False, True))
    sl.search_resolution(adata, k, latent_kwargs={"random_state": seed}, spatial_kwargs=spatial)
    return adata.obs["spatialleiden"].to_numpy()


def banksy_features(adata: Any, n_neighbors: int, weight: float) -> tuple[Any, np.ndarray]:
    from banksy.embed_banksy import generate_banksy_matrix
    from banksy.initialize_banksy import initialize_banksy
    from banksy_utils.umap_pca import pca_umap

    log_counts(adata)
    adata = adata[:, adata.var["highly_variable"]].copy()
    adata.X = adata.X.toarray()
    adata.obs["x"], adata.obs["y"] = adata.obsm["spatial"].T
    quiet = dict.fromkeys(("plt_edge_hist", "plt_nbr_weights", "plt_theta"), False)
    made = initialize_banksy(adata, ("x", "y", "spatial"), n_neighbors, max_m=1, **quiet)
    made, _ = generate_banksy_matrix(adata, made, [weight], 1, verbose=False)
    pca_umap(made, pca_dims=[20], plt_remaining_var=False)
    return adata, made["scaled_gaussian"][weight]["adata"].obsm["reduced_pc_20"]


def banksy(adata: Any, k: int, seed: int) -> np.ndarray:
    """Notebooks: DLPFC (spots: 18 neighbours, lambda 0.2), STARmap (15, 0.8, refined once), CODEX (15, 0.8)."""
    spots, starmap = adata.uns["platform"] in SPOTS, adata.uns["platform"] == "starmap"
    adata, reduced = banksy_features(adata, 18 if spots else 15, 0.2 if spots else 0.8)
    found = tied_mixture(reduced, k, seed)
    if starmap:
        from banksy_utils.refine_clusters import refine_once

        found = refine_once(adata, found.tolist(), [], ("x", "y", "spatial"), 6)[0]
    return np.asarray(found)


def banksy_domains(adata: Any, k: int, seed: int) -> np.ndarray:
    """Lambda 0.8, which the authors advise for domains of cells, on every platform; 18 neighbours, no refinement."""
    return tied_mixture(banksy_features(adata, 18, 0.8)[1], k, seed)


def graphst(adata: Any, k: int, seed: int) -> np.ndarray:
    """Tutorials 1 (Visium cortex: labels refined over 50 spots) and 2 (no refinement); "Slide" for single cells.

    Its graph is a dense n x n matrix. The tutorial prints an ARI of 0.620 on section 151673, with mclust, on a GPU, and
    all 33,538 genes.
    """
    from GraphST import GraphST
    from GraphST.utils import refine_label
    from sklearn.decomposition import PCA

    kind = "10X" if adata.uns["platform"] in SPOTS else "Slide"
    adata = GraphST.GraphST(adata, device="cpu", random_seed=41 + seed, datatype=kind).train()
    reduced = PCA(n_components=20, random_state=42).fit_transform(adata.obsm["emb"])
    adata.obs["domain"] = tied_mixture(reduced, k, seed).astype(str)
    return np.asarray(refine_label(adata, 50, key="domain") if adata.uns["platform"] == "visium" else adata.obs.domain)


def stagate(adata: Any, k: int, seed: int) -> np.ndarray:
    """Tutorials 1 (cortex: 3,000 genes, radius 150 pixels) and 9 (STARmap: radius 400); else six neighbours."""
    import scanpy as sc
    import STAGATE_pyG

    sc.pp.highly_variable_genes(adata, n_top_genes=min(3000, adata.n_vars), flavor="seurat_v3")
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    radius = {"visium": 150, "starmap": 400}.get(adata.uns["platform"])
    if radius is not None:
        STAGATE_pyG.Cal_Spatial_Net(adata, rad_cutoff=radius)
    else:
        STAGATE_pyG.Cal_Spatial_Net(adata, k_cutoff=6, model="KNN")
    adata = STAGATE_pyG.train_STAGATE(adata, device="cpu", random_seed=seed)
    return tied_mixture(adata.obsm["STAGATE"], k, seed)


def cellcharter_clusters(adata: Any, use_rep: str, n_layers: int, k: int, seed: int) -> np.ndarray:
    """Neighbours as in the package's tutorials: Delaunay, long links removed."""
    import cellcharter as cc
    import squidpy as sq

    sq.gr.spatial_neighbors(adata, coord_type="generic", delaunay=True)
    cc.gr.remove_long_links(adata)
    cc.gr.aggregate_neighbors(adata, n_layers=n_layers, use_rep=use_rep)
    clusters = cc.tl.Cluster(n_clusters=k, random_state=seed, trainer_params={"accelerator": "cpu"})
    clusters.fit(adata, use_rep="X_cellcharter")
    return np.asarray(clusters.predict(adata, use_rep="X_cellcharter"))


def cellcharter_scvi(adata: Any, k: int, seed: int) -> np.ndarray:
    """CSOgroup/cellcharter_analyses: spots as in benchmarking/CellCharter/individual.py, cells as on its CosMx page.

    Spots: 5,000 genes, scVI of 5 dimensions with early stopping, means over four rings of neighbours. Cells: all genes,
    10 dimensions, three rings. Observations with fewer than three counts, which it drops, are a class of their own.
    """
    import scanpy as sc
    import scvi

    scvi.settings.seed = seed
    spots = adata.uns["platform"] in SPOTS
    sc.pp.filter_genes(adata, min_counts=3)
    kept = np.asarray(adata.X.sum(axis=1)).ravel() >= 3
    found = np.full(adata.n_obs, -1)
    adata = adata[kept].copy()
    adata.layers["counts"] = adata.X.copy()
    sc.pp.normalize_total(adata, target_sum=1e6)
    sc.pp.log1p(adata)
    if spots:
        sc.pp.highly_variable_genes(
            adata, n_top_genes=min(5000, adata.n_vars), subset=True, layer="counts", flavor="seurat_v3"
        )
    scvi.model.SCVI.setup_anndata(adata, layer="counts")
    model = scvi.model.SCVI(adata, n_latent=5 if spots else 10)
    plan = {"optimizer": "AdamW", "reduce_lr_on_plateau": True} if spots else None
    model.train(early_stopping=True, accelerator="cpu", plan_kwargs=plan)
    adata.obsm["X_scVI"] = model.get_latent_representation(adata).astype(np.float32)
    found[kept] = cellcharter_clusters(adata, "X_scVI", 4 if spots else 3, k, seed)
    return found


def cellcharter_pca(adata: Any, k: int, seed: int) -> np.ndarray:
    """Not the authors' recipe: 30 components in place of scVI, three rings as in the package's tutorials."""
    import scanpy as sc

    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    sc.pp.pca(adata, n_comps=min(30, adata.n_vars - 1), random_state=seed)
    return cellcharter_clusters(adata, "X_pca", 3, k, seed)


def novae_trained(adata: Any, k: int, seed: int) -> np.ndarray:
    """Trained on the section alone, without the published weights, which have to be downloaded from a hub.

    All defaults, but one ring of neighbours for Visium, as its page "Usage advice" says.
    """
    import lightning
    import novae
    from scipy.spatial import cKDTree

    lightning.seed_everything(seed)
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
METHODS: dict[str, tuple[str, str, Callable[[Any, int, int], np.ndarray]]] = {
    "stxtools": ("stxtools", "stxtools", stxtools),
    "stxtools (number not given)": ("stxtools", "stxtools", stxtools_chooses),
    "neighbour mean and tied mixture": ("scanpy", "scanpy", mean_mixture),
    "SpaGCN": ("SpaGCN", "SpaGCN", spagcn),
    "SpatialLeiden": ("spatialleiden", "spatialleiden", spatialleiden),
    "BANKSY (features) + mixture": ("banksy", "pybanksy", banksy),
    "BANKSY (features, lambda 0.8) + mixture": ("banksy", "pybanksy", banksy_domains),
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
    name, source, k, seed, out = sys.argv[1:6]
    module, distribution, method = METHODS[name]
    if importlib.util.find_spec(module) is None:
        Path(out).write_text(json.dumps({"missing": module}))
        return
    import anndata as ad

    __import__(module)
    adata = ad.read_h5ad(source)
    start, before = time.perf_counter(), os.times()
    try:
        labels = method(adata, int(k), int(seed))
    except Exception as error:  # the table reports it
        traceback.print_exc()
        Path(out).write_text(json.dumps({"failed": f"{type(error).__name__}: {error}"[:300]}))
        return
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
