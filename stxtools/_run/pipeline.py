"""The steps of a run: each is timed, reported and saved when it ends."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from anndata import AnnData

from stxtools import _keys, get, pl, tl
from stxtools._files import whole
from stxtools._progress import Stage, is_shown, progress
from stxtools._report.report import report
from stxtools._report.words import all_marked, findings
from stxtools._settings import settings
from stxtools.pl._sections import panels_of

from .files import DATA, FIGURES, REPORT, TABLE, Folder, write_h5ad
from .inputs import check_against, read_sections
from .options import ALL_HAVE, CALLS, NOTHING, UsageError, as_flags, gathered, tell, text_of

STEPS = (*CALLS, "figures", "write")
_SHARES = {"read": 1, "segment": 16, "region_graph": 1, "embed": 8, "biomarkers": 12, "figures": 3, "write": 1}
_MISFITS = (KeyError, ValueError, TypeError, OSError)


class Run:
    """One run; it has no folder before it is sure that it may write there."""

    adata: AnnData
    folder: Folder

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        options = gathered(arguments)
        if options["overwrite"] and options["resume"]:
            raise UsageError("--overwrite starts anew and --resume goes on; give one of them.")
        if options["library_key"] is False and len(options["input"]) > 1:
            raise UsageError("--one-section excludes several inputs.")
        self.options = SimpleNamespace(**options)
        self.groupby = self.options.groupby or (_keys.SEGMENT if self.options.input else "disease")
        self.notes: list[str] = []
        self.step = "read"
        # where no bar is watched
        self._tell = (lambda text: None) if self.options.quiet or is_shown(None) else tell

    def __call__(self) -> bool:
        """Check, then run all steps; return False where everything was there already."""
        with progress(None, "run", False if self.options.quiet else None, shares=_SHARES) as bar:
            if not self._prepare(bar):
                return False
            self._go(bar)
        return True

    def _prepare(self, bar: Stage) -> bool:
        """Read and check everything before the first step; after a UsageError nothing was written."""
        o, start = self.options, time.perf_counter()
        bar.enter("read")
        try:
            if o.max_memory is not None:
                settings.max_memory = o.max_memory
            folder = Folder(vars(o))
            if not folder.look(overwrite=o.overwrite, resume=o.resume):
                return False
            self.adata, self.library_key, self.notes = read_sections(o.input, o.library_key, o.use_rep, o.layer)
            check_against(self.adata, o, self.groupby)
        except _MISFITS as err:
            raise UsageError(as_flags(text_of(err), vars(o))) from err
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
            try:
                if name in CALLS:
                    self._call(name)
                else:
                    getattr(self, f"_{name}")()
            except _MISFITS as err:
                if folder.finished:
                    raise
                folder.discard()  # the first step checks its own arguments before it does anything
                raise UsageError(as_flags(text_of(err), vars(self.options))) from err
            folder.save(name, time.perf_counter() - start, self.adata if name in CALLS else None)
            self._tell(f"{name} {time.perf_counter() - start:.1f} s ({STEPS.index(name) + 1} of {len(STEPS)})")
        folder.publish()

    # --- steps ---------------------------------------------------------------------------------------------------

    def _call(self, step: str) -> None:
        """Run one of the package's calls with the options that it takes."""
        options = vars(self.options) | {"library_key": self.library_key, "groupby": self.groupby}
        getattr(tl, step)(self.adata, **{name: options[name] for name in (*ALL_HAVE, *CALLS[step])})

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
            return NOTHING
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
    trained = _keys.SEGMENT if "history" in adata.uns[_keys.SEGMENT] else _keys.EMBED
    for name, function in FIGURES.items():
        how = {"key": trained} if name == "history" else {}
        figure = np.ravel(np.asarray(getattr(pl, function)(adata, show=False, **how), dtype=object))[0].figure
        try:
            with whole(folder / f"{name}.png") as part:
                figure.savefig(part, dpi=150, bbox_inches="tight")
        finally:
            plt.close(figure)
