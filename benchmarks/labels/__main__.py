"""Are suggested labels better than random ones? Three rounds of ten labels each, five starts per section.

    python benchmarks/labels --data FOLDER --out labels.md

Each start knows the labels of two random observations of each class. After each round, scikit-learn's shrinkage LDA on
neighbourhood means is fitted again, and `st.tl.suggest_labels` uses its probabilities. Accuracy is over the unlabelled
observations.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

import stxtools as st

sys.path.append(str(Path(__file__).resolve().parents[1]))
from baselines import components, neighbourhoods, probabilities, shrinkage_lda

SECTIONS = {
    "dlpfc_151673": "layer", "dlpfc_151675": "layer", "dlpfc_151508_pcs": "truth", "dlpfc_151670_pcs": "truth",
    "starmap_mpfc_BZ5": "region", "xenium_breast_idc": "region", "her2st_A1": "annotation", "her2st_D1": "annotation",
}  # fmt: skip
ROUNDS, LABELS, STARTS = 3, 10, 5


def accuracies(adata: ad.AnnData, truth: str) -> dict[str, list[float]]:
    adata = adata[adata.obs[truth].notna()].copy()
    codes = adata.obs[truth].cat.remove_unused_categories().cat.codes.to_numpy().astype(np.int64)
    k = codes.max() + 1
    z = neighbourhoods(components(adata), adata.obsm["spatial"])
    out: dict[str, list[float]] = {"start": [], "suggested": [], "random": []}
    for seed in range(STARTS):
        rng = np.random.default_rng(seed)
        first = np.concatenate([rng.choice(np.flatnonzero(codes == c), 2, replace=False) for c in range(k)])
        for how in ("suggested", "random"):
            draw, labelled = np.random.default_rng(seed + 100), np.isin(np.arange(len(codes)), first)
            for turn in range(ROUNDS + 1):
                proba = probabilities(shrinkage_lda(), z, np.where(labelled, codes, -1), k)
                accuracy = float((proba.argmax(1) == codes)[~labelled].mean())
                if turn == 0 and how == "suggested":
                    out["start"].append(accuracy)
                if turn == ROUNDS:
                    out[how].append(accuracy)
                    break
                if how == "random":
                    labelled[draw.choice(np.flatnonzero(~labelled), LABELS, replace=False)] = True
                    continue
                adata.obs["known"] = pd.Series(codes, adata.obs_names).where(labelled).astype("Int64")
                adata.obsm["lda_proba"] = pd.DataFrame(proba, adata.obs_names).rename(columns=str)
                st.tl.suggest_labels(adata, LABELS, key="lda", labels_key="known")
                labelled |= adata.obs["suggested"].notna().to_numpy()
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=st.settings.datasetdir, help="folder of the sections (*.h5ad)")
    parser.add_argument("--out", type=Path, default=Path("labels.md"), help="file of the table")
    args = parser.parse_args()
    lines = ["| section | start | 30 suggested | 30 random |", "| --- | --- | --- | --- |"]
    for name, truth in SECTIONS.items():
        path = args.data / f"{name}.h5ad"
        if not path.exists():
            continue
        found = accuracies(ad.read_h5ad(path), truth)
        cells = [f"{np.mean(v):.3f} ± {np.std(v, ddof=1):.3f}" for v in found.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    if len(lines) == 2:
        raise SystemExit(f"No section in {args.data}; name their folder with --data.")
    args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
