"""One step on files, ``stxtools segment in.h5ad out.h5ad``."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stxtools import _keys
from stxtools._checks import check_writable

from .files import write_h5ad, write_table
from .inputs import read_sections
from .options import UsageError, as_flags, error_text, function_of, log, options_of, parse_options


def run_step(arguments: Mapping[str, Any]) -> None:
    """Read a section, run one step, and write the results; after a UsageError nothing was written."""
    step, options = str(arguments["command"]), parse_options(arguments)
    quiet, table = options.pop("quiet", False), options.pop("table", None)
    out, suffix = Path(arguments["output"]).expanduser(), ".html" if step == "report" else ".h5ad"
    try:
        if out.suffix != suffix:
            raise ValueError(f"OUT, {str(out)!r}, must end in {suffix}.")
        for path in filter(None, (out, table)):
            check_writable(path)
        if table is not None and Path(table).expanduser().resolve() == out.resolve():
            raise ValueError(f"`table` and OUT are the same file, {str(out)!r}; the one would replace the other.")
        start = time.perf_counter()
        adata = read_sections([str(arguments["input"])], None, None)[0]
        log(f"read {time.perf_counter() - start:.1f} s: {adata.n_obs:,} x {adata.n_vars:,}", quiet)
        start = time.perf_counter()
        extra: dict[str, Any] = {"path": out} if step == "report" else {"show_progress": False if quiet else None}
        function_of(step)(adata, **options, **extra)
    except (KeyError, ValueError, TypeError, FileNotFoundError, IsADirectoryError) as err:
        raise UsageError(as_flags(error_text(err), options_of(step))) from err
    log(f"{step} {time.perf_counter() - start:.1f} s", quiet)
    if step != "report":
        write_h5ad(adata, out)
    if table is not None:
        write_table(adata, table, options.get("key_added") or _keys.BIOMARKERS)
    log(f"wrote {out}", quiet)
