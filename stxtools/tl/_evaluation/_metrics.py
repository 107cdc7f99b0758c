"""Metrics of predicted classes and expression."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

CLASS_METRICS = ("accuracy", "precision", "recall", "auroc")
METRICS = (*CLASS_METRICS, "mse")


def scores(proba: NDArray[np.floating], truth: NDArray[np.int64]) -> dict[str, float]:
    """Accuracy, and precision, recall and AUROC averaged over the classes that occur in ``truth``."""
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support, roc_auc_score

    found, classes = proba.argmax(axis=1), np.unique(truth)
    how: dict[str, Any] = {"labels": classes, "average": "macro", "zero_division": 0}
    precision, recall, *_ = precision_recall_fscore_support(truth, found, **how)
    aurocs = [roc_auc_score(truth == k, proba[:, k]) for k in classes] if len(classes) > 1 else [np.nan]
    values = (accuracy_score(truth, found), precision, recall, np.mean(aurocs), np.nan)
    return {name: float(value) for name, value in zip(METRICS, values, strict=True)}
