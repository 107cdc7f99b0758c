"""Tidy tables out of the slots: one row per thing, one column per fact."""

from stxtools._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
