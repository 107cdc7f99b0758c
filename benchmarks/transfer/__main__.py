"""Models of labelled sections applied to unseen sections: accuracy, macro AUROC and ARI, default parameters.

    python benchmarks/transfer --data FOLDER --seeds 3 --out transfer.md

Baselines are scikit-learn's: ridge on neighbourhood means of standardised genes, and discriminant analysis of their
components. Rows go to a CSV file next to the tables, and rows already there are not computed again.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics import adjusted_rand_score, roc_auc_score
from sklearn.neighbors import NearestNeighbors

import stxtools as st

SIZES, N_GENES, SCALE = (19, 61), 1000, 6.0
QUIET: dict[str, Any] = {"show_progress": False, "accelerator": "cpu"}


@dataclass(frozen=True)
class Task:
    """Labelled source sections, a target, and the column of the labels; ``few`` names a column of few target labels."""

    name: str
    sources: list[ad.AnnData]
    target: ad.AnnData
    labels: str
    few: str | None = None


def read(folder: Path, name: str, labels: str) -> ad.AnnData:
    """Read a section without duplicate cells."""
    adata = ad.read_h5ad(folder / f"{name}.h5ad")
    adata = adata[~adata.obs["is_duplicate"]].copy() if "is_duplicate" in adata.obs else adata
    adata.obs["library"] = name
    adata.obs[labels] = adata.obs[labels].astype("category")
    return adata


def poorer(adata: ad.AnnData, known: pd.Index, n_genes: int, depth: float, seed: int) -> ad.AnnData:
    """Keep some of the more variable genes and a part of their molecules, as in another panel and at another depth."""
    x = adata[:, adata.var_names.isin(known)].copy()
    mean = np.asarray(x.X.mean(axis=0)).ravel()
    variance = np.asarray(x.X.multiply(x.X).mean(axis=0)).ravel() - mean**2
    best = np.argsort(-variance / np.maximum(mean, 1e-9))[: 4 * n_genes]
    rng = np.random.default_rng(seed)
    out = x[:, np.sort(rng.choice(best, n_genes, replace=False))].copy()
    out.X = sparse.csr_matrix(out.X)
    out.X.data = rng.binomial(out.X.data.astype(np.int64), depth).astype(np.float32)
    out.X.eliminate_zeros()
    return out


def halves(adata: ad.AnnData, axis: int) -> tuple[ad.AnnData, ad.AnnData]:
    """Cut a section into halves."""
    low = adata.obsm["spatial"][:, axis] < np.median(adata.obsm["spatial"][:, axis])
    return adata[low].copy(), adata[~low].copy()


def tasks(folder: Path) -> Iterator[Task]:
    """Yield the tasks."""
    a, b = (read(folder, f"dlpfc_{name}", "layer") for name in ("151673", "151675"))
    yield Task("151673 to 151675", [a], b, "layer", "scribble")
    yield Task("151675 to 151673", [b], a, "layer", "scribble")
    yield Task("151673 to 151675, 316 genes, half depth", [a], poorer(b, a.var_names, 316, 0.5, 0), "layer")
    yield Task("151675 to 151673, 316 genes, half depth", [b], poorer(a, b.var_names, 316, 0.5, 0), "layer")
    patients = [read(folder, f"her2st_{name}", "annotation") for name in ("A1", "B1", "C1", "D1")]
    for i, patient in enumerate(patients):
        others = [p for k, p in enumerate(patients) if k != i]
        yield Task(f"HER2ST, other three to {'ABCD'[i]}1", others, patient, "annotation")
    for name, axis in (("starmap_mpfc_BZ5", 1), ("osmfish_mouse_sscortex", 0), ("xenium_breast_idc", 1)):
        low, high = halves(read(folder, name, "region"), axis)
        yield Task(f"{name}, one half to the other", [low], high, "region")
        yield Task(f"{name}, the reverse", [high], low, "region")


# ---------------------------------------------------------------- baselines


def _means(adata: ad.AnnData, genes: pd.Index) -> list[np.ndarray]:
    x = sparse.csr_matrix(adata.X, dtype=np.float64)
    total = np.asarray(x.sum(axis=1)).ravel()
    x = sparse.diags(np.median(total) / np.maximum(total, 1)) @ x
    x = np.log1p(x.tocsr()[:, adata.var_names.get_indexer(genes)].toarray())
    near = NearestNeighbors(n_neighbors=min(max(SIZES), len(x))).fit(adata.obsm["spatial"])
    near = near.kneighbors(adata.obsm["spatial"], return_distance=False)
    return [x, *(np.stack([x[row[:size]].mean(axis=0) for row in near]) for size in SIZES)]


def _scaled(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(axis=0)) / (x.std(axis=0) + 1e-6)


def baselines(task: Task) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the classes, and scores of the target by ridge and by discriminant analysis."""
    shared = task.target.var_names
    for source in task.sources:
        shared = shared.intersection(source.var_names)
    means = [_means(s, shared) for s in task.sources]
    kept = np.mean([m[1].var(axis=0) / (m[0].var(axis=0) + 1e-9) * (m[0].mean(axis=0) > 0.02) for m in means], axis=0)
    chosen = np.argsort(-kept)[:N_GENES]
    parts = [[_scaled(m[:, chosen]) for m in one[1:]] for one in means]
    new = [_scaled(m[:, chosen]) for m in _means(task.target, shared)[1:]]
    known = [s.obs[task.labels].notna().to_numpy() for s in task.sources]
    y = np.concatenate([s.obs[task.labels][k].astype(str) for s, k in zip(task.sources, known, strict=True)])
    z = np.concatenate([np.hstack(p)[k] for p, k in zip(parts, known, strict=True)])
    ridge = RidgeClassifier(1000.0).fit(z, y)
    pca = PCA(min(20, len(chosen)), random_state=0).fit(np.concatenate([p[0] for p in parts]))
    low = [np.hstack([_scaled(pca.transform(m)) for m in p]) for p in [*parts, new]]
    lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.1)
    lda.fit(np.concatenate([p[k] for p, k in zip(low[:-1], known, strict=True)]), y)
    scores = ridge.decision_function(np.hstack(new))
    scores = np.c_[-scores, scores] if scores.ndim == 1 else scores
    return ridge.classes_, {"ridge": scores, "LDA": lda.predict_log_proba(low[-1])}


# ---------------------------------------------------------------- st.tl.segment


def applied(task: Task, seed: int) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield class probabilities of the target: not adapted, by default, and with few labels of its own."""
    sources = (
        ad.concat(task.sources, join="inner", index_unique="-") if len(task.sources) > 1 else task.sources[0].copy()
    )
    sources.obs["known"] = sources.obs[task.labels]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.stx"
        st.tl.segment(
            sources, labels_key="known", library_key="library", random_state=seed, save_model=path, **QUIET
        )  # fmt: skip
        model = st.models.load(path)
    for name, how in (
        ("`adapt=False`", {"adapt": False}),
        ("`tl.segment`", {}),
        ("with scribbles", {"labels_key": task.few}),
    ):
        if name != "with scribbles" or task.few is not None:
            yield name, _proba(task, model, **how)


def _proba(task: Task, model: Any, **how: Any) -> pd.DataFrame:
    target = task.target.copy()
    st.tl.segment(target, model=model, library_key="library", **how, **QUIET)
    proba = target.obsm["segment_proba"]
    return proba.set_axis(model.classes, axis=1)


def judged(task: Task, scores: pd.DataFrame) -> dict[str, float]:
    """Return accuracy, mean AUROC of the classes and adjusted Rand index over all annotated observations."""
    known = task.target.obs[task.labels].notna().to_numpy()
    truth, scores = task.target.obs[task.labels][known].astype(str).to_numpy(), scores[known]
    found = scores.columns.to_numpy()[scores.to_numpy().argmax(axis=1)]
    areas = [roc_auc_score(truth == c, scores[c]) for c in scores.columns if 0 < (truth == c).sum() < len(truth)]
    return {
        "accuracy": float((found == truth).mean()), "AUROC": float(np.mean(areas)),
        "ARI": adjusted_rand_score(truth, found),
    }  # fmt: skip


def report(table: pd.DataFrame) -> str:
    """Return a table for each measure: one row per task, one column per method, means over seeds."""
    parts = []
    for value in ("accuracy", "AUROC", "ARI"):
        wide = table.pivot_table(index="task", columns="method", values=value, sort=False)
        wide.loc["**mean**"] = wide.mean(skipna=False)
        lines = [["source and target", *wide.columns], ["---"] * (wide.shape[1] + 1)]
        lines += [
            [name, *("" if np.isnan(v) else f"{v:.3f}" for v in row)]
            for name, row in zip(wide.index, wide.to_numpy(), strict=True)
        ]
        parts.append(f"{value}:\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines))
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=st.settings.datasetdir, help="folder of the sections (*.h5ad)")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--out", type=Path, default=Path("transfer.md"), help="file of the tables")
    args = parser.parse_args()
    file = args.out.with_suffix(".csv")
    table = pd.read_csv(file) if file.exists() else pd.DataFrame(columns=["task", "method", "seed"])
    for seed in range(args.seeds):
        for task in tasks(args.data):
            if ((table["task"] == task.name) & (table["seed"] == seed)).any():
                continue
            classes, scores = baselines(task)
            found = [(name, pd.DataFrame(s, task.target.obs_names, classes)) for name, s in scores.items()]
            rows = [
                {"task": task.name, "method": name, "seed": seed, **judged(task, proba)}
                for name, proba in [*found, *applied(task, seed)]
            ]
            table = pd.concat([table, pd.DataFrame(rows)], ignore_index=True) if len(table) else pd.DataFrame(rows)
            table.to_csv(file, index=False)
            print(seed, task.name, {r["method"]: round(r["accuracy"], 3) for r in rows}, flush=True)
    args.out.write_text(report(table))


if __name__ == "__main__":
    main()
