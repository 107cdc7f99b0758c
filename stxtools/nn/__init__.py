"""Torch modules, losses and augmentation: tensors in, tensors out."""

from stxtools._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
