"""Preparation: normalise, put observations on a raster, align sections, add noise."""

from stxtools._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
