"""The cases and models of the experiments."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

import stxtools as st

# `--calibrate`: with these, a random forest on each spot's own expression is as accurate as the published one
# (76.4 % and 72.1 %; mean of five folds of spatial blocks on each of five tissues). Set before any other model was run.
DIFFICULTY = {"visium": 0.495, "merfish": 0.51}
PUBLISHED = {
    ("visium", "framework"): (0.923, 0.94), ("visium", "random_forest"): (0.764, None),
    ("merfish", "framework"): (0.895, 0.92), ("merfish", "random_forest"): (0.721, None),
}  # fmt: skip
BASELINES = ("random_forest", "random_forest_means", "lda", "logistic", "nearest_label")
ALL = ("framework", "unet", "gnn", *BASELINES)
JOINT = "joint (default)"
ABLATION: dict[str, dict[str, Any]] = {
    JOINT: {}, "tissue class alone": {"alpha": 0.0}, "disease alone": {"beta": 0.0},
    "no U-Net": {"unet": False},
    "network alone": {"ensemble": ("network",)}, "no label propagation": {"ensemble": ("network", "linear", "trees")},
    "no trees": {"ensemble": ("network", "linear", "label_propagation")},
    "sum instead of GATv2": {"conv": "sum"},
    "no pretraining": {"pretrain": "none"}, "no genes": {"genes": False},
    "GradNorm": {"weighting": "gradnorm"}, "uncertainty": {"weighting": "uncertainty"}, "FAMO": {"weighting": "famo"},
}  # fmt: skip
_QUICK_ABLATION = 4  # the first ones
SENSITIVITY = "sensitivity"
_MODEL_SOURCES = ("models", "nn", "_spatial", "stats", "tl")


@dataclass(frozen=True)
class Case:
    """One data set under one protocol."""

    name: str
    make: Callable[[int], ad.AnnData]
    models: tuple[str, ...] | dict[str, str] = ALL
    how: dict[str, Any] = field(default_factory=dict)

    @property
    def named(self) -> dict[str, str]:
        """Return name -> model of `st.tl.evaluate`."""
        return dict(self.models) if isinstance(self.models, Mapping) else {m: m for m in self.models}

    def run(self, seed: int, work: Path, only: list[str] | None = None) -> pd.DataFrame | None:
        """Evaluate one seed, or read an earlier evaluation; None if none of the models is wanted."""
        models = {name: kind for name, kind in self.named.items() if only is None or kind in only}
        if not models:
            return None
        adata = self.make(seed)
        st.tl.evaluate(adata, models, n_seeds=1, random_state=seed, checkpoint=work / f"{self.name}_{seed}", **self.how)
        return adata.uns["evaluation"]


@dataclass(frozen=True)
class Grid(Case):
    """AUROC over the weights of the two losses."""

    weights: tuple[float, ...] = ()

    def run(self, seed: int, work: Path, only: list[str] | None = None) -> pd.DataFrame | None:
        """Run the cells of the grid that are missing for one seed; return a row for each cell."""
        if only is not None and "framework" not in only:
            return None
        adata = self.make(seed)
        st.tl.tune(
            adata, "weights", space={"alpha": self.weights, "beta": self.weights}, n_folds=3, prune=False,
            storage=f"sqlite:///{work / f'{self.name}_{seed}.db'}", random_state=seed, **self.how,
        )  # fmt: skip
        trials = adata.uns["tune"]["trials"].assign(seed=seed, n_obs=adata.n_obs)
        trials.to_csv(work / f"{self.name}_{seed}.csv", index=False)
        return trials


def generated(platform: str, n_obs: int | None = None) -> Callable[[int], ad.AnnData]:
    def make(seed: int) -> ad.AnnData:
        return st.datasets.synthetic_tissue(
            n_obs, platform=platform, difficulty=DIFFICULTY[platform], random_state=seed, show_progress=False
        )

    return make


def dlpfc(seed: int) -> ad.AnnData:
    return st.datasets.dlpfc("151673")


def xenium(seed: int) -> ad.AnnData:
    adata = st.datasets.xenium_breast_idc()
    adata.obs["is_tumour"] = _state(adata.obs["is_tumour"])
    return adata


def her2st(seed: int) -> ad.AnnData:
    """Return one section of each of four patients, with the genes that all have."""
    parts = [st.datasets.her2st(sample) for sample in ("A1", "B1", "C1", "D1")]
    adata = ad.concat(parts, index_unique="_", keys=["A", "B", "C", "D"], join="inner")
    adata.obs["patient"] = adata.obs["patient"].astype(str)
    adata.obs["is_tumour"] = _state(adata.obs["is_tumour"])
    return adata


def _state(column: pd.Series) -> pd.Categorical:
    values = column.astype(object).to_numpy()
    known = pd.notna(values)
    codes = np.where(known, np.array([str(v) in ("True", "1", "tumour") for v in values], dtype=int), -1)
    return pd.Categorical.from_codes(codes, categories=["other", "tumour"])


BOTH = {"biomarker_key": "disease", "region_key": "compartment"}


def cases(*, quick: bool) -> list[Case]:
    """Return all cases, the most important ones first."""
    one = {"max_folds": 1}
    levels = [0.0, 0.2] if quick else [0.0, 0.05, 0.1, 0.2]
    some = ("framework", "random_forest", "lda", "nearest_label")
    spots = tuple(m for m in ALL if m != "gnn" or not quick)
    real = {"max_folds": 1 if quick else 2}
    out = [
        Case("visium", generated("visium"), spots, BOTH | one),
        Case("merfish", generated("merfish"), how=BOTH | one),
        Case("her2st", her2st, spots, {"biomarker_key": "is_tumour", "scheme": "library", "library_key": "patient"}),
        Case("dlpfc", dlpfc, spots, {"region_key": "layer"} | real),
        Case("xenium", xenium, spots, {"region_key": "region", "biomarker_key": "is_tumour"} | real),
    ]
    for platform, genes in (("merfish", 6),) if quick else (("visium", 10), ("merfish", 6)):
        how = {"region_key": "compartment"} | one
        out.append(Case(f"{platform}_noise", generated(platform), some, how | {"noise": levels}))
        both = some if quick else (some[0], "unet", *some[1:])
        out.append(Case(f"{platform}_mse", generated(platform), both, how | {"genes": genes}))
    weights = (0.25, 4.0) if quick else (0.25, 1.0, 4.0)
    tissue = generated("merfish", 1_000 if quick else 2_500)
    out.append(Grid(SENSITIVITY, tissue, ("framework",), BOTH | one, weights))
    variants = dict(list(ABLATION.items())[: _QUICK_ABLATION if quick else None])
    params = {name: {"multitask": {"params": fields}} for name, fields in variants.items() if fields}
    out.append(Case("ablation", tissue, dict.fromkeys(variants, "framework"), BOTH | one | {"params": params}))
    leaky = {"scheme": ["block", "random"]}
    baselines = BASELINES if quick else ("framework", *BASELINES)
    apart = (
        ("visium", generated("visium"), "compartment", baselines), ("dlpfc", dlpfc, "layer", baselines),
        ("xenium", xenium, "region", BASELINES),
    )  # fmt: skip
    for name, make, key, models in apart:
        if not quick or name == "dlpfc":
            out.append(Case(f"{name}_leaky", make, models, {"region_key": key} | one | leaky))
    return out


def run_one(
    name: str, seed: int, work: Path, quick: bool, only: list[str] | None
) -> tuple[str, int, pd.DataFrame | None, float]:
    """Run one case with one seed in its own process; None if the section is not available."""
    start = time.perf_counter()
    st.settings.show_progress = False
    case = next(c for c in cases(quick=quick) if c.name == name)
    try:
        table = case.run(seed, work, only)
    except FileNotFoundError:
        table = None  # the section is not available
    return name, seed, table, time.perf_counter() - start


def sources() -> str:
    """Return the version of the package and a digest of the models' code."""
    package = Path(st.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(p for folder in _MODEL_SOURCES for p in (package / folder).rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return f"{st.__version__}-{digest.hexdigest()[:8]}"


def calibrate(seeds: int = 5) -> pd.DataFrame:
    """Return the accuracy of the random forest on expression, over all five block folds of each tissue."""
    rows = []
    for platform in DIFFICULTY:
        for seed in range(seeds):
            adata = generated(platform)(seed)
            st.tl.evaluate(adata, "random_forest", region_key="compartment", n_seeds=1, random_state=seed)
            rows.append((platform, seed, adata.uns["evaluation"]["accuracy"].mean()))
    return pd.DataFrame(rows, columns=["platform", "seed", "accuracy"])
