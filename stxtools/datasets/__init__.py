"""Data sets: synthetic tissue with known truth, and loaders of public sections."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stxtools._lazy import lazy_exports

if TYPE_CHECKING:
    from ._public import merfish_breast_cancer as merfish_breast_cancer
    from ._public import visium_mouse_brain as visium_mouse_brain
    from ._sections import dlpfc as dlpfc
    from ._sections import her2st as her2st
    from ._sections import merfish_hypothalamus as merfish_hypothalamus
    from ._sections import mouse_olfactory_bulb as mouse_olfactory_bulb
    from ._sections import osmfish_sscortex as osmfish_sscortex
    from ._sections import starmap_mpfc as starmap_mpfc
    from ._sections import xenium_breast_idc as xenium_breast_idc
    from ._sections import xenium_mouse_brain as xenium_mouse_brain
    from ._synthetic import synthetic_tissue as synthetic_tissue

_EXPORTS = {
    "dlpfc": "_sections",
    "her2st": "_sections",
    "merfish_breast_cancer": "_public",
    "merfish_hypothalamus": "_sections",
    "mouse_olfactory_bulb": "_sections",
    "osmfish_sscortex": "_sections",
    "starmap_mpfc": "_sections",
    "synthetic_tissue": "_synthetic",
    "visium_mouse_brain": "_public",
    "xenium_breast_idc": "_sections",
    "xenium_mouse_brain": "_sections",
}

__getattr__, __dir__, __all__ = lazy_exports(__name__, _EXPORTS)
