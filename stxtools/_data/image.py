"""Images of the tissue: their colour at the observations, and the pixels of a mask."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from anndata import AnnData
from scipy.ndimage import uniform_filter

from stxtools import _keys
from stxtools._checks import check_key
from stxtools._spatial.mask import Frame
from stxtools._types import Floats, Floats32
from stxtools._validate import spatial_entry

from .sections import Geometry

N_IMAGE_FEATURES = 6
_PIXELS_PER_SPOT = 2  # of an image that the mask takes its pixels from


class Images:
    """Images of the sections, ``uns["spatial"][library]``, as scanpy lays them out."""

    def __init__(self, adata: AnnData) -> None:
        self._entry = partial(spatial_entry, adata)

    def features(self, where: Geometry, image_key: str) -> Floats32:
        """Mean and standard deviation of red, green and blue in a window as wide as the spacing, (n_obs, 6)."""
        out = np.empty((len(where.xy), N_IMAGE_FEATURES), dtype=np.float32)
        for name, rows, spacing in zip(where.libs.names, where.parts, where.spacings, strict=True):
            pixels, scale = self._read(name, image_key)
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

    def beside(self, values: Floats32, where: Geometry, image_key: str | None) -> Floats32:
        """Put the image's channels, if one is asked for, behind the features."""
        return values if image_key is None else np.concatenate([values, self.features(where, image_key)], axis=1)

    def frame(self, library: str, xy: Floats, spacing: float) -> Frame | None:
        """Pixels of the section's image, if it is fine enough and the tissue lies on it."""
        images, factors = (self._entry(library)[kind] for kind in (_keys.IMAGES, _keys.SCALEFACTORS))
        for name in ("hires", "lowres"):
            scale = factors.get(f"tissue_{name}_scalef")
            shape: Any = np.shape(images[name]) if name in images else ()
            if len(shape) not in (2, 3) or not isinstance(scale, (int, float, np.number)) or not np.isfinite(scale):
                continue
            pixels = xy * float(scale)
            inside = (pixels >= -0.5).all() and (pixels <= np.array(shape[1::-1]) - 0.5).all()
            if inside and spacing * scale >= _PIXELS_PER_SPOT:
                return Frame((shape[0], shape[1]), float(scale))
        return None

    def _read(self, library: str, image_key: str) -> tuple[Floats, float]:
        check_key("image_key", image_key)
        images, factors = (self._entry(library)[kind] for kind in (_keys.IMAGES, _keys.SCALEFACTORS))
        if image_key not in images:
            there = ", ".join(map(repr, images)) or "none"
            raise KeyError(
                f"`image_key={image_key!r}`: section {library!r} has no such image in "
                f"`adata.uns['spatial'][{library!r}]['images']`; there: {there}. The names in `library_key` must be "
                "those of `adata.uns['spatial']`."
            )
        factor = f"tissue_{image_key}_scalef"
        if factor not in factors:
            raise KeyError(f"`adata.uns['spatial'][{library!r}]['scalefactors']` has no {factor!r}, the image's scale.")
        pixels = np.asarray(images[image_key])
        if pixels.ndim != 3 or pixels.shape[2] not in {3, 4}:
            raise ValueError(
                f"The image {image_key!r} of section {library!r} has shape {pixels.shape}; expected RGB(A)."
            )
        values = pixels[..., :3].astype(np.float64)
        # white: colours of 8 or 16 bits may be stored as any type, shares of 1 may be a little above it
        top = 255.0 if pixels.dtype == np.uint8 else next((w for w in (1.0, 255.0) if values.max() < 2 * w), 65535.0)
        return values / top, float(factors[factor])
