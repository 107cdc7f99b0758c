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


class Step:
    """A step that the command line asked for."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self.step = str(arguments["command"])
        options = gathered(arguments)
        self.own = {name: options.pop(name, OWN[name].default) for name in OWN}
        self.options, self.input = options, str(arguments["input"])
        self.output = Path(arguments["output"]).expanduser()

    def __call__(self) -> bool:
        """Read, run, write; after a UsageError nothing was written."""
        to, ending = self.output, ".html" if self.step == "report" else ".h5ad"
        quiet, table = self.own["quiet"], self.own["table"]
        log = (lambda text: None) if quiet else tell
        try:
            if to.suffix != ending:
                raise ValueError(f"OUT, {str(to)!r}, must end in {ending}.")
            for path in filter(None, (to, table)):
                check_writable(path)
            start = time.perf_counter()
            adata = read_sections([self.input], None, None)[0]
            log(f"read {time.perf_counter() - start:.1f} s: {adata.n_obs:,} x {adata.n_vars:,}")
            start = time.perf_counter()
            how: dict[str, Any] = {"path": to} if self.step == "report" else {"show_progress": False if quiet else None}
            function_of(self.step)(adata, **self.options, **how)
        except (KeyError, ValueError, TypeError, FileNotFoundError, IsADirectoryError) as err:
            raise UsageError(as_flags(text_of(err), options_of(self.step))) from err
        log(f"{self.step} {time.perf_counter() - start:.1f} s")
        if self.step != "report":
            write_h5ad(adata, to)
        if table is not None:
            with whole(table) as part:
                found = get.biomarkers(adata, key=self.options.get("key_added") or _keys.BIOMARKERS)
                found.to_csv(part, index=False, float_format="%.6g")
        log(f"wrote {to}")
        return True

    def saved(self) -> str:
        """Say what is left of a step that stopped."""
        return "nothing was written."

    def summary(self) -> str:
        """Return nothing: what a step did stands in its log."""
        return ""
