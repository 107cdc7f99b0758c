"""Data of the segmentation benchmark: annotated sections, few labels, thinned counts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd


@dataclass(frozen=True)
class Case:
    """A section, the columns of its annotation and few labels, and its representation (None: computed from counts)."""

    name: str
    truth: str
    few: str | None = None
    use_rep: str | None = None
    image_key: str | None = None

    def read(self, folder: Path) -> ad.AnnData:
        """Read the section without duplicate cells; class names become column names, so '/' is replaced."""
        adata = ad.read_h5ad(folder / f"{self.name}.h5ad")
        adata = adata[~adata.obs["is_duplicate"]].copy() if "is_duplicate" in adata.obs else adata
        adata.obs[self.truth] = (
            adata.obs[self.truth].astype("category").cat.rename_categories(lambda name: str(name).replace("/", "_"))
        )
        return adata

    def few_labels(self, adata: ad.AnnData, seed: int) -> pd.Series:
        """Return an expert's scribbles, or one patch of 5 % of each class."""
        few = adata.obs[self.few] if self.few else patch_labels(adata, self.truth, 0.05, seed)
        return few.astype(object)


CASES = (
    Case("dlpfc_151673", "layer", "scribble", image_key="lowres"),
    Case("dlpfc_151675", "layer", "scribble", image_key="lowres"),
    Case("dlpfc_151508_pcs", "truth", "scribble", "X_pca"),
    Case("dlpfc_151670_pcs", "truth", "scribble", "X_pca"),
    Case("her2st_A1", "annotation", image_key="lowres"),
    Case("her2st_B1", "annotation"),
    Case("her2st_C1", "annotation"),
    Case("her2st_D1", "annotation"),
    Case("starmap_mpfc_BZ5", "region"),
    Case("osmfish_mouse_sscortex", "region"),
    Case("xenium_breast_idc", "region"),
)


def patch_labels(adata: ad.AnnData, truth: str, share: float, seed: int) -> pd.Series:
    """Return labels of one compact patch per class, with ``share`` of its spots."""
    rng = np.random.default_rng(seed)
    y = adata.obs[truth].astype(object)
    out = pd.Series(np.nan, index=adata.obs_names, dtype=object)
    for name in sorted(y.dropna().unique()):
        rows = np.flatnonzero(y == name)
        size = max(1, round(share * len(rows)))
        xy = adata.obsm["spatial"][rows]
        near = np.argsort(((xy - xy[rng.integers(len(rows))]) ** 2).sum(1), kind="stable")[:size]
        out.iloc[rows[near]] = name
    return out


def thinned(adata: ad.AnnData, share: float, seed: int) -> ad.AnnData:
    """Keep each molecule with probability ``share``, as in shallower sequencing."""
    out = adata.copy()
    out.X = out.X.tocsr().copy()
    out.X.data = np.random.default_rng(seed).binomial(out.X.data.astype(np.int64), share).astype(np.float32)
    out.X.eliminate_zeros()
    for key in [k for k in out.obsm if k.startswith("X_")]:
        del out.obsm[key]
    return out


def shared_panel(adata: ad.AnnData, known: list[str], n_genes: int, seed: int) -> ad.AnnData:
    """Keep a random part of the genes that a model knows, as another platform might share."""
    there = np.flatnonzero(adata.var_names.isin(known))
    kept = np.random.default_rng(seed).choice(there, n_genes, replace=False)
    return adata[:, np.sort(kept)].copy()
