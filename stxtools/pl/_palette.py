"""Colours of categories: those stored where scanpy and squidpy look for them, else scanpy's palettes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stxtools import _keys
from stxtools._colors import default_colors
from stxtools._slots import column_names

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

MISSING = "#d3d3d3"  # scanpy's "lightgray"
MISSING_LABEL = "NA"
UP, DOWN, NEITHER = "#d55e00", "#0072b2", "#9a9a9a"  # Okabe and Ito: distinguishable for colour-blind readers


def category_codes(adata: AnnData, key: str) -> tuple[NDArray[np.int64], list[str]]:
    """Codes (-1 where missing) and the names of *all* categories, present in the data or not."""
    column = adata.obs[key]
    if pd.api.types.is_float_dtype(column.dtype):
        raise TypeError(
            f"`adata.obs[{key!r}]` holds floating-point numbers, not categories; for numbers use "
            f"`sc.pl.spatial` or `sq.pl.spatial_scatter(adata, color={key!r})`."
        )
    if not isinstance(column.dtype, pd.CategoricalDtype):
        try:
            column = column.astype("category")
        except TypeError as err:
            raise TypeError(
                f"`adata.obs[{key!r}]` holds no classes: {err}; store strings, one an observation."
            ) from err
    return np.asarray(column.cat.codes, dtype=np.int64), [str(c) for c in column.cat.categories]


def colors_of(
    adata: AnnData, key: str, palette: str | Sequence[str] | Mapping[str, str] | None = None
) -> dict[str, str]:
    """Colour of every category of ``obs[key]``; nothing is written.

    Existing colours are kept unless ``palette`` is given. A class that is absent from a subset still has its place
    in the palette as long as ``obsm["{key}_proba"]`` names all classes.
    """
    _, names = category_codes(adata, key)
    if palette is not None:
        return _from_palette(palette, names)
    stored = _stored(adata, key)
    if stored is not None:
        return stored
    truth = key.removesuffix("_pred")  # `layer_pred` takes the colours of `layer`, for a comparison
    known = (_stored(adata, truth) or {}) if truth != key and truth in adata.obs else {}
    order = _all_classes(adata, key, names)
    defaults = dict(zip(order, default_colors(len(order)), strict=True))
    return {name: known.get(name, defaults[name]) for name in names}


def _stored(adata: AnnData, key: str) -> dict[str, str] | None:
    """Colours in ``uns["{key}_colors"]``, None where there are none for these classes that matplotlib knows.

    Plain strings forget the classes that are absent: as many colours as classes must be there.
    """
    from matplotlib.colors import is_color_like

    stored = adata.uns.get(_keys.colors(key))
    if isinstance(stored, (str, Mapping)) or stored is None or np.ndim(stored) != 1:
        return None
    _, names = category_codes(adata, key)
    categorical = isinstance(adata.obs[key].dtype, pd.CategoricalDtype)
    fits = len(stored) >= len(names) if categorical else len(stored) == len(names)
    colors = [str(c) for c in stored]
    return dict(zip(names, colors, strict=False)) if fits and all(map(is_color_like, colors)) else None


def share_colors(regions: AnnData, colors: Mapping[str, str], key: str = _keys.SEGMENT) -> dict[str, str]:
    """Give the region AnnData the colours that the observations have."""
    _, names = category_codes(regions, key)
    if not set(names) <= set(colors):
        return colors_of(regions, key)
    return {name: colors[name] for name in names}


def rgba(codes: NDArray[np.int64], names: Sequence[str], colors: Mapping[str, str]) -> NDArray[np.float64]:
    """RGBA of every code; a missing one is light grey."""
    from matplotlib.colors import to_rgba_array

    table = to_rgba_array([*(colors[n] for n in names), MISSING])
    return np.asarray(table[codes])  # code -1 is the last row


def _all_classes(adata: AnnData, key: str, names: list[str]) -> list[str]:
    for base in (key, key.removesuffix("_pred")):
        classes = column_names(adata, _keys.proba(base))
        if classes is not None and set(names) <= set(classes):
            return classes
    return names


def _from_palette(palette: Any, names: list[str]) -> dict[str, str]:
    from matplotlib import colormaps
    from matplotlib.colors import is_color_like, to_hex

    if isinstance(palette, Mapping):
        absent = [n for n in names if n not in palette]
        if absent:
            raise ValueError(f"`palette` has no colour for {absent}; it has colours for {[str(k) for k in palette]}.")
        chosen = [palette[n] for n in names]
    elif isinstance(palette, str):
        if palette not in colormaps:
            raise ValueError(f"`palette={palette!r}` is no colour map of matplotlib; give a name such as 'tab20'.")
        cmap = colormaps[palette]
        cmap = cmap if cmap.N <= 64 else cmap.resampled(max(len(names), 2))
        chosen = [cmap(i % cmap.N) for i in range(len(names))]
    elif not isinstance(palette, (Sequence, np.ndarray)):
        raise TypeError(f"`palette` must be the name of a colour map, a list of colours or a mapping from category "
                        f"to colour, not {palette!r}.")  # fmt: skip
    else:
        chosen = list(palette)
        if len(chosen) < len(names):
            raise ValueError(f"`palette` has {len(chosen)} colours for {len(names)} categories ({names}).")
    for color in chosen:
        if not is_color_like(color):
            raise ValueError(f"`palette` has {color!r}, which matplotlib does not know as a colour.")
    return dict(zip(names, (to_hex(c) for c in chosen), strict=False))
