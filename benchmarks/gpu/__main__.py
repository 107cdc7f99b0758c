"""Time, memory and agreement of a CUDA GPU and the CPU.

    python benchmarks/gpu --data FOLDER --out gpu.json

Parts, each in its own process: ``cortex`` (dlpfc 151673, first and second call), ``cells`` (generated cells, all
steps), ``bins`` (a million bins, all steps, then ten million with the saved model). A part that starts too late is
skipped, and the measurements up to then are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("MPLBACKEND", "Agg")
sys.path.insert(0, str(Path(__file__).parents[1] / "scale"))

QUIET: dict[str, Any] = {"show_progress": False}
GENES, DEPTH = 500, 85.0


def emit(**row: Any) -> None:
    sys.stdout.write(json.dumps(row) + "\n")
    sys.stdout.flush()


class Timed:
    """Measure each step of a part: time, and peak memory of the process and of the GPU."""

    def __init__(self, part: str, accelerator: str) -> None:
        from measured import PeakMemory

        self.names, self.peak = {"part": part, "accelerator": accelerator}, PeakMemory()

    def __call__(self, step: str, call: Callable[[], object], **more: Any) -> None:
        import torch

        on_gpu = torch.cuda.is_available()
        self.peak.reset()
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        start, cpu = time.perf_counter(), time.process_time()
        call()
        row = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu, "peak_gb": self.peak.read()}
        if on_gpu:
            row["gpu_gb"] = torch.cuda.max_memory_allocated() / 2**30
        emit(**self.names, step=step, **row, **more)


@contextmanager
def profiled(name: str, **names: str) -> Iterator[None]:
    """Emit for how long the GPU computes, and its longest kernels; nothing without a GPU."""
    import torch

    if not torch.cuda.is_available():
        yield
        return
    from torch.profiler import ProfilerActivity, profile

    start = time.perf_counter()
    with profile(activities=[ProfilerActivity.CUDA]) as prof:
        yield
        torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    kernels = sorted(prof.key_averages(), key=lambda e: -e.self_device_time_total)
    busy = sum(e.self_device_time_total for e in kernels) / 1e6
    top = [[e.key[:80], e.count, round(e.self_device_time_total / 1e3, 1)] for e in kernels[:8]]
    emit(step=f"profile of {name}", seconds=seconds, busy=busy, top=top, **names)


def cortex(accelerator: str, args: argparse.Namespace) -> None:
    import anndata as ad
    import numpy as np
    from sklearn.metrics import adjusted_rand_score

    import stxtools as st

    path = args.data / "dlpfc_151673.h5ad"
    adata = ad.read_h5ad(path)
    how: dict[str, Any] = {"accelerator": accelerator, **QUIET}
    timed = Timed("cortex", accelerator)
    model = args.folder / f"cortex_{accelerator}.stx"
    timed("segment, first call", lambda: st.tl.segment(adata, 7, save_model=model, **how))
    timed("segment, second call", lambda: st.tl.segment(adata, 7, key_added="again", **how))
    timed("apply a model", lambda: st.tl.segment(adata, model=model, key_added="applied", **how))
    st.tl.region_graph(adata)
    timed("embed", lambda: st.tl.embed(adata, **how))
    if accelerator == "gpu":
        timed("multitask", lambda: st.tl.multitask(adata, None, "layer", **how))
    emit(part="cortex", accelerator=accelerator, step=f"trained twice on the {accelerator.upper()}: ARI",
         value=adjusted_rand_score(adata.obs["segment"], adata.obs["again"]))  # fmt: skip
    if accelerator == "gpu":
        st.tl.segment(adata, model=model, key_added="on_cpu", **(how | {"accelerator": "cpu"}))
        emit(part="cortex", accelerator="gpu", step="one model applied on both: ARI",
             value=adjusted_rand_score(adata.obs["applied"], adata.obs["on_cpu"]))  # fmt: skip
        proba = [np.asarray(adata.obsm[f"{name}_proba"]) for name in ("applied", "on_cpu")]
        emit(part="cortex", accelerator="gpu", step="one model applied on both: largest difference of a probability",
             value=float(np.abs(proba[0] - proba[1]).max()))  # fmt: skip
        with profiled("segment", part="cortex"):
            st.tl.segment(adata, 7, key_added="again", **how)
    adata.obs[["segment"]].to_csv(args.folder / f"cortex_{accelerator}.csv")
    other = args.folder / "cortex_gpu.csv"
    if accelerator == "cpu" and other.exists():
        import pandas as pd

        emit(part="cortex", accelerator="both", step="trained on the GPU and on the CPU: ARI",
             value=adjusted_rand_score(pd.read_csv(other, index_col=0)["segment"], adata.obs["segment"]))  # fmt: skip


def tissue(args: argparse.Namespace, n_obs: int, platform: str) -> Any:
    """Read the generated tissue of the folder; generate it on first use."""
    import anndata as ad

    import stxtools as st

    path = args.folder / f"{platform}_{n_obs}.h5ad"
    if not path.exists():
        st.datasets.synthetic_tissue(
            n_obs, GENES, platform=platform, mean_depth=DEPTH, random_state=0, show_progress=False
        ).write_h5ad(path)
    return ad.read_h5ad(path)


def cells(accelerator: str, args: argparse.Namespace) -> None:
    from sklearn.metrics import adjusted_rand_score

    import stxtools as st

    adata = tissue(args, args.cells, "merfish")
    how: dict[str, Any] = {"accelerator": accelerator, **QUIET}
    timed = Timed("cells", accelerator)
    timed("normalize", lambda: st.pp.normalize(adata))
    timed("segment", lambda: st.tl.segment(adata, 5, save_model=args.folder / "cells.stx", **how))
    timed("apply a model", lambda: st.tl.segment(adata, model=args.folder / "cells.stx", key_added="applied", **how))
    emit(part="cells", accelerator=accelerator, step="ARI with the truth",
         value=adjusted_rand_score(adata.obs["compartment"], adata.obs["segment"]))  # fmt: skip
    timed("region_graph", lambda: st.tl.region_graph(adata))
    timed("embed", lambda: st.tl.embed(adata, **how))
    if accelerator == "gpu":
        timed("biomarkers", lambda: st.tl.biomarkers(adata, "disease", **QUIET))
        with profiled("segment", part="cells"):
            st.tl.segment(adata, 5, key_added="again", **how)
        with profiled("embed", part="cells"):
            st.tl.embed(adata, **how)


def side_by_side(block: Any) -> Any:
    """Put ten copies of a hexagonal section on one lattice."""
    import anndata as ad
    import numpy as np

    xy = block.obsm["spatial"]
    period = np.array([100.0, np.sqrt(3) * 100.0])  # two rows of the lattice
    step = period * (np.ceil(np.ptp(xy, axis=0) / period) + 1)
    parts = [
        ad.AnnData(
            block.X,
            obs=block.obs[["compartment"]].set_axis(block.obs_names + f"_{i}"),
            var=block.var,
            obsm={"spatial": xy + step * [i % 4, i // 4]},
            uns={"log1p": block.uns["log1p"]} if "log1p" in block.uns else {},
        )
        for i in range(10)
    ]
    return ad.concat(parts, merge="first", uns_merge="first")


def bins(accelerator: str, args: argparse.Namespace) -> None:
    """Run all steps on a tenth of the bins; then apply its model to ten copies side by side."""
    import stxtools as st

    adata = tissue(args, args.bins // 10, "visium")
    how: dict[str, Any] = {"accelerator": accelerator, **QUIET}
    timed, model = Timed(f"{adata.n_obs:,} bins", accelerator), args.folder / "bins.stx"
    timed("normalize", lambda: st.pp.normalize(adata))
    timed("segment", lambda: st.tl.segment(adata, 5, save_model=model, **how))
    whole = side_by_side(adata)
    for section in (adata, whole):
        timed = Timed(f"{section.n_obs:,} bins", accelerator)
        timed("apply a model", partial(st.tl.segment, section, model=model, key_added="applied", **how))
        timed("region_graph", partial(st.tl.region_graph, section, "applied"))
        timed("embed", partial(st.tl.embed, section, **how), regions=section.uns["regions"].n_obs)
    timed = Timed(f"{adata.n_obs:,} bins", accelerator)
    timed("biomarkers", lambda: st.tl.biomarkers(adata, "disease", **QUIET))


PARTS = {"cortex": cortex, "cells": cells, "bins": bins}


def measured(part: str, accelerator: str, args: argparse.Namespace, left: float) -> list[dict[str, Any]]:
    """Measure one part in its own process, which may take ``left`` seconds; return its rows."""
    command = [sys.executable, __file__, "--child", part, accelerator, *sys.argv[1:]]
    command += ["--folder", str(args.folder)]
    rows: list[dict[str, Any]] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        timer = threading.Timer(left, child.kill)
        timer.start()
        for line in child.stdout or ():
            if line.startswith("{"):
                rows.append(json.loads(line))
                shown = {k: round(v, 3) if isinstance(v, float) else v for k, v in rows[-1].items()}
                sys.stderr.write(" ".join(f"{k}={v}" for k, v in shown.items()) + "\n")
        timer.cancel()
    if child.returncode:
        rows.append({"part": part, "accelerator": accelerator, "step": f"ended with {child.returncode}"})
        sys.stderr.write(f"{part} on {accelerator}: ended with {child.returncode}\n")
    return rows


def machine() -> dict[str, Any]:
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {"gpu": gpu, "cpu_cores": os.cpu_count(), "python": platform.python_version(),
            "torch": torch.__version__, "date": time.strftime("%Y-%m-%d")}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with dlpfc_151673.h5ad")
    parser.add_argument("--parts", nargs="+", default=["cortex gpu", "cortex cpu", "bins gpu", "cells gpu"],
                        help="parts and devices, such as 'cells gpu'")  # fmt: skip
    parser.add_argument("--cells", type=int, default=1_000_000, help="generated cells")
    parser.add_argument("--bins", type=int, default=10_000_000, help="generated bins; all steps run on a tenth")
    parser.add_argument("--seconds", type=float, default=460.0, help="time limit of all parts together")
    parser.add_argument("--folder", type=Path, help="for generated data; default: a temporary folder")
    parser.add_argument("--tests", type=Path, help="log of the tests; its last line is kept")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="file of the measurements")
    parser.add_argument("--generate", action="store_true", help="only generate the data")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        PARTS[args.child[0]](args.child[1], args)
        return
    if args.generate:
        for part, n_obs, kind in (("bins", args.bins // 10, "visium"), ("cells", args.cells, "merfish")):
            if any(what.startswith(part) for what in args.parts):
                tissue(args, n_obs, kind)
        return
    start, result = time.monotonic(), machine() | {"tests": "not run", "rows": []}
    if args.tests is not None and args.tests.exists():
        result["tests"] = args.tests.read_text().strip().splitlines()[-1].strip("= ")
    with tempfile.TemporaryDirectory() as folder:
        args.folder = args.folder or Path(folder)
        args.folder.mkdir(parents=True, exist_ok=True)
        for what in args.parts:
            left = args.seconds - (time.monotonic() - start)
            if left > 0:
                result["rows"] += measured(*what.split(), args, left)
            args.out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
