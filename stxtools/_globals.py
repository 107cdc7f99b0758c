"""State that all threads of a process share: torch's generator, logger levels, warning filters, signal handlers.

PyTorch's dropout draws from one generator, and Lightning and Optuna speak through loggers and warnings. Whoever sets
these for a while and gives them back does it inside :func:`exclusive`. Of two threads that each kept and restored the
same state at once, one would draw from the other's generator, and the last would restore what the other had set.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_LOCK = threading.RLock()


@contextmanager
def exclusive() -> Iterator[None]:
    """Let one thread at a time into such blocks; a block inside another of the same thread goes on."""
    with _LOCK:
        yield
