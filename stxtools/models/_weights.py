"""A module's weights as the arrays of a model file, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn


def module_arrays(module: nn.Module, prefix: str) -> dict[str, NDArray[Any]]:
    """Weights and buffers under their names with ``prefix``."""
    return {f"{prefix}{k}": v.detach().cpu().numpy() for k, v in module.state_dict().items()}


def load_module(module: nn.Module, arrays: Mapping[str, NDArray[Any]], prefix: str) -> None:
    """Put the arrays that :func:`module_arrays` made into ``module``, which is left in eval mode."""
    weights = {k.removeprefix(prefix): torch.from_numpy(v.copy()) for k, v in arrays.items() if k.startswith(prefix)}
    module.load_state_dict(weights)
    module.eval()
