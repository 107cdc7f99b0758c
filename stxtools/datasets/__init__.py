"""Data sets: synthetic tissue with known truth, and loaders of public sections."""

from stxtools._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
