"""The method's own experiments, without data leaks: tables and figures for docs/paper.

    python benchmarks/paper [--quick] [--jobs 2] [--out docs/paper]

Each finished fold is kept under --work, so an interrupted run resumes where it stopped. The default folder, under
build/paper, is named after the version and a digest of the models' code, so that changed models start again.
Real sections are read from STXTOOLS_DATASETDIR; missing ones are skipped.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import active_children, get_context
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # processes share the cores, not threads
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")  # its threads spin while they wait, which slows other processes
os.environ["MPLBACKEND"] = "Agg"

import pandas as pd
from experiments import SENSITIVITY, Case, calibrate, cases, run_one, sources
from page import write_page


def _end(*_: object) -> None:
    """End the processes of the pool as well: they would wait for work forever."""
    for process in active_children():
        process.terminate()
    sys.exit(143)


def run_all(
    chosen: list[Case], seeds: int, work: Path, quick: bool, jobs: int, only: list[str] | None
) -> dict[str, pd.DataFrame]:
    """Run all cases and seeds, ``jobs`` at a time."""
    tasks = [(case.name, seed) for case in chosen for seed in range(seeds)]
    found: dict[str, dict[int, pd.DataFrame]] = {}
    signal.signal(signal.SIGTERM, _end)
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        waiting = [pool.submit(run_one, name, seed, work, quick, only) for name, seed in tasks]
        for i, future in enumerate(as_completed(waiting)):
            name, seed, table, seconds = future.result()
            state = f"{seconds:.0f} s" if table is not None else "not available, skipped"
            sys.stderr.write(f"[{i + 1}/{len(tasks)}] {name}, seed {seed}: {state}\n")
            if table is not None:
                found.setdefault(name, {})[seed] = table
    return {
        case.name: pd.concat([found[case.name][s] for s in sorted(found[case.name])], ignore_index=True)
        for case in chosen
        if case.name in found
    }


def stored(chosen: list[Case], work: Path) -> dict[str, pd.DataFrame]:
    """Read the rows of earlier runs, finished or not; each table gives the number of seeds of a model."""
    tables = {}
    for case in chosen:
        parts = [pd.read_csv(path) for path in work.glob(f"{case.name}_[0-9]*.csv")]
        parts += [_checkpoint(path) for path in work.glob(f"{case.name}_[0-9]*") if path.is_dir()]
        parts = [t for t in parts if len(t)]
        if not parts:
            continue
        table = pd.concat(sorted(parts, key=lambda part: part["seed"].iloc[0]), ignore_index=True)
        if case.name != SENSITIVITY:
            order = {name: i for i, name in enumerate(case.named)}
            table = table[table["model"].isin(order)]
            table = table.sort_values("model", key=lambda c, o=order: c.map(o), kind="stable")
        tables[case.name] = table
    return tables


def _checkpoint(path: Path) -> pd.DataFrame:
    """Read the rows of a checkpoint of `tl.evaluate`."""
    parts = [pd.read_json(file, dtype={"fold": str}) for file in path.glob("*.json")]
    return pd.concat(parts).sort_values(["seed", "noise", "fold"]) if parts else pd.DataFrame()


def mark(work: Path) -> str:
    """Record which version of the package writes rows here; return all that did."""
    path = work / "sources.txt"
    known = path.read_text(encoding="utf-8").split() if path.exists() else []
    if sources() not in known:
        known.append(sources())
        path.write_text("\n".join(known) + "\n", encoding="utf-8")
    return ", then ".join(known)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two seeds, fewer cases: about ten minutes on two cores")
    parser.add_argument("--seeds", type=int, help="number of seeds; default: 5, or 2 with --quick")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--cases", nargs="+", help="run only these cases")
    parser.add_argument("--models", nargs="+", help="run only these models, and write no page")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[2] / "docs" / "paper")
    parser.add_argument("--work", type=Path, help="folder of finished folds (default: see above)")
    parser.add_argument("--calibrate", action="store_true", help="print only the accuracy of the random forest")
    parser.add_argument("--draw", action="store_true", help="run nothing, write the page of the rows in --work")
    args = parser.parse_args()
    if args.calibrate:
        sys.stdout.write(calibrate().groupby("platform")["accuracy"].agg(["mean", "std"]).to_string() + "\n")
        return
    seeds = args.seeds or (2 if args.quick else 5)
    work = args.work or Path("build") / "paper" / f"{'quick' if args.quick else 'full'}-{sources()}"
    work.mkdir(parents=True, exist_ok=True)
    args.out.mkdir(parents=True, exist_ok=True)
    chosen = [c for c in cases(quick=args.quick) if not args.cases or c.name in args.cases]
    if args.draw:
        made = (work / "sources.txt").read_text(encoding="utf-8").split() if (work / "sources.txt").exists() else []
        made_with = ", then ".join(made) or "(not noted)"
        tables = stored(chosen, work)
        complete = all(c.name in tables and tables[c.name]["seed"].nunique() == seeds for c in chosen)
        write_page(args.out, work, tables, quick=args.quick, seeds=seeds if complete else None, sources=made_with)
        return
    made_with = mark(work)
    tables = run_all(chosen, seeds, work, args.quick, args.jobs, args.models)
    if args.models:  # the page needs all models
        return
    write_page(args.out, work, tables, quick=args.quick, seeds=seeds, sources=made_with)


if __name__ == "__main__":
    main()
