"""Ours and its peers on the same section: time, peak memory and agreement with the annotation.

    python benchmarks/peers --data FOLDER --envs FOLDER --out table.md

Peers need other versions of the same libraries than we do, so each may have a virtual environment of its own:
``--envs`` is a folder in which ``spagcn/bin/python``, ``banksy/bin/python`` ... are looked for (first word of
the method's name, lower case); without one, this interpreter is tried. A method that is not installed is left out,
one that fails or takes longer than ``--limit`` is listed as such.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import anndata as ad
import numpy as np
from methods import METHODS
from sklearn.metrics import adjusted_rand_score

SECTIONS = {"dlpfc_151673": ("layer", 7)}


def interpreter(name: str, envs: Path | None) -> str:
    own = None if envs is None else envs / name.split()[0].lower() / "bin" / "python"
    return str(own.absolute()) if own is not None and own.exists() else sys.executable


def run_method(name: str, source: Path, k: int, args: argparse.Namespace) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        script = str(Path(__file__).with_name("methods.py"))
        command = [interpreter(name, args.envs), script, name, str(source), str(k), str(out)]
        try:
            done = subprocess.run(command, timeout=args.limit, cwd=folder, capture_output=True, text=True, check=False)
        except subprocess.TimeoutExpired:
            return {"failed": f"more than {args.limit:g} s"}
        if not out.exists():
            return {"failed": (done.stderr.strip().splitlines() or ["no message"])[-1][:100]}
        return json.loads(out.read_text())


def prepared(name: str, data: Path, n_obs: int | None, folder: Path) -> tuple[Path, np.ndarray | None, int]:
    """Write what the methods read: counts and positions alone; or a generated section of a given size."""
    path = folder / f"{name}.h5ad"
    if n_obs is None:
        truth, k = SECTIONS[name]
        adata = ad.read_h5ad(data / f"{name}.h5ad")
        labels = adata.obs[truth].astype(object).to_numpy()
    else:
        import stxtools as st

        adata = st.datasets.synthetic_tissue(n_obs, 500, platform="merfish", mean_depth=85.0, show_progress=False)
        labels, k = adata.obs["compartment"].astype(object).to_numpy(), 5
    ad.AnnData(
        adata.X, obs=adata.obs[[]].copy(), var=adata.var[[]].copy(), obsm={"spatial": adata.obsm["spatial"]}
    ).write_h5ad(path)
    return path, labels, k


def rows_of(name: str, n_obs: int | None, args: argparse.Namespace) -> list[str]:
    rows, ours = [], None
    with tempfile.TemporaryDirectory() as folder:
        source, truth, k = prepared(name, args.data, n_obs, Path(folder))
        known = np.array([isinstance(v, str) for v in truth]) if truth is not None else None
        for method in args.methods:
            found = run_method(method, source, k, args)
            sys.stderr.write(f"{name} {method}: { {a: b for a, b in found.items() if a != 'labels'} }\n")
            if "missing" in found:
                continue
            if "failed" in found:
                rows.append(f"| {name} | {method} | {found['failed']} | | | | |")
                continue
            labels = np.asarray(found["labels"])
            ours = found if method == "stxtools" else ours
            ratio = "" if ours is None else f"{float(found['cpu']) / float(ours['cpu']):.1f}"  # type: ignore[arg-type]
            ari = adjusted_rand_score(truth[known].astype(str), labels[known])  # type: ignore[index]
            rows.append(
                f"| {name} | {method} | {found['seconds']:.1f} | {found['cpu']:.1f} | {ratio} | "
                f"{found['peak_gb']:.2f} | {ari:.3f} ({len(set(labels.tolist()))} of {k}) |"
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the annotated sections")
    parser.add_argument("--envs", type=Path, help="folder of virtual environments, one for each peer")
    parser.add_argument("--sizes", type=int, nargs="*", default=[], help="also generated sections of these sizes")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--limit", type=float, default=1800.0, help="most seconds for one method")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    cases: list[tuple[str, int | None]] = [(n, None) for n in SECTIONS if (args.data / f"{n}.h5ad").exists()]
    cases += [(f"generated, {n:,} cells", n) for n in args.sizes]
    lines = [
        f"{platform.machine()}, {time.strftime('%Y-%m-%d')}",
        "",
        "| section | method | seconds | of the processor | times ours | peak GB | ARI (classes) |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, n_obs in cases:
        lines += rows_of(name, n_obs, args)
    text = "\n".join(lines) + "\n"
    if args.out is not None:
        args.out.write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
