"""Random regions for one region of a section: fitted and drawn once, used for every block of genes."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ._label_fields import LabelModel, LabelSampler, LagPairs, fit_label_model


class Labels(Protocol):
    """A source of random regions."""

    @property
    def model(self) -> LabelModel:
        """Model of the regions."""

    def draw(self, n_labels: int, rng: np.random.Generator) -> Iterator[NDArray[np.bool_]]:
        """Yield ``n_labels`` regions as columns, some at a time."""


class CachedLabels:
    """Labels of a sampler that are the same at every iteration.

    Parameters
    ----------
    sampler
        Source of the labels.
    limit
        Bytes for the cache, one bit per observation and label; above it, labels are drawn again.
    """

    def __init__(self, sampler: LabelSampler, limit: float) -> None:
        self._sampler, self._limit = sampler, limit
        self._packed: list[tuple[NDArray[np.uint8], int]] | None = None
        self._before: np.random.Generator | None = None

    @property
    def model(self) -> LabelModel:
        """Model of the regions."""
        return self._sampler.model

    def draw(self, n_labels: int, rng: np.random.Generator) -> Iterator[NDArray[np.bool_]]:
        """Yield labels (observations x some); the first iteration advances ``rng``."""
        if self._packed is not None:
            for packed, count in self._packed:
                yield np.unpackbits(packed, axis=1, count=count).view(np.bool_)
            return
        if self._before is not None:
            yield from self._sampler.draw(n_labels, copy.deepcopy(self._before))
            return
        before, packed_labels = copy.deepcopy(rng), []
        kept = self._sampler.n_obs * n_labels / 8 <= self._limit
        for labels in self._sampler.draw(n_labels, rng):
            if kept:
                packed_labels.append((np.packbits(labels, axis=1), labels.shape[1]))
            yield labels
        if kept:
            self._packed = packed_labels
        else:
            self._before = before


class RegionDraws:
    """The tested side of a region, and its random regions.

    A region and its complement use the same random regions: ``side`` is the one of the two without the first
    observation, and ``flipped`` says whether that is the complement.

    Parameters
    ----------
    xy, pairs
        Positions of the section's observations, and sampled pairs of them.
    label
        The region.
    seed
        Seed of the random regions, together with the region itself.
    limit
        Bytes for random regions that are cached for later blocks of genes; None with one block.
    """

    def __init__(
        self,
        xy: NDArray[np.float64],
        pairs: LagPairs,
        label: NDArray[np.bool_],
        seed: Sequence[int],
        limit: float | None = None,
    ) -> None:
        self.flipped = bool(label[0])
        self.side = ~label if self.flipped else label
        self.rng = np.random.default_rng([*seed, zlib.crc32(np.packbits(self.side).tobytes())])
        self._sampler = LabelSampler(xy, fit_label_model(pairs, self.side), pairs.spacing)
        self._limit = limit

    def labels(self) -> Labels:
        """Return a source of random regions that continues the random stream."""
        return self._sampler if self._limit is None else CachedLabels(self._sampler, self._limit)
