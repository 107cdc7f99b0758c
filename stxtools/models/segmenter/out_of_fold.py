"""Calibration of a transferred model by logits of members that have not seen the observations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from stxtools._spatial.blocks import deal, spatial_blocks
from stxtools.models.ensemble.evidence import Answers
from stxtools.models.ensemble.gene_means import FloatArray, GeneMeans
from stxtools.models.ensemble.moments import N_COMPS, moments_of

_FOLDS, _BLOCKS = 5, 25
_FOLD_RANK = 128  # for a fold: as good, in half the time


def calibrated(
    logits_of: Iterable[tuple[int, FloatArray]], shares: Sequence[FloatArray], weights: Sequence[NDArray[np.float64]]
) -> float:
    """Inverse temperature with the lowest cross-entropy of logits, those of :func:`out_of_fold`."""
    found = list(logits_of)

    def loss(log_factor: float) -> float:
        likely = [log_softmax(np.exp(log_factor) * logits, axis=1) for _, logits in found]
        losses = [
            weights[i] @ (shares[i] * log_share).sum(axis=1) for (i, _), log_share in zip(found, likely, strict=True)
        ]
        return -float(np.mean(losses))

    return float(np.exp(minimize_scalar(loss, bounds=(-3.0, 1.5), method="bounded").x))


def out_of_fold(
    genes: Sequence[str],
    means: Sequence[GeneMeans],
    xy: Sequence[NDArray[np.float64]],
    shares: Sequence[FloatArray],
    weights: Sequence[NDArray[np.float64]],
    rng: np.random.Generator,
) -> Iterator[tuple[int, FloatArray]]:
    """Logits of each section as a new one would get them: from models that have not seen the block, or the section."""
    whole = len(means) > 1
    folds = [np.full(len(x), i) for i, x in enumerate(xy)] if whole else [_blocks(xy[0], rng)]
    found = [Answers(np.zeros_like(s), np.zeros_like(s)) for s in shares]
    for fold in range(len(means) if whole else _FOLDS):
        seen = [np.where(f == fold, 0.0, w) for f, w in zip(folds, weights, strict=True)]
        if not any(w.any() for w in seen):
            continue
        members = moments_of(genes, means, shares, seen, rank=_FOLD_RANK).solve(np.arange(len(genes)))
        for m, f, out in zip(means, folds, found, strict=True):
            left = f == fold
            if left.any():
                answers, _ = Answers.of(members, m)
                out.ridge[left], out.lda[left] = answers.ridge[left], answers.lda[left]
    for i, (m, answers) in enumerate(zip(means, found, strict=True)):
        own = m.components(m.axes(N_COMPS))
        for with_lda in (False, True):
            yield i, answers.joined(own, with_lda=with_lda).logits


def _blocks(xy: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Fold of each observation; whole blocks, cut along random axes."""
    angle = rng.uniform(0, np.pi)
    turned = xy @ np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return deal(spatial_blocks(turned, _BLOCKS), _FOLDS, rng)
