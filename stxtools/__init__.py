"""stxtools: tissue compartments, region graphs, biomarkers and targets from spatial transcriptomics.

The namespaces follow scanpy: :mod:`stxtools.pp` prepares, :mod:`stxtools.tl` computes,
:mod:`stxtools.pl` draws, :mod:`stxtools.get` returns tidy tables, :mod:`stxtools.io` reads and writes,
:func:`stxtools.report` writes all of it as one HTML file. Importing the package is cheap:
torch, squidpy and spatialdata are loaded by the first call that needs them.
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
