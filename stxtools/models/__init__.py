"""Models: arrays and graphs in, arrays out; ``fit``, ``predict``, ``save``, ``load``."""

from typing import TYPE_CHECKING

from stxtools._lazy import lazy_exports

if TYPE_CHECKING:
    from stxtools.models.segmenter.gene_means import GeneSection
    from stxtools.models.segmenter.model import Segmentation, Segmenter
    from stxtools.models.tissuenet.inputs import RegionSection
    from stxtools.models.tissuenet.model import TissueNet, TissuePrediction
    from stxtools.models.tissuenet.params import TissueNetParams
    from stxtools.models.tissuenet.student import TissueStudent

    from ._base import load
    from ._params import SegmenterParams
    from ._projection import GeneProjection
    from ._section import Section

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "GeneProjection": "_projection",
        "GeneSection": "segmenter.gene_means",
        "Section": "_section",
        "Segmentation": "segmenter.model",
        "Segmenter": "segmenter.model",
        "SegmenterParams": "_params",
        "TissueNet": "tissuenet.model",
        "TissueNetParams": "tissuenet.params",
        "RegionSection": "tissuenet.inputs",
        "TissuePrediction": "tissuenet.model",
        "TissueStudent": "tissuenet.student",
        "load": "_base",
    },
)
