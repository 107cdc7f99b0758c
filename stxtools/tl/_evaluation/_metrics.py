"""How well classes are predicted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

METRICS = ("accuracy", "precision", "recall", "auroc", "mse")


def scores(proba: NDArray[np.floating], truth: NDArray[np.int64]) -> dict[str, float]:
    """Accuracy, and precision, recall and AUROC averaged over the classes that occur in ``truth``.

    AUROC is one class against the rest, ties count half; NaN where ``truth`` has a single class.
    """
    from scipy.stats import rankdata

    found = proba.argmax(axis=1)
    precision, recall, auroc = [], [], []
    for k in np.unique(truth):
        is_k, called = truth == k, found == k
        hits = float((is_k & called).sum())
        precision.append(hits / called.sum() if called.any() else 0.0)
        recall.append(hits / is_k.sum())
        n_k, n_rest = int(is_k.sum()), int((~is_k).sum())
        if n_rest:
            above = float(rankdata(proba[:, k])[is_k].sum()) - n_k * (n_k + 1) / 2
            auroc.append(above / (n_k * n_rest))
    return {
        "accuracy": float((found == truth).mean()),
        "precision": float(np.mean(precision)),
        "recall": float(np.mean(recall)),
        "auroc": float(np.mean(auroc)) if auroc else float("nan"),
        "mse": float("nan"),
    }


def expression_error(found: NDArray[np.floating], truth: NDArray[np.floating]) -> dict[str, float]:
    """Mean squared error over genes and observations."""
    out = dict.fromkeys(METRICS, float("nan"))
    out["mse"] = float(np.mean((np.asarray(found) - truth) ** 2))
    return out
