"""Compare `st.tl.segment` with simple baselines on annotated sections: default parameters, several seeds.

    python benchmarks/segmentation --data FOLDER --seeds 5 --out table.md

Tasks: few labels; shares of the classes; no labels, number of segments given or not; ablations of the U-Net; shallow
(thinned) counts; transfer of a saved model; pretraining across sections. Each section and seed runs in its own process,
whose peak memory is recorded. Rows go to a CSV file next to the table, and rows already there are not computed again.
"""

from __future__ import annotations

import argparse
import multiprocessing
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from _data import CASES, Case
from _tasks import SINGLE, run
from sklearn.metrics import adjusted_rand_score

DLPFC = tuple(c for c in CASES if c.name in {"dlpfc_151673", "dlpfc_151675"})
TASKS = (*SINGLE, "transfer", "pretraining")


def units(task: str, sections: list[str]) -> list[tuple[Case, ...]]:
    """Return the sections that a task runs on, each alone or in pairs."""
    if task == "transfer":
        return [DLPFC, DLPFC[::-1]]
    if task == "pretraining":
        return [DLPFC]
    return [(c,) for c in CASES if c.name in sections]


def markdown(table: pd.DataFrame, value: str = "ARI") -> str:
    """Format mean ± standard deviation over seeds: one row per section, one column per method."""
    stats = table.groupby(["section", "method"], sort=False)[value].agg(["mean", "std"])
    cells = stats["mean"].map("{:.3f}".format) + stats["std"].map(lambda s: "" if np.isnan(s) else f" ± {s:.3f}")
    wide = cells.unstack("method").fillna("")
    lines = [["section", *wide.columns], ["---"] * (len(wide.columns) + 1)]
    lines += [[name, *map(str, row)] for name, row in zip(wide.index, wide.to_numpy(), strict=True)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def seed_agreement(table: pd.DataFrame) -> str:
    """Return the mean pairwise ARI between seeds of the segments found without labels."""
    out = []
    for section, rows in table[table["codes"].notna()].groupby("section", sort=False):
        found = [np.array(codes.split()) for codes in rows["codes"]]
        pairs = [adjusted_rand_score(a, b) for a, b in combinations(found, 2)]
        if pairs:
            out.append(f"{section} {np.mean(pairs):.2f}")
    return ", ".join(out)


def report(table: pd.DataFrame) -> str:
    """Return the tables of all tasks as Markdown."""
    parts = []
    for task, rows in table.groupby("task", sort=False):
        parts.append(f"## {task}\n\nARI:\n\n{markdown(rows)}")
        also = [v for v in ("accuracy", "ECE") if task in {"few labels", "transfer"} and rows[v].notna().any()]
        parts += [f"{value}:\n\n{markdown(rows[rows[value].notna()], value)}" for value in also]
        if task == "no labels, number not given":
            parts.append(f"Number of segments found:\n\n{markdown(rows, 'segments')}")
        ours = rows[rows["method"] == "`tl.segment`"]
        if "seconds" in rows and ours["seconds"].notna().any():
            time, memory = (ours.groupby("section")[c].mean() for c in ("seconds", "peak_gb"))
            parts.append(f"Seconds: {', '.join(f'{s} {t:.0f}' for s, t in time.items())}. "
                         f"Peak memory of the process: at most {memory.max():.1f} GB.")  # fmt: skip
        if "codes" in rows and rows["codes"].notna().any():
            parts.append(f"Agreement between seeds (mean pairwise ARI): {seed_agreement(rows)}.")
    return "\n\n".join(parts) + "\n"


def main() -> None:
    import stxtools as st

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=st.settings.datasetdir, help="folder of the sections (*.h5ad)")
    parser.add_argument("--sections", nargs="+", default=[c.name for c in CASES], help="names without .h5ad")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    parser.add_argument("--out", type=Path, default=Path("segmentation.md"), help="file of the tables")
    args = parser.parse_args()
    file = args.out.with_suffix(".csv")
    table = pd.read_csv(file) if file.exists() else pd.DataFrame(columns=["section", "task", "seed"])
    context = multiprocessing.get_context("spawn")
    for task in args.tasks:
        for cases in units(task, args.sections):
            if any(not (args.data / f"{c.name}.h5ad").exists() for c in cases):
                continue
            for seed in range(args.seeds):
                known = table[(table["task"] == task) & (table["seed"] == seed)]
                if known["section"].str.startswith(cases[0].name).any():
                    continue
                with context.Pool(1) as pool:
                    rows = pd.DataFrame(pool.apply(run, (task, cases, args.data, seed)))
                table = pd.concat([table, rows], ignore_index=True) if len(table) else rows
                table.to_csv(file, index=False)
                if len(rows):
                    print(task, cases[0].name, seed, rows.set_index("method")["ARI"].round(3).to_dict(), flush=True)
    if not len(table):
        raise SystemExit(f"No section of {args.sections} in {args.data}; name their folder with --data.")
    args.out.write_text(report(table))


if __name__ == "__main__":
    main()
