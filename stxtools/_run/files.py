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
    with whole(path) as part, _Guarded(part, "w+") as guarded:
        try:
            with h5py.File(guarded, "w") as file:
                write_elem(file, "/", adata)
        except Exception:  # of whatever kind h5py makes of the error that is raised below
            if guarded.error is None:
                raise
        if guarded.error is not None:
            raise guarded.error


class _Guarded(io.FileIO):
    """A file that keeps its first error to itself: HDF5 crashes the process where a write fails while it closes."""

    error: OSError | None = None

    def write(self, data: Any, /) -> int:
        view = memoryview(data).cast("B")
        done = 0
        try:
            while self.error is None and done < len(view):
                done += super().write(view[done:])
        except OSError as err:
            self.error = err
        return len(view)

    def truncate(self, size: int | None = None, /) -> int:
        try:
            return super().truncate(size) if self.error is None else size or 0
        except OSError as err:
            self.error = err
            return size or 0
