"""State that all threads of a process share: generators, loggers, warning filters, signal handlers, BLAS threads."""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
from contextlib import AbstractContextManager, nullcontext
from typing import Any

# held while any of these is changed and restored: else the last of two threads would restore what the other had set
GLOBAL_LOCK = threading.RLock()
_BLAS_THREADS = 4  # more make small products slower: 0.44 s with 16 threads instead of 0.08 s with 4


def limited_blas_threads() -> AbstractContextManager[Any]:
    """Limit the threads of BLAS; of calls in several threads of the process the first decides (threadpoolctl)."""
    from threadpoolctl import ThreadpoolController

    libraries = ThreadpoolController().select(user_api="blas")
    n_threads = max((library["num_threads"] for library in libraries.info()), default=1)
    return libraries.limit(limits=_BLAS_THREADS) if n_threads > _BLAS_THREADS else nullcontext()


def release_memory() -> None:
    """Free reference cycles, and return to the system what glibc keeps of freed memory."""
    gc.collect()
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):  # musl has none
        libc.malloc_trim(0)


def keep_torch_threads() -> None:
    """Start numba's threads now, without a change of PyTorch's: numba sets OpenMP's number of threads for both.

    Sums depend on that number in their last bits, and scanpy may start numba's threads between two calls.
    """
    import numba
    import torch

    before = torch.get_num_threads()
    numba.get_num_threads()
    if torch.get_num_threads() != before:  # setting the number again makes convolutions slower
        torch.set_num_threads(before)
