"""The method's own experiments, without leaks: tables and figures for docs/paper.

    python benchmarks/paper [--quick] [--jobs 2] [--out docs/paper]

Every finished fold is kept under --work (build/paper/quick or full), so an interrupted run goes on where it stopped.
Real sections are read from STXTOOLS_DATASETDIR; those that are not there are left out, and the page says so.
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

import pandas as pd
from experiments import Case, calibrate, cases, run_one
from page import write_page


def _end(*_: object) -> None:
    """End the processes of the pool as well: they would wait for work for ever."""
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
            state = f"{seconds:.0f} s" if table is not None else "not at hand, left out"
            sys.stderr.write(f"[{i + 1}/{len(tasks)}] {name}, seed {seed}: {state}\n")
            if table is not None:
                found.setdefault(name, {})[seed] = table
    return {
        case.name: pd.concat([found[case.name][s] for s in sorted(found[case.name])], ignore_index=True)
        for case in chosen
        if case.name in found
    }


def stored(chosen: list[Case], work: Path) -> dict[str, pd.DataFrame]:
    """Rows that earlier runs left, finished or not: of the seeds that the framework has, so that means compare."""
    tables = {}
    for case in chosen:
        parts = [pd.read_csv(path, comment="#", dtype={"fold": str}) for path in work.glob(f"{case.name}_[0-9]*.csv")]
        parts = [t for t in parts if len(t) and ("framework" in set(t["model"]) or "framework" not in case.models)]
        if parts:
            table = pd.concat(sorted(parts, key=lambda part: part["seed"].iloc[0]), ignore_index=True)
            order = {name: i for i, name in enumerate(case.models)}
            tables[case.name] = table.sort_values("model", key=lambda c, o=order: c.map(o), kind="stable")
    return tables


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two seeds, fewer cases: about ten minutes on two cores")
    parser.add_argument("--seeds", type=int, help="5, or 2 with --quick")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--cases", nargs="+", help="only these")
    parser.add_argument("--models", nargs="+", help="only these, and no page: work done ahead")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[2] / "docs" / "paper")
    parser.add_argument("--work", type=Path, help="build/paper/full or build/paper/quick")
    parser.add_argument("--calibrate", action="store_true", help="only show where the random forest stands")
    parser.add_argument("--draw", action="store_true", help="run nothing: the page of what is in --work")
    args = parser.parse_args()
    if args.calibrate:
        sys.stdout.write(calibrate().groupby("platform")["accuracy"].agg(["mean", "std"]).to_string() + "\n")
        return
    seeds = args.seeds or (2 if args.quick else 5)
    work = args.work or Path("build") / "paper" / ("quick" if args.quick else "full")
    work.mkdir(parents=True, exist_ok=True)
    args.out.mkdir(parents=True, exist_ok=True)
    chosen = [c for c in cases(quick=args.quick) if not args.cases or c.name in args.cases]
    if args.draw:
        write_page(args.out, work, stored(chosen, work), quick=args.quick, seeds=None)
        return
    tables = run_all(chosen, seeds, work, args.quick, args.jobs, args.models)
    if args.models:  # part of the work, done ahead; the page wants all of it
        return
    write_page(args.out, work, tables, quick=args.quick, seeds=seeds)


if __name__ == "__main__":
    main()
