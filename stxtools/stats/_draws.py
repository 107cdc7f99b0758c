"""Random regions like one region of a section: fitted once, drawn once, used for every block of genes."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ._label_fields import Geometry, LabelModel, LabelSampler, fit_label_model


class Labels(Protocol):
    """Where random regions come from."""

    @property
    def model(self) -> LabelModel:
        """What they are drawn from."""

    def draw(self, n_labels: int, rng: np.random.Generator) -> Iterator[NDArray[np.bool_]]:
        """Yield ``n_labels`` regions as columns, some at a time."""


class KeptLabels:
    """Labels of a sampler that come again, the same, each time they are asked for.

    Parameters
    ----------
    sampler
        Draws them.
    limit
        Bytes that they may take, a bit for each observation and label; above it they are drawn again.
    """

    def __init__(self, sampler: LabelSampler, limit: float) -> None:
        self._sampler, self._limit = sampler, limit
        self._packed: list[tuple[NDArray[np.uint8], int]] | None = None
        self._before: np.random.Generator | None = None

    @property
    def model(self) -> LabelModel:
        """What the labels are drawn from."""
        return self._sampler.model

    def draw(self, n_labels: int, rng: np.random.Generator) -> Iterator[NDArray[np.bool_]]:
        """Yield labels, observations x some at a time; ``rng`` moves on when they are drawn for the first time."""
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
    """A region of a section as its test sees it, and its random regions.

    A region and its complement are compared with the same random regions: ``side`` is the one of the two that does not
    hold the first observation, ``flipped`` says whether that is the complement.

    Parameters
    ----------
    xy, geometry
        Positions of the section's observations, and their spacing and pairs.
    label
        The region.
    seed
        Seed of the random regions, together with the region itself.
    limit
        Bytes in which random regions are kept for another block of genes; None where there is none.
    """

    def __init__(
        self,
        xy: NDArray[np.float64],
        geometry: Geometry,
        label: NDArray[np.bool_],
        seed: Sequence[int],
        limit: float | None = None,
    ) -> None:
        self.flipped = bool(label[0])
        self.side = ~label if self.flipped else label
        self.rng = np.random.default_rng([*seed, zlib.crc32(np.packbits(self.side).tobytes())])
        self._sampler = LabelSampler(xy, fit_label_model(geometry, self.side), geometry.spacing)
        self._limit = limit

    def labels(self) -> Labels:
        """Return the next random regions of the stream."""
        return self._sampler if self._limit is None else KeptLabels(self._sampler, self._limit)
