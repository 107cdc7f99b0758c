"""A section as arrays: the input of a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from stxtools._spatial.points import ties_sorted
from stxtools._types import Floats, Floats32, Ints, Reals

if TYPE_CHECKING:
    from stxtools.nn._tiles import PixelRaster

PRIOR_OBS = 20
_SAME = 1e-3  # standard deviations between the means of one and the same section
ALIKE = 3.0  # standard errors between the means of two sections up to which they share a centre
BLOCKS = 8  # parts of a section, whose means tell the standard error


@dataclass
class Section:
    """One section (library) as arrays.

    Attributes
    ----------
    name
        Library name.
    features
        Representation of the observations, (n, C).
    pixels
        Row and column of every observation on the raster, (n, 2).
    shape
        Rows and columns of the raster.
    neighbours
        Spatial neighbours, (n, n) sparse, symmetric; or a function that makes them when they are asked for.
    xy
        Coordinates, (n, 2).
    """

    name: str
    features: Floats32
    pixels: NDArray[np.int32]
    shape: tuple[int, int]
    neighbours: sparse.csr_matrix | Callable[[], sparse.csr_matrix]
    xy: Floats

    @property
    def graph(self) -> sparse.csr_matrix:
        """Return the spatial neighbours, (n, n). They may be made late, since applying a trained model needs none."""
        return self.neighbours() if callable(self.neighbours) else self.neighbours

    def canonical_order(self) -> Ints:
        """Order by features, then by distance from the section's middle: draws from it depend on no row or rotation."""
        distance = np.linalg.norm(self.xy - self.xy.mean(axis=0), axis=1)
        by_first = np.argsort(self.features[:, 0], kind="stable")
        return ties_sorted(by_first, self.features[:, :1], distance, *self.features.T[:0:-1])

    def taken(self, rows: Ints) -> Section:
        """Return the section with its observations in another order."""
        return replace(
            self, features=self.features[rows], pixels=self.pixels[rows], xy=self.xy[rows],
            neighbours=cache(lambda: self.graph[rows][:, rows].tocsr()),
        )  # fmt: skip

    @property
    def n_obs(self) -> int:
        """Number of observations."""
        return len(self.features)

    def squared_error(self, axes: Floats) -> float:
        """Squared standard error of the mean along ``axes`` (C, m), by equal blocks: halves across the longer side."""
        blocks = [np.arange(self.n_obs)]
        while len(blocks) < BLOCKS:
            along = [self.xy[rows, np.ptp(self.xy[rows], axis=0).argmax()] for rows in blocks]
            across = [rows[np.argsort(at, kind="stable")] for rows, at in zip(blocks, along, strict=True)]
            blocks = [half for rows in across for half in np.array_split(rows, 2)]
        values = self.features.astype(np.float64) @ axes
        return float(np.stack([values[rows].mean(axis=0) for rows in blocks]).var(axis=0, ddof=1).sum() / BLOCKS)

    @property
    def flat_pixels(self) -> Ints:
        """Index of every observation's pixel in the flattened raster."""
        return self.pixels[:, 0].astype(np.int64) * self.shape[1] + self.pixels[:, 1]

    def occupied_pixels(self) -> tuple[Ints, Ints]:
        """Return the flat indices of the occupied pixels, ascending, (P,), and each observation's among them, (n,)."""
        flat, member = np.unique(self.flat_pixels, return_inverse=True)
        return flat, member.reshape(-1).astype(np.int64)

    def pooled(self, values: Reals, member: Ints, weights: Reals | None = None) -> Floats32:
        """Return the (weighted) mean of ``values`` (n, C) in each occupied pixel, (P, C); ``member`` as above."""
        weight = np.ones(self.n_obs) if weights is None else np.asarray(weights, dtype=np.float64)
        total = np.bincount(member, weight)
        pool = sparse.csr_matrix((weight, (member, np.arange(self.n_obs))), shape=(len(total), self.n_obs))
        summed = np.asarray(pool @ np.asarray(values, dtype=np.float64))
        np.divide(summed, total[:, None], out=summed, where=total[:, None] > 0)  # a sum without weight is 0
        return summed.astype(np.float32)

    def to_raster(self, values: Reals) -> Floats32:
        """Return the mean of ``values`` (n, C) in each pixel as (C, H, W); zero where there is none."""
        flat, member = self.occupied_pixels()
        out = np.zeros((values.shape[1], self.shape[0] * self.shape[1]), dtype=np.float32)
        out[:, flat] = self.pooled(values, member).T
        return out.reshape(-1, *self.shape)

    def occupied(self) -> Floats32:
        """1 where a pixel holds observations, (1, H, W)."""
        return self.to_raster(np.ones((self.n_obs, 1)))

    def raster(self, scale: Reals) -> tuple[PixelRaster, Ints]:
        """Raster of the features over ``scale``, and each observation's place among its pixels."""
        import torch

        from stxtools.nn._tiles import PixelRaster

        flat, member = self.occupied_pixels()
        x = self.pooled(self.features / scale, member)
        return PixelRaster(self.shape, torch.from_numpy(flat), torch.from_numpy(x)), member


@dataclass(frozen=True)
class FeatureScaling:
    """Mean of each feature in the training sections, and its standard deviation within them, (C,)."""

    centre: Floats32 = field(default_factory=lambda: np.zeros(0, dtype=np.float32))
    scale: Floats32 = field(default_factory=lambda: np.ones(0, dtype=np.float32))
    own: Floats32 | None = None  # means of the training sections, where some share a centre, to know them by, (S, C)
    shared: Floats32 | None = None  # what is taken from them, (S, C)
    axes: Floats | None = None  # directions in which others are compared with those that share a centre, (C, m)
    error: Floats | None = None  # squared standard errors of means along them, NaN for those that share none, (S,)

    @classmethod
    def of(cls, sections: Sequence[Section]) -> FeatureScaling:
        """Measure the features of ``sections``."""
        centre = np.concatenate([s.features for s in sections]).mean(axis=0)
        raw = cls(centre, np.ones_like(centre))
        return cls(centre, np.concatenate([raw.centred(s).features for s in sections]).std(axis=0) + 1e-6)

    def sharing(self, sections: Sequence[Section], codes: Ints, axes: Floats | None) -> FeatureScaling:
        """Let the training sections of one code share the mean of all their observations, and others like them, too."""
        many = np.bincount(codes)[codes] > 1
        if axes is None or not many.any():
            return self
        own, n = np.stack([s.features.mean(axis=0) for s in sections]), np.array([s.n_obs for s in sections])
        shared = [np.average(own[codes == c], axis=0, weights=n[codes == c]) if among else self._own(s)
                  for c, among, s in zip(codes, many, sections, strict=True)]  # fmt: skip
        error = [s.squared_error(axes) if among else np.nan for among, s in zip(many, sections, strict=True)]
        return replace(self, own=own, shared=np.array(shared, dtype=np.float32), axes=axes, error=np.array(error))

    def centred(self, section: Section) -> Section:
        """Take the section's own mean out, the simplest account of depth, staining and donor, or the shared one."""
        alike = self._alike(section)
        mean = self._own(section) if alike is None or self.shared is None else self.shared[alike]
        return replace(section, features=(section.features - mean).astype(np.float32))

    def _own(self, section: Section) -> Reals:
        """Mean of a section, drawn towards that of the training data, as if ``PRIOR_OBS`` observations lay there."""
        own, n = section.features.mean(axis=0), section.n_obs
        return np.asarray((n * own + PRIOR_OBS * self.centre) / (n + PRIOR_OBS))

    def _alike(self, section: Section) -> int | None:
        """Training section that this one is, or else the nearest one, if near enough to share its centre."""
        if self.own is None:
            return None
        difference = self.own - section.features.mean(axis=0)
        same = np.flatnonzero((np.abs(difference) < _SAME * self.scale).all(axis=1))
        if same.size or self.axes is None or self.error is None or section.n_obs < 2 * BLOCKS:
            return int(same[0]) if same.size else None
        apart = np.linalg.norm(difference @ self.axes, axis=1)
        apart = apart / np.sqrt(self.error + section.squared_error(self.axes) + 1e-12)
        return int(np.nanargmin(apart)) if np.nanmin(apart) <= ALIKE else None

    def raster(self, section: Section) -> tuple[PixelRaster, Ints]:
        """Raster of the centred and scaled section, and each observation's place among its pixels."""
        return self.centred(section).raster(self.scale)
