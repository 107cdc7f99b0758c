"""All steps on one section or several, each saved when it ends, or one step on a file."""

from __future__ import annotations

import inspect
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from anndata import AnnData

from stxtools import _keys, pl, tl
from stxtools._checks import check_writable
from stxtools._files import atomic_write
from stxtools._progress import Stage, is_shown, progress
from stxtools._report.report import report
from stxtools._report.summary import findings, marker_lines
from stxtools._settings import settings
from stxtools.pl._sections import panels_of

from .files import DATA, FIGURES, REPORT, TABLE, Folder, write_h5ad, write_table
from .inputs import check_inputs, read_sections
from .options import CALLS, COMMON, UsageError, as_flags, error_text, function_of, log, options_of, parse_options

_SHARES = {"read": 1, "segment": 16, "region_graph": 1, "embed": 8, "biomarkers": 12, "figures": 3, "write": 1}
STEPS = tuple(_SHARES)[1:]
_USAGE_ERRORS = (KeyError, ValueError, TypeError, OSError)  # before the first step has begun


class Run:
    """A run; ``folder`` is set when all arguments are checked."""

    adata: AnnData
    folder: Folder

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        options = parse_options(arguments)
        if options["overwrite"] and options["resume"]:
            raise UsageError("--overwrite starts anew and --resume goes on; give one of them.")
        if options["library_key"] is False and len(options["input"]) > 1:
            raise UsageError("--one-section excludes several inputs.")
        self.options = SimpleNamespace(**options)
        self.groupby = self.options.groupby or (_keys.SEGMENT if self.options.input else "disease")
        if not self.options.input:
            self.options.subject_key = self.options.subject_key or "patient"  # of the generated tissue
        self.notes: list[str] = []
        self.step = "read"
        self._quiet = self.options.quiet or is_shown(None)  # a progress bar replaces the log

    def __call__(self) -> bool:
        """Check, then run all steps; return False where the run is complete already."""
        with progress(None, "run", False if self.options.quiet else None, shares=_SHARES) as bar:
            if not self._prepare(bar):
                return False
            for step in STEPS:
                self.step = step
                bar.enter(step)
                if step not in self.folder.finished:
                    self._run_step(step)
            self.folder.publish()
        return True

    def _prepare(self, bar: Stage) -> bool:
        """Read and check everything before the first step; after a UsageError nothing was written."""
        options, start = self.options, time.perf_counter()
        bar.enter("read")
        try:
            if options.max_memory is not None:
                settings.max_memory = options.max_memory
            folder = Folder(vars(options))
            if not folder.check(overwrite=options.overwrite, resume=options.resume):
                return False
            self.adata, self.library_key, self.notes = read_sections(
                options.input, options.library_key, options.use_rep, options.layer
            )
            check_inputs(self.adata, options, self.groupby)
        except _USAGE_ERRORS as err:
            raise UsageError(as_flags(error_text(err), vars(options))) from err
        folder.create()
        self.folder = folder
        shape = f"{self.adata.n_obs:,} observations x {self.adata.n_vars:,} genes"
        log(f"read {time.perf_counter() - start:.1f} s: {shape}", self._quiet)
        if folder.finished:
            log(f"finished before: {', '.join(folder.finished)}", self._quiet)
            if "biomarkers" not in folder.finished or "write" not in folder.finished:
                folder.restore(self.adata)
        return True

    def _run_step(self, step: str) -> None:
        options, folder, start = self.options, self.folder, time.perf_counter()
        try:
            if step in CALLS:
                values = vars(options) | {"library_key": self.library_key, "groupby": self.groupby}
                getattr(tl, step)(self.adata, **{name: values[name] for name in (*COMMON, *CALLS[step])})
            elif step == "figures":
                draw(self.adata, folder.work)
                write_table(self.adata, folder.work / TABLE)
                slots = {"layer": options.layer, "spatial_key": options.spatial_key, "library_key": self.library_key}
                report(self.adata, folder.work / REPORT, **slots)
            else:
                write_h5ad(self.adata, folder.work / DATA)
        except _USAGE_ERRORS as err:
            if folder.finished:
                raise
            folder.discard()  # the first step checks its own arguments before it does anything
            raise UsageError(as_flags(error_text(err), vars(options))) from err
        seconds = time.perf_counter() - start
        folder.save(step, seconds, self.adata if step in CALLS else None)
        log(f"{step} {seconds:.1f} s ({STEPS.index(step) + 1} of {len(STEPS)})", self._quiet)

    def saved(self) -> str:
        """Return which results of a stopped run are saved."""
        if not hasattr(self, "folder"):
            return "nothing was written."
        if not self.folder.finished:
            self.folder.discard()
            return "no step was finished and nothing was written."
        return f"{', '.join(self.folder.finished)}: finished and saved in {self.folder.work}; go on with --resume."

    def summary(self) -> str:
        """Return a summary: findings, biomarkers, run times and files."""
        folder, adata = self.folder, self.adata
        panels = panels_of(adata, {}, spatial_key=self.options.spatial_key, library_key=self.library_key)
        lines = ["", *self.notes]
        for text in findings(adata, [panel.library for panel in panels]):
            lines += [*textwrap.wrap(text, 100), ""]
        lines += [f"Biomarkers of {self.groupby}, at a false discovery rate of 5 %:"]
        lines += [f"  {line}" for line in marker_lines(adata)]
        seconds = folder.record["seconds"]
        lines += ["", "time        " + ", ".join(f"{name} {seconds[name]:.1f} s" for name in STEPS if name in seconds)]
        lines += [f"report      {(folder.path / REPORT).resolve()} (open it in a browser)"]
        return "\n".join([*lines, f"written to  {folder.path}: {DATA}, {TABLE}, {REPORT}, *.png, run.json", "", ""])


def draw(adata: AnnData, folder: Path) -> None:
    """Write one PNG for each result."""
    trained = _keys.SEGMENT if "history" in adata.uns[_keys.SEGMENT] else _keys.EMBED
    for name, function in FIGURES.items():
        options = {"key": trained} if name == "history" else {}
        figure = np.ravel(np.asarray(getattr(pl, function)(adata, show=False, **options), dtype=object))[0].figure
        try:
            with atomic_write(folder / f"{name}.png") as part:
                figure.savefig(part, dpi=150, bbox_inches="tight")
        finally:
            plt.close(figure)


def run_step(arguments: Mapping[str, Any]) -> None:
    """Read a section, run one step, and write the results; after a UsageError nothing was written."""
    step, options = str(arguments["command"]), parse_options(arguments)
    csv_option = "csv" if step == "targets" else "table"  # which is a parameter of st.tl.targets
    quiet, table = options.pop("quiet", False), options.pop(csv_option, None)
    out, suffix = Path(arguments["output"]).expanduser(), ".html" if step == "report" else ".h5ad"
    try:
        if out.suffix != suffix:
            raise ValueError(f"OUT, {str(out)!r}, must end in {suffix}.")
        for path in filter(None, (out, table)):
            check_writable(path)
        if table is not None and Path(table).expanduser().resolve() == out.resolve():
            raise ValueError(f"`table` and OUT are the same file, {str(out)!r}; the one would replace the other.")
        start = time.perf_counter()
        adata = read_sections([str(arguments["input"])], None, None).adata
        log(f"read {time.perf_counter() - start:.1f} s: {adata.n_obs:,} x {adata.n_vars:,}", quiet)
        start = time.perf_counter()
        function, extra = function_of(step), {"path": out, "show_progress": False if quiet else None}
        has = inspect.signature(function).parameters
        function(adata, **options, **{name: value for name, value in extra.items() if name in has})
    except (KeyError, ValueError, TypeError, FileNotFoundError, IsADirectoryError) as err:
        raise UsageError(as_flags(error_text(err), options_of(step))) from err
    log(f"{step} {time.perf_counter() - start:.1f} s", quiet)
    if step != "report":
        write_h5ad(adata, out)
    if table is not None:
        default = {"compare": _keys.COMPARE, "describe": _keys.DESCRIBE}.get(step, _keys.BIOMARKERS)
        write_table(adata, table, options.get("key_added") or options.get("key", default))
    log(f"wrote {out}", quiet)
