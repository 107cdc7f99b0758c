"""Exactly K classes: gives observations back to a class that pseudo-labels or the network have lost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stxtools._types import Array, Floats, Ints, Reals

_DISTINCT = 1e-9  # spread, relative to that of all observations, below which values count as equal
_LOST = 0.1  # share of its pseudo-labelled pixels below which a class counts as lost
_RESTORED = 0.5  # share of its pseudo-labelled pixels that a lost class gets back
_ROUNDS = 1000
_STEP, _PATIENCE = 1e-4, 50  # smallest increase of an offset, relative to the logits' range; rounds until it doubles


def class_sizes(scores: Reals) -> Ints:
    """Number of rows whose largest score is in each column, (K,)."""
    return np.bincount(scores.argmax(axis=1), minlength=scores.shape[1])


def with_all_classes(target: Floats, spaces: Sequence[Reals], *, or_fewer: bool = False) -> Floats:
    """Change memberships (n, K) so that every class is the most probable one of some observation.

    An empty class takes over half of the class with the largest scatter, cut across its first principal axis in the
    first of the ``spaces`` where it varies; there the memberships of both are exchanged. With fewer distinct
    observations than classes, empty ones are dropped (``or_fewer``) or an error is raised.
    """
    sizes = class_sizes(target)
    if (sizes > 0).all():
        return target
    target, k = target.copy(), target.shape[1]
    while (missing := np.flatnonzero(sizes == 0)).size:
        labels = target.argmax(axis=1)
        halves = (_half_of_widest(np.asarray(z, dtype=np.float64), labels) for z in spaces)
        half = next((h for h in halves if h is not None), None)
        if half is None:
            if or_fewer:
                return target[:, sizes > 0] / target[:, sizes > 0].sum(axis=1, keepdims=True)
            raise ValueError(
                f"`n_segments={k}` is more than the {int((sizes > 0).sum())} distinct observations there are; choose a "
                "smaller number."
            )
        old, new = int(labels[half[0]]), int(missing[0])
        target[half, old], target[half, new] = target[half, new], target[half, old]
        target[half] /= 2  # equal memberships would leave the old class in place
        target[half, new] += 0.5
        sizes = class_sizes(target)
    return target


def _half_of_widest(z: Floats, labels: Ints) -> Ints | None:
    """Rows of the smaller side of the class with the largest scatter, cut at its mean; None if no class varies."""
    total = float(np.square(z - z.mean(axis=0)).sum())
    scatter = np.array([np.square(z[labels == c] - z[labels == c].mean(axis=0)).sum() if (labels == c).any() else 0.0
                        for c in range(int(labels.max()) + 1)])  # fmt: skip
    widest = int(scatter.argmax())
    if scatter[widest] <= _DISTINCT * total:
        return None
    rows = np.flatnonzero(labels == widest)
    part = z[rows] - z[rows].mean(axis=0)
    along = part @ np.linalg.eigh(part.T @ part)[1][:, -1]
    upper = along > 0
    return rows[upper] if 2 * int(upper.sum()) <= len(rows) else rows[~upper]


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
