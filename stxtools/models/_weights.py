"""A module's weights as the arrays of a model file."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray
from torch import nn


def module_arrays(module: nn.Module, prefix: str) -> dict[str, NDArray[Any]]:
    """Weights and buffers under their names with ``prefix``."""
    return {f"{prefix}{k}": v.detach().cpu().numpy() for k, v in module.state_dict().items()}
