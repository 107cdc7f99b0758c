"""Colours of classes: scanpy's default palettes, without an import of matplotlib."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray

from . import _keys

_PALETTES = Path(__file__).with_name("_palettes.txt").read_text(encoding="utf-8").splitlines()[1:]


def default_colors(n: int) -> list[str]:
    """Return scanpy's default colours for ``n`` categories."""
    for palette in (line.split(",") for line in _PALETTES):
        if n <= len(palette):
            return [f"#{digits}" for digits in palette[:n]]
    # more than 102 categories have no palette: steps of the golden ratio make successive hues differ
    rgb = (colorsys.hsv_to_rgb(i * 0.618034 % 1.0, 0.55 + 0.4 * (i % 2), 0.9 - 0.15 * (i % 3)) for i in range(n))
    return ["#" + "".join(f"{round(255 * x):02x}" for x in color) for color in rgb]


def colors_for(names: Sequence[str], *known: Mapping[str, str]) -> dict[str, str]:
    """Return a colour for every name: the first known one, else an unused default colour."""
    defaults = dict(zip(names, default_colors(len(names)), strict=True))
    colors = {name: mapping[name] for mapping in reversed(known) for name in names if name in mapping}
    candidates = dict.fromkeys([*defaults.values(), *default_colors(102), *default_colors(103 + len(names))])
    taken = set(colors.values())
    unused = dict.fromkeys(color for color in candidates if color not in taken)
    for name in names:
        if name not in colors:  # of thousands of classes, some have the same colour
            colors[name] = defaults[name] if defaults[name] in unused else next(iter(unused), defaults[name])
            unused.pop(colors[name], None)
    return {name: colors[name] for name in names}


def stored_colors(adata: AnnData, key: str | None) -> dict[str, str]:
    """Return the colours in ``uns["{key}_colors"]`` by category of ``obs[key]``; empty if there are none or too few."""
    stored: Any = None if key is None else adata.uns.get(_keys.colors(key))
    if key not in adata.obs or np.ndim(stored) != 1 or isinstance(stored, str):
        return {}
    names = adata.obs[key].astype("category").cat.categories
    return {} if len(stored) < len(names) else dict(zip(map(str, names), map(str, stored), strict=False))


def colors_slot(colors: Mapping[str, str]) -> NDArray[np.object_]:
    """Return colours as scanpy and squidpy store them in ``uns["{key}_colors"]``."""
    return np.array(list(colors.values()), dtype=object)
