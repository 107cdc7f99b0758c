"""Segmentation against simple floors on annotated sections, default parameters, several seeds.

    python benchmarks/segmentation --data FOLDER --seeds 5 --out table.md

Floors: nearest labelled spot by coordinates; scikit-learn's shrinkage LDA on 19- and 61-nearest-neighbour
means; a tied Gaussian mixture on twice averaged components; the teacher that the U-Net learns from. All are
judged on the spots that have a label and, with scribbles, were not scribbled on as well as on all.
"""

from __future__ import annotations

import argparse
import resource
import time
from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from scipy.spatial import cKDTree
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import accuracy_score, adjusted_rand_score
from sklearn.mixture import GaussianMixture

import stxtools as st
from stxtools._representation import representation
from stxtools._spatial.graph import neighbour_mean
from stxtools.models._mixtures import consensus, multiscale_views
from stxtools.tl._inputs import geometry, make_sections


@dataclass(frozen=True)
class Case:
    """A section, its truth, its few labels, and the representation given (None: from counts)."""

    name: str
    truth: str
    few: str | None = None
    use_rep: str | None = None


CASES = (
    Case("dlpfc_151673", "layer", "scribble"),
    Case("dlpfc_151675", "layer", "scribble"),
    Case("dlpfc_151508_pcs", "truth", "scribble", "X_pca"),
    Case("dlpfc_151670_pcs", "truth", "scribble", "X_pca"),
    Case("her2st_A1", "annotation"),
    Case("her2st_B1", "annotation"),
    Case("her2st_C1", "annotation"),
    Case("her2st_D1", "annotation"),
    Case("starmap_mpfc_BZ5", "region"),
    Case("osmfish_mouse_sscortex", "region"),
    Case("xenium_breast_idc", "region"),
)


def patch_labels(adata: ad.AnnData, truth: str, share: float, seed: int) -> pd.Series:
    """One compact patch of ``share`` of its spots per class, as a pathologist would scribble."""
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


def knn_means(x: np.ndarray, xy: np.ndarray) -> np.ndarray:
    sizes = [min(s, len(x)) for s in (19, 61)]
    near = cKDTree(xy).query(xy, max(sizes))[1]
    return np.concatenate([x[near[:, :s]].mean(1) for s in sizes], axis=1)


def floors_with_labels(x: np.ndarray, xy: np.ndarray, few: pd.Series) -> dict[str, np.ndarray]:
    known = few.notna().to_numpy()
    labels = few[known].astype(str).to_numpy()
    nearest = labels[cKDTree(xy[known]).query(xy)[1]]
    z = knn_means(x, xy)
    z = (z - z.mean(0)) / (z.std(0) + 1e-9)
    lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(z[known], labels)
    return {"nearest label": nearest, "LDA 19+61": lda.predict(z)}


def floors_without_labels(adata: ad.AnnData, x: np.ndarray, k: int, seed: int) -> dict[str, np.ndarray]:
    where = geometry(adata, "spatial", None)
    z = neighbour_mean(where.graph, x.astype(np.float64), rounds=2)
    mixture = GaussianMixture(k, covariance_type="tied", random_state=seed, n_init=3).fit_predict(z)
    section = make_sections(x, where)[0]
    target, _ = consensus(multiscale_views(section.features, section.graph), k, np.random.default_rng(seed))
    return {"mean + mixture": mixture, "teacher (consensus)": target.argmax(1)}


def rows_of(case: Case, data: Path, seeds: int) -> list[dict[str, object]]:
    adata = ad.read_h5ad(data / f"{case.name}.h5ad")
    if "is_duplicate" in adata.obs:
        adata = adata[~adata.obs["is_duplicate"]].copy()
    truth = adata.obs[case.truth].astype(object)
    known, k = truth.notna().to_numpy(), truth.nunique()
    x, xy = representation(adata, case.use_rep).values, adata.obsm["spatial"][:, :2]
    out: list[dict[str, object]] = []

    def note(task: str, method: str, seed: int, found: object, seconds: float = np.nan, scored: bool = False) -> None:
        labels = np.asarray(found, dtype=str)
        ari = adjusted_rand_score(truth[known].astype(str), labels[known])
        row: dict[str, object] = {"section": case.name, "task": task, "method": method, "seed": seed, "ARI": ari}
        if scored:
            row["accuracy"] = accuracy_score(truth[known].astype(str), labels[known])
        out.append(row | {"segments": len(set(labels)), "seconds": seconds})

    for seed in range(seeds):
        how = {"use_rep": case.use_rep, "random_state": seed, "show_progress": False}
        few = adata.obs[case.few] if case.few else patch_labels(adata, case.truth, 0.05, seed)
        for method, found in floors_with_labels(x, xy, few).items():
            note("few labels", method, seed, found, scored=True)
        adata.obs["few"] = few.astype(object)
        start = time.perf_counter()
        st.tl.segment(adata, labels_key="few", **how)
        note("few labels", "st.tl.segment", seed, adata.obs["segment"], time.perf_counter() - start, scored=True)
        for method, found in floors_without_labels(adata, x, k, seed).items():
            note("k known", method, seed, found)
        start = time.perf_counter()
        st.tl.segment(adata, k, **how)
        note("k known", "st.tl.segment", seed, adata.obs["segment"], time.perf_counter() - start)
        start = time.perf_counter()
        st.tl.segment(adata, **how)
        note("k unknown", "st.tl.segment", seed, adata.obs["segment"], time.perf_counter() - start)
    return out


def markdown(table: pd.DataFrame) -> str:
    """Mean and standard deviation of the ARI over seeds, a row per section and a column per task and method."""
    stats = table.groupby(["section", "task", "method"])["ARI"].agg(["mean", "std"])
    cells = stats["mean"].map("{:.3f}".format) + stats["std"].map(lambda s: "" if np.isnan(s) else f" ± {s:.3f}")
    wide = cells.unstack(["task", "method"]).sort_index(axis=1)
    head = ["section", *(f"{task}: {method}" for task, method in wide.columns)]
    lines = [
        head,
        ["---"] * len(head),
        *([name, *map(str, row)] for name, row in zip(wide.index, wide.to_numpy(), strict=True)),
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=st.settings.datasetdir)
    parser.add_argument("--sections", nargs="+", default=[c.name for c in CASES])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("segmentation.md"))
    args = parser.parse_args()
    rows: list[dict[str, object]] = []
    for case in CASES:
        if case.name in args.sections and (args.data / f"{case.name}.h5ad").exists():
            rows += rows_of(case, args.data, args.seeds)
            done = pd.DataFrame(rows)
            done.to_csv(args.out.with_suffix(".csv"), index=False)
            print(done[done["section"] == case.name].groupby(["task", "method"])["ARI"].mean().round(3).to_string())
    if not rows:
        raise SystemExit(f"No section of {args.sections} in {args.data}; name their folder with --data.")
    table = pd.DataFrame(rows)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    args.out.write_text(f"{markdown(table)}\n\nPeak memory of the whole run: {peak:.2f} GB.\n")


if __name__ == "__main__":
    main()
