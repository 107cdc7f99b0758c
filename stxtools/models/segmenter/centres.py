"""Sections without a batch effect between them, such as tiles of a slide, which one centre is taken from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist, squareform

from stxtools._spatial.graph import averaging
from stxtools._types import Floats, Ints
from stxtools.models._section import ALIKE, BLOCKS, Section

from .mixtures import whitening

_FEWEST = 3  # sections that share a centre: each of two shows half of the tissue, and its own mean is safer


def sharing_centres(sections: Sequence[Section], batch: Ints) -> tuple[Ints, Floats | None]:
    """Code of the centre of each section, 0, 1, ..., and the directions compared; those of other ``batch`` share none.

    A batch effect moves means in any direction, another composition only where compartments differ. So means are
    compared in the half of the directions that varies least over space within sections. Their standard error is that of
    the means of blocks, as observations nearby are alike. Single linkage, since tiles of a slide are a chain.
    """
    some = [s for s in sections if s.n_obs >= 2 * BLOCKS]
    large = np.flatnonzero([s.n_obs >= 2 * BLOCKS for s in sections])
    codes = np.arange(len(sections))
    if len(large) < 2:
        return codes, None
    values = [s.features.astype(np.float64) for s in some]
    axes = _least_spatial([x - x.mean(axis=0) for x in values], some)
    error = np.array([s.squared_error(axes) for s in some])
    difference = squareform(pdist(np.stack([x.mean(axis=0) @ axes for x in values])))
    apart = difference / np.sqrt(error[:, None] + error + 1e-12)
    apart[batch[large, None] != batch[large]] = 2 * ALIKE
    group = fcluster(linkage(squareform(apart, checks=False), "single"), ALIKE, "distance")
    _, first, which, size = np.unique(group, return_index=True, return_inverse=True, return_counts=True)
    codes[large] = np.where(size[which] >= _FEWEST, large[first][which], large)
    return np.unique(codes, return_inverse=True)[1], axes


def _least_spatial(centred: Sequence[Floats], sections: Sequence[Section]) -> Floats:
    """Directions (d, d / 2) with the least variance of spatial means, of unit variance within sections."""
    white = whitening(np.concatenate(centred))[1]
    smooth = []
    for x, section in zip(centred, sections, strict=True):
        mean = averaging(section.graph)
        smooth.append(mean @ (mean @ (x @ white)))
    axes = np.linalg.eigh(np.atleast_2d(np.cov(np.concatenate(smooth).T)))[1]
    return np.asarray(white @ axes[:, : max(len(axes) // 2, 1)])
