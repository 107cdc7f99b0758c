"""Slots of tl.segment: classes, probabilities and the mask of every section."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stxtools import _keys
from stxtools._slots import Slots, categorical, put_frame
from stxtools._spatial.mask import REACH, REACH_SCATTERED, render_mask, tissue_frame

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from stxtools._data.image import Images
    from stxtools._data.sections import Geometry
    from stxtools.models import Segmentation, Segmenter


def segment_slots(
    fitted: Segmenter, results: Sequence[Segmentation], where: Geometry, images: Images | None, *,
    key: str, unet_key: str, kept: NDArray[np.int64] | None, abstain_below: float | None, trained: bool,
) -> Slots:  # fmt: skip
    """Classes (those ``kept`` where there are some), probabilities, features, and ``uns[key]`` but for ``params``."""
    proba = where.join([r.proba for r in results])
    if kept is not None:
        proba[kept >= 0] = np.eye(proba.shape[1], dtype=proba.dtype)[kept[kept >= 0]]
    codes = proba.argmax(axis=1)
    if abstain_below is not None:
        codes = np.where(proba.max(axis=1) < abstain_below, -1, codes)
    slots = Slots("tl.segment")
    slots.obs[key] = categorical(codes, fitted.classes)
    slots.obs[_keys.mask_id(key)] = (codes + 1).astype(np.int32)
    slots.obs[_keys.confidence(key)] = proba.max(axis=1)
    put_frame(slots, _keys.proba(key), proba, fitted.classes)
    slots.obsm[unet_key] = where.join([r.features for r in results])
    slots.uns[key] = {_keys.MASKS: _masks(codes + 1, where, images)}
    if len(where.libs) > 1:
        from sklearn.metrics import normalized_mutual_info_score

        slots.uns[key]["library_nmi"] = float(normalized_mutual_info_score(where.libs.codes, codes))
    if any(r.weights for r in results):
        slots.uns[key]["members"] = pd.DataFrame(
            [{"library": n, **r.weights} for n, r in zip(where.libs.names, results, strict=True)]
        )
    if trained:
        slots.uns[key]["history"] = pd.DataFrame(fitted.history)
    if trained and fitted.curve:
        slots.uns[key]["stability"] = pd.DataFrame(fitted.curve)
    return slots


def _masks(values: NDArray[Any], where: Geometry, images: Images | None) -> dict[str, dict[str, Any]]:
    out = {}
    for name, grid, rows, spacing in zip(where.libs.names, where.grids, where.parts, where.spacings, strict=True):
        reach = REACH_SCATTERED if grid.lattice == "scattered" else REACH
        xy = where.xy[rows]
        frame = None if images is None else images.frame(name, xy, spacing)
        if frame is None:
            frame = tissue_frame(xy, spacing, margin=reach)
        out[name] = {
            "image": render_mask(xy, values[rows], spacing, frame, reach=reach),
            "scale": frame.scale,
            "origin": np.array(frame.origin, dtype=np.float64),
        }
    return out
