"""A file on disk to which finished rows are appended: a long run goes on after an interruption, several share it."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
from filelock import FileLock

_MARK = b'{"settings": "'


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


class Checkpoint:
    """Rows as lines of JSON, each with the settings it was made with; processes may share the file, which is locked."""

    def __init__(self, path: str | os.PathLike[str] | None, settings: str, types: Mapping[str, type]) -> None:
        self.path = None if path is None else _checked_path(path)
        self.settings, self.types, self.rows = settings, {"settings": str, **types}, list[dict[str, Any]]()
        self.refresh()

    def refresh(self) -> None:
        """Read the rows that are there now, those of other processes too; what is no whole row is skipped."""
        if self.path is None:
            return
        with _opened(self.path) as file:
            file.seek(0)
            content = file.read()
        if not content.startswith(_MARK[: len(content)]):
            raise ValueError(f"`checkpoint={str(self.path)!r}` is not a table of `st.tl.evaluate`; name another file.")
        self.rows = [row for line in content.splitlines() if (row := self._row(line)) is not None]
        if any(row["settings"] != self.settings for row in self.rows):
            raise ValueError(
                f"`checkpoint={str(self.path)!r}` was written with other data or settings; name another file, or "
                "delete it to start anew."
            )

    def _row(self, line: bytes) -> dict[str, Any] | None:
        """Values of a line; None if it was cut off, or two were written into one."""
        try:
            row = json.loads(line)
        except ValueError:
            return None
        fits = isinstance(row, dict) and {name: type(value) for name, value in row.items()} == self.types
        return row if fits else None

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows in one go: to the table and to the file."""
        added = [{"settings": self.settings, **row} for row in rows]
        self.rows += added
        if self.path is not None:
            with _opened(self.path) as file:
                file.seek(max(file.tell() - 1, 0))
                cut = file.read() not in (b"", b"\n")  # a process that was stopped may have left a part of a row
                file.write(("\n" * cut + "".join(json.dumps(row) + "\n" for row in added)).encode())


@contextmanager
def _opened(path: Path) -> Iterator[io.BufferedRandom]:
    try:
        with FileLock(f"{path}.lock"), path.open("a+b") as file:
            yield file
    except OSError as err:
        raise OSError(err.errno, f"`checkpoint` cannot be used ({err.strerror or err})", str(path)) from err


def _checked_path(path: Any) -> Path:
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"`checkpoint` must be a path, not {path!r}.")
    found = Path(path).expanduser()
    try:
        usable = bool(str(path)) and found.parent.is_dir() and (found.is_file() or not found.exists())
    except (OSError, ValueError):  # a name too long, or with a NUL
        usable = False
    if not usable:
        raise ValueError(f"`checkpoint={str(path)!r}` must name a file in a folder that exists.")
    return found
