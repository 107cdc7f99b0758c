"""Settings of a training, without its loop: a model that is only applied need not import Lightning."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypedDict

import torch

from stxtools._globals import GLOBAL_LOCK

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Training:
    """How a module is trained."""

    max_epochs: int = 30  # most epochs; early stopping may end sooner
    patience: int = 6  # epochs without a better validation loss before training stops
    min_delta: float = 1e-4  # what counts as better
    lr: float = 3e-3  # learning rate of Adam
    weight_decay: float = 1e-4  # decoupled weight decay


class Run(TypedDict, total=False):
    """Seed, device and progress bar of a training: the keywords of every ``fit``, as in the public calls."""

    random_state: int
    accelerator: str
    devices: int | str
    show_progress: bool | None


def completed(how: Run) -> Run:
    """Return ``how`` with the defaults of what it leaves out."""
    defaults = Run(random_state=0, accelerator="auto", devices=1, show_progress=None)
    if unknown := sorted(set(how) - set(defaults)):
        raise TypeError(f"Unknown keyword(s) {', '.join(unknown)}; there are {', '.join(defaults)}.")
    return {**defaults, **how}


@contextmanager
def seeded(seed: int, device: torch.device = _CPU) -> Iterator[None]:
    """Seed torch within the block and give the user's generator states back afterwards; one thread at a time.

    Generators of a card are left alone unless ``device`` is one: CUDA would keep the seed until its first use.
    """
    cards = list(range(torch.cuda.device_count())) if device.type == "cuda" else []
    with GLOBAL_LOCK, torch.random.fork_rng(devices=cards):  # which starts CUDA: seeds that wait for it come first
        (torch.default_generator if device.type == "cpu" else torch).manual_seed(seed)
        yield


def best_device(accelerator: str) -> torch.device:
    """Return the device that Lightning's ``accelerator`` names, for inference; ``"auto"`` takes the first there is."""
    if not isinstance(accelerator, str):
        raise TypeError(f"`accelerator` must be a str such as 'auto' or 'cpu', not {accelerator!r}.")
    if accelerator not in {"auto", "cpu", "gpu", "cuda", "mps", "tpu"}:
        raise ValueError(f"`accelerator={accelerator!r}` is not known; use 'auto', 'cpu', 'gpu', 'cuda' or 'mps'.")
    # Lightning's own rules, in its order; a model that is only applied does not import it
    apple = torch.backends.mps.is_available() and platform.processor() in {"arm", "arm64"}
    there = {"mps": apple and os.getenv("DISABLE_MPS", "0") != "1", "cuda": torch.cuda.is_available()}
    for name, available in there.items():
        if available and accelerator in {"auto", "gpu", name}:
            return torch.device(name)
    if accelerator in {"gpu", "cuda", "mps"}:
        raise ValueError(f"`accelerator={accelerator!r}` is not available on this machine; use 'auto' or 'cpu'.")
    return torch.device("cpu")
