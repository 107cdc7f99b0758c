"""Generated Visium HD, whole transcriptome, out of core: time and peak memory of each step.

    python benchmarks/scale/hd.py --sizes 250000 1000000 4000000 --folder FOLDER

Square bins in five compartments, 18,000 genes, 1 % nonzero entries. They are written to zarr in chunks of rows and read
as a dask array, so that counts are in memory only while a step reads them. Each size runs in its own process.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from measured import PeakMemory
from scipy import sparse

GENES, COUNTS, CLASSES, ROWS = 18_000, 185, 5, 20_000
QUIET: dict[str, Any] = {"show_progress": False}


def generate(n_obs: int, path: Path) -> None:
    """Write bins row by row; each holds about ``COUNTS`` molecules drawn from the profile of its compartment."""
    import zarr
    from anndata.io import sparse_dataset, write_elem

    rng, side = np.random.default_rng(0), round(np.sqrt(n_obs))
    row, col = np.divmod(np.arange(side * side), side)
    wave = np.sin(5 * row / side + 2 * np.sin(3 * col / side)) + np.cos(4 * col / side)
    compartment = np.digitize(wave, np.quantile(wave, np.arange(1, CLASSES) / CLASSES))
    base = rng.gamma(0.5, size=GENES)
    ends = np.cumsum([base * np.where(rng.random(GENES) < 0.05, 4.0, 1.0) for _ in range(CLASSES)], axis=1)
    obs = pd.DataFrame(
        {"compartment": pd.Categorical([f"c{k}" for k in compartment])}, index=[f"b{i}" for i in range(side * side)]
    )
    rest = path.with_suffix(".part")

    def some_rows(start: int) -> sparse.csr_matrix:
        own = compartment[start : start + ROWS]
        bin_of = np.repeat(np.arange(len(own)), rng.poisson(COUNTS, len(own)))
        drawn, kind = rng.random(len(bin_of)), own[bin_of]
        gene = np.empty(len(bin_of), dtype=np.int64)
        for k in range(CLASSES):
            gene[kind == k] = np.searchsorted(ends[k], drawn[kind == k] * ends[k, -1])
        counts = np.ones(len(gene), dtype=np.float32)
        return sparse.csr_matrix((counts, (bin_of, gene)), shape=(len(own), GENES))

    store = zarr.open_group(str(rest), mode="w")
    write_elem(store, "X", some_rows(0))  # the first rows determine the size of zarr's chunks
    for start in range(ROWS, len(obs), ROWS):
        sparse_dataset(store["X"]).append(some_rows(start))
    write_elem(store, "obs", obs)
    write_elem(store, "var", pd.DataFrame(index=[f"g{i}" for i in range(GENES)]))
    write_elem(store, "obsm", {"spatial": np.c_[col, row] * 8.0})
    rest.rename(path)


def opened(path: Path) -> Any:
    """Open the bins with lazy counts."""
    import anndata as ad
    import zarr
    from anndata.experimental import read_elem_lazy
    from anndata.io import read_elem

    store = zarr.open(str(path), mode="r")
    tables = {name: read_elem(store[name]) for name in ("obs", "var", "obsm")}
    return ad.AnnData(X=read_elem_lazy(store["X"]), **tables)


def run(path: Path, memory: float) -> None:
    """Run all steps and write a JSON line for each to the standard output."""
    from sklearn.metrics import adjusted_rand_score

    import stxtools as st

    st.settings.max_memory = memory
    adata, peak = opened(path), PeakMemory()
    steps = {
        "normalize": lambda: st.pp.normalize(adata, **QUIET),
        "segment": lambda: st.tl.segment(adata, CLASSES, **QUIET),
        "region_graph": lambda: st.tl.region_graph(adata),
        "biomarkers": lambda: st.tl.biomarkers(adata, "compartment", groups=["c0"], n_null=100, **QUIET),
    }
    for name, call in steps.items():
        peak.reset()
        start, cpu = time.perf_counter(), time.process_time()
        call()
        spent = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu, "peak_gb": peak.read()}
        if name == "segment":
            spent["ari"] = adjusted_rand_score(adata.obs["compartment"], adata.obs["segment"])
        sys.stdout.write(json.dumps({"step": name, "n_obs": adata.n_obs, **spent}) + "\n")
        sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[40_000, 250_000], help="numbers of bins")
    parser.add_argument("--folder", type=Path, default=Path("scale_data"), help="for the generated bins")
    parser.add_argument("--memory", type=float, default=4.0, help="settings.max_memory, GB")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one is not None:
        run(args.one, args.memory)
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    for n in args.sizes:
        path = args.folder / f"hd_{n}.zarr"
        if not path.exists():
            generate(n, path)
        command = [sys.executable, __file__, "--one", str(path), "--memory", str(args.memory)]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
