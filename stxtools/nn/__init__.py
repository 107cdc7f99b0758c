"""Torch modules, losses and augmentation: tensors in, tensors out."""
