"""stxtools: tissue compartments, region graphs, biomarkers and targets from spatial transcriptomics.

The namespaces follow scanpy: :mod:`stxtools.pp` (preprocessing), :mod:`stxtools.tl` (tools), :mod:`stxtools.pl`
(plotting), :mod:`stxtools.get` (results as tables), :mod:`stxtools.io` (reading and writing);
:func:`stxtools.report` writes the results to one HTML file. Importing the package is fast: torch, squidpy and
spatialdata are loaded by the first call that needs them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._settings import settings
from ._version import __version__

if TYPE_CHECKING:
    from . import datasets, get, io, models, pl, pp, tl
    from ._report.report import report

__all__ = ["__version__", "datasets", "get", "io", "models", "pl", "pp", "report", "settings", "tl"]

_LAZY = frozenset({"datasets", "get", "io", "models", "nn", "pl", "pp", "stats", "tl"})


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return importlib.import_module(f"{__name__}.{name}")
    if name == "report":
        return importlib.import_module("stxtools._report.report").report
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
