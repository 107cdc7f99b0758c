"""False positive rate and power of `st.tl.compare` on generated cohorts.

    python benchmarks/conditions --seeds 6

Six and ten patients, half of them cases. "null": conditions are assigned at random. "planted": 20 genes are doubled in
one compartment of the cases, and half of that compartment's observations are dropped in the controls. With
``--within`` each patient has one section in each condition, and the test is paired. "Wilcoxon on spots" tests the same
genes in the same compartment with every observation as a unit.
"""

from __future__ import annotations

import argparse
import sys
from itertools import product
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from scipy import sparse

import stxtools as st

sys.path.append(str(Path(__file__).resolve().parents[1]))
from tables import markdown

PLANTED = 20
COMPARTMENT = "layer_2"
KINDS = {"expression": "genes", "contact": "contacts", "share": "compartment shares"}


def cohort(n_patients: int, difficulty: float, seed: int, within: bool) -> ad.AnnData:
    """Generate patients with their own depth, tissue and expression; assign conditions to them or their sections."""
    adata = st.datasets.synthetic_tissue(
        n_obs=500 * n_patients * (1 + within), n_vars=500, n_patients=n_patients, sections_per_patient=1 + within,
        disease="patient", logfc=0.0, mean_depth=5000, difficulty=difficulty, random_state=seed, show_progress=False,
    )  # fmt: skip
    rng = np.random.default_rng(seed)
    case = rng.permutation(n_patients) < n_patients // 2
    unit = "section" if within else "patient"
    if within:
        first = rng.random(n_patients) < 0.5
        case = np.stack([first, ~first], axis=1).ravel()
    units = pd.unique(adata.obs[unit])
    dealt = dict(zip(units, np.where(case, "case", "control"), strict=True))
    adata.obs["condition"] = adata.obs[unit].astype(str).map(dealt).astype("category")
    if within:  # each gene gets its own level in each patient, by thinning
        level = np.exp(-np.abs(rng.normal(0, 1, (n_patients, adata.n_vars))))
        counts = rng.binomial(adata.X.toarray().astype(int), level[adata.obs["patient"].cat.codes])
        adata.X = sparse.csr_matrix(counts.astype(np.float32))
    return adata


def planted(adata: ad.AnnData, seed: int) -> tuple[ad.AnnData, list[str]]:
    """Double 20 genes in one compartment of the cases; halve that compartment in the controls."""
    rng = np.random.default_rng(seed)
    counts = adata.layers.get("counts", adata.X)
    inside = (adata.obs["compartment"] == COMPARTMENT).to_numpy()
    seen = np.asarray((counts[inside] > 0).sum(axis=0)).ravel() / inside.sum()
    genes = rng.choice(np.flatnonzero(seen > 0.2), PLANTED, replace=False)
    case = (adata.obs["condition"] == "case").to_numpy()
    changed = counts.tolil(copy=True)
    rows = np.flatnonzero(inside & case)
    changed[np.ix_(rows, genes)] = 2 * counts[rows][:, genes].toarray()
    out = adata.copy()
    out.X = changed.tocsr()
    out.layers.pop("counts", None)
    keep = case | ~inside | (rng.random(adata.n_obs) < 0.5)
    return out[keep].copy(), list(adata.var_names[genes])


def compared(adata: ad.AnnData, subject_key: str = "patient") -> pd.DataFrame:
    st.tl.compare(adata, "condition", subject_key, groupby="compartment", reference="control", library_key="section")
    return st.get.compare(adata)


def wilcoxon(adata: ad.AnnData) -> pd.DataFrame:
    part = adata[adata.obs["compartment"] == COMPARTMENT].copy()
    part.X = part.layers.get("counts", part.X)
    sc.pp.normalize_total(part)
    sc.pp.log1p(part)
    part.obs["condition"] = part.obs["condition"].astype("category")
    sc.tl.rank_genes_groups(part, "condition", groups=["case"], reference="control", method="wilcoxon")
    return sc.get.rank_genes_groups_df(part, "case")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, help="number of cohorts of each kind")
    parser.add_argument("--patients", type=int, nargs="+", default=[6, 10], help="numbers of patients")
    parser.add_argument("--difficulty", type=float, nargs="+", default=[0.2, 0.5], help="of `synthetic_tissue`")
    parser.add_argument("--within", action="store_true", help="paired: each patient has a section in each condition")
    args = parser.parse_args()
    rows = []
    for n, difficulty in product(args.patients, args.difficulty):
        for seed in range(args.seeds):
            null = cohort(n, difficulty, seed, args.within)
            table, other = compared(null), wilcoxon(null)
            row: dict[str, float] = {"patients": n, "difficulty": difficulty, "seed": seed}
            for kind, part in table.groupby("kind"):
                row[f"null: {KINDS.get(kind, kind)} with p ≤ 0.05"] = (part["pvals"] <= 0.05).mean()
            row["null: any test at an FDR of 5 %"] = (table["pvals_adj"] <= 0.05).mean()
            row["null: Wilcoxon on spots, genes with p ≤ 0.05"] = (other["pvals"] <= 0.05).mean()
            changed, genes = planted(null, seed)
            table = compared(changed)
            inside = table[(table["kind"] == "expression") & (table["compartment"] == COMPARTMENT)].set_index("names")
            row["planted: genes with p ≤ 0.05 (power)"] = (inside["pvals"].reindex(genes) <= 0.05).mean()
            row["planted: genes at an FDR of 5 % (power)"] = (inside["pvals_adj"].reindex(genes) <= 0.05).mean()
            if args.within:
                between = compared(changed, "section").query("kind == 'expression' and compartment == @COMPARTMENT")
                pvals = between.set_index("names")["pvals"].reindex(genes)
                row["planted: the same, not paired"] = (pvals <= 0.05).mean()
            found = table[(table["kind"] == "expression") & (table["pvals_adj"] <= 0.05)]
            false = ~((found["compartment"] == COMPARTMENT) & found["names"].isin(genes))
            row["planted: false share of the genes found"] = false.mean() if len(found) else 0.0
            share = table[(table["kind"] == "share") & (table["compartment"] == COMPARTMENT)].iloc[0]
            row["planted: compartment share at an FDR of 5 % (power)"] = share["pvals_adj"] <= 0.05
            rows.append(row)
            print(row, file=sys.stderr)
    means = pd.DataFrame(rows).astype(float).groupby(["difficulty", "patients"]).mean().drop(columns="seed")
    print(markdown(means.T.round(3)))


if __name__ == "__main__":
    main()
