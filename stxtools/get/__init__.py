"""Results as tidy tables: one row per result, one column per variable."""

from stxtools._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
