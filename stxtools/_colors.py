"""Colours of classes: scanpy's default palettes, without the import of matplotlib."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _keys

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

# scanpy.plotting.palettes.default_20, _28 and _102, six hexadecimal digits a colour
_20 = (
    "1f77b4ff7f0e279e68d62728aa40fc8c564be377c2b5bd6117becfaec7e8ffbb7898df8aff9896c5b0d5c49c94f7b6d2dbdb8d"
    "9edae5ad494a8c6d31"
)
_28 = (
    "023fa57d87b9bec1d4d6bcc0bb77848e063b4a6fe38595e1b5bbe3e6afb9e07b91d33f6a11c6388dd593c6dec7ead3c6f0b98d"
    "ef97080fcfc09cded6d5eae7f3e1ebf6c4e1f79cd47f7f7fc7c7c71ce6ff336600"
)
_102 = (
    "ffff001ce6ffff34ffff4a46008941006fa6a30059ffdbe57a49000000a663ffacb79762004d438fb0ff997d875a0007809693"
    "6a3a4c1b44004fc6013b5dff4a3b53ff2f8061615aba09006b790000c2a0ffaa92ff90c9b903aad16100ddefff0000357b4f4b"
    "a1c2993000180aa6d801334900846f372101ffb500c2ffeda079bfcc0744c0b9b2c2ff99001e0900489c6f00620cbd66eec3ff"
    "456d75b77b687a87a1788d66885578fad09fff8a9ad157a0bec4594566480086ed886f4c34362db4a8bd00a6aa452c2c636375"
    "a3c8c9ff913f938a8157532900fecfb05b6f8cd0ff3b970004f757c8a1a11e6e007900d7a775006367a9a058376b002c772600"
    "d790ff9b9700549e79fff69f20162572418fbc23ff99adc03a24659223295b4534fde8dc404e550089a3cb7e98a4e804324e72"
)


def default_colors(n: int) -> list[str]:
    """Return scanpy's default colours for ``n`` categories."""
    for digits in (_20, _28, _102):
        if 6 * n <= len(digits):
            return [f"#{digits[6 * i : 6 * i + 6]}" for i in range(n)]
    # beyond 102 no palette tells categories apart: steps of the golden ratio keep neighbours in the list distinct
    rgb = (colorsys.hsv_to_rgb(i * 0.618034 % 1.0, 0.55 + 0.4 * (i % 2), 0.9 - 0.15 * (i % 3)) for i in range(n))
    return ["#" + "".join(f"{round(255 * x):02x}" for x in color) for color in rgb]


def colors_for(names: Sequence[str], *known: Mapping[str, str]) -> dict[str, str]:
    """Return a colour for every name: the first that is known, else a default one that no other name has."""
    n = len(names)
    own = dict(zip(names, default_colors(n), strict=True))
    colors = {name: found[name] for found in reversed(known) for name in names if name in found}
    spare = list(dict.fromkeys([*own.values(), *default_colors(102), *default_colors(103 + n)]))
    spare = [color for color in spare if color not in colors.values()]
    for name in names:
        if name not in colors:
            colors[name] = own[name] if own[name] in spare else spare[0]
            spare.remove(colors[name])
    return {name: colors[name] for name in names}


def stored_colors(adata: AnnData, key: str | None) -> dict[str, str]:
    """Colours in ``uns["{key}_colors"]`` by category of ``obs[key]``; empty where there are none, or too few."""
    stored: Any = None if key is None else adata.uns.get(_keys.colors(key))
    if key not in adata.obs or np.ndim(stored) != 1 or isinstance(stored, str):
        return {}
    names = adata.obs[key].astype("category").cat.categories
    return {} if len(stored) < len(names) else dict(zip(map(str, names), map(str, stored), strict=False))


def colors_slot(colors: Mapping[str, str]) -> NDArray[np.object_]:
    """Return colours as scanpy and squidpy keep them in ``uns["{key}_colors"]``."""
    return np.array(list(colors.values()), dtype=object)
