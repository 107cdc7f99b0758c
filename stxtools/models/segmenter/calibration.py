"""Corrections of logits: one temperature for calibrated confidence, and offsets of the classes."""

from __future__ import annotations

import numpy as np
from scipy.optimize import brentq
from scipy.special import softmax

from stxtools._types import Array, Floats, Floats32, Ints, Reals

_COOLEST, _HOTTEST = 0.25, 50.0
_SHARES_TRUST = 0.7  # part of the way to the class shares given: they may be 30 % off
_SHARES_STEPS = 60
_LOST = 0.1  # share of its pseudo-labelled pixels below which a class counts as lost
_RESTORED = 0.5  # share of its pseudo-labelled pixels that a lost class gets back
_ROUNDS = 1000
_STEP, _PATIENCE = 1e-4, 50  # smallest increase of an offset, relative to the logits' range; rounds until it doubles


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


def share_offsets(proba: Floats, class_shares: Floats) -> Floats:
    """Offsets (K,) of the logits that bring the mean probability of each class towards its share."""
    logits, offsets = np.log(proba.clip(1e-9)), np.zeros(proba.shape[1])
    unknown = np.isnan(class_shares)
    for _ in range(_SHARES_STEPS):
        predicted = softmax(logits + offsets, axis=1).mean(axis=0).clip(1e-9)
        wanted = np.where(unknown, predicted, class_shares)
        if unknown.any():
            wanted[unknown] *= max(1 - np.nansum(class_shares), 1e-9) / predicted[unknown].sum()
        offsets += (np.log(wanted) - np.log(predicted)) / 2
    return _SHARES_TRUST * offsets


def class_sizes(scores: Reals) -> Ints:
    """Number of observations whose most probable class is each column, (K,)."""
    return np.bincount(scores.argmax(axis=1), minlength=scores.shape[1])


def offsets_for_all(logits: Floats, wanted: Array) -> Floats:
    """Offsets (K,) of the logits (P, K) that give every class some observations; 0 where no class is lost.

    A lost class gets half of the observations that it should have (``wanted``), at least one: those whose logits are
    nearest to it. Where that empties another class, its offset rises in turn (an auction; Bertsekas 1979).
    """
    offsets = np.zeros(logits.shape[1])
    sizes = class_sizes(logits)
    lost = sizes < np.maximum(_LOST * wanted, 1)
    if not lost.any():
        return offsets
    least = np.where(lost, np.maximum(1, np.floor(_RESTORED * wanted)), 1).astype(np.int64)
    least = np.minimum(least, max(len(logits) // (2 * len(least)), 1))
    step = _STEP * float(np.ptp(logits))  # with tiny increases two classes would outbid each other for ever
    for turn in range(_ROUNDS):
        now = logits + offsets
        sizes = class_sizes(now)
        short = np.flatnonzero(sizes < least)
        if not short.size:
            return offsets
        c = int(short[(sizes - least)[short].argmin()])
        others = np.delete(now, c, axis=1).max(axis=1)
        gap = np.sort(others - now[:, c])  # by which the class falls short at each observation
        last = gap[least[c] - 1]
        beyond = gap[gap > last]
        needed = (last + beyond[0]) / 2 if beyond.size else last + 1.0
        offsets[c] += max(needed, step * 2.0 ** (turn // _PATIENCE - 1) if turn >= _PATIENCE else 0.0)
    raise ValueError(
        f"The U-Net cannot tell {logits.shape[1]} segments apart on {len(np.unique(logits, axis=0))} distinct pixels; "
        "choose a smaller `n_segments`, or a smaller learning rate if `params` raised it."
    )
