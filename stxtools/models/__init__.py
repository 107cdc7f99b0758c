"""Models on arrays and graphs, without AnnData: ``fit``, ``predict``, ``save``, ``load``."""

from stxtools._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
