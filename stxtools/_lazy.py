"""Lazy exports of a namespace: a function's module is imported at its first use."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import lazy_loader


@contextmanager
def importing() -> Iterator[None]:
    """Import large packages in the block without garbage collection, which would traverse new modules repeatedly."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            if not gc.get_freeze_count():
                gc.freeze()  # and back: moves the new objects straight to the oldest generation
                gc.unfreeze()
            gc.enable()


def attach(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return ``__getattr__``, ``__dir__`` and ``__all__`` of a package, from its ``__init__.pyi``."""
    get, list_names, names = lazy_loader.attach_stub(package, file)

    def __getattr__(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}; it has {', '.join(names)}")
        with importing():
            return get(name)

    return __getattr__, list_names, names
