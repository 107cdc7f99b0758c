"""Faulty inputs to all public functions: are errors clear, is the AnnData left unchanged, are results meaningful?

    python benchmarks/robustness --n 5000 --seed 0 --out robustness.csv

Each input is determined by its number and the seed; ``--only 17 23`` runs these two and prints their outcomes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import warnings
from itertools import chain
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import matplotlib as mpl

mpl.use("Agg")

import pandas as pd

COLUMNS = ("inputs", "ok", "named error", "unnamed error", "no end", "changed after error", "meaningless", "state")


def summary(rows: pd.DataFrame, by: str) -> str:
    """Return the counts of outcomes as Markdown."""
    counts = {
        "inputs": rows["outcome"] != "", "ok": rows["outcome"] == "ok", "named error": rows["outcome"] == "named",
        "unnamed error": rows["outcome"] == "unnamed", "no end": rows["outcome"] == "no end",
        "changed after error": rows["changed"] != "", "meaningless": rows["faults"] != "", "state": rows["state"] != "",
    }  # fmt: skip
    table = pd.DataFrame(counts).groupby(rows[by]).sum()
    table.loc["all"] = table.sum()
    head = [by, *COLUMNS[:-1], "global state changed"]
    lines = [head, ["---"] * len(head)]
    lines += [[name, *map(str, row)] for name, row in zip(table.index, table.to_numpy(), strict=True)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def findings(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the inputs whose outcome is a fault."""
    bad = (rows["outcome"].isin(["unnamed", "no end"])) | (rows[["changed", "faults", "state"]] != "").any(axis=1)
    return rows[bad]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=5000, help="number of inputs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="+", help="run only these numbers and print each outcome")
    parser.add_argument("--jobs", type=int, default=1, help="processes; the result is the same")
    parser.add_argument("--out", type=Path, default=Path("robustness.csv"), help="one row per input")
    args = parser.parse_args()
    from _inputs import run

    if args.only:
        run(args.seed, args.only, verbose=True)
        return 0
    shares = [list(range(k, args.n, args.jobs)) for k in range(args.jobs)]
    if args.jobs == 1:
        found = run(args.seed, shares[0])
    else:
        with multiprocessing.get_context("spawn").Pool(args.jobs) as pool:
            found = list(chain.from_iterable(pool.starmap(run, [(args.seed, share) for share in shares])))
    rows = pd.DataFrame(found).sort_values("number")
    rows.to_csv(args.out, index=False)
    bad = findings(rows)
    sys.stdout.write(f"{summary(rows, 'kind')}\n\n{summary(rows, 'call')}\n\n{len(bad)} of {len(rows)} went wrong; ")
    sys.stdout.write(f"{rows['seconds'].sum():.0f} s in the calls. Rows are in {args.out}.\n")
    return int(len(bad) > 0)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    sys.exit(main())
