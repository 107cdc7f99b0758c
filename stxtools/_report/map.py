"""The map: where observations lie, and what can colour them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stxtools import _keys
from stxtools._colors import default_colors
from stxtools.pl._legend import category_codes, colors_of
from stxtools.pl._sections import Panel, image_slots, panels_of, positive, side_by_side, units_of

from .arrays import expression_of, leading_genes, levels, packed

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from .arrays import BiomarkerTable

_IMAGE_SIDE = 1400  # pixels of a tissue image; more are not seen behind the observations
_CLASSES_MAX = 1000
POINTS_MAX = 200_000  # a browser opens no larger file in a moment


def tissue_map(
    adata: AnnData, genes: Sequence[str] | None, color: Sequence[str], key: str, table: BiomarkerTable | None,
    layer: str | None, spatial_key: str, library_key: str | bool | None,
) -> tuple[dict[str, Any], dict[str, str]]:  # fmt: skip
    """Return what the page says of the map, and its arrays as text."""
    params = adata.uns.get(key, {}).get("params", {}) if key in adata.obs else {}
    panels = panels_of(adata, spatial_key=spatial_key, library_key=library_key, library=None, params=params)
    panels = _thinned(panels, adata.n_obs)
    order = np.concatenate([panel.rows for panel in panels])
    shifts = side_by_side(panels)
    units = units_of(adata, panels, spatial_key, None)
    sections = []
    for panel, shift in zip(panels, shifts, strict=True):
        left, right, top, bottom = panel.limits
        box = [left + shift[0], top + shift[1], right + shift[0], bottom + shift[1]]
        sections.append({
            "name": panel.library, "n": len(panel.rows), "box": box, "pitch": panel.pitch,
            "micron": units[panel.library], "image": _image(adata, panel, shift),
        })  # fmt: skip
    xy = np.concatenate([panel.xy + shift for panel, shift in zip(panels, shifts, strict=True)])
    meta: dict[str, Any] = {"n": len(order), "sections": sections, "colors": [], "genes": []}
    blocks = {"xy": packed(xy.astype(np.float32)), "names": packed([str(name) for name in adata.obs_names[order]])}
    groupby = None if table is None else table.groupby
    for column, label in _columns(adata, key, params, groupby, color).items():
        _add_column(meta, blocks, adata, column, label, order)
    chosen = leading_genes(adata, table, layer) if genes is None else list(dict.fromkeys(genes))
    values = expression_of(adata, chosen, layer)
    for i, gene in enumerate(chosen):
        column = values[:, i].toarray().ravel()[order]
        top = float(column.max())
        meta["genes"].append([gene, round(top, 4)])
        blocks[f"gene{i}"] = packed(levels(column, 0.0, top))
    return meta, blocks


def _thinned(panels: Sequence[Panel], n_obs: int) -> list[Panel]:
    """Return observations drawn at random, the same share of every section, where there are too many."""
    share, rng = min(1.0, POINTS_MAX / n_obs), np.random.default_rng(0)
    sizes = [max(1, int(share * len(panel.rows))) for panel in panels]
    kept = [np.sort(rng.choice(len(p.rows), size, replace=False)) for p, size in zip(panels, sizes, strict=True)]
    return [Panel(p.library, p.rows[at], p.xy[at]) for p, at in zip(panels, kept, strict=True)]


def _image(adata: AnnData, panel: Panel, shift: NDArray[np.float64]) -> dict[str, Any] | None:
    """Return the section's image as a JPEG and where it lies, None where there is none."""
    from PIL import Image

    slots = image_slots(adata, panel.library)
    for name in ("hires", "lowres"):
        scale = positive(slots[_keys.SCALEFACTORS].get(f"tissue_{name}_scalef"))
        pixels = slots[_keys.IMAGES].get(name)
        if scale is None or pixels is None or np.ndim(pixels) != 3 or np.shape(pixels)[2] not in (3, 4):
            continue
        values = np.asarray(pixels)[..., :3]
        if values.dtype != np.uint8:
            values = np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
        image = Image.fromarray(values)
        width, height = image.size
        image.thumbnail((_IMAGE_SIDE, _IMAGE_SIDE))
        file = io.BytesIO()
        image.save(file, "JPEG", quality=85)
        box = [shift[0], shift[1], shift[0] + width / scale, shift[1] + height / scale]
        return {"src": "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode(), "box": box}
    return None


def _columns(adata: AnnData, key: str, params: Any, groupby: str | None, color: Sequence[str]) -> dict[str, str]:
    """Return the columns of ``obs`` that colour the map, and what they are called there."""
    ours = {
        key: "Segment", _keys.confidence(key): "Confidence", _keys.REGION_ID: "Region", _keys.ATTENTION: "Attention",
    }  # fmt: skip
    others = (params.get("labels_key"), groupby, *color)
    names = {column: label for column, label in ours.items() if column in adata.obs}
    return names | {str(c): str(c) for c in others if c is not None and c in adata.obs and c not in names}


def _add_column(
    meta: dict[str, Any], blocks: dict[str, str], adata: AnnData, column: str, label: str, order: NDArray[np.int64]
) -> None:
    values = adata.obs[column]
    entry: dict[str, Any] = {"key": column, "label": label, "block": f"column{len(meta['colors'])}"}
    if pd.api.types.is_float_dtype(values.dtype) or (
        pd.api.types.is_numeric_dtype(values.dtype) and values.nunique() > 50
    ):
        numbers = values.to_numpy(dtype=float)[order]
        known = numbers[np.isfinite(numbers)]
        if not len(known):
            return
        low, high = float(known.min()), float(known.max())
        if column == _keys.ATTENTION:  # a few regions have much of it
            high = float(np.quantile(known, 0.99))
        entry |= {"low": low, "high": high}
        blocks[entry["block"]] = packed(levels(numbers, low, high))
    else:
        codes, names = category_codes(adata, column)
        regions = column == _keys.REGION_ID
        colors = colors_of(adata, column) if len(names) <= 102 and not regions else {}
        cycle = default_colors(20)
        entry |= {"names": names, "colors": [colors.get(n, cycle[i % 20]) for i, n in enumerate(names)]}
        entry["legend"] = not regions and len(names) <= _CLASSES_MAX
        blocks[entry["block"]] = packed(np.where(codes < 0, 2**16 - 1, codes)[order].astype(np.uint16))
    meta["colors"].append(entry)
