"""A digest of a function's code: it distinguishes functions of one name."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np


def function_code(function: Callable[..., Any]) -> str:
    """Digest of a function's code, of the constants it is bound to, and of the functions of its module that it calls.

    Lists, arrays and other data that may change do not count, and a function in another language counts by its name.
    """
    digest = hashlib.sha256()
    for part in _parts(function, set()):
        digest.update(part.encode("utf-8", "backslashreplace") + b"\0")
    return digest.hexdigest()[:16]


def _parts(value: Any, seen: set[int]) -> Iterator[str]:
    if id(value) in seen:
        return
    if isinstance(value, FunctionType):
        seen.add(id(value))
        yield from _code(value.__code__)
        for bound in (value.__defaults__ or (), value.__kwdefaults__ or {}, value.__closure__ or ()):
            yield from _parts(bound, seen)
        for name in value.__code__.co_names:
            other = value.__globals__.get(name)
            if isinstance(other, FunctionType) and other.__module__ == value.__module__:
                yield from _parts(other, seen)
    elif isinstance(value, partial):
        for part in (value.func, value.args, value.keywords):
            yield from _parts(part, seen)
    elif isinstance(value, MethodType):
        yield from _parts(value.__func__, seen)
        yield from _parts(value.__self__, seen)
    elif isinstance(value, type):
        seen.add(id(value))
        yield f"{value.__module__}.{value.__qualname__}"
        for name, member in sorted(vars(value).items()):
            if isinstance(member, FunctionType):
                yield name
                yield from _parts(member, seen)
    elif type(value).__name__ == "cell":  # of a closure
        with suppress(ValueError):  # not filled yet
            yield from _parts(value.cell_contents, seen)
    elif isinstance(value, (tuple, dict)):
        for item in value.items() if isinstance(value, dict) else value:
            yield from _parts(item, seen)
    elif value is None or isinstance(value, (str, bytes, int, float, complex, np.generic)):
        yield repr(value)
    elif hasattr(value, "__dict__") and not isinstance(value, (list, set, ModuleType)):
        seen.add(id(value))
        yield from _parts(type(value), seen)
        yield from _parts(vars(value), seen)
    elif callable(value):
        yield f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"


def _code(code: CodeType) -> Iterator[str]:
    yield code.co_code.hex()
    yield repr(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _code(constant)
        elif isinstance(constant, frozenset):  # its order differs between processes
            yield repr(sorted(map(repr, constant)))
        else:
            yield repr(constant)
