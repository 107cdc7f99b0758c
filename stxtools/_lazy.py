"""Lazy exports of a namespace: a function's module is imported at its first use."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import lazy_loader


@cache
def _import_rich() -> None:
    """Import rich, which scikit-learn would import during a call: its import draws from Python's generator."""
    if find_spec("rich") is not None:
        state = random.getstate()
        import_module("rich.style")
        random.setstate(state)


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
        _import_rich()
        with importing():
            return get(name)

    return __getattr__, list_names, names
