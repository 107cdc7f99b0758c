"""State that all threads of a process share: generators, loggers, warning filters, signal handlers, BLAS threads."""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

# held while any of these is changed and restored: else the last of two threads would restore what the other had set
GLOBAL_LOCK = threading.RLock()
_DTYPE_LOCK = threading.RLock()  # the same for PyTorch's default type
_BLAS_THREADS = 4  # more make small products slower: 0.44 s with 16 threads instead of 0.08 s with 4


def limited_blas_threads() -> AbstractContextManager[Any]:
    """Limit the threads of BLAS; of calls in several threads of the process the first decides (threadpoolctl)."""
    from threadpoolctl import ThreadpoolController

    libraries = ThreadpoolController().select(user_api="blas")
    n_threads = max((library["num_threads"] for library in libraries.info()), default=1)
    return libraries.limit(limits=_BLAS_THREADS) if n_threads > _BLAS_THREADS else nullcontext()


@contextmanager
def torch_defaults() -> Iterator[None]:
    """Let PyTorch compute with gradients, in float32 and on the CPU, whatever the caller has set for its own models."""
    with ExitStack() as stack:
        if "torch" in sys.modules:  # else nobody has set anything
            import torch

            for mode in (torch.inference_mode(False), torch.enable_grad()):
                stack.enter_context(mode)
            for kind in filter(torch.is_autocast_enabled, ("cpu", "cuda")):
                stack.enter_context(torch.autocast(kind, enabled=False))
            if torch.get_default_device().type != "cpu":
                stack.enter_context(torch.device("cpu"))
            with _DTYPE_LOCK:  # another thread may have set float32 for the time of its call
                dtype = torch.get_default_dtype()
            if dtype != torch.float32:
                stack.enter_context(_DTYPE_LOCK)
                stack.callback(torch.set_default_dtype, torch.get_default_dtype())
                torch.set_default_dtype(torch.float32)
        yield


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
