"""Shapes: smooth random fields, lattices, the tissue's outline, compartments and lesions, as functions of position.

Positions are in the tissue's own frame: centre at 0, the edge at about 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage
from scipy.stats import rankdata

from stxtools._types import Bools, Floats, Ints

_HALF_WIDTH = 1.8  # the grid reaches beyond the tissue (about -1 ... 1), so that its wrapped edges never meet inside
_GRID = 256
_ISLAND_SHARE = 0.15  # of the tissue's area, for each kind of island
_LESION_SHARE = 0.3
_BORDER_LENGTH = 0.35  # length scale of the wobble of borders


def gaussian_field(rng: np.random.Generator, length_scale: float) -> Floats:
    """Draw a Gaussian field of variance 1 and covariance ``exp(-r**2 / 2 / length_scale**2)`` on a grid."""
    frequency = np.fft.fftfreq(_GRID, d=2 * _HALF_WIDTH / _GRID) * 2 * np.pi
    half = np.fft.rfftfreq(_GRID, d=2 * _HALF_WIDTH / _GRID) * 2 * np.pi
    squared = frequency[:, None] ** 2 + half[None, :] ** 2
    # the covariance's spectrum is exp(-l^2 k^2 / 2); its square root filters the noise
    kernel = np.exp(-(length_scale**2) * squared / 4)
    white = rng.standard_normal((_GRID, _GRID))
    full_power = np.exp(-(length_scale**2) * (frequency[:, None] ** 2 + frequency[None, :] ** 2) / 2)
    return np.fft.irfft2(np.fft.rfft2(white) * kernel, s=(_GRID, _GRID)) / np.sqrt(full_power.mean())


def field_at(field: Floats, unit_xy: Floats) -> Floats:
    """Values of a field at positions (n, 2) in the tissue's frame, interpolated linearly."""
    index = (unit_xy.T + _HALF_WIDTH) * (len(field) / (2 * _HALF_WIDTH))
    return ndimage.map_coordinates(field, index, order=1, mode="grid-wrap")


def compartment_names(n_compartments: int) -> list[str]:
    """Names of the compartments, of which every third is an island: layers from the surface inwards, then islands."""
    kinds = ("layer", n_compartments - n_compartments // 3), ("island", n_compartments // 3)
    return [f"{kind}_{k + 1}" for kind, n in kinds for k in range(n)]


def lattice(n_obs: int, kind: str, rng: np.random.Generator) -> tuple[Floats, Ints | None, float]:
    """Place exactly ``n_obs`` observations inside a rounded outline without holes.

    Returns the positions with neighbours one unit apart (hexagonal lattice) or one observation per unit square
    (scattered), the array rows and columns of a hexagonal lattice (Visium's way: columns count in steps
    of two, odd rows shifted by one), and the half width, which maps the positions to the tissue's frame.
    """
    height = np.sqrt(3) / 2 if kind == "hex" else 1.0  # of a row
    half = np.sqrt(n_obs * height) / 2
    rows, cols = (2 * int(np.ceil((half * 1.25 + 3) / step)) + 1 for step in (height, 1.0))
    r, c = (a.ravel() for a in np.mgrid[:rows, :cols])
    array = None
    if kind == "hex":
        array = np.column_stack([r, 2 * c + r % 2])
        xy = np.column_stack([array[:, 1] / 2.0, r * height])
        centre = np.array([cols - 1, (rows - 1) * height]) / 2
    else:
        # one cell at a random place of each square: irregular, but as evenly spread as packed cells are
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
    if array is not None:
        array = array[inside] - [array[inside, 0].min() // 2 * 2, array[inside, 1].min() // 2 * 2]
    return unit[inside], array, float(half)


@dataclass(frozen=True)
class Anatomy:
    """The borders of one patient's tissue; sections near each other share most of it."""

    tilt: float
    curvature: float
    wobble: Floats
    islands: tuple[Floats, ...]
    lesion: Floats


def draw_anatomy(rng: np.random.Generator, n_compartments: int) -> Anatomy:
    """Draw curved layers, islands and a lesion with smooth random borders."""
    return Anatomy(
        tilt=float(rng.uniform(-0.3, 0.3)),
        curvature=float(rng.uniform(0.25, 0.5)),
        wobble=gaussian_field(rng, _BORDER_LENGTH),
        islands=tuple(gaussian_field(rng, _BORDER_LENGTH) for _ in range(n_compartments // 3)),
        lesion=gaussian_field(rng, 0.5),
    )


def neighbouring(anatomy: Anatomy, rng: np.random.Generator, change: float = 0.3) -> Anatomy:
    """Return the anatomy a little further into the block: the same shapes, slightly moved borders."""
    keep = float(np.sqrt(1 - change**2))

    def moved(field: Floats, length: float) -> Floats:
        return field * keep + gaussian_field(rng, length) * change

    return replace(
        anatomy,
        wobble=moved(anatomy.wobble, _BORDER_LENGTH),
        islands=tuple(moved(field, _BORDER_LENGTH) for field in anatomy.islands),
        lesion=moved(anatomy.lesion, 0.5),
    )


def layer_height(unit: Floats, anatomy: Anatomy) -> Floats:
    """What grows across the layers: a tilted, curved and wobbly height."""
    height = unit[:, 1] + anatomy.tilt * unit[:, 0] - anatomy.curvature * unit[:, 0] ** 2
    return height + 0.12 * field_at(anatomy.wobble, unit)


def sigmoid(x: Floats) -> Floats:
    """Logistic function."""
    return 0.5 * (1 + np.tanh(x / 2))


def share(values: Floats) -> Floats:
    """Rank of each value, from 0 to 1: thresholds then cut off shares of the tissue's area."""
    return (rankdata(values, method="ordinal") - 0.5) / len(values)


def inward(field: Floats, unit: Floats) -> Floats:
    """Values of a field, lowered towards the edge: what is cut out of it lies mostly inside the tissue."""
    return field_at(field, unit) - 0.8 * (unit**2).sum(axis=1)


def stacked(beyond: Iterable[Floats]) -> Floats:
    """Shares of layers, by how far ``beyond`` each border between two of them an observation is, in its widths."""
    above: Floats = np.ones(1)
    shares = []
    for past in beyond:
        below = np.minimum(sigmoid(past), above)
        shares.append(above - below)
        above = below
    return np.column_stack([*shares, above])


def add_island(code: Ints, mixture: Floats, at: int, rank: Floats, top: float, border: float) -> None:
    """Let what ranks above ``top`` be of compartment ``at``, which blends into the others at its ``border``."""
    inside = sigmoid((rank - top) / (0.2 * border))
    mixture *= (1 - inside)[:, None]
    mixture[:, at] = inside
    code[rank > top] = at


def compartments(unit: Floats, anatomy: Anatomy, n_compartments: int, border: float) -> tuple[Ints, Floats]:
    """Return the compartment of each observation and its mixture of them, which changes over ``border`` layers."""
    islands = len(anatomy.islands)
    layers = n_compartments - islands
    depth = layers * share(layer_height(unit, anatomy))
    code = np.minimum(depth.astype(np.int64), layers - 1)
    mixture, width = np.zeros((len(unit), n_compartments)), np.full(layers - 1, border)
    width[: layers > 2] *= 3  # the first border is a gradient
    mixture[:, :layers] = stacked((depth - (k + 1)) / width[k] for k in range(layers - 1))
    for k, field in enumerate(anatomy.islands):
        add_island(code, mixture, layers + k, share(inward(field, unit)), 1 - _ISLAND_SHARE, border)
    return code, mixture


def lesion(unit: Floats, anatomy: Anatomy) -> Bools:
    """Return which observations lie in the lesion: connected, smooth patches, independent of compartments."""
    return share(inward(anatomy.lesion, unit)) > 1 - _LESION_SHARE
