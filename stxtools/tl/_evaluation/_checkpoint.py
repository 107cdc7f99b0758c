"""A folder of finished rows: a long run goes on after an interruption, and several processes share one."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy as np

from stxtools._files import write_text


def settings_fingerprint(settings: Mapping[str, Any]) -> str:
    """Short digest of everything that a row depends on and does not name itself."""
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def function_code(function: Callable[..., Any]) -> str:
    """Digest of a function's code, of constants it is bound to, and of the functions of its module that it calls."""
    text = "\0".join(_parts(function, set()))
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:16]


def _parts(value: Any, seen: set[int]) -> Iterator[str]:
    if value is None or isinstance(value, (str, bytes, int, float, complex, np.generic)):
        yield repr(value)
    elif isinstance(value, (set, frozenset)):  # its order differs between processes
        yield repr(sorted(map(repr, value)))
    elif isinstance(value, np.ndarray):
        yield repr(value.tolist())
    elif isinstance(value, (tuple, list, dict)):
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
        bound = (cell.cell_contents for cell in value.__closure__ or ())
        cells = tuple(c for c in bound if not isinstance(c, list))  # in which a function may note its calls
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


class Checkpoint:
    """Rows of finished folds, a file of JSON each in a folder that processes may share; without a folder, none."""

    def __init__(self, folder: str | os.PathLike[str] | None, settings: str) -> None:
        self.folder, self.settings = None if folder is None else _checked_folder(folder), settings

    def rows(self, *unit: Any) -> list[dict[str, Any]] | None:
        """Rows of a unit that is finished; a file that is damaged is one of a unit that is not."""
        if self.folder is None:
            return None
        try:
            return list(json.loads(self._path(unit).read_text(encoding="utf-8")))
        except (FileNotFoundError, TypeError, ValueError):
            return None

    def add(self, rows: Sequence[Mapping[str, Any]], *unit: Any) -> None:
        """Write the rows of a unit."""
        if self.folder is None:
            return
        try:
            self.folder.mkdir(exist_ok=True)
            write_text(self._path(unit), json.dumps(rows))
        except OSError as err:
            where = f"`checkpoint` cannot be used ({err.strerror or err})"
            raise OSError(err.errno, where, str(self.folder)) from err

    def _path(self, unit: tuple[Any, ...]) -> Path:
        return Path(self.folder or "") / f"{settings_fingerprint({'settings': self.settings, 'unit': unit})}.json"


def _checked_folder(path: Any) -> Path:
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"`checkpoint` must be a path, not {path!r}.")
    found = Path(path).expanduser()
    try:
        usable = bool(str(path)) and found.parent.is_dir() and (found.is_dir() or not found.exists())
    except (OSError, ValueError):  # a name too long, or with a NUL
        usable = False
    if not usable:
        raise ValueError(f"`checkpoint={str(path)!r}` must name a folder, new or not, in a folder that exists.")
    return found
