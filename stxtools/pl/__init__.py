"""Plots of what the other calls wrote. Every function returns Axes, takes ``ax`` and computes no result."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stxtools._lazy import lazy_exports

if TYPE_CHECKING:
    from ._attention import attention as attention
    from ._biomarkers import biomarkers as biomarkers
    from ._evaluation import evaluation as evaluation
    from ._fidelity import attention_fidelity as attention_fidelity
    from ._history import history as history
    from ._region_graph import region_graph as region_graph
    from ._robustness import robustness as robustness
    from ._segment import segment as segment
    from ._sensitivity import sensitivity as sensitivity
    from ._stability import stability as stability
    from ._targets import targets as targets

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "attention": "_attention",
        "attention_fidelity": "_fidelity",
        "biomarkers": "_biomarkers",
        "evaluation": "_evaluation",
        "history": "_history",
        "region_graph": "_region_graph",
        "robustness": "_robustness",
        "segment": "_segment",
        "sensitivity": "_sensitivity",
        "stability": "_stability",
        "targets": "_targets",
    },
)
