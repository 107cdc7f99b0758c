"""Models: arrays and graphs in, arrays out; ``fit``, ``predict``, ``save``, ``load``."""

from typing import TYPE_CHECKING

from stxtools._lazy import lazy_exports

if TYPE_CHECKING:
    from ._params import SegmenterParams, TissueNetParams
    from ._projection import GeneProjection
    from ._section import Section
    from ._segmenter import Segmentation, Segmenter
    from ._tissuenet import RegionSection, TissueNet, TissuePrediction

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "GeneProjection": "_projection",
        "Section": "_section",
        "Segmentation": "_segmenter",
        "Segmenter": "_segmenter",
        "SegmenterParams": "_params",
        "TissueNet": "_tissuenet",
        "TissueNetParams": "_params",
        "RegionSection": "_tissuenet",
        "TissuePrediction": "_tissuenet",
    },
)
