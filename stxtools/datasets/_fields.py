"""Smooth Gaussian random fields: drawn once on a grid by FFT, read off anywhere in linear time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

if TYPE_CHECKING:
    from numpy.typing import NDArray

_HALF_WIDTH = 1.8  # the grid reaches beyond the tissue (about -1 ... 1), so that its wrapped edges never meet inside
_GRID = 256


@dataclass(frozen=True)
class SmoothField:
    """A smooth function of the position in the tissue's frame."""

    grid: NDArray[np.float64]

    def __call__(self, unit_xy: NDArray[np.float64]) -> NDArray[np.float64]:
        """Values at positions (n, 2), interpolated linearly."""
        index = (unit_xy.T + _HALF_WIDTH) * (self.grid.shape[0] / (2 * _HALF_WIDTH))
        return ndimage.map_coordinates(self.grid, index, order=1, mode="grid-wrap")

    def __add__(self, other: SmoothField) -> SmoothField:
        return SmoothField(self.grid + other.grid)

    def __mul__(self, factor: float) -> SmoothField:
        return SmoothField(self.grid * factor)


def gaussian_field(rng: np.random.Generator, length_scale: float) -> SmoothField:
    r"""Draw a stationary Gaussian field of mean 0 and variance 1.

    White noise is filtered with a Gaussian in the frequency domain, so the covariance at distance :math:`r` is
    :math:`\exp(-r^2 / (2 \ell^2))` with :math:`\ell` the length scale, in units of half the tissue's width.
    """
    frequency = np.fft.fftfreq(_GRID, d=2 * _HALF_WIDTH / _GRID) * 2 * np.pi
    half = np.fft.rfftfreq(_GRID, d=2 * _HALF_WIDTH / _GRID) * 2 * np.pi
    squared = frequency[:, None] ** 2 + half[None, :] ** 2
    # the covariance's spectrum is exp(-l^2 k^2 / 2); its square root filters the noise
    kernel = np.exp(-(length_scale**2) * squared / 4)
    white = rng.standard_normal((_GRID, _GRID))
    full_power = np.exp(-(length_scale**2) * (frequency[:, None] ** 2 + frequency[None, :] ** 2) / 2)
    grid = np.fft.irfft2(np.fft.rfft2(white) * kernel, s=(_GRID, _GRID)) / np.sqrt(full_power.mean())
    return SmoothField(grid)
