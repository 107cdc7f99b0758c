"""Time and peak memory of each step on generated cells, with the exponent of time in the number of cells.

    python benchmarks/scale --sizes 10000 100000 1000000 --folder FOLDER --out table.md

Cells are MERFISH-like tissue of ``st.datasets.synthetic_tissue`` with 500 genes and about 10 % nonzero entries, kept in
FOLDER as h5ad. Each size runs in its own process, one step after the other, as a user would call them. The peak memory
of a step is the resident memory of the whole process, data and libraries included (on Linux the kernel's high-water
mark is reset before each step). Wall time means little on a busy machine, so CPU time is given in brackets, and the
exponent is that of the CPU time. ``--rows`` keeps the measurements in a file, so that sizes can be run one by one.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("MPLBACKEND", "Agg")

import numpy as np
import pandas as pd
from measured import PeakMemory, generated

STEPS = (
    "normalize", "segment", "region_graph", "embed", "biomarkers", "apply", "draw segment", "draw attention",
    "draw biomarkers",
)  # fmt: skip


def drawn(axes: Any) -> None:
    """Render the figure of ``axes`` and close it."""
    import matplotlib.pyplot as plt

    figure = np.atleast_1d(axes).ravel()[0].figure
    figure.savefig(io.BytesIO(), format="png")
    plt.close(figure)


def steps(st: Any, n_segments: int, model: Path) -> dict[str, Callable[[Any], object]]:
    quiet: dict[str, Any] = {"show_progress": False}
    return {
        "normalize": lambda a: st.pp.normalize(a),
        "segment": lambda a: st.tl.segment(a, n_segments, save_model=model, **quiet),
        "region_graph": lambda a: st.tl.region_graph(a),
        "embed": lambda a: st.tl.embed(a, **quiet),
        "biomarkers": lambda a: st.tl.biomarkers(a, "disease", **quiet),
        "apply": lambda a: st.tl.segment(a, model=model, key_added="applied", **quiet),
        "draw segment": lambda a: drawn(st.pl.segment(a, show=False)),
        "draw attention": lambda a: drawn(st.pl.attention(a, show=False)),
        "draw biomarkers": lambda a: drawn(st.pl.biomarkers(a, group="diseased", show=False)),
    }


def run_size(path: Path, wanted: list[str], n_segments: int) -> None:
    """Run all steps on one file and write a JSON line for each to the standard output."""
    import anndata as ad

    import stxtools as st

    adata, peak = ad.read_h5ad(path), PeakMemory()
    for name, call in steps(st, n_segments, path.with_suffix(".stx")).items():
        if name not in wanted:
            continue
        peak.reset()
        start, cpu = time.perf_counter(), time.process_time()
        call(adata)
        row = {
            "step": name,
            "n_obs": adata.n_obs,
            "seconds": time.perf_counter() - start,
            "cpu": time.process_time() - cpu,
            "peak_gb": peak.read(),
        }
        sys.stdout.write(json.dumps(row) + "\n")
        sys.stdout.flush()
    from sklearn.metrics import adjusted_rand_score

    if "segment" in adata.obs:
        ari = adjusted_rand_score(adata.obs["compartment"], adata.obs["segment"])
        row = {"step": "ARI", "n_obs": adata.n_obs, "seconds": ari, "cpu": 0.0, "peak_gb": 0.0}
        sys.stdout.write(json.dumps(row) + "\n")


def measured(path: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    command = [sys.executable, __file__, "--one", str(path), "--steps", *args.steps, "--segments", str(args.segments)]
    rows: list[dict[str, Any]] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        timer = threading.Timer(args.limit, child.kill)
        timer.start()
        for line in child.stdout or ():
            row = json.loads(line)
            rows.append(row)
            sys.stderr.write(f"{row['n_obs']:>9,} {row['step']:<13} {shown(row)}\n")
        timer.cancel()
    if child.returncode != 0:
        sys.stderr.write(f"{path.name}: ended with {child.returncode} after {len(rows)} steps\n")
    return rows


def exponent(n: np.ndarray, seconds: np.ndarray) -> float:
    """Slope of log time over log size, least squares."""
    return float(np.polyfit(np.log(n), np.log(seconds), 1)[0]) if len(n) > 1 else float("nan")


def shown(row: Any) -> str:
    return f"{row['seconds']:.1f} s ({row['cpu']:.1f}), {row['peak_gb']:.2f} GB"


def table(rows: pd.DataFrame, fit_from: int) -> str:
    rows = rows.drop_duplicates(["step", "n_obs"], keep="last")
    sizes = sorted(rows["n_obs"].unique())
    lines = [
        "| step | " + " | ".join(f"{n:,}" for n in sizes) + f" | exponent from {fit_from:,} |",
        "| --- |" + " --- |" * (len(sizes) + 1),
    ]

    def line(name: str, part: pd.DataFrame, last: str) -> str:
        return (
            f"| {name} | " + " | ".join(shown(part.loc[n]) if n in part.index else "-" for n in sizes) + f" | {last} |"
        )

    timed = rows[rows["step"] != "ARI"]
    for name in (s for s in STEPS if s in set(timed["step"])):
        part = timed[timed["step"] == name].set_index("n_obs")
        large = part[part.index >= fit_from]
        slope = exponent(large.index.to_numpy(dtype=float), large["cpu"].to_numpy())
        lines.append(line(name, part, f"{slope:.2f}"))
    pipeline = timed[~timed["step"].str.startswith(("apply", "draw"))]
    whole = pipeline.groupby("n_obs").agg({"seconds": "sum", "cpu": "sum", "peak_gb": "max"})
    lines.append(line("normalize to biomarkers", whole, ""))
    ari = rows[rows["step"] == "ARI"].set_index("n_obs")["seconds"]
    if len(ari):
        lines.append(
            "| ARI with the truth | " + " | ".join(f"{ari[n]:.3f}" if n in ari else "-" for n in sizes) + " | |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 30_000, 100_000], help="numbers of cells")
    parser.add_argument("--steps", nargs="+", default=list(STEPS), choices=STEPS)
    parser.add_argument("--segments", type=int, default=5, help="number of segments")
    parser.add_argument("--folder", type=Path, default=Path("scale_data"), help="for the generated cells")
    parser.add_argument("--fit-from", type=int, default=100_000, help="smallest size in the fit of the exponent")
    parser.add_argument("--limit", type=float, default=3600.0, help="time limit of one size, in seconds")
    parser.add_argument("--out", type=Path, help="file of the table")
    parser.add_argument("--rows", type=Path, help="file of measurements (JSON lines) to add to")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one is not None:
        run_size(args.one, args.steps, args.segments)
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    rows = [row for n in args.sizes for row in measured(generated(n, args.folder), args)]
    if args.rows is not None:
        with args.rows.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        rows = [json.loads(line) for line in args.rows.read_text().splitlines()]
    text = f"{platform.machine()}, Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}\n\n"
    text += table(pd.DataFrame(rows), args.fit_from) + "\n"
    if args.out is not None:
        args.out.write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
