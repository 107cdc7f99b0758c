"""Preprocessing: normalisation, rasters, registration of sections, noise and count splitting."""

from stxtools._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
