"""The steps of a run: each is timed, reported and saved when it ends."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stxtools import _keys, get, pl, tl
from stxtools._progress import Stage, is_shown, progress
from stxtools._report.report import report
from stxtools._report.words import all_marked, findings
from stxtools.pl._sections import panels_of

from .files import DATA, FIGURES, REPORT, TABLE, Folder, whole, write_h5ad
from .inputs import check_against, check_numbers, checked_path, read_sections
from .options import Options, UsageError, tell

if TYPE_CHECKING:
    from anndata import AnnData

STEPS = ("segment", "region_graph", "embed", "biomarkers", "figures", "write")
_SHARES = {"read": 1, "segment": 16, "region_graph": 1, "embed": 8, "biomarkers": 12, "figures": 3, "write": 1}


class Run:
    """One run; it has no folder before it is sure that it may write there."""

    adata: AnnData
    folder: Folder

    def __init__(self, options: Options) -> None:
        self.options = options
        self.groupby = options.groupby or (_keys.SEGMENT if options.input else "disease")
        self.library_key: str | bool | None = options.library_key
        self.notes: list[str] = []
        self.output, self.step = options.out, "read"

    def __call__(self) -> bool:
        """Check, then run all steps; return False where everything was there already."""
        show = False if self.options.quiet else None
        with progress(None, "run", show, shares=_SHARES) as bar:
            if not self._prepare(bar):
                return False
            self._go(bar)
        return True

    def _prepare(self, bar: Stage) -> bool:
        """Read and check everything before the first step; after a UsageError nothing was written."""
        options, start = self.options, time.perf_counter()
        bar.enter("read")
        try:
            check_numbers(options)
            for source in options.input:
                checked_path(source)
            folder = Folder(options)
            if not folder.look(overwrite=options.overwrite, resume=options.resume):
                return False
            self.adata, self.library_key, self.notes = read_sections(
                options.input, options.library_key, options.use_rep
            )
            if options.one_section:
                self.library_key = False
            check_against(self.adata, options, self.groupby, self.library_key)
        except (KeyError, ValueError, TypeError, OSError) as err:
            raise UsageError(str(err.args[0]) if isinstance(err, KeyError) and err.args else str(err)) from err
        folder.create()
        self.folder = folder
        shape = f"{self.adata.n_obs:,} observations x {self.adata.n_vars:,} genes"
        self._tell(f"read {time.perf_counter() - start:.1f} s: {shape}")
        if folder.finished:
            self._tell(f"finished before: {', '.join(folder.finished)}")
            if "biomarkers" not in folder.finished or "write" not in folder.finished:
                folder.restore(self.adata)
        return True

    def _go(self, bar: Stage) -> None:
        folder = self.folder
        for name in STEPS:
            self.step = name
            bar.enter(name)
            if name in folder.finished:
                continue
            start = time.perf_counter()
            getattr(self, f"_{name}")()
            keeps = self.adata if name in STEPS[:4] else None
            folder.save(name, time.perf_counter() - start, keeps)
            self._tell(f"{name} {time.perf_counter() - start:.1f} s ({STEPS.index(name) + 1} of {len(STEPS)})")
        folder.publish()

    def _tell(self, text: str) -> None:
        """Write a line with the time of day where no bar is watched."""
        if not self.options.quiet and not is_shown(None):
            tell(text)

    @property
    def _how(self) -> dict[str, Any]:
        return {"random_state": self.options.seed, "spatial_key": self.options.spatial_key, "layer": self.options.layer}

    @property
    def _devices(self) -> dict[str, Any]:
        return {"accelerator": self.options.accelerator, "devices": self.options.devices}

    # --- steps ---------------------------------------------------------------------------------------------------

    def _segment(self) -> None:
        o = self.options
        tl.segment(
            self.adata, o.n_segments, labels_key=o.labels_key, model=o.model, save_model=o.save_model,
            pretrained=o.pretrained, use_rep=o.use_rep, image_key=o.image_key, library_key=self.library_key,
            **self._how, **self._devices,
        )  # fmt: skip

    def _region_graph(self) -> None:
        tl.region_graph(self.adata, library_key=self.library_key, **self._how)

    def _embed(self) -> None:
        tl.embed(self.adata, use_rep=self.options.use_rep, **self._how, **self._devices)

    def _biomarkers(self) -> None:
        o = self.options
        tl.biomarkers(
            self.adata, self.groupby, reference=o.reference, covariates=list(o.covariates) or None,
            protect="thinning" if o.protect == "thinning" else None, library_key=self.library_key, **self._how,
        )  # fmt: skip

    def _figures(self) -> None:
        draw(self.adata, self.folder.work)
        with whole(self.folder.work / TABLE) as part:
            get.biomarkers(self.adata).to_csv(part, index=False, float_format="%.6g")
        report(
            self.adata, self.folder.work / REPORT, layer=self.options.layer, spatial_key=self.options.spatial_key,
            library_key=self.library_key,
        )  # fmt: skip

    def _write(self) -> None:
        write_h5ad(self.adata, self.folder.work / DATA)

    # --- account -------------------------------------------------------------------------------------------------

    def saved(self) -> str:
        """Say what is left of a run that stopped."""
        if not hasattr(self, "folder"):
            return "nothing was written."
        if not self.folder.finished:
            self.folder.discard()
            return "no step was finished and nothing was written."
        return f"{', '.join(self.folder.finished)}: finished and saved in {self.folder.work}; go on with --resume."

    def summary(self) -> str:
        """Return a short account: what was found, how long it took, where it lies."""
        folder, adata = self.folder, self.adata
        panels = panels_of(adata, spatial_key=self.options.spatial_key, library_key=self.library_key, library=None)
        lines = ["", *self.notes]
        for text in findings(adata, [panel.library for panel in panels]):
            lines += [*textwrap.wrap(text, 100), ""]
        lines += [f"Biomarkers of {self.groupby}, at a false discovery rate of 5 %:"]
        lines += [f"  {line}" for group in all_marked(adata) for line in group]
        seconds = folder.record["seconds"]
        lines += ["", "time        " + ", ".join(f"{name} {seconds[name]:.1f} s" for name in STEPS if name in seconds)]
        lines += [f"report      {(folder.path / REPORT).resolve()} (open it in a browser)"]
        return "\n".join([*lines, f"written to  {folder.path}: {DATA}, {TABLE}, {REPORT}, *.png, run.json", "", ""])


def draw(adata: AnnData, folder: Path) -> None:
    """Write one PNG for each result."""
    import matplotlib.pyplot as plt

    trained = _keys.SEGMENT if "history" in adata.uns[_keys.SEGMENT] else _keys.EMBED
    functions: dict[str, Callable[..., Any]] = {
        "segments": pl.segment,
        "region_graph": pl.region_graph,
        "attention": pl.attention,
        "biomarkers": pl.biomarkers,
        "history": partial(pl.history, key=trained),
    }
    for name in FIGURES:
        figure = np.ravel(np.asarray(functions[name](adata, show=False), dtype=object))[0].figure
        try:
            with whole(folder / f"{name}.png") as part:
                figure.savefig(part, dpi=150, bbox_inches="tight")
        finally:
            plt.close(figure)
