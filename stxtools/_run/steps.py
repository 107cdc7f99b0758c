"""One step on files, ``stxtools segment in.h5ad out.h5ad``."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stxtools import _keys, get
from stxtools._checks import check_writable
from stxtools._files import whole

from .files import write_h5ad
from .inputs import read_sections
from .options import OWN, UsageError, as_flags, function_of, gathered, options_of, tell, text_of


def run_step(arguments: Mapping[str, Any]) -> None:
    """Read, run the step that was asked for, write; after a UsageError nothing was written."""
    step, options = str(arguments["command"]), gathered(arguments)
    quiet, table = (options.pop(name, OWN[name].default) for name in ("quiet", "table"))
    to, ending = Path(arguments["output"]).expanduser(), ".html" if step == "report" else ".h5ad"
    log = (lambda text: None) if quiet else tell
    try:
        if to.suffix != ending:
            raise ValueError(f"OUT, {str(to)!r}, must end in {ending}.")
        for path in filter(None, (to, table)):
            check_writable(path)
        if table is not None and Path(table).expanduser().resolve() == to.resolve():
            raise ValueError(f"`table` and OUT are the same file, {str(to)!r}; the one would replace the other.")
        start = time.perf_counter()
        adata = read_sections([str(arguments["input"])], None, None)[0]
        log(f"read {time.perf_counter() - start:.1f} s: {adata.n_obs:,} x {adata.n_vars:,}")
        start = time.perf_counter()
        how: dict[str, Any] = {"path": to} if step == "report" else {"show_progress": False if quiet else None}
        function_of(step)(adata, **options, **how)
    except (KeyError, ValueError, TypeError, FileNotFoundError, IsADirectoryError) as err:
        raise UsageError(as_flags(text_of(err), options_of(step))) from err
    log(f"{step} {time.perf_counter() - start:.1f} s")
    if step != "report":
        write_h5ad(adata, to)
    if table is not None:
        with whole(table) as part:
            found = get.biomarkers(adata, key=options.get("key_added") or _keys.BIOMARKERS)
            found.to_csv(part, index=False, float_format="%.6g")
    log(f"wrote {to}")
