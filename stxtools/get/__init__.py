"""Tidy tables out of the slots: one row per thing, one column per fact."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stxtools._lazy import lazy_exports

if TYPE_CHECKING:
    from ._biomarkers import biomarkers as biomarkers
    from ._compare import compare as compare
    from ._evaluation import evaluation as evaluation
    from ._probabilities import probabilities as probabilities
    from ._regions import regions as regions
    from ._segments import segments as segments

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "biomarkers": "_biomarkers",
        "compare": "_compare",
        "evaluation": "_evaluation",
        "probabilities": "_probabilities",
        "regions": "_regions",
        "segments": "_segments",
    },
)
