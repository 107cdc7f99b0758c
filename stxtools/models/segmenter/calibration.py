"""Calibrated confidence: one temperature for the U-Net's probabilities."""

from __future__ import annotations

import numpy as np
from scipy.optimize import brentq
from scipy.special import softmax

from stxtools._types import Floats32, Reals

_COOLEST, _HOTTEST = 0.25, 50.0


def matching_temperature(proba: Reals, accuracy: float) -> float:
    """Temperature (Guo et al. 2017) at which the mean confidence of ``proba`` (n, K) equals the accuracy expected."""
    if len(proba) == 0 or proba.shape[1] < 2:
        return 1.0

    def excess(log_temperature: float) -> float:
        return float(tempered(proba, float(np.exp(log_temperature))).max(axis=1).mean()) - accuracy

    low, high = np.log(_COOLEST), np.log(_HOTTEST)
    if excess(low) <= 0:
        return _COOLEST
    if excess(high) >= 0:
        return _HOTTEST
    return float(np.exp(brentq(excess, low, high, xtol=1e-4)))


def tempered(proba: Reals, temperature: float) -> Floats32:
    """Probabilities whose logits are divided by ``temperature``."""
    if temperature == 1.0:
        return proba.astype(np.float32)
    logits = np.log(proba.astype(np.float64).clip(1e-30)) / temperature
    return softmax(logits, axis=1).astype(np.float32)
