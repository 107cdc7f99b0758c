"""Tools: compartments, region graph, embeddings, predictions, biomarkers, targets."""

from typing import TYPE_CHECKING

from stxtools._lazy import lazy_exports

if TYPE_CHECKING:
    from ._biomarkers import biomarkers
    from ._embed import embed
    from ._multitask import multitask
    from ._region_graph import region_graph
    from ._segment import segment
    from ._suggest import suggest_labels
    from ._targets import targets

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "biomarkers": "_biomarkers",
        "embed": "_embed",
        "multitask": "_multitask",
        "region_graph": "_region_graph",
        "segment": "_segment",
        "suggest_labels": "_suggest",
        "targets": "_targets",
    },
)
