"""Options of a training, its seed and its device, for modules that also predict without training."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TypedDict

import torch

from stxtools._globals import GLOBAL_LOCK

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Training:
    """How a module is trained."""

    max_epochs: int = 30  # upper limit; early stopping may end sooner
    patience: int = 6  # epochs without a better validation loss before training stops
    min_delta: float = 1e-4  # decrease of the validation loss that counts as better
    lr: float = 3e-3  # learning rate of Adam
    weight_decay: float = 1e-4  # decoupled weight decay


class RunOptions(TypedDict, total=False):
    """Keywords of every ``fit``, as in the public calls."""

    random_state: int
    accelerator: str
    devices: int | str
    show_progress: bool | None


def with_defaults(options: RunOptions) -> RunOptions:
    """Add the defaults of missing options."""
    defaults = RunOptions(random_state=0, accelerator="auto", devices=1, show_progress=None)
    if unknown := sorted(set(options) - set(defaults)):
        raise TypeError(f"Unknown keyword(s) {', '.join(unknown)}; there are {', '.join(defaults)}.")
    return {**defaults, **options}


@contextmanager
def seeded(seed: int, device: torch.device = _CPU) -> Iterator[None]:
    """Seed torch within the block and restore the generator states afterwards; one thread at a time.

    CUDA generators are seeded only if ``device`` is one: CUDA would keep the seed until its first use.
    """
    gpus = list(range(torch.cuda.device_count())) if device.type == "cuda" else []
    with GLOBAL_LOCK, ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=gpus))  # initialises CUDA, which applies pending seeds first
        if device.type == "mps":
            stack.callback(torch.mps.set_rng_state, torch.mps.get_rng_state())
        (torch.default_generator if device.type == "cpu" else torch).manual_seed(seed)
        yield


def best_device(accelerator: str) -> torch.device:
    """Return the device of Lightning's ``accelerator``; ``"auto"`` is the first one available."""
    if not isinstance(accelerator, str):
        raise TypeError(f"`accelerator` must be a str such as 'auto' or 'cpu', not {accelerator!r}.")
    if accelerator not in {"auto", "cpu", "gpu", "cuda", "mps", "tpu"}:
        raise ValueError(f"`accelerator={accelerator!r}` is not known; use 'auto', 'cpu', 'gpu', 'cuda' or 'mps'.")
    # Lightning's rules, in its order, without importing it
    apple = torch.backends.mps.is_available() and platform.processor() in {"arm", "arm64"}
    available = {"mps": apple and os.getenv("DISABLE_MPS", "0") != "1", "cuda": torch.cuda.is_available()}
    for name, usable in available.items():
        if usable and accelerator in {"auto", "gpu", name}:
            return torch.device(name)
    if accelerator in {"gpu", "cuda", "mps"}:
        raise ValueError(f"`accelerator={accelerator!r}` is not available on this machine; use 'auto' or 'cpu'.")
    return torch.device("cpu")
