"""A file on disk to which finished rows are appended: a long run goes on after an interruption, several share it."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

_MARK = "# stxtools evaluation, settings "


def settings_fingerprint(settings: Mapping[str, Any]) -> str:
    """Short digest of everything that a row depends on and does not name itself."""
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Checkpoint:
    """Rows as lines of JSON in a file whose first line tells the settings they were made with.

    Processes may share it: it is locked (a file beside it, ``.lock``) while it is read or written, and
    :meth:`refresh` shows what others added. A row that was cut off, or that is none, is skipped.
    """

    def __init__(self, path: str | os.PathLike[str] | None, fingerprint: str, types: Mapping[str, type]) -> None:
        self.path = None if path is None else _checked_path(path)
        self.types, self.rows = dict(types), list[dict[str, Any]]()
        self._head, self._size = f"{_MARK}{fingerprint}\n".encode(), -1
        self.refresh()

    def refresh(self) -> bool:
        """Read the rows that are there now, those of other processes too; return whether any came."""
        if self.path is None:
            return False
        with _opened(self.path) as file:
            if file.seek(0, os.SEEK_END) == self._size:
                return False
            file.seek(0)
            content = file.read()
            if len(content) < len(self._head) and self._head.startswith(content):  # new, or cut off in its head
                file.truncate(0)
                content = self._head
                _append(file, content)
        if not content.startswith(_MARK.encode()):
            raise ValueError(f"`checkpoint={str(self.path)!r}` is not a table of `st.tl.evaluate`; name another file.")
        if not content.startswith(self._head):
            raise ValueError(
                f"`checkpoint={str(self.path)!r}` was written with other data or settings; name another file, or "
                "delete it to start anew."
            )
        self._size = len(content)
        rows = [self._row(line) for line in content[len(self._head) :].splitlines()]
        self.rows = [row for row in rows if row is not None]
        return True

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
        self.rows += [dict(r) for r in rows]
        if self.path is None:
            return
        text = "".join(json.dumps({name: row[name] for name in self.types}) + "\n" for row in rows)
        with _opened(self.path) as file:
            file.seek(-1, os.SEEK_END)
            whole = file.read() == b"\n"  # a process that was stopped may have left a part of a row
            _append(file, (text if whole else f"\n{text}").encode())


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


def _append(file: io.BufferedRandom, content: bytes) -> None:
    file.seek(0, os.SEEK_END)
    file.write(content)
    file.flush()
    os.fsync(file.fileno())
