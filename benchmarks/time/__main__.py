"""`st.tl.track` and `st.tl.trends` on generated series: accuracy of tracking, power and false positive rate of trends.

python benchmarks/time track     # accuracy, compared with nearest centroid and Hungarian matching of mean expression
python benchmarks/time null      # false positives: permuted times, 6 subjects
python benchmarks/time power     # power: genes that double, 9 subjects at 3 times, compared with Wilcoxon on spots
python benchmarks/time cost      # time and memory: 12 sections of 5,000 cells
python benchmarks/time spread    # variation between subjects, generated and in real tissue (--data FOLDER)
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from scipy import stats
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from spread import spread

import stxtools as st

sys.path.append(str(Path(__file__).resolve().parents[1]))
from tables import markdown

Matched = dict[str, str]


def centroids(regions: ad.AnnData, time_of: pd.Series, time: float) -> pd.DataFrame:
    """Return mean expression of each compartment, standardised within sections, over the sections of a time."""
    parts = []
    for name in time_of.index[time_of == time]:
        part = regions[regions.obs["library"] == name]
        x, weight = part.X.toarray().astype(float), part.obs["n_obs"].to_numpy(float)
        mean = np.average(x, axis=0, weights=weight)
        scale = np.sqrt(np.average((x - mean) ** 2, axis=0, weights=weight))
        frame = pd.DataFrame((x - mean) / np.where(scale > 0, scale, 1))
        names = part.obs["segment"].astype(str).to_numpy()
        parts.append(frame.mul(weight, axis=0).groupby(names).sum().div(pd.Series(weight).groupby(names).sum(), axis=0))
    return pd.concat(parts).groupby(level=0).mean()


def nearest(one: pd.DataFrame, two: pd.DataFrame) -> tuple[Matched, Matched]:
    far = cdist(one, two)
    return dict(zip(one.index, two.index[far.argmin(1)], strict=True)), dict(
        zip(two.index, one.index[far.argmin(0)], strict=True)
    )


def mutual(one: pd.DataFrame, two: pd.DataFrame) -> tuple[Matched, Matched]:
    there, back = nearest(one, two)
    return {s: t for s, t in there.items() if back[t] == s}, {t: s for t, s in back.items() if there[s] == t}


def hungarian(one: pd.DataFrame, two: pd.DataFrame) -> tuple[Matched, Matched]:
    i, j = linear_sum_assignment(cdist(one, two))
    pairs = list(zip(one.index[i], two.index[j], strict=True))
    return dict(pairs), {t: s for s, t in pairs}


def tracked(adata: ad.AnnData, start: float) -> tuple[Matched, Matched]:
    links = st.get.track(adata)
    links = links[links["time_from"] == start]
    out = []
    for side, other, share, gone in (("source", "target", "forward", "disappears"),
                                     ("target", "source", "backward", "appears")):  # fmt: skip
        inside = links[(links["source"] != "") & (links["target"] != "")]
        best = inside.loc[inside.groupby(side)[share].idxmax()].set_index(side)[other]
        out.append(best.drop(links.loc[links["event"] == gone, side]).to_dict())
    return out[0], out[1]


def judged(truth: pd.DataFrame, found: tuple[Matched, Matched]) -> pd.DataFrame:
    """Return a row for each compartment of both times: is its counterpart, or the lack of one, correct?"""
    rows = []
    for (side, other), match in zip((("source", "target"), ("target", "source")), found, strict=True):
        for name in sorted(set(truth[side]) - {""}):
            wanted, got = set(truth.loc[truth[side] == name, other]) - {""}, match.get(name)
            rows.append({"right": got in wanted if wanted else got is None, "new": not wanted, "called": got is None})
    return pd.DataFrame(rows)


def track(seeds: int) -> None:
    out = []
    for n_subjects in (1, 2, 3):
        for seed in range(seeds):
            adata = st.datasets.synthetic_series(4, n_subjects, difficulty=0.5, random_state=seed, show_progress=False)
            st.tl.region_graph(adata, "compartment", library_key="section", max_size=20, show_progress=False)
            st.tl.track(adata, "time", show_progress=False)
            time_of = adata.obs.groupby("section", observed=True)["time"].first()
            for (start, end), truth in adata.uns["synthetic"]["lineage"].groupby(["time_from", "time_to"]):
                one, two = (centroids(adata.uns["regions"], time_of, t) for t in (start, end))
                found = {"tl.track": tracked(adata, start)}
                methods: tuple[Callable[..., tuple[Matched, Matched]], ...] = (nearest, mutual, hungarian)
                found |= {method.__name__: method(one, two) for method in methods}
                out += [judged(truth, match).assign(method=name, seed=seed, subjects=n_subjects)
                        for name, match in found.items()]  # fmt: skip
    table = pd.concat(out)
    accuracy = table.groupby(["subjects", "method", "seed"])["right"].mean().groupby(["subjects", "method"])
    counts = table.assign(hit=table["new"] & table["called"]).groupby(["subjects", "method"])[["hit", "new", "called"]]
    total = counts.sum()
    f1 = 2 * total["hit"] / (total["new"] + total["called"])
    table = pd.DataFrame({"accuracy": accuracy.mean(), "sd": accuracy.std(), "F1 of appearing and disappearing": f1})
    print(markdown(table.rename_axis(index={"subjects": "sections per time"}).round(3)))


def trends(adata: ad.AnnData) -> pd.DataFrame:
    st.tl.trends(adata, "time", subject_key="subject", groupby="compartment", library_key="section",
                 show_progress=False)  # fmt: skip
    return st.get.trends(adata)


def null(seeds: int) -> None:
    """Permute the times of the six subjects of a series without trends."""
    rows = []
    for n_times, difficulty in ((2, 0.2), (2, 0.5)):
        pvals = []
        for seed in range(seeds):
            adata = st.datasets.synthetic_series(
                n_times, 3, n_vars=200, n_trends=0, difficulty=difficulty, random_state=seed, show_progress=False
            )
            subjects = list(adata.obs["subject"].cat.categories)
            times = np.repeat(np.arange(float(n_times)), 3)
            rng = np.random.default_rng(seed)
            for _ in range(10):
                dealt = dict(zip(subjects, rng.permutation(times), strict=True))
                adata.obs["time"] = adata.obs["subject"].map(dealt).astype(float)
                table = trends(adata)
                genes = table[table["kind"] == "expression"].dropna(subset="pvals")
                pvals.append(genes["pvals"].to_numpy())
                rows.append({"difficulty": difficulty,
                             "tests called at an FDR of 5 %, all kinds": (table["pvals_adj"] <= 0.05).mean(),
                             "genes called": (genes["pvals_adj"] <= 0.05).mean(),
                             "genes with p ≤ 0.05": (genes["pvals"] <= 0.05).mean()})  # fmt: skip
        distance = stats.kstest(np.concatenate(pvals), "uniform").statistic
        print(difficulty, "Kolmogorov distance of p", round(distance, 3))
    print(markdown(pd.DataFrame(rows).groupby("difficulty").mean().round(4)))


def power(seeds: int) -> None:
    rows = []
    for difficulty in (0.0, 0.1, 0.25, 0.5):
        for seed in range(seeds):
            adata = st.datasets.synthetic_series(3, 3, obs_per_section=1000, difficulty=difficulty, random_state=seed,
                                                 show_progress=False)  # fmt: skip
            table = trends(adata).query("kind == 'expression'").merge(adata.var, left_on="feature", right_index=True)
            rows.append({"difficulty": difficulty, "method": "tl.trends"} | rates(table))
            table["pvals_adj"] = table["pvals_order_adj"]
            rows.append({"difficulty": difficulty, "method": "tl.trends, order test alone"} | rates(table))
            table = wilcoxon(adata).merge(adata.var, left_on="feature", right_index=True)
            rows.append({"difficulty": difficulty, "method": "Wilcoxon on spots"} | rates(table))
    print(markdown(pd.DataFrame(rows).groupby(["difficulty", "method"]).mean().round(3)))


def rates(table: pd.DataFrame) -> dict[str, float]:
    """Return power and false share: linear trends in their compartment are true; transient ones there do not count."""
    here = table["trend_in"].astype(str) == table["compartment"]
    true, called = here & (table["trend"] == "linear"), table["pvals_adj"] <= 0.05
    false = called & ~(here & (table["trend"] != "none"))
    return {"power": called[true].mean(), "false share": false.sum() / max((false | (called & true)).sum(), 1)}


def wilcoxon(adata: ad.AnnData) -> pd.DataFrame:
    parts = []
    for name in ("c1", "c2", "c3"):
        part = adata[(adata.obs["compartment"] == name) & (adata.obs["time"] != 1)].copy()
        sc.pp.normalize_total(part)
        sc.pp.log1p(part)
        part.obs["time"] = part.obs["time"].astype(str).astype("category")
        sc.tl.rank_genes_groups(part, "time", groups=["2.0"], reference="0.0", method="wilcoxon")
        parts.append(sc.get.rank_genes_groups_df(part, "2.0").assign(compartment=name))
    return pd.concat(parts, ignore_index=True).rename(columns={"names": "feature"})


def cost(seeds: int) -> None:
    rows = []
    for seed in range(seeds):
        adata = st.datasets.synthetic_series(4, 3, obs_per_section=5000, platform="merfish", n_vars=200,
                                             random_state=seed, show_progress=False)  # fmt: skip
        st.tl.region_graph(adata, "compartment", library_key="section", show_progress=False)
        start = time.perf_counter()
        st.tl.track(adata, "time", show_progress=False)
        middle = time.perf_counter()
        trends(adata)
        rows.append({"track, s": middle - start, "trends, s": time.perf_counter() - middle,
                     "peak memory, GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20})  # fmt: skip
        print(rows[-1], file=sys.stderr)
    print(markdown(pd.DataFrame(rows).mean().round(1)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["track", "null", "power", "cost", "spread"], help="see above")
    parser.add_argument("--seeds", type=int, default=5, help="number of generated series")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the annotated sections")
    args = parser.parse_args()
    if args.what == "spread":
        spread(args.seeds, args.data)
        return
    {"track": track, "null": null, "power": power, "cost": cost}[args.what](args.seeds)


if __name__ == "__main__":
    main()
