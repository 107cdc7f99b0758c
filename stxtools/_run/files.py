"""Files that are there whole or not at all: written beside their place, flushed to the disk, then renamed."""

from __future__ import annotations

import io
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anndata import AnnData

_PART = ".part"


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a path beside ``path``; the file there takes its place at the end of the block, and is removed on errors."""
    part = path.with_name(f".{path.stem}-{secrets.token_hex(4)}{_PART}{path.suffix}")
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
        sync_folder(path.parent)
    finally:
        part.unlink(missing_ok=True)


def remove_parts(folder: Path) -> None:
    """Remove what a killed process left half written."""
    for part in folder.glob(f".*{_PART}*"):
        part.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder last."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            with suppress(OSError):  # some network file systems cannot
                os.fsync(handle)
        finally:
            os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a text file."""
    with whole(path) as part:
        part.write_text(text, encoding="utf-8")


def write_h5ad(adata: AnnData, path: Path) -> None:
    """Write an ``.h5ad`` file.

    Raises
    ------
    OSError
        If the disk is full, say; ``path`` is then as it was.
    """
    import h5py
    from anndata.io import write_elem

    adata.strings_to_categoricals()
    with whole(path) as part, part.open("w+b", buffering=0) as raw:
        guarded = _Guarded(raw)
        try:
            with h5py.File(guarded, "w") as file:
                write_elem(file, "/", adata)
        except Exception:  # of whatever kind h5py makes of the error that is raised below
            if guarded.error is None:
                raise
        if guarded.error is not None:
            raise guarded.error


class _Guarded(io.RawIOBase):
    """A file that keeps its first error to itself: HDF5 crashes the process where a write fails while it closes."""

    def __init__(self, raw: io.FileIO) -> None:
        self.raw = raw
        self.error: OSError | None = None
        self.position = 0

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        if self.error is None:
            try:
                self.raw.seek(self.position)
                done = 0
                while done < len(view):
                    done += self.raw.write(view[done:]) or 0
            except OSError as err:
                self.error = err
        self.position += len(view)
        return len(view)

    def readinto(self, buffer: Any) -> int:
        self.raw.seek(self.position)
        count = self.raw.readinto(buffer) or 0
        self.position += count
        return count

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.position}.get(whence)
        self.position = offset + (self.raw.seek(0, os.SEEK_END) if base is None else base)
        return self.position

    def tell(self) -> int:
        return self.position

    def truncate(self, size: int | None = None) -> int:
        wanted = self.position if size is None else size
        if self.error is None:
            try:
                self.raw.truncate(wanted)
            except OSError as err:
                self.error = err
        return wanted

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True
