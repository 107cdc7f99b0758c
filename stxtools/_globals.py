"""State that all threads of a process share: generators, loggers, warning filters, signal handlers, BLAS threads.

Whoever sets these for a while and gives them back does it inside :func:`exclusive`: else the last of two threads would
restore what the other had set.
"""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_LOCK = threading.RLock()
_BLAS_THREADS = 4  # more make small products slower: 0.44 s with 16 threads instead of 0.08 s with 4


@contextmanager
def exclusive() -> Iterator[None]:
    """Let one thread at a time into such blocks; a block inside another of the same thread goes on."""
    with _LOCK:
        yield


@contextmanager
def few_blas_threads() -> Iterator[None]:
    """Limit BLAS to some threads; of calls in several threads of the process the first decides (threadpoolctl)."""
    from threadpoolctl import ThreadpoolController

    libraries = ThreadpoolController().select(user_api="blas")
    if max((found["num_threads"] for found in libraries.info()), default=1) <= _BLAS_THREADS:
        yield
        return
    with libraries.limit(limits=_BLAS_THREADS):
        yield


def return_memory() -> None:
    """Give memory back to the system: what lies in cycles, and what glibc keeps of what was freed."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)


def keep_torch_threads() -> None:
    """Start numba's threads now: that sets OpenMP's number of threads, also PyTorch's, and so the last bits of sums.

    scanpy starts them with its first parallel function, which may lie between two calls that should give the same.
    """
    import numba
    import torch

    before = torch.get_num_threads()
    numba.get_num_threads()
    if torch.get_num_threads() != before:  # setting the number again makes convolutions slower
        torch.set_num_threads(before)
