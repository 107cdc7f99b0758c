"""A table on disk to which finished rows are appended: a long run goes on after an interruption, several share it."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_MARK = "# stxtools evaluation, settings "
_ESCAPES = {"\\": "\\\\", "\n": "\\n", "\r": "\\r"}  # a row stays on one line, so that a cut costs one row


def settings_fingerprint(settings: Mapping[str, Any]) -> str:
    """Short digest of everything that a row depends on and does not name itself."""
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Checkpoint:
    """Rows in a CSV file, the first line of which tells the settings they were made with.

    Processes may share it: it is locked (a file beside it, ``.lock``) while it is read or written, and
    :meth:`refresh` shows what others added. A row that was cut off, or that is none, is skipped.

    - ``path``: The file, or None to keep rows in memory only.
    - ``fingerprint``: Digest of the settings.
    - ``types``: Column -> ``str``, ``bool``, ``int`` or ``float``.

    Raises
    ------
    ValueError
        If the file holds something else, or rows made with other settings or other data.
    OSError
        If it cannot be read or written.
    """

    def __init__(
        self, path: str | os.PathLike[str] | None, fingerprint: str, types: Mapping[str, Callable[[str], Any]]
    ) -> None:
        self.path = None if path is None else _checked_path(path)
        self.types, self.rows = dict(types), list[dict[str, Any]]()
        self._head = f"{_MARK}{fingerprint}\n{','.join(types)}\n"
        self._size = -1
        self.refresh()

    def refresh(self) -> bool:
        """Read the rows that are there now, those of other processes too; return whether any came."""
        if self.path is None:
            return False
        try:
            with FileLock(f"{self.path}.lock"), self.path.open("a+b") as file:
                if file.seek(0, os.SEEK_END) == self._size:
                    return False
                self.rows = self._read(file)
        except OSError as err:
            raise _unusable(self.path, err) from err
        return True

    def _read(self, file: io.BufferedRandom) -> list[dict[str, Any]]:
        file.seek(0)
        content, head = file.read(), self._head.encode()
        if len(content) < len(head) and head.startswith(content):  # new, or cut off in its head
            file.truncate(0)
            _append(file, head)
            content = head
        if not content.startswith(_MARK.encode()):
            raise ValueError(f"`checkpoint={str(self.path)!r}` is not a table of `st.tl.evaluate`; name another file.")
        if not content.startswith(head):
            raise ValueError(
                f"`checkpoint={str(self.path)!r}` was written with other data or settings; name another file, or "
                "delete it to start anew."
            )
        self._size = len(content)
        whole, _, _ = content[len(head) :].rpartition(b"\n")
        rows = [self._row(line) for line in whole.split(b"\n")]
        return [row for row in rows if row is not None]

    def _row(self, line: bytes) -> dict[str, Any] | None:
        """Values of a line; None if it was cut off, or two were written into one."""
        try:
            cells = next(csv.reader([line.decode("utf-8")], strict=True))
            return {name: _value(cell, kind) for (name, kind), cell in zip(self.types.items(), cells, strict=True)}
        except (ValueError, csv.Error, StopIteration):
            return None

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows in one go: to the table and to the file."""
        self.rows += [dict(r) for r in rows]
        if self.path is None:
            return
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([_cell(row[name]) for name in self.types] for row in rows)
        try:
            with FileLock(f"{self.path}.lock"), self.path.open("a+b") as file:
                _drop_cut_row(file)
                _append(file, text.getvalue().encode("utf-8"))
        except OSError as err:
            raise _unusable(self.path, err) from err


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


def _drop_cut_row(file: io.BufferedRandom) -> None:
    """Take off what a process that was stopped left of a row: the file must end with a whole line."""
    file.seek(0)
    content = file.read()
    if not content.endswith(b"\n"):
        file.truncate(content.rfind(b"\n") + 1)


def _unusable(path: Path, err: OSError) -> OSError:
    return OSError(err.errno, f"`checkpoint` cannot be used ({err.strerror or err})", str(path))


def _cell(value: Any) -> str:
    if isinstance(value, float) and value != value:
        return ""
    if not isinstance(value, str):
        return repr(float(value)) if isinstance(value, float) else str(value)
    return "".join(_ESCAPES.get(c, c) for c in value)


def _value(cell: str, kind: Callable[[str], Any]) -> Any:
    if kind is str:
        return _unescaped(cell)
    if kind is bool:
        if cell not in {"True", "False"}:
            raise ValueError(cell)
        return cell == "True"
    return float("nan") if kind is float and not cell else kind(cell)


def _unescaped(cell: str) -> str:
    back = {escape[1]: char for char, escape in _ESCAPES.items()}
    letters = iter(cell)
    return "".join(back.get(next(letters, ""), "") if letter == "\\" else letter for letter in letters)
