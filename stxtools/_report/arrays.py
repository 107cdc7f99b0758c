"""The arrays of the page as text: the map, the values that colour it, and the biomarkers."""

from __future__ import annotations

import base64
import gzip
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.colors import to_hex
from numpy.typing import NDArray
from PIL import Image

from stxtools import _keys
from stxtools._colors import default_colors
from stxtools._data.expression import Expression, log_chunks, log_matrix
from stxtools._types import Array, Floats, Ints
from stxtools._validate import params_of, spatial_entry
from stxtools.pl._biomarkers import evidence_texts
from stxtools.pl._legend import category_codes, colors_of
from stxtools.pl._sections import Panel, grid_offsets, microns_per_unit, panels_of, positive_number

from .summary import FDR, tests_composition

_MISSING = 255  # level of a missing value
_LEVELS = 254  # a colour scale has no more
_GENES_MAX = 100  # genes that can colour the map
_COLUMNS = ("logfoldchanges", "pvals_adj", "auroc")
_IMAGE_SIDE = 1400  # pixels of a tissue image; more are not seen behind the observations
_CLASSES_MAX = 1000  # classes that a legend lists
_INTEGER_CLASSES_MAX = 50  # different integers that count as classes
POINTS_MAX = 200_000  # more make a file that a browser opens slowly


def tissue_map(
    adata: AnnData, genes: Sequence[str] | None, color: Sequence[str], key: str,
    biomarkers: pd.DataFrame | None, layer: str | None, spatial_key: str | None, library_key: str | bool | None,
) -> tuple[dict[str, Any], dict[str, str]]:  # fmt: skip
    """Return the metadata of the map, and its arrays as text."""
    params = params_of(adata.uns.get(key)) if key in adata.obs else {}
    panels = panels_of(adata, params, spatial_key=spatial_key, library_key=library_key)
    share, rng = min(1.0, POINTS_MAX / adata.n_obs), np.random.default_rng(0)  # the same of every section
    for i, panel in enumerate(panels):
        kept = np.sort(rng.choice(len(panel.rows), max(1, int(share * len(panel.rows))), replace=False))
        panels[i] = replace(panel, rows=panel.rows[kept], xy=panel.xy[kept])
    order = np.concatenate([panel.rows for panel in panels])
    shifts, units = grid_offsets(panels), microns_per_unit(adata, panels, None)
    sections = []
    for panel, shift, unit in zip(panels, shifts, units, strict=True):
        left, right, top, bottom = panel.limits
        box = [left + shift[0], top + shift[1], right + shift[0], bottom + shift[1]]
        sections.append({
            "name": panel.library, "n": len(panel.rows), "box": box, "pitch": panel.pitch, "micron": unit,
            "image": _image(adata, panel, shift),
        })  # fmt: skip
    xy = np.concatenate([panel.xy + shift for panel, shift in zip(panels, shifts, strict=True)])
    meta: dict[str, Any] = {"n": len(order), "sections": sections, "colors": [], "genes": []}
    blocks = {"xy": _pack(xy.astype(np.float32)), "names": _pack([str(name) for name in adata.obs_names[order]])}
    labels = {key: "Segment", _keys.confidence(key): "Confidence", _keys.REGION_ID: "Region",
              _keys.ATTENTION: "Attention"}  # fmt: skip
    columns: list[Any] = [*labels, params.get("labels_key"), *color]
    for column in dict.fromkeys(columns):
        scale, shown = _color_column(adata, column, order) if column in adata.obs else ({}, np.empty(0))
        if scale:
            block = f"column{len(meta['colors'])}"
            meta["colors"].append({"key": column, "label": labels.get(column, column), "block": block, **scale})
            blocks[block] = _pack(shown)
    expression: Expression | None = None
    if layer is not None or adata.X is not None or _keys.COUNTS in adata.layers:
        read = Expression(adata, layer, allow_scaled=True, in_memory=False)
        expression = None if read.scale == "scaled" else read  # something else, such as components
    if genes is None:
        genes = [] if expression is None else _leading_genes(adata, biomarkers, expression)
    elif genes and expression is None:
        raise ValueError("`genes` are given, but `adata` holds no expression; put it into `X` or name a `layer`.")
    genes = list(dict.fromkeys(genes))
    if expression is not None and genes:
        values = log_matrix(expression, adata.var_names.get_indexer(genes)).tocsc()
    for i, gene in enumerate(genes):
        column = values[:, i].toarray().ravel()[order]
        top = float(column.max())
        meta["genes"].append([gene, round(top, 4)])
        blocks[f"gene{i}"] = _pack(_color_levels(column, 0.0, top))
    return meta, blocks


def _image(adata: AnnData, panel: Panel, shift: Floats) -> dict[str, Any] | None:
    """Return the section's image as a JPEG with its box, or None if there is none or it does not fit the positions."""
    if panel.spatial_key != _keys.SPATIAL:
        return None
    slots = spatial_entry(adata, panel.library)
    for name in ("hires", "lowres"):
        scale = positive_number(slots[_keys.SCALEFACTORS].get(f"tissue_{name}_scalef"))
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


def _color_column(adata: AnnData, column: str, order: Ints) -> tuple[dict[str, Any], Array]:
    """Return the colour scale or the classes of a column of ``obs``, and its values; nothing where none is known."""
    values = adata.obs[column]
    if pd.api.types.is_float_dtype(values.dtype) or (
        pd.api.types.is_numeric_dtype(values.dtype) and values.nunique() > _INTEGER_CLASSES_MAX
    ):
        numbers = values.to_numpy(dtype=float)[order]
        known = numbers[np.isfinite(numbers)]
        if not len(known):
            return {}, known
        low, high = float(known.min()), float(known.max())
        if column == _keys.ATTENTION:  # a few regions have much of it
            high = float(np.quantile(known, 0.99))
        return {"low": low, "high": high}, _color_levels(numbers, low, high)
    codes, names = category_codes(adata, column)
    regions = column == _keys.REGION_ID
    colors = colors_of(adata, column) if len(names) <= 102 and not regions else {}  # more have no palette
    cycle = default_colors(20)
    entry = {
        "names": names, "colors": [to_hex(colors.get(n, cycle[i % 20])) for i, n in enumerate(names)],
        "legend": not regions and len(names) <= _CLASSES_MAX,
    }  # fmt: skip
    return entry, codes[order].astype(np.uint32)  # -1: the largest number


def _pack(values: Array | Sequence[str]) -> str:
    """Return an array (little-endian), or lines of text, as base64 of gzip."""
    if isinstance(values, np.ndarray):
        data = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<")).tobytes()
    else:
        data = "\n".join(values).encode()
    return base64.b64encode(gzip.compress(data, 6, mtime=0)).decode()


def _color_levels(values: Array, low: float, high: float) -> NDArray[np.uint8]:
    """Round numbers to the levels of a colour scale; those that are not finite are missing."""
    known = np.isfinite(values)
    share = np.clip((np.where(known, values, low) - low) / (high - low or 1.0), 0, 1)
    return np.where(known, np.rint(share * _LEVELS), _MISSING).astype(np.uint8)


def _leading_genes(adata: AnnData, biomarkers: pd.DataFrame | None, expression: Expression) -> list[str]:
    """Return the first biomarkers of every group in turn; without any, the genes with the largest variance."""
    if biomarkers is None:
        n, sums, squares = adata.n_obs, np.zeros(adata.n_vars), np.zeros(adata.n_vars)
        for part in log_chunks(expression, lambda part, _: part):
            sums, squares = sums + np.ravel(part.sum(axis=0)), squares + np.ravel(part.multiply(part).sum(axis=0))
        names = adata.var_names[np.argsort(-(squares / n - (sums / n) ** 2), kind="stable")]
    else:
        higher = biomarkers["scores"] > 0
        parts = [biomarkers[higher], biomarkers[~higher][::-1]]  # the lowest come last
        turns = [part.groupby("group", sort=False, observed=True).cumcount() for part in parts]
        rows, turn = pd.concat(parts), pd.concat([turns[0], 2 * turns[1]])
        names = rows["names"].to_numpy()[np.lexsort((turn, rows["pvals_adj"] > FDR))]
    known = set(adata.var_names)
    return [str(name) for name in dict.fromkeys(names) if name in known][:_GENES_MAX]


def biomarker_arrays(rows: pd.DataFrame, params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the metadata of the biomarkers, and the columns of their table as text."""
    groups, genes = (pd.factorize(rows[name].astype(str)) for name in ("group", "names"))
    numbers = [c for c in _COLUMNS if c in rows]
    blocks = {f"t-{c}": _pack(rows[c].to_numpy(dtype=np.float32, na_value=np.nan)) for c in numbers}
    blocks["t-group"] = _pack(groups[0].astype(np.uint16))
    blocks["t-gene"] = _pack(genes[0].astype(np.uint32))
    blocks["t-names"] = _pack([str(name) for name in genes[1]])
    texts = {}
    if "n_libraries" in rows and (rows["n_libraries"] > 1).any():
        agree = rows.get("direction_consistent", pd.Series(pd.NA, rows.index))
        agree = agree.map({True: ", agree", False: ", differ"}).astype(object).fillna("")
        unit = "sections" if params.get("subject_key") is None else "subjects"
        texts[unit] = list(rows["n_libraries"].astype(str) + agree.astype(str))
    if any(evidence := evidence_texts(rows)):
        texts["targets"] = evidence
    blocks |= {f"t-{name}": _pack(values) for name, values in texts.items()}
    composition = tests_composition(rows)
    if composition:
        blocks["t-beyond"] = _pack(rows["beyond_composition"].fillna(False).to_numpy(dtype=np.uint8))
    meta = {
        "n": len(rows), "groups": [str(g) for g in groups[1]], "numbers": numbers, "composition": composition,
        "groupby": params.get("groupby"), "reference": str(params.get("reference", "rest")), "texts": list(texts),
    }  # fmt: skip
    return meta, blocks
