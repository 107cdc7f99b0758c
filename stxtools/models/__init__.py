"""Models: arrays and graphs in, arrays out; ``fit``, ``predict``, ``save``, ``load``."""

from typing import TYPE_CHECKING

from stxtools._lazy import lazy_exports

if TYPE_CHECKING:
    from ._params import SegmenterParams
    from ._projection import GeneProjection
    from ._section import Section
    from ._segmenter import Segmentation, Segmenter
    from ._student import Student
    from ._tissue_inputs import RegionSection
    from ._tissue_params import TissueNetParams
    from ._tissue_student import TissueStudent
    from ._tissuenet import TissueNet, TissuePrediction

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "GeneProjection": "_projection",
        "Section": "_section",
        "Segmentation": "_segmenter",
        "Segmenter": "_segmenter",
        "SegmenterParams": "_params",
        "Student": "_student",
        "TissueNet": "_tissuenet",
        "TissueNetParams": "_tissue_params",
        "RegionSection": "_tissue_inputs",
        "TissuePrediction": "_tissuenet",
        "TissueStudent": "_tissue_student",
    },
)
