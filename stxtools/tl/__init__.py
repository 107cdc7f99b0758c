"""Tools: compartments, region graph, embeddings, predictions, biomarkers, targets."""

from typing import TYPE_CHECKING

from stxtools._lazy import lazy_exports

if TYPE_CHECKING:
    from stxtools.tl._biomarkers._biomarkers import biomarkers
    from stxtools.tl._evaluation._evaluate import evaluate
    from stxtools.tl._evaluation._tune import tune
    from stxtools.tl._targets._targets import targets

    from ._attention_fidelity import attention_fidelity
    from ._compare import compare
    from ._distill import distill
    from ._embed import embed
    from ._multitask import multitask
    from ._pretrain import pretrain
    from ._region_graph import region_graph
    from ._segment import segment
    from ._suggest_labels import suggest_labels

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "attention_fidelity": "_attention_fidelity",
        "biomarkers": "_biomarkers._biomarkers",
        "compare": "_compare",
        "distill": "_distill",
        "embed": "_embed",
        "evaluate": "_evaluation._evaluate",
        "multitask": "_multitask",
        "pretrain": "_pretrain",
        "region_graph": "_region_graph",
        "segment": "_segment",
        "suggest_labels": "_suggest_labels",
        "targets": "_targets._targets",
        "tune": "_evaluation._tune",
    },
)
