"""Threads for functions that release Python's lock."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")


def in_threads(function: Callable[[S], T], items: Iterable[S], most: int | None = None) -> Iterator[T]:
    """Yield the results of ``function``, in order, from as many threads as cores (or ``OMP_NUM_THREADS``), or ``most``.

    Ctrl-C waits for them; scipy's own (``workers=``) go on, into memory that is freed, which crashes Python.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    allowed = os.environ.get("OMP_NUM_THREADS", "")
    threads = max(1, min(cores, int(allowed) if allowed.isdigit() else cores, most or cores))
    items = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        while batch := list(islice(items, 2 * threads)):  # bounds how many results wait
            yield from (pool.map if len(batch) > 1 else map)(function, batch)
