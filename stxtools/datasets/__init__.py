"""Data sets: synthetic tissue with ground truth, and loaders of public sections."""

from stxtools._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
