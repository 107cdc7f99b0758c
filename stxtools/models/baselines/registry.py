"""Baselines of the evaluation, by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from .simple import Baseline, Forest, FunctionBaseline, NearestLabel, PointwiseBaseline, expression, means


def _lda(**_: Any) -> Any:
    return make_pipeline(StandardScaler(), LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"))


def _logistic(random_state: int, **params: Any) -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(**{"C": 0.1, "max_iter": 2000} | params))


_SIMPLE: dict[str, Callable[..., Baseline]] = {
    "random_forest": partial(Forest, RandomForestClassifier, expression),
    "random_forest_means": partial(Forest, RandomForestClassifier, means),
    "lda": partial(PointwiseBaseline, _lda, means),
    "logistic": partial(PointwiseBaseline, _logistic, means),
    "nearest_label": NearestLabel,
}
_NETWORKS = ("unet", "gnn")
BASELINES = (*_NETWORKS, *_SIMPLE)


def baseline(name: str | Callable[..., Any], **kwargs: Any) -> Baseline:
    """Return a baseline by name, or one that wraps a user's function."""
    if not isinstance(name, str):
        return FunctionBaseline(name, **kwargs)
    if name in _NETWORKS:
        from .networks import SpotGNN, UNetAlone  # imports PyTorch

        return {"unet": UNetAlone, "gnn": SpotGNN}[name](**kwargs)
    return _SIMPLE[name](**kwargs)
