"""Atomic writes: a temporary file beside the target, then renamed."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PART = ".part"


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path; the file there replaces ``path`` at the end of the block, and is removed on errors."""
    target = Path(os.path.realpath(Path(path).expanduser()))  # a link stays a link: what it leads to is replaced
    part = target.with_name(f".{target.stem[:100]}-{secrets.token_hex(4)}{PART}{target.suffix}")
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(target)
        sync_folder(target.parent)
    finally:
        part.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Flush renames in a folder to disk."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            with suppress(OSError):  # some network file systems cannot do it
                os.fsync(handle)
        finally:
            os.close(handle)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8")


@contextmanager
def readable(path: Path, problem: str) -> Iterator[None]:
    """Turn errors of readers, which are of many kinds, into one that names the file and the problem."""
    try:
        yield
    except PermissionError:
        raise
    except Exception as err:
        raise ValueError(f"{str(path)!r} {problem} ({type(err).__name__}: {err})") from err
