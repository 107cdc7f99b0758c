"""Plots of what the other calls wrote. Every function returns Axes, takes ``ax`` and computes no result."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stxtools._lazy import lazy_exports

if TYPE_CHECKING:
    from ._attention import attention as attention
    from ._biomarkers import biomarkers as biomarkers
    from ._history import history as history
    from ._region_graph import region_graph as region_graph
    from ._segment import segment as segment
    from ._stability import stability as stability

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "attention": "_attention",
        "biomarkers": "_biomarkers",
        "history": "_history",
        "region_graph": "_region_graph",
        "segment": "_segment",
        "stability": "_stability",
    },
)
