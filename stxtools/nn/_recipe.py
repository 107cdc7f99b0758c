"""Settings of a training, without its loop: a model that is only applied need not import Lightning."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypedDict

import torch

from stxtools._globals import exclusive


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
def seeded(seed: int) -> Iterator[None]:
    """Seed torch within the block and give the user's generator state back afterwards; one thread at a time."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with exclusive(), torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
