"""`st.tl.multitask` against baselines and its ablations, and `st.tl.embed` without labels.

    python benchmarks/framework --data FOLDER --out framework.md [--parts baselines,donors,ablation,embed] [--seeds 3]

Labels of test blocks are hidden before training: five folds of spatial blocks within a section, or one donor held out.
Segments and regions are made without labels. The baselines use the same principal components.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsClassifier

import stxtools as st

sys.path.append(str(Path(__file__).resolve().parents[1]))
from baselines import block_folds, components, neighbourhoods, probabilities, shrinkage_lda

SECTIONS = {
    "dlpfc_151673": "layer", "dlpfc_151675": "layer", "xenium_breast_idc": "region",
    "osmfish_mouse_sscortex": "region", "starmap_mpfc_BZ5": "region",
}  # fmt: skip
DONORS = ("A1", "B1", "C1", "D1")
VARIANTS: dict[str, dict[str, Any]] = {
    "`tl.multitask` (default)": {}, "single task": {}, "no pretraining": {"pretrain": "none"},
    "no U-Net": {"unet": False}, "no label propagation": {"ensemble": ("network", "linear", "trees")},
    "no trees": {"ensemble": ("network", "linear", "label_propagation")},
    "network alone": {"ensemble": ("network",)}, "no genes": {"genes": False},
    "sum instead of GATv2": {"conv": "sum"}, "GradNorm": {"weighting": "gradnorm"},
    "uncertainty": {"weighting": "uncertainty"}, "FAMO": {"weighting": "famo"},
}  # fmt: skip
BASELINES: dict[str, Callable[[], Any]] = {
    "LDA": shrinkage_lda,
    "random forest": lambda: RandomForestClassifier(200, random_state=0),
}


def prepared(adata: ad.AnnData, library_key: str | None = None) -> ad.AnnData:
    truth = adata.obs.pop("truth").astype("category")
    adata.obs["truth"] = truth.cat.rename_categories(lambda name: str(name).replace("/", "_"))  # as probabilities do
    adata.obsm["X_pca"] = components(adata).astype(np.float32)
    st.tl.segment(adata, library_key=library_key, show_progress=False)
    st.tl.region_graph(adata, library_key=library_key)
    return adata


def generated(platform: str, difficulty: float, n_obs: int, n_vars: int) -> ad.AnnData:
    adata = st.datasets.synthetic_tissue(
        n_obs, n_vars, platform=platform, difficulty=difficulty, random_state=0, show_progress=False
    )
    adata.obs["truth"] = adata.obs["compartment"]
    return prepared(adata)


def sections(data: Path) -> Iterator[tuple[str, ad.AnnData]]:
    for name, key in SECTIONS.items():
        path = data / f"{name}.h5ad"
        if path.exists():
            adata = ad.read_h5ad(path)
            if "is_duplicate" in adata.obs:
                adata = adata[~adata.obs["is_duplicate"].to_numpy(bool)].copy()
            adata.obs["truth"] = adata.obs.pop(key)
            yield name, prepared(adata)


def scores(truth: np.ndarray, proba: np.ndarray) -> tuple[float, float]:
    present = [c for c in range(proba.shape[1]) if 0 < (truth == c).sum() < len(truth)]
    aurocs = [roc_auc_score(truth == c, proba[:, c]) for c in present]
    return float((proba.argmax(axis=1) == truth).mean()), float(np.mean(aurocs))


def folds(adata: ad.AnnData, seed: int, most: int, library_key: str | None) -> Iterator[np.ndarray]:
    """Yield test masks: blocks of neighbouring observations, or with `library_key` one section each."""
    if library_key:
        fold = pd.factorize(adata.obs[library_key], sort=True)[0]
    else:
        fold = block_folds(adata.obsm["spatial"], int(np.clip(adata.n_obs // 16, 5, 25)), 5, [seed, 7])
    for i in range(min(most, fold.max() + 1)):
        yield fold == i


def baseline(adata: ad.AnnData, test: np.ndarray, model: Any, library_key: str | None) -> tuple[float, float]:
    codes = adata.obs["truth"].cat.codes.to_numpy()
    library = adata.obs[library_key].to_numpy() if library_key else None
    z = neighbourhoods(adata.obsm["X_pca"], adata.obsm["spatial"], library)
    proba = probabilities(model, z, np.where(test, -1, codes), len(adata.obs["truth"].cat.categories))
    judged = (codes >= 0) & test
    return scores(codes[judged], proba[judged])


def framework(
    adata: ad.AnnData, test: np.ndarray, seed: int, params: dict[str, Any], state: str | None = None
) -> tuple[float, float]:
    truth = adata.obs["truth"]
    adata.obs["shown"] = truth.where(~test).cat.remove_unused_categories()
    if state is not None:
        adata.obs["shown_state"] = adata.obs[state].where(~test)
    st.tl.multitask(
        adata, "shown_state" if state else None, "shown", use_rep="X_pca", params=params, random_state=seed,
        show_progress=False,
    )  # fmt: skip
    names = [str(c) for c in truth.cat.categories]
    proba = adata.obsm["shown_proba"].reindex(columns=names).fillna(0.0).to_numpy()
    judged = test & truth.notna().to_numpy()
    return scores(truth.cat.codes.to_numpy()[judged], proba[judged])


def row(
    name: str, what: str, found: list[tuple[float, float]], against: list[tuple[float, float]] | None = None
) -> str:
    a = np.array(found)
    cells = [f"{m:.3f} ± {s:.3f}" for m, s in zip(a.mean(axis=0), a.std(axis=0, ddof=1) / len(a) ** 0.5, strict=True)]
    gain = ""
    if against is not None:
        d = a[:, 0] - np.array(against)[:, 0]
        gain = f"{d.mean():+.3f} ± {d.std(ddof=1) / len(d) ** 0.5:.3f}"
    line = f"| {name} | {what} | {' | '.join(cells)} | {gain} |"
    print(line, flush=True)
    return line


HEAD = ["| section | model | accuracy | AUROC | accuracy gained over LDA |", "| --- | --- | --- | --- | --- |"]


def table(name: str, adata: ad.AnnData, seeds: int, most: int, library_key: str | None = None) -> list[str]:
    splits = [(s, test) for s in range(seeds) for test in folds(adata, 0 if library_key else s, most, library_key)]
    found = {
        label: [baseline(adata, test, make(), library_key) for _, test in splits] for label, make in BASELINES.items()
    }
    found["`tl.multitask`"] = [framework(adata, test, s, {}) for s, test in splits]
    lda = found[next(iter(BASELINES))]
    return [row(name, label, values, None if values is lda else lda) for label, values in found.items()]


def donors(data: Path) -> ad.AnnData:
    parts = {d: ad.read_h5ad(data / f"her2st_{d}.h5ad") for d in DONORS}
    adata = ad.concat(parts, join="inner", index_unique="-", label="donor")
    values = adata.obs["is_tumour"].astype(str)
    adata.obs["truth"] = values.where(values != "nan")
    return prepared(adata, "donor")


def ablation(adata: ad.AnnData, name: str, state: str, seeds: int, most: int) -> list[str]:
    splits = [(s, test) for s in range(seeds) for test in folds(adata, s, most, None)]
    lda = [baseline(adata, test, BASELINES["LDA"](), None) for _, test in splits]
    lines = [row(name, "LDA", lda)]
    for label, params in VARIANTS.items():
        single = None if label == "single task" else state
        lines.append(row(name, label, [framework(adata, test, s, params, single) for s, test in splits], lda))
    return lines


def embedding(name: str, adata: ad.AnnData, seeds: int) -> str:
    regions = adata.uns["regions"]
    at = regions.obs_names.get_indexer(adata.obs["region_id"].astype(str))
    count = pd.crosstab(at, adata.obs["truth"]).reindex(range(regions.n_obs), fill_value=0)
    truth = count.to_numpy().argmax(axis=1)
    known = count.sum(axis=1).to_numpy() > 0
    mean = np.stack([adata.obsm["X_pca"][at == i].mean(axis=0) for i in range(regions.n_obs)])
    cells = [nearest(mean, truth, known, regions.obsm["spatial"])]
    accuracies = []
    for seed in range(seeds):
        st.tl.embed(adata, random_state=seed, show_progress=False)
        accuracies.append(nearest(adata.uns["regions"].obsm["X_gnn"], truth, known, regions.obsm["spatial"]))
    cells.append(float(np.mean(accuracies)))
    line = f"| {name} | {regions.n_obs} | {' | '.join(f'{c:.3f}' for c in cells)} |"
    print(line, flush=True)
    return line


def nearest(x: np.ndarray, truth: np.ndarray, known: np.ndarray, xy: np.ndarray) -> float:
    """Return the accuracy of the five nearest regions of other blocks, mean of three partitions of 25 blocks."""
    x, truth, xy = x[known], truth[known], xy[known]
    right = []
    for seed in range(3):
        fold = block_folds(xy, 25, 5, seed)
        for k in np.unique(fold):
            model = KNeighborsClassifier(5).fit(x[fold != k], truth[fold != k])
            right.append(model.predict(x[fold == k]) == truth[fold == k])
    return float(np.concatenate(right).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=st.settings.datasetdir, help="folder of the sections (*.h5ad)")
    parser.add_argument("--out", type=Path, default=Path("framework.md"), help="file of the tables")
    parser.add_argument("--parts", default="baselines,donors,ablation,embed", help="separated by commas")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--folds", type=int, default=5, help="at most so many of the five folds")
    parser.add_argument("--difficulty", type=float, default=0.51, help="of the generated tissue of the ablation")
    parser.add_argument("--n-obs", type=int, default=5000, help="cells of the generated tissue of the ablation")
    args = parser.parse_args()
    parts, lines = args.parts.split(","), list(HEAD)
    if "baselines" in parts:
        for name, adata in sections(args.data):
            lines += table(name, adata, args.seeds, args.folds)
    if "donors" in parts:
        lines += table("HER2ST tumour, one donor held out", donors(args.data), args.seeds, len(DONORS), "donor")
    if "ablation" in parts:
        tissue = generated("merfish", args.difficulty, args.n_obs, 30)
        lines += ablation(tissue, "MERFISH-like", "disease", args.seeds, args.folds)
    if "embed" in parts:
        lines += [
            "",
            "| section | regions | mean components | `tl.embed`, masked |",
            "| --- | --- | --- | --- |",
        ]
        lines += [embedding(name, adata, args.seeds) for name, adata in sections(args.data)]
    args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
