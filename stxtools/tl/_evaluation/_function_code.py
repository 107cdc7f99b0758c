"""A digest of a function's code: it distinguishes functions of one name."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy as np


def function_code(function: Callable[..., Any]) -> str:
    """Digest of a function's code, of constants it is bound to, and of the functions of its module that it calls."""
    text = "\0".join(_parts(function, set()))
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:16]


def _parts(value: Any, seen: set[int]) -> Iterator[str]:
    if value is None or isinstance(value, (str, bytes, int, float, complex, np.generic)):
        yield repr(value)
    elif isinstance(value, frozenset):  # its order differs between processes
        yield repr(sorted(map(repr, value)))
    elif isinstance(value, (tuple, dict)):
        for item in value.items() if isinstance(value, dict) else value:
            yield from _parts(item, seen)
    elif id(value) not in seen:
        seen.add(id(value))
        yield from _parts(_bound(value), seen)


def _bound(value: Any) -> tuple[Any, ...]:
    """What makes a callable, or an object it is bound to, what it is."""
    if isinstance(value, FunctionType):
        called = (value.__globals__.get(name) for name in value.__code__.co_names)
        own = tuple(f for f in called if isinstance(f, FunctionType) and f.__module__ == value.__module__)
        cells = tuple(cell.cell_contents for cell in value.__closure__ or ())
        return value.__code__, value.__defaults__, value.__kwdefaults__, cells, own
    if isinstance(value, CodeType):
        return value.co_code, value.co_names, value.co_consts
    if isinstance(value, partial):
        return value.func, value.args, value.keywords
    if isinstance(value, MethodType):
        return value.__func__, value.__self__
    if callable(value) and isinstance(getattr(type(value), "__call__", None), FunctionType):  # noqa: B004
        return f"{type(value).__module__}.{type(value).__qualname__}", type(value).__call__, vars(value)
    return (f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}",)
