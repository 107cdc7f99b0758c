"""stxtools and other packages on the same sections: agreement with the annotation, time and peak memory.

    python benchmarks/peers --data FOLDER --envs FOLDER --sections dlpfc_151673 her2st_A1 --seeds 0 1 2 \
        --results FOLDER --threads 1 --limit 900 --out table.md

Peers need other versions of the same libraries, so each may have its own virtual environment: ``--envs`` is a folder
with ``spagcn/bin/python``, ``banksy/bin/python`` ... (first word of the method's name, lower case). Without one, this
interpreter is tried. Methods that are not installed are named below the table; those that fail or take longer than
``--limit`` have a row that says so. Methods run one after the other, and each result is written to ``--results`` as it
comes: a run that was stopped goes on from there, and a later one with other methods, seeds or sections completes the
table (delete a file to run it again). The annotation gives the number of classes and the agreement, over the annotated
observations.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from methods import METHODS
from sklearn.metrics import adjusted_rand_score

# section -> the column of its annotation, and the platform, by which methods choose their recipe
SECTIONS = {
    "dlpfc_151673": ("layer", "visium"),
    "dlpfc_151675": ("layer", "visium"),
    **{f"her2st_{name}": ("annotation", "st") for name in ("A1", "B1", "C1", "D1")},
    "starmap_mpfc_BZ5": ("region", "starmap"),
    "osmfish_mouse_sscortex": ("region", "osmfish"),
    "xenium_breast_idc": ("region", "xenium"),
}
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
NOT_RANKED = ("stxtools (number not given)",)


def interpreter(name: str, envs: Path | None) -> str:
    own = None if envs is None else envs / name.split()[0].lower() / "bin" / "python"
    return str(own.absolute()) if own is not None and own.exists() else sys.executable


def children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run_method(name: str, source: Path, k: int, seed: int, args: argparse.Namespace) -> dict[str, object]:
    """Run a method in its own process; a failure is a result that says why."""
    threads = {} if args.threads is None else dict.fromkeys(THREADS, str(args.threads))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        script = str(Path(__file__).with_name("methods.py").absolute())
        command = [interpreter(name, args.envs), script, name, str(source), str(k), str(seed), str(out)]
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
            return {"failed": f"stopped after {args.limit:g} s", "cpu": children_cpu() - before}
        if not out.exists():
            last = (done.stderr.strip().splitlines() or ["no message"])[-1][:100]
            return {"failed": f"exit status {done.returncode}: {last}", "cpu": children_cpu() - before}
        return {"cpu": children_cpu() - before, **json.loads(out.read_text())}


def prepared(name: str, args: argparse.Namespace, folder: Path) -> tuple[Path, np.ndarray, int]:
    """Write the input of the methods: counts and positions of a section, or of a generated one of a given size."""
    path = folder / "section.h5ad"
    if name in SECTIONS:
        truth, platform_name = SECTIONS[name]
        adata = ad.read_h5ad(args.data / f"{name}.h5ad")
        adata = adata[~adata.obs["is_duplicate"]].copy() if "is_duplicate" in adata.obs else adata
        labels = adata.obs[truth].astype(object).to_numpy()
    else:
        import stxtools as st

        n_obs, platform_name = int(name.split("_")[1]), "merfish"
        adata = st.datasets.synthetic_tissue(n_obs, 500, platform="merfish", mean_depth=85.0, show_progress=False)
        labels = adata.obs["compartment"].astype(object).to_numpy()
    ad.AnnData(
        adata.X,
        obs=adata.obs[[]].copy(),
        var=adata.var[[]].copy(),
        obsm={"spatial": adata.obsm["spatial"]},
        uns={"platform": platform_name},
    ).write_h5ad(path)
    return path, labels, len({v for v in labels if isinstance(v, str)})


def run_section(name: str, args: argparse.Namespace) -> None:
    """Run what `--results` does not have yet, seed by seed."""
    todo = [(m, s, result_file(args.results, name, m, s)) for s in args.seeds for m in args.methods]
    todo = [entry for entry in todo if not entry[2].exists()]
    if not todo:
        return
    with tempfile.TemporaryDirectory() as folder:
        source, truth, k = prepared(name, args, Path(folder))
        known = np.array([isinstance(v, str) for v in truth])
        for method, seed, path in todo:
            found = run_method(method, source, k, seed, args)
            if "missing" in found:
                sys.stderr.write(f"{method}: no module {found['missing']}\n")
                continue
            if "labels" in found:
                labels = np.asarray(found["labels"])
                found["ari"] = adjusted_rand_score(truth[known].astype(str), labels[known])
                found["n_found"] = len(set(labels.tolist()))
            found.update(section=name, method=method, seed=seed, k=k)
            path.write_text(json.dumps(found))
            sys.stderr.write(f"{ {a: b for a, b in found.items() if a != 'labels'} }\n")


def result_file(folder: Path, section: str, method: str, seed: int) -> Path:
    return folder / f"{section}__{re.sub('[^A-Za-z0-9.]+', '-', method).strip('-')}__{seed}.json"


def read_results(args: argparse.Namespace, sections: list[str]) -> pd.DataFrame:
    """All results there are of these methods and sections, of every seed."""
    names = [result_file(args.results, s, m, 0).name.removesuffix("0.json") for s in sections for m in args.methods]
    found = [json.loads(path.read_text()) for name in names for path in sorted(args.results.glob(f"{name}*.json"))]
    return pd.DataFrame([{a: b for a, b in result.items() if a != "labels"} for result in found])


def agreement(table: pd.DataFrame) -> pd.DataFrame:
    """ARI per method and section (mean over seeds), or why there is none, and means over sections.

    The last columns are the mean over all sections, of methods that finished them all, then mean and mean rank over the
    sections that all ranked methods finished: those that got the number of classes and finished half of the sections.
    """
    methods = [m for m in METHODS if (table["method"] == m).any()]
    sections = list(dict.fromkeys(table["section"]))
    groups = table.groupby(["method", "section"])["ari"]
    mean, spread = (v.unstack().reindex(index=methods, columns=sections) for v in (groups.mean(), groups.std()))
    out = mean.map("{:.3f}".format) + spread.map(lambda v: "" if np.isnan(v) else f" ± {v:.3f}")
    out = out.where(mean.notna(), "")
    for row in table[table["ari"].isna()].itertuples():
        out.loc[row.method, row.section] = out.loc[row.method, row.section] or row.failed
    ranked = mean.drop(index=list(NOT_RANKED), errors="ignore")
    ranked = ranked[ranked.notna().mean(axis=1) >= 0.5]
    common = list(ranked.columns[ranked.notna().all()])
    columns = {
        f"mean of {len(sections)}": mean.mean(axis=1, skipna=False),
        f"mean of {len(common)}": mean[common].mean(axis=1, skipna=False),
    }
    for name, values in columns.items():
        out[name] = values.map(lambda v: "" if np.isnan(v) else f"{v:.3f}")
    ranks = ranked[common].rank(ascending=False).mean(axis=1).reindex(methods)
    out["mean rank"] = ranks.map(lambda v: "" if np.isnan(v) else f"{v:.1f}")
    return out


def costs(table: pd.DataFrame) -> pd.DataFrame:
    """CPU time and peak memory per method and section, mean over seeds."""
    done = table[table["ari"].notna()]
    text = done.groupby(["method", "section"], sort=False)[["cpu", "peak_gb"]].mean()
    cells = text["cpu"].map("{:.1f} s, ".format) + text["peak_gb"].map("{:.2f} GB".format)
    return cells.unstack("section").fillna("")


def markdown(table: pd.DataFrame) -> str:
    lines = [["method", *table.columns], ["---"] * (len(table.columns) + 1)]
    lines += [[str(name), *map(str, row)] for name, row in zip(table.index, table.to_numpy(), strict=True)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the annotated sections")
    parser.add_argument("--envs", type=Path, help="folder of virtual environments, one per peer")
    parser.add_argument("--results", type=Path, default=Path("peers_results"), help="folder of the single results")
    parser.add_argument("--sections", nargs="*", default=list(SECTIONS), choices=list(SECTIONS))
    parser.add_argument("--sizes", type=int, nargs="*", default=[], help="also run generated sections of these sizes")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--limit", type=float, default=1800.0, help="time limit of one run, in seconds of wall time")
    parser.add_argument("--threads", type=int, help="threads of each method; default: its own choice")
    parser.add_argument("--out", type=Path, help="file of the tables; agreement also as .csv next to it")
    args = parser.parse_args()
    args.results.mkdir(parents=True, exist_ok=True)
    sections = [n for n in args.sections if (args.data / f"{n}.h5ad").exists()]
    sections += [f"synthetic_{n}" for n in args.sizes]
    for name in sections:
        run_section(name, args)
    table = read_results(args, sections)
    if table.empty or "ari" not in table:
        raise SystemExit("no method has run: see the messages above")
    threads = "threads chosen by each method" if args.threads is None else f"threads: {args.threads}"
    found = agreement(table)
    text = f"{platform.machine()}, {os.cpu_count()} cores, {threads}, {time.strftime('%Y-%m-%d')}\n\n"
    text += f"ARI:\n\n{markdown(found)}\n\nCPU time and peak memory:\n\n{markdown(costs(table))}\n"
    if args.out is not None:
        args.out.write_text(text)
        found.to_csv(args.out.with_suffix(".csv"))
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
