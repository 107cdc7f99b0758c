"""Torch modules, losses and augmentation: tensors in, tensors out."""

from stxtools._globals import keep_torch_threads
from stxtools._lazy import attach

keep_torch_threads()
__getattr__, __dir__, __all__ = attach(__name__, __file__)
