"""Tools: compartments, region graph, embeddings, predictions, biomarkers, targets."""

from stxtools._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
