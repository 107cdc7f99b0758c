"""What every public function of AnnData has: SpatialData in its place, and a complete docstring."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from ._docs import complete_docstring
from ._on_spatialdata import OnSpatialData, on_spatialdata

P = ParamSpec("P")
R = TypeVar("R")


def public(function: Callable[P, R]) -> OnSpatialData[P, R]:
    """Let a public function take SpatialData, too, and complete its docstring."""
    return on_spatialdata(complete_docstring(function))
