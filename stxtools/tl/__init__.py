"""Tools: compartments, region graph, embeddings, predictions, biomarkers, targets."""

from typing import TYPE_CHECKING

from stxtools._lazy import lazy_exports

if TYPE_CHECKING:
    from ._biomarkers import biomarkers
    from ._distill import distill
    from ._embed import embed
    from ._evaluate import evaluate
    from ._fidelity import attention_fidelity
    from ._multitask import multitask
    from ._pretrain import pretrain
    from ._region_graph import region_graph
    from ._segment import segment
    from ._suggest import suggest_labels
    from ._targets import targets
    from ._tune import tune

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "attention_fidelity": "_fidelity",
        "biomarkers": "_biomarkers",
        "distill": "_distill",
        "embed": "_embed",
        "evaluate": "_evaluate",
        "multitask": "_multitask",
        "pretrain": "_pretrain",
        "region_graph": "_region_graph",
        "segment": "_segment",
        "suggest_labels": "_suggest",
        "targets": "_targets",
        "tune": "_tune",
    },
)
