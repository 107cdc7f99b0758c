"""`tl.multitask` (framework) and its distilled student on generated cells: time, peak memory and accuracy.

    python benchmarks/scale/student.py --train 30000 --sizes 100000 1000000 --seeds 0 1 --folder FOLDER

The framework is trained on the labels of one section, the student on the framework's predictions. Both are applied to
larger sections of the same genes and other cells. Applying the framework takes three calls: `tl.segment(model=)`,
`tl.region_graph` and `tl.multitask(model=)`; applying the student takes one. Each runs in its own process, whose
resident memory is the peak.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from measured import PeakMemory, generated

QUIET: dict[str, Any] = {"show_progress": False}
KEYS = ("disease", "compartment")
HEAD = (
    "| cells | model | seed | wall time, s | CPU time, s | peak memory, GB "
    "| accuracy, disease | accuracy, compartment |"
)


def train(path: Path, seed: int) -> dict[str, Any]:
    """Write the three models next to the section; return the CPU time of both trainings."""
    import anndata as ad

    import stxtools as st

    adata, start = ad.read_h5ad(path), time.process_time()
    how = {"random_state": seed, **QUIET}
    st.tl.segment(adata, labels_key="compartment", save_model=model(path, "segment", seed), **how)
    st.tl.region_graph(adata, random_state=seed)
    st.tl.multitask(adata, *KEYS, save_model=model(path, "framework", seed), **how)
    trained = time.process_time()
    st.tl.distill(adata, model(path, "framework", seed), save_model=model(path, "student", seed), **how)
    return {"framework": trained - start, "student": time.process_time() - trained}


def model(path: Path, name: str, seed: int) -> Path:
    return path.with_name(f"{path.stem}_{name}_{seed}.stx")


def apply(path: Path, trained: Path, who: str, seed: int) -> dict[str, Any]:
    """Apply the framework or the student to the section of ``path``."""
    import anndata as ad

    import stxtools as st

    adata, peak = ad.read_h5ad(path), PeakMemory()
    peak.reset()
    wall, cpu = time.perf_counter(), time.process_time()
    if who == "framework":
        st.tl.segment(adata, model=model(trained, "segment", seed), **QUIET)
        st.tl.region_graph(adata, random_state=seed)
    st.tl.multitask(adata, *KEYS, model=model(trained, who, seed), **QUIET)
    right = {key: float((adata.obs[f"{key}_pred"].astype(str) == adata.obs[key].astype(str)).mean()) for key in KEYS}
    seconds = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    return {"who": who, "seed": seed, "n_obs": adata.n_obs, **seconds, "peak_gb": peak.read(), **right}


def in_own_process(*words: object) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, __file__, "--child", *map(str, words)], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        what, path, *rest = sys.argv[2:]
        row = (
            train(Path(path), int(rest[0])) if what == "train" else apply(Path(path), Path(rest[0]), what, int(rest[1]))
        )
        sys.stdout.write(json.dumps(row) + "\n")
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=30_000, help="cells to train on")
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000], help="cells to predict")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds")
    parser.add_argument("--folder", type=Path, default=Path("scale_data"), help="for generated cells and models")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    section = generated(args.train, args.folder)
    lines = [HEAD, "|" + " --- |" * 8]
    for seed in args.seeds:
        spent = in_own_process("train", section, seed)
        sys.stderr.write(f"trained: framework {spent['framework']:.0f} s, student {spent['student']:.0f} s\n")
        for n in args.sizes:
            for who in ("framework", "student"):
                row = in_own_process(who, generated(n, args.folder), section, seed)
                lines.append(
                    f"| {n:,} | {who} | {seed} | {row['wall']:.1f} | {row['cpu']:.1f} | {row['peak_gb']:.2f} "
                    f"| {row['disease']:.4f} | {row['compartment']:.4f} |"
                )
                sys.stderr.write(lines[-1] + "\n")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
