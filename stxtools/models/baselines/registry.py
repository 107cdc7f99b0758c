"""Baselines by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .simple import (
    Baseline,
    FunctionBaseline,
    MeansForest,
    MeansLDA,
    MeansLogistic,
    NearestLabel,
    RandomForest,
)

_SIMPLE: dict[str, type[Baseline]] = {
    "random_forest": RandomForest,
    "random_forest_means": MeansForest,
    "lda": MeansLDA,
    "logistic": MeansLogistic,
    "nearest_label": NearestLabel,
}
_NETWORKS = ("unet", "gnn")
BASELINES = (*_NETWORKS, *_SIMPLE)


def baseline(name: str | Callable[..., Any], **how: Any) -> Baseline:
    """Return the baseline of that name, or a caller's function behind the same interface.

    Raises
    ------
    ValueError
        If no baseline has that name.
    """
    if not isinstance(name, str):
        return FunctionBaseline(name, **how)
    if name in _NETWORKS:
        from .networks import SpotGNN, UNetAlone  # imports PyTorch, which the simple ones do without

        return {"unet": UNetAlone, "gnn": SpotGNN}[name](**how)
    if name not in _SIMPLE:
        raise ValueError(f"There is no baseline {name!r}; there are {', '.join(BASELINES)}.")
    return _SIMPLE[name](**how)
