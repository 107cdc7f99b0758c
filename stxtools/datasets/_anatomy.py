"""Anatomy of synthetic tissue: random fields, the lattice within an outline, compartments and lesions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from scipy.stats import rankdata

from stxtools._types import Bools, Floats, Ints

_HALF_WIDTH = 1.8  # of the grid, beyond the tissue (centre 0, edge at about 1): its edges wrap around
_GRID = 256
_ISLAND_SHARE = 0.15  # of the tissue's area, for each kind of island
_LESION_SHARE = 0.3
_CHANGE = 0.3  # of the fields from a section to the next; 1 is no correlation
_BORDER_LENGTH = 0.35  # length scale of the borders' random shape


def gaussian_field(rng: np.random.Generator, length_scale: float) -> Floats:
    """Draw a Gaussian field of variance 1 and covariance ``exp(-r**2 / 2 / length_scale**2)`` on a grid."""
    frequency = np.fft.fftfreq(_GRID, d=2 * _HALF_WIDTH / _GRID) * 2 * np.pi
    exponent = -(length_scale**2) * (frequency[:, None] ** 2 + frequency**2)
    # the spectrum of the covariance is exp(exponent / 2); its square root filters the noise
    kernel = np.exp(exponent[:, : _GRID // 2 + 1] / 4)
    white = rng.standard_normal((_GRID, _GRID))
    return np.fft.irfft2(np.fft.rfft2(white) * kernel, s=white.shape) / np.sqrt(np.exp(exponent / 2).mean())


def field_at(field: Floats, unit_xy: Floats) -> Floats:
    """Interpolate a field linearly at positions (n, 2)."""
    index = (unit_xy.T + _HALF_WIDTH) * (len(field) / (2 * _HALF_WIDTH))
    return ndimage.map_coordinates(field, index, order=1, mode="grid-wrap")


def compartment_names(n_compartments: int) -> list[str]:
    """Return the names of the layers, from the surface inwards, and of the islands: every third compartment."""
    kinds = ("layer", n_compartments - n_compartments // 3), ("island", n_compartments // 3)
    return [f"{kind}_{k + 1}" for kind, n in kinds for k in range(n)]


def lattice(n_obs: int, kind: str, rng: np.random.Generator) -> tuple[Floats, Ints, float]:
    """Place exactly ``n_obs`` observations inside a rounded outline without holes.

    Returns the positions; array row and column on a hexagonal lattice (as Visium's: columns count in steps of two, odd
    rows shifted by one), of width 0 where cells are scattered; and half the tissue's width, in units of the spacing.
    """
    height = np.sqrt(3) / 2 if kind == "hex" else 1.0  # of a row
    half = np.sqrt(n_obs * height) / 2
    rows, cols = (2 * int(np.ceil((half * 1.25 + 3) / step)) + 1 for step in (height, 1.0))
    r, c = (a.ravel() for a in np.mgrid[:rows, :cols])
    if kind == "hex":
        array = np.column_stack([r, 2 * c + r % 2])
        xy = np.column_stack([array[:, 1] / 2.0, r * height])
        centre = np.array([cols - 1, (rows - 1) * height]) / 2
    else:
        # one cell at a random position in each square: irregular, but as evenly spread as packed cells are
        array = np.empty((len(r), 0), dtype=np.int64)
        xy = np.column_stack([c, r]) + rng.random((len(r), 2))
        centre = np.array([cols, rows]) / 2
    unit = (xy - centre) / half
    angle = np.arctan2(unit[:, 1], unit[:, 0])
    radius = (np.abs(unit) ** 3).sum(axis=1) ** (1 / 3)  # of the similar rounded, wavy square through each position
    wave = np.zeros(len(unit))
    for k in (2, 3, 4):
        wave += rng.normal(0, 0.04) * np.cos(k * angle + rng.uniform(0, 2 * np.pi))
    inside = np.argpartition(radius / (1 + wave), n_obs - 1)[:n_obs]
    inside.sort()  # reading order
    array = array[inside]
    return unit[inside], array - array.min(axis=0) // 2 * 2, float(half)


class Anatomy(NamedTuple):
    """Borders of one patient's tissue; adjacent sections share most of them."""

    tilt: float
    curvature: float
    border_field: Floats
    islands: tuple[Floats, ...]
    lesion: Floats


def draw_anatomy(rng: np.random.Generator, n_compartments: int) -> Anatomy:
    """Draw curved layers, islands and a lesion with smooth random borders."""
    return Anatomy(
        tilt=float(rng.uniform(-0.3, 0.3)),
        curvature=float(rng.uniform(0.25, 0.5)),
        border_field=gaussian_field(rng, _BORDER_LENGTH),
        islands=tuple(gaussian_field(rng, _BORDER_LENGTH) for _ in range(n_compartments // 3)),
        lesion=gaussian_field(rng, 0.5),
    )


def adjacent_section(anatomy: Anatomy, rng: np.random.Generator) -> Anatomy:
    """Return the anatomy of an adjacent section: the same shapes with slightly different borders."""

    def varied(field: Floats, length: float) -> Floats:
        return field * float(np.sqrt(1 - _CHANGE**2)) + gaussian_field(rng, length) * _CHANGE

    return anatomy._replace(
        border_field=varied(anatomy.border_field, _BORDER_LENGTH),
        islands=tuple(varied(field, _BORDER_LENGTH) for field in anatomy.islands),
        lesion=varied(anatomy.lesion, 0.5),
    )


def layer_height(unit: Floats, anatomy: Anatomy) -> Floats:
    """Return the height from which layers are cut: tilted, curved, with a random border."""
    height = unit[:, 1] + anatomy.tilt * unit[:, 0] - anatomy.curvature * unit[:, 0] ** 2
    return height + 0.12 * field_at(anatomy.border_field, unit)


def sigmoid(x: Floats) -> Floats:
    return 0.5 * (1 + np.tanh(x / 2))


def rank(values: Floats) -> Floats:
    """Return the rank of each value, from 0 to 1: a threshold then cuts off a share of the area."""
    return (rankdata(values, method="ordinal") - 0.5) / len(values)


def interior_field(field: Floats, unit: Floats) -> Floats:
    """Return a field lowered towards the edge: regions above a threshold lie mostly inside the tissue."""
    return field_at(field, unit) - 0.8 * (unit**2).sum(axis=1)


def layer_shares(distances: Iterable[Floats]) -> Floats:
    """Return the share of each layer, from the signed distance to each border in units of its width."""
    above: Floats = np.ones(1)
    shares = []
    for distance in distances:
        below = np.minimum(sigmoid(distance), above)
        shares.append(above - below)
        above = below
    return np.column_stack([*shares, above])


def add_island(code: Ints, mixture: Floats, index: int, field: Floats, area: float, border: float) -> None:
    """Assign the ``area`` of highest values to the compartment ``index``, in place; it blends in at its ``border``."""
    ranks = rank(field)
    inside = sigmoid((ranks - (1 - area)) / (0.2 * border))
    mixture *= (1 - inside)[:, None]
    mixture[:, index] = inside
    code[ranks > 1 - area] = index


def compartments(unit: Floats, anatomy: Anatomy, n_compartments: int, border: float) -> tuple[Ints, Floats]:
    """Return the compartment of each observation, and its mixture of compartments (``border``: width, in layers)."""
    islands = len(anatomy.islands)
    layers = n_compartments - islands
    depth = layers * rank(layer_height(unit, anatomy))
    code = np.minimum(depth.astype(np.int64), layers - 1)
    mixture, width = np.zeros((len(unit), n_compartments)), np.full(layers - 1, border)
    width[: layers > 2] *= 3  # the first border is a gradient
    mixture[:, :layers] = layer_shares((depth - (k + 1)) / width[k] for k in range(layers - 1))
    for k, field in enumerate(anatomy.islands):
        add_island(code, mixture, layers + k, interior_field(field, unit), _ISLAND_SHARE, border)
    return code, mixture


def lesion(unit: Floats, anatomy: Anatomy) -> Bools:
    """Return which observations lie in the lesion: smooth patches, independent of compartments."""
    return rank(interior_field(anatomy.lesion, unit)) > 1 - _LESION_SHARE
