"""Corrections of logits: one temperature for calibrated confidence, and offsets of the classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import brentq, minimize
from scipy.special import softmax

from stxtools._spatial.points import evenly_spread
from stxtools._spatial.smoothing import REACH, nearest
from stxtools._types import Array, Floats, Floats32, Ints, Reals

_COOLEST, _HOTTEST = 0.25, 50.0
_SHARES_TRUST = 0.7  # part of the way to the class shares given: they may be 30 % off
_SHARES_STEPS = 60
_CENTRE_TRUST = 0.03  # precision of the offsets that centre labels: chosen on cortex
_CENTRE_NEIGHBOURHOODS = 8  # of labels, from which it grows with their number: offsets would overshoot
_CENTRE_TEMPERATURE = 3.0  # of the probabilities meanwhile: those of discriminant analyses are too sharp
_CENTRE_LABELS = 1000  # of a section, at most, that are centred
_ADJACENT = 7  # an observation and the ring around it
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


def centring_offsets(xy: Sequence[Floats], labels: Sequence[Ints], proba: Floats) -> Floats:
    """Offsets (K,) of the logits that bring the labels of each class to the centre of its predicted observations.

    Experts draw along the middle of a compartment. Between a thin and a thick one, discriminant analyses place the
    border midway between the labels, so the thin one grows on one side. In the nearest 127 observations of each label,
    the mean position of the class is compared with that of its labels (Mahalanobis distance: in units of the class's
    extent). A class counts by the number of separate neighbourhoods that its labels fill, less one: a compact patch
    may lie anywhere in its class, as may single labels, which do not count.

    - ``xy``, ``labels``: Coordinates and class codes (-1 where unlabelled) of each section.
    - ``proba``: Class probabilities of the observations of all sections, one after the other.
    """
    k = proba.shape[1]
    logits = np.log(proba.clip(1e-9)) / _CENTRE_TEMPERATURE
    parts, start = [], 0
    for points, codes in zip(xy, labels, strict=True):
        known = np.flatnonzero(codes >= 0)
        adjacent = codes[nearest(points, _ADJACENT, known)] == codes[known][:, None]
        known = known[adjacent.sum(axis=1) > 2]  # itself and two others
        if len(known):
            chosen = evenly_spread(len(known), _CENTRE_LABELS)
            each = np.full(len(chosen), len(known) / len(chosen))  # labels that one stands for
            known = known[chosen]
            near = nearest(points, REACH, known)
            shift = points[near] - points[known][:, None]
            area = np.pi * (shift**2).sum(axis=2).max(axis=1) / near.shape[1]  # of one observation
            same = codes[near] == codes[known][:, None]
            parts.append((codes[known], near + start, shift / np.sqrt(area + 1e-300)[:, None, None], same, each))
        start += len(points)
    if not parts:
        return np.zeros(k)
    of, near, shift, same, each = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    n_near = same.sum(axis=1)
    weight = each * (np.maximum(np.bincount(of, each / n_near, k) - 1, 0) / np.bincount(of, each, k).clip(1))[of]
    if not weight.any():
        return np.zeros(k)
    precision = _CENTRE_TRUST * max(1.0, float(weight.sum()) / _CENTRE_NEIGHBOURHOODS)
    used, row = np.unique(near, return_inverse=True)
    row, logits = row.reshape(same.shape), logits[used]
    same = same / n_near[:, None]
    centre = np.einsum("ij,ijd->id", same, shift)

    def misfit(offsets: Floats) -> tuple[float, Floats]:
        share = softmax(logits + offsets, axis=1)
        p = share[row, of[:, None]]
        mass = p + 1e-3 * same  # a class has at least its labels
        total = mass.sum(axis=1)
        mass /= total[:, None]
        mean = np.einsum("ij,ijd->id", mass, shift)
        around = shift - mean[:, None]
        extent = np.einsum("ij,ijd,ije->ide", mass, around, around)
        off = mean - centre
        u = np.linalg.solve(extent + 0.25 * np.eye(2), off[..., None])[..., 0]
        along = np.einsum("ijd,id->ij", around, u)
        slope = 2 * along - along**2 + np.einsum("id,ide,ie->i", u, extent, u)[:, None]
        slope *= p * (weight / total)[:, None] / 2
        gradient = np.bincount(of, slope.sum(axis=1), k) - np.bincount(row.ravel(), slope.ravel(), len(used)) @ share
        value = weight @ (off * u).sum(axis=1) / 2 + precision * (offsets @ offsets) / 2
        return float(value), gradient + precision * offsets

    found: Floats = minimize(misfit, np.zeros(k), jac=True, method="L-BFGS-B").x
    return _CENTRE_TEMPERATURE * (found - found.mean())


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
