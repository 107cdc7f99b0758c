"""stxtools and other packages on the same section: time, peak memory and agreement with the annotation.

    python benchmarks/peers --data FOLDER --envs FOLDER --threads 1 --limit 900 --out table.md

Peers need other versions of the same libraries, so each may have its own virtual environment: ``--envs`` is a folder
with ``spagcn/bin/python``, ``banksy/bin/python`` ... (first word of the method's name, lower case). Without one, this
interpreter is tried. Methods that are not installed are named below the table; those that fail or take longer than
``--limit`` have a row that says so. Methods run one after the other. The annotation serves only to compute the
agreement, over the annotated spots.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import anndata as ad
import numpy as np
from methods import METHODS
from sklearn.metrics import adjusted_rand_score

SECTIONS = {"dlpfc_151673": ("layer", 7, "visium")}
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
HEAD = (
    "section", "method", "wall time, s", "CPU time, s", "CPU time, times ours", "peak memory, GB", "memory, times ours",
    "ARI (classes)",
)  # fmt: skip


def interpreter(name: str, envs: Path | None) -> str:
    own = None if envs is None else envs / name.split()[0].lower() / "bin" / "python"
    return str(own.absolute()) if own is not None and own.exists() else sys.executable


def children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run_method(name: str, source: Path, k: int, args: argparse.Namespace) -> dict[str, object]:
    threads = {} if args.threads is None else dict.fromkeys(THREADS, str(args.threads))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        script = str(Path(__file__).with_name("methods.py").absolute())
        command = [interpreter(name, args.envs), script, name, str(source), str(k), str(out)]
        before = children_cpu()
        try:
            done = subprocess.run(
                command,
                timeout=args.limit,
                cwd=folder,
                env={**os.environ, **threads},
                capture_output=True,
                text=True,
                check=False,
            )
        except subprocess.TimeoutExpired as stopped:
            for output in (stopped.stdout, stopped.stderr):  # its own progress bar says how far it came
                text = output.decode(errors="replace") if isinstance(output, bytes) else output or ""
                sys.stderr.write(text[-200:] + "\n")
            return {"failed": f"stopped after {args.limit:g}", "cpu": children_cpu() - before}
        if not out.exists():
            return {"failed": (done.stderr.strip().splitlines() or ["no message"])[-1][:100]}
        return json.loads(out.read_text())


def prepared(name: str, data: Path, n_obs: int | None, folder: Path) -> tuple[Path, np.ndarray | None, int]:
    """Write the input of the methods: counts and positions of a section, or of a generated one of a given size."""
    path = folder / f"{name}.h5ad"
    if n_obs is None:
        truth, k, platform_name = SECTIONS[name]
        adata = ad.read_h5ad(data / f"{name}.h5ad")
        labels = adata.obs[truth].astype(object).to_numpy()
    else:
        import stxtools as st

        adata = st.datasets.synthetic_tissue(n_obs, 500, platform="merfish", mean_depth=85.0, show_progress=False)
        labels, k, platform_name = adata.obs["compartment"].astype(object).to_numpy(), 5, "merfish"
    ad.AnnData(
        adata.X,
        obs=adata.obs[[]].copy(),
        var=adata.var[[]].copy(),
        obsm={"spatial": adata.obsm["spatial"]},
        uns={"platform": platform_name},
    ).write_h5ad(path)
    return path, labels, k


def times(found: dict[str, object], ours: dict[str, object] | None, what: str) -> str:
    return "" if ours is None else f"{float(found[what]) / float(ours[what]):.1f}"  # type: ignore[arg-type]


def rows_of(name: str, n_obs: int | None, args: argparse.Namespace) -> tuple[list[str], list[str]]:
    rows: list[str] = []
    missing: list[str] = []
    ours = None
    with tempfile.TemporaryDirectory() as folder:
        source, truth, k = prepared(name, args.data, n_obs, Path(folder))
        known = np.array([isinstance(v, str) for v in truth]) if truth is not None else None
        for method in args.methods:
            found = run_method(method, source, k, args)
            sys.stderr.write(f"{name} {method}: { {a: b for a, b in found.items() if a != 'labels'} }\n")
            if "missing" in found:
                missing.append(f"{method} (no module {found['missing']})")
                continue
            if "failed" in found:
                cpu = f"{found['cpu']:.0f}" if "cpu" in found else ""
                rows.append(f"| {name} | {method} | {found['failed']} | {cpu} | | | | |")
                continue
            labels = np.asarray(found["labels"])
            ours = found if method == "stxtools" else ours
            ari = adjusted_rand_score(truth[known].astype(str), labels[known])  # type: ignore[index]
            cells = (
                name,
                f"{method}, {found['version']}",
                f"{found['seconds']:.1f}",
                f"{found['cpu']:.1f}",
                times(found, ours, "cpu"),
                f"{found['peak_gb']:.2f}",
                times(found, ours, "peak_gb"),
                f"{ari:.3f} ({len(set(labels.tolist()))} of {k})",
            )
            rows.append(f"| {' | '.join(cells)} |")
    return rows, missing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the annotated sections")
    parser.add_argument("--envs", type=Path, help="folder of virtual environments, one per peer")
    parser.add_argument("--sizes", type=int, nargs="*", default=[], help="also run generated sections of these sizes")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--limit", type=float, default=1800.0, help="time limit of one method, in seconds of wall time")
    parser.add_argument("--threads", type=int, help="threads of each method; default: its own choice")
    parser.add_argument("--out", type=Path, help="file of the table")
    args = parser.parse_args()
    cases: list[tuple[str, int | None]] = [(n, None) for n in SECTIONS if (args.data / f"{n}.h5ad").exists()]
    cases += [(f"synthetic, {n:,} cells", n) for n in args.sizes]
    threads = "threads chosen by each method" if args.threads is None else f"threads: {args.threads}"
    lines = [
        f"{platform.machine()}, {os.cpu_count()} cores, {threads}, {time.strftime('%Y-%m-%d')}",
        "",
        f"| {' | '.join(HEAD)} |",
        "| --- " * len(HEAD) + "|",
    ]
    not_installed: list[str] = []
    for name, n_obs in cases:
        rows, missing = rows_of(name, n_obs, args)
        lines += rows
        not_installed += [m for m in missing if m not in not_installed]
    if not_installed:
        lines += ["", f"Not installed: {', '.join(not_installed)}."]
    text = "\n".join(lines) + "\n"
    if args.out is not None:
        args.out.write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
