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

_PRIOR_OBS = 20  # weight of the training mean in the mean of a section
_SAME = 1e-3  # standard deviations between the means of identical sections, at most
SIMILAR = 3.0  # standard errors between the means of sections that share a centre, at most
N_BLOCKS = 8  # of a section, for the standard error of its mean


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
        Spatial neighbours, (n, n) sparse, symmetric; or a function that computes them when needed.
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
        """Spatial neighbours, (n, n)."""
        return self.neighbours() if callable(self.neighbours) else self.neighbours

    def canonical_order(self) -> Ints:
        """Order by features, then by distance from the centre: invariant to the order of rows and to rotation."""
        distance = np.linalg.norm(self.xy - self.xy.mean(axis=0), axis=1)
        by_first = np.argsort(self.features[:, 0], kind="stable")
        return ties_sorted(by_first, self.features[:, :1], distance, *self.features.T[:0:-1])

    def take(self, rows: Ints) -> Section:
        """Return the section with the observations ``rows``, in this order."""
        return replace(
            self, features=self.features[rows], pixels=self.pixels[rows], xy=self.xy[rows],
            neighbours=cache(lambda: self.graph[rows][:, rows].tocsr()),
        )  # fmt: skip

    @property
    def n_obs(self) -> int:
        """Number of observations."""
        return len(self.features)

    def squared_standard_error(self, axes: Floats) -> float:
        """Squared standard error of the mean along ``axes`` (C, m), from equal blocks (repeated bisection)."""
        blocks = [np.arange(self.n_obs)]
        while len(blocks) < N_BLOCKS:
            longer = [self.xy[rows, np.ptp(self.xy[rows], axis=0).argmax()] for rows in blocks]
            ordered = [rows[np.argsort(x, kind="stable")] for rows, x in zip(blocks, longer, strict=True)]
            blocks = [half for rows in ordered for half in np.array_split(rows, 2)]
        values = self.features.astype(np.float64) @ axes
        return float(np.stack([values[rows].mean(axis=0) for rows in blocks]).var(axis=0, ddof=1).sum() / N_BLOCKS)

    @property
    def flat_pixels(self) -> Ints:
        """Index of each observation's pixel in the flattened raster."""
        return self.pixels[:, 0].astype(np.int64) * self.shape[1] + self.pixels[:, 1]

    def occupied_pixels(self) -> tuple[Ints, Ints]:
        """Return the flat indices of the occupied pixels, (P,), and the index into them of each observation, (n,)."""
        flat, member = np.unique(self.flat_pixels, return_inverse=True)
        return flat, member.reshape(-1).astype(np.int64)

    def pooled(self, values: Reals, member: Ints, weights: Reals | None = None) -> Floats32:
        """Return the (weighted) mean of ``values`` (n, C) in each occupied pixel, (P, C)."""
        weight = np.ones(self.n_obs) if weights is None else np.asarray(weights, dtype=np.float64)
        return group_means(np.asarray(values, dtype=np.float64), weight, member).astype(np.float32)

    def to_raster(self, values: Reals) -> Floats32:
        """Return the mean of ``values`` (n, C) in each pixel, (C, H, W); zero in empty ones."""
        flat, member = self.occupied_pixels()
        out = np.zeros((values.shape[1], self.shape[0] * self.shape[1]), dtype=np.float32)
        out[:, flat] = self.pooled(values, member).T
        return out.reshape(-1, *self.shape)

    def occupied(self) -> Floats32:
        """Return the mask of the occupied pixels, (1, H, W)."""
        return self.to_raster(np.ones((self.n_obs, 1)))

    def raster(self, scale: Reals) -> tuple[PixelRaster, Ints]:
        """Return the raster of the features over ``scale``, and the position of each observation among its pixels."""
        import torch

        from stxtools.nn._tiles import PixelRaster

        flat, member = self.occupied_pixels()
        x = self.pooled(self.features / scale, member)
        return PixelRaster(self.shape, torch.from_numpy(flat), torch.from_numpy(x)), member


def group_means(values: Reals, weight: Floats, group: Ints, n_groups: int = 0) -> Floats:
    """Return the weighted mean of ``values`` (n, C) in each group, (n_groups, C); 0 in a group without weight."""
    total = np.bincount(group, weight, minlength=n_groups)
    member = sparse.csr_matrix((weight, (group, np.arange(len(group)))), shape=(len(total), len(group)))
    sums = np.asarray(member @ values)
    return np.divide(sums, total[:, None], out=sums, where=total[:, None] > 0)


@dataclass(frozen=True)
class FeatureScaling:
    """Mean and within-section standard deviation of the features in training, (C,)."""

    centre: Floats32 = field(default_factory=lambda: np.zeros(0, dtype=np.float32))
    scale: Floats32 = field(default_factory=lambda: np.ones(0, dtype=np.float32))
    # where some training sections share a centre:
    own: Floats32 | None = None  # mean of each, (S, C)
    shared: Floats32 | None = None  # centre of each, (S, C)
    axes: Floats | None = None  # directions along which other sections are compared with them, (C, m)
    error: Floats | None = None  # squared standard error of the means along them, NaN for those that share none, (S,)

    @classmethod
    def of(cls, sections: Sequence[Section]) -> FeatureScaling:
        """Compute mean and standard deviation from ``sections``."""
        centre = np.concatenate([s.features for s in sections]).mean(axis=0)
        raw = cls(centre, np.ones_like(centre))
        return cls(centre, np.concatenate([raw.centred(s).features for s in sections]).std(axis=0) + 1e-6)

    def sharing(self, sections: Sequence[Section], codes: Ints, axes: Floats | None) -> FeatureScaling:
        """Let training sections of the same code, and sections similar to them, share one mean as their centre."""
        grouped = np.bincount(codes)[codes] > 1
        if axes is None or not grouped.any():
            return self
        own, n = np.stack([s.features.mean(axis=0) for s in sections]), np.array([s.n_obs for s in sections])
        shared, error = [], []
        for section, code, with_others in zip(sections, codes, grouped, strict=True):
            same = codes == code
            shared.append(np.average(own[same], axis=0, weights=n[same]) if with_others else self._mean(section))
            error.append(section.squared_standard_error(axes) if with_others else np.nan)
        return replace(self, own=own, shared=np.array(shared, dtype=np.float32), axes=axes, error=np.array(error))

    def centred(self, section: Section) -> Section:
        """Subtract the section's mean, which differs by depth, staining and donor, or the centre that it shares."""
        similar = self._similar(section)
        mean = self._mean(section) if similar is None or self.shared is None else self.shared[similar]
        return replace(section, features=(section.features - mean).astype(np.float32))

    def _mean(self, section: Section) -> Reals:
        """Mean of a section, shrunk towards the training mean."""
        mean, n = section.features.mean(axis=0), section.n_obs
        return np.asarray((n * mean + _PRIOR_OBS * self.centre) / (n + _PRIOR_OBS))

    def _similar(self, section: Section) -> int | None:
        """Index of the training section that is identical, or else the nearest one if it is similar."""
        if self.own is None:
            return None
        difference = self.own - section.features.mean(axis=0)
        # a training section itself must get its centre back, however small it is
        same = np.flatnonzero((np.abs(difference) < _SAME * self.scale).all(axis=1))
        if same.size or self.axes is None or self.error is None or section.n_obs < 2 * N_BLOCKS:
            return int(same[0]) if same.size else None
        distance = np.linalg.norm(difference @ self.axes, axis=1)
        distance = distance / np.sqrt(self.error + section.squared_standard_error(self.axes) + 1e-12)
        return int(np.nanargmin(distance)) if np.nanmin(distance) <= SIMILAR else None

    def raster(self, section: Section) -> tuple[PixelRaster, Ints]:
        """Return the raster of the standardised section, and the position of each observation among its pixels."""
        return self.centred(section).raster(self.scale)
