"""The whole line on one file: what ``python -m stxtools run`` does."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _keys
from ._progress import progress

if TYPE_CHECKING:
    from anndata import AnnData


def run(
    source: str | None = None,
    *,
    out: str = "demo",
    library_key: str | None = None,
    groupby: str | None = None,
    labels_key: str | None = None,
    n_segments: int | None = None,
    random_state: int = 0,
    accelerator: str = "auto",
    show_progress: bool | None = None,
) -> AnnData:
    """Segment, build the region graph, embed, find biomarkers, draw, write.

    Parameters
    ----------
    source
        An ``.h5ad`` file or ``.zarr`` folder; None generates tissue.
    out
        Folder for ``adata.h5ad``, ``biomarkers.csv`` and ``*.png``; made if it is not there.
    library_key, groupby, labels_key, n_segments, random_state, accelerator, show_progress
        As in the functions of :mod:`stxtools.tl`.

    Returns
    -------
    The AnnData with all results.
    """
    from . import get, tl

    times: list[tuple[str, float]] = []
    how: dict[str, Any] = {"random_state": random_state, "show_progress": show_progress}
    with progress(7, "section to biomarkers", show_progress) as bar:

        def step(name: str, work: Callable[[], Any]) -> Any:
            bar.enter(name)
            start = time.perf_counter()
            result = work()
            times.append((name, time.perf_counter() - start))
            bar.update(1)
            return result

        adata = step("read", lambda: read_section(source))
        if groupby is None:
            groupby = _keys.SEGMENT if source is not None else "disease"
        if groupby != _keys.SEGMENT and groupby not in adata.obs:
            raise KeyError(
                f"`groupby={groupby!r}` is not in `adata.obs`; it has {', '.join(map(repr, adata.obs.columns))}."
            )
        folder = Path(out)
        folder.mkdir(parents=True, exist_ok=True)
        fitting = {**how, "accelerator": accelerator}
        step(
            "segment",
            lambda: tl.segment(adata, n_segments, labels_key=labels_key, library_key=library_key, **fitting),
        )
        step("region graph", lambda: tl.region_graph(adata, library_key=library_key, random_state=random_state))
        step("embed", lambda: tl.embed(adata, **fitting))
        step("biomarkers", lambda: tl.biomarkers(adata, groupby, library_key=library_key, **how))
        step("figures", lambda: draw(adata, folder))
        get.biomarkers(adata).to_csv(folder / "biomarkers.csv", index=False)
        step("write", lambda: adata.write_h5ad(folder / "adata.h5ad"))
    sys.stdout.write(summary(adata, groupby, times, folder))
    return adata


def read_section(source: str | None) -> AnnData:
    """Read a file, or generate tissue.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is neither ``.h5ad`` nor ``.zarr``.
    """
    if source is None:
        from . import datasets

        return datasets.synthetic_tissue()
    import anndata

    path = Path(source).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"There is no file {str(path)!r}.")
    if path.suffix == ".zarr":
        return anndata.read_zarr(path)
    if path.suffix != ".h5ad":
        raise ValueError(f"{str(path)!r} is neither .h5ad nor .zarr; write it as one of these with anndata first.")
    return anndata.read_h5ad(path)


def draw(adata: AnnData, folder: Path) -> None:
    """Write one PNG a result."""
    import matplotlib.pyplot as plt

    from . import pl

    pictures: dict[str, Callable[..., Any]] = {
        "segments": pl.segment,
        "region_graph": pl.region_graph,
        "attention": pl.attention,
        "biomarkers": pl.biomarkers,
        "history": pl.history,
    }
    for name, function in pictures.items():
        axes = np.ravel(np.asarray(function(adata, show=False), dtype=object))
        figure = axes[0].figure
        figure.savefig(folder / f"{name}.png", dpi=150, bbox_inches="tight")
        plt.close(figure)


def summary(adata: AnnData, groupby: str, times: list[tuple[str, float]], folder: Path) -> str:
    """Return a short account: what was found, how long it took, where it lies."""
    segments = adata.obs[_keys.SEGMENT].value_counts()
    regions = adata.uns[_keys.REGIONS]
    table = adata.uns[_keys.BIOMARKERS]
    called = table[(table["pvals_adj"] < 0.05)]
    lines = [
        "",
        f"{adata.n_obs:,} observations x {adata.n_vars:,} genes",
        f"segments    {len(segments)}: " + ", ".join(f"{name} ({count:,})" for name, count in segments.items()),
        f"regions     {regions.n_obs:,}, {regions.obsp[_keys.CONNECTIVITIES].nnz // 2:,} contacts",
        f"biomarkers  of {groupby}, FDR 5 %:",
    ]
    for group in table["group"].unique():
        genes = called.loc[called["group"] == group, "names"]
        names = ", ".join(genes.head(8)) + (", ..." if len(genes) > 8 else "") if len(genes) else "none"
        lines.append(f"            {group}: {len(genes)} ({names})" if len(genes) else f"            {group}: none")
    lines += ["time        " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in times)]
    lines += [f"written to  {folder}: adata.h5ad, biomarkers.csv, *.png", ""]
    return "\n".join(lines) + "\n"
