"""One process at a time on a file."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_STALE = 60.0  # seconds after which a lock file is taken for one that a stopped process left
_WAIT = 0.02
_UNSUPPORTED = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}


@contextmanager
def locked(file: IO[Any], path: Path) -> Iterator[None]:
    """Hold an open file alone until the block ends; other processes that ask for it wait.

    Where the system or the drive has no locks for files, a file beside it stands for the lock.
    """
    if _flock(file):
        try:
            yield
        finally:
            fcntl.flock(file.fileno(), fcntl.LOCK_UN)
        return
    beside = path.with_name(path.name + ".lock")
    _take(beside)
    try:
        yield
    finally:
        beside.unlink(missing_ok=True)


def _flock(file: IO[Any]) -> bool:
    """Lock an open file by the system's own means; false where there are none."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX)
    except OSError as err:
        if err.errno not in _UNSUPPORTED:
            raise
        return False
    return True


def _take(beside: Path) -> None:
    """Make the lock file, or wait until it is gone."""
    while True:
        try:
            os.close(os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            with suppress(FileNotFoundError):
                if time.time() - beside.stat().st_mtime > _STALE:
                    beside.unlink()
            time.sleep(_WAIT)
        else:
            return
