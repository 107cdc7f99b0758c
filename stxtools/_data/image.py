"""Colour of the tissue image at the observations: extra channels for the segmentation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.ndimage import uniform_filter

from stxtools import _keys
from stxtools._checks import check_key

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from .sections import Geometry

N_IMAGE_FEATURES = 6


def image_features(adata: AnnData, where: Geometry, image_key: str) -> NDArray[np.float32]:
    """Mean and standard deviation of red, green and blue in a window as wide as the spacing, (n_obs, 6).

    Reads ``uns["spatial"][library]["images"][image_key]`` and its scale factor, as scanpy lays them out.

    Raises
    ------
    KeyError
        If a section has no such image or scale factor.
    ValueError
        If the image has not three or four channels, or an observation lies outside it.
    """
    out = np.empty((adata.n_obs, N_IMAGE_FEATURES), dtype=np.float32)
    for name, rows, spacing in zip(where.libs.names, where.parts, where.spacings, strict=True):
        pixels, scale = _read_image(adata, name, image_key)
        at = np.rint(where.xy[rows][:, ::-1] * scale).astype(np.int64)  # x runs along the columns
        outside = ((at < 0) | (at >= pixels.shape[:2])).any(axis=1)
        if outside.any():
            raise ValueError(
                f"{int(outside.sum())} of the {len(rows)} observations of section {name!r} lie outside its image "
                f"{image_key!r} of {pixels.shape[1]} x {pixels.shape[0]} pixels; is its scale factor {scale:g}?"
            )
        side = max(1, round(spacing * scale))
        for channel in range(3):
            values = pixels[..., channel]
            mean = uniform_filter(values, side)
            square = uniform_filter(values**2, side)
            out[rows, channel] = mean[at[:, 0], at[:, 1]]
            out[rows, 3 + channel] = np.sqrt(np.maximum(square - mean**2, 0))[at[:, 0], at[:, 1]]
    return out


def with_image(
    values: NDArray[np.float32], adata: AnnData, where: Geometry, image_key: str | None
) -> NDArray[np.float32]:
    """Put the image's channels, if one is asked for, behind the features."""
    if image_key is None:
        return values
    return np.concatenate([values, image_features(adata, where, image_key)], axis=1)


def _read_image(adata: AnnData, library: str, image_key: str) -> tuple[NDArray[np.float64], float]:
    check_key("image_key", image_key)
    entry: Mapping[str, Any] = adata.uns.get(_keys.SPATIAL, {}).get(library, {})
    images = entry.get(_keys.IMAGES, {})
    if image_key not in images:
        there = ", ".join(map(repr, images)) or "none"
        raise KeyError(
            f"`image_key={image_key!r}`: section {library!r} has no such image in `adata.uns['spatial'][{library!r}]"
            f"['images']`; there: {there}. The names in `library_key` must be those of `adata.uns['spatial']`."
        )
    factor = f"tissue_{image_key}_scalef"
    if factor not in entry.get(_keys.SCALEFACTORS, {}):
        raise KeyError(f"`adata.uns['spatial'][{library!r}]['scalefactors']` has no {factor!r}, the image's scale.")
    pixels = np.asarray(images[image_key])
    if pixels.ndim != 3 or pixels.shape[2] not in {3, 4}:
        raise ValueError(f"The image {image_key!r} of section {library!r} has shape {pixels.shape}; expected RGB(A).")
    top = 255.0 if pixels.dtype == np.uint8 else 1.0
    return pixels[..., :3].astype(np.float64) / top, float(entry[_keys.SCALEFACTORS][factor])
