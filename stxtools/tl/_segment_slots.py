"""Slots of tl.segment: classes, probabilities, colours and the mask of every section."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from stxtools import _keys
from stxtools._colors import colors_for, stored_colors
from stxtools._slots import Slots, categorical, put_frame
from stxtools._spatial.mask import REACH, REACH_SCATTERED, Frame, render_mask, tissue_frame

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    from stxtools._data.sections import Geometry

_PIXELS_PER_SPOT = 2  # of an image that the mask takes its pixels from


def segment_slots(
    adata: AnnData,
    classes: Sequence[str],
    proba: NDArray[np.float32],
    where: Geometry,
    *,
    key: str,
    labels_key: str | None,
    abstain_below: float | None,
    spatial_key: str,
) -> Slots:
    """Classes, their probabilities and colours, and ``uns[key]["masks"]``."""
    codes = proba.argmax(axis=1)
    if abstain_below is not None:
        codes = np.where(proba.max(axis=1) < abstain_below, -1, codes)
    slots = Slots("tl.segment")
    slots.obs[key] = categorical(codes, classes)
    slots.obs[_keys.mask_id(key)] = (codes + 1).astype(np.int32)
    slots.obs[_keys.confidence(key)] = proba.max(axis=1)
    put_frame(slots, _keys.proba(key), proba, classes)
    labelled = {} if labels_key is None else stored_colors(adata, labels_key)
    colors = colors_for(list(classes), labelled, stored_colors(adata, key))
    slots.uns[_keys.colors(key)] = np.array(colors, dtype=object)
    slots.uns[key] = {_keys.MASKS: _masks(adata, codes + 1, where, spatial_key)}
    if len(where.libs) > 1:
        from sklearn.metrics import normalized_mutual_info_score

        slots.uns[key]["library_nmi"] = float(normalized_mutual_info_score(where.libs.codes, codes))
    return slots


def _masks(adata: AnnData, values: NDArray[Any], where: Geometry, spatial_key: str) -> dict[str, dict[str, Any]]:
    out = {}
    for name, grid, rows, spacing in zip(where.libs.names, where.grids, where.parts, where.spacings, strict=True):
        reach = REACH_SCATTERED if grid.lattice == "scattered" else REACH
        xy = where.xy[rows]
        frame = _frame_of_image(adata, name, xy, spacing) if spatial_key == _keys.SPATIAL else None
        if frame is None:
            frame = tissue_frame(xy, spacing, margin=reach)
        out[name] = {
            "image": render_mask(xy, values[rows], spacing, frame, reach=reach),
            "scale": frame.scale,
            "origin": np.array(frame.origin, dtype=np.float64),
        }
    return out


def _frame_of_image(adata: AnnData, library: str, xy: NDArray[np.float64], spacing: float) -> Frame | None:
    """Pixels of the section's image, if it is fine enough and the tissue lies on it."""
    found: Any = adata.uns.get(_keys.SPATIAL)
    entry: Any = found.get(library) if isinstance(found, Mapping) else None
    images, factors = (entry.get(k) if isinstance(entry, Mapping) else None for k in (_keys.IMAGES, _keys.SCALEFACTORS))
    if not isinstance(images, Mapping) or not isinstance(factors, Mapping):
        return None
    for name in ("hires", "lowres"):
        scale = factors.get(f"tissue_{name}_scalef")
        shape = np.shape(images[name]) if name in images else ()
        if len(shape) not in (2, 3) or not isinstance(scale, (int, float, np.number)) or not np.isfinite(scale):
            continue
        pixels = xy * float(scale)
        inside = (pixels >= -0.5).all() and (pixels <= np.array(shape[1::-1]) - 0.5).all()
        if inside and spacing * scale >= _PIXELS_PER_SPOT:
            return Frame((shape[0], shape[1]), float(scale))
    return None
