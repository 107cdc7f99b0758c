"""stxtools: tissue compartments, region graphs, biomarkers and targets from spatial transcriptomics.

The namespaces follow scanpy: :mod:`stxtools.pp` prepares, :mod:`stxtools.tl` computes,
:mod:`stxtools.pl` draws, :mod:`stxtools.get` returns tidy tables, :mod:`stxtools.io` reads and writes,
:func:`stxtools.report` writes all of it as one HTML file. Importing the package is cheap:
torch, squidpy and spatialdata are loaded by the first call that needs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

from ._settings import settings
from ._version import __version__

if TYPE_CHECKING:
    from . import datasets, get, io, models, pl, pp, tl
    from ._report.report import report

__all__ = ["__version__", "datasets", "get", "io", "models", "pl", "pp", "report", "settings", "tl"]

_SUBMODULES = {"datasets", "get", "io", "models", "nn", "pl", "pp", "stats", "tl"}
__getattr__, _, _ = lazy_loader.attach(__name__, _SUBMODULES, {"_report.report": ["report"]})


def __dir__() -> list[str]:
    return sorted(__all__)
