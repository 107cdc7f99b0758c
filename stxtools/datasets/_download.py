"""Files from public addresses: fetched once, complete or not at all, and checked each time they are used."""

from __future__ import annotations

import re
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from stxtools._progress import is_shown
from stxtools._warn import warn

if TYPE_CHECKING:
    from numpy.typing import NDArray

_CHECKSUM = re.compile(r"(sha256:)?[0-9a-fA-F]{64}|md5:[0-9a-fA-F]{32}|sha1:[0-9a-fA-F]{40}")


@dataclass(frozen=True)
class RemoteFile:
    """A file, the address it comes from, and its checksum (``"sha256:..."``) where one is known."""

    name: str
    url: str
    known_hash: str | None = None


def fetch(
    files: tuple[RemoteFile, ...], folder: Path, *, help_text: str, known_hash: Mapping[str, str] | None = None,
    show_progress: bool | None = None,
) -> None:  # fmt: skip
    """Put ``files`` into ``folder``, downloading those that are not there, and check every one.

    Where no checksum is known, the first copy is taken unchecked, with a warning, and its checksum is recorded beside
    it, so that later calls read the same file.
    """
    import pooch

    names = [file.name for file in files]
    if known_hash is not None and not isinstance(known_hash, Mapping):
        raise TypeError(f"`known_hash` must be a mapping of file names to checksums, not {known_hash!r}.")
    chosen = dict(known_hash or {})
    unknown = sorted(str(name) for name in set(chosen) - set(names))
    if unknown:
        raise ValueError(f"`known_hash` names {unknown}, which are no files of this data set; it has {names}.")
    for name, checksum in chosen.items():
        if not isinstance(checksum, str) or not _CHECKSUM.fullmatch(checksum):
            raise ValueError(
                f"`known_hash[{name!r}]` is {checksum!r}; a checksum is written as 'sha256:' or 'md5:' and its digits."
            )
    for file in files:
        path = folder / file.name
        record = folder / f"{file.name}.sha256"
        recorded = f"sha256:{record.read_text().split()[0]}" if record.exists() and path.exists() else None
        expected = chosen.get(file.name) or file.known_hash or recorded
        if not path.exists():
            _download(file, path, expected, help_text=help_text, show_progress=show_progress)
        elif expected is not None:
            _check(path, expected)
        if expected is None:
            found = pooch.file_hash(str(path))
            record.write_text(f"{found}  {file.name}\n")
            warn(
                f"No checksum of {file.name} is published: this copy was not checked. Its own, sha256:{found}, is "
                f"recorded in {record.name} and holds from now on; compare it with a colleague's, or pass one as "
                "`known_hash=`."
            )


def _check(path: Path, expected: str) -> None:
    import pooch

    algorithm, _, digest = expected.rpartition(":")
    found = pooch.file_hash(str(path), alg=algorithm or "sha256")
    if found.lower() != digest.lower():
        raise ValueError(
            f"{path} has the {algorithm or 'sha256'} checksum {found}, not {digest}: it is incomplete or another "
            f"version. Delete it (and {path.name}.sha256, if there) and call again, or pass the checksum that you "
            f"trust as `known_hash={{{path.name!r}: 'sha256:...'}}`."
        )


def _download(
    file: RemoteFile, path: Path, expected: str | None, *, help_text: str, show_progress: bool | None
) -> None:
    import pooch

    is_new = [p for p in (path.parent, *path.parent.parents) if not p.exists()]
    done = False
    try:
        # pooch writes to a temporary file and moves it into place when it is complete and its checksum is right
        pooch.retrieve(
            url=file.url, known_hash=expected, fname=path.name, path=path.parent, progressbar=is_shown(show_progress)
        )
        done = True
    except (OSError, ValueError) as err:
        kind = ValueError if isinstance(err, ValueError) and not isinstance(err, OSError) else ConnectionError
        raise kind(
            f"Could not download {file.url} ({type(err).__name__}: {err}). Nothing was kept. {help_text} "
            f"Then save the file as {path} and call again."
        ) from err
    finally:
        if not done:
            for folder in is_new:  # the deepest first
                if folder.exists() and not any(folder.iterdir()):
                    folder.rmdir()


def extract(archive: Path, member: str) -> Path:
    """Unpack the folder ``member`` of a tar archive beside it, completely or not at all, and return it.

    A folder that is there already must hold what the archive does, to the byte.
    """
    target = archive.parent / member
    try:
        with tarfile.open(archive) as tar:
            if target.is_dir():
                _check_folder(tar, member, target)
                return target
            with tempfile.TemporaryDirectory(prefix=f".{member}-", dir=archive.parent) as scratch:
                tar.extractall(scratch, filter="data")
                if not (Path(scratch) / member).is_dir():
                    raise ValueError(f"{archive} holds no folder {member!r}; delete it and call again.")
                (Path(scratch) / member).rename(target)
    except (tarfile.TarError, EOFError, OSError) as err:
        raise ValueError(f"{archive} cannot be unpacked ({err}); delete it and call again.") from err
    return target


def _check_folder(tar: tarfile.TarFile, member: str, target: Path) -> None:
    for entry in tar:
        parts = Path(entry.name).parts
        content = tar.extractfile(entry) if entry.isfile() and member in parts else None
        if content is not None:
            path = target.joinpath(*parts[parts.index(member) + 1 :])
            if not path.is_file() or path.read_bytes() != content.read():
                raise ValueError(
                    f"{path} is missing or is not what the archive holds. Delete the folder {target} and call again: "
                    "it is unpacked anew."
                )


def check_cells(counts: Any, xy: NDArray[np.float64]) -> None:
    """Check that a table that nothing else vouches for holds counts and positions."""
    values = counts.data if sparse.issparse(counts) else np.asarray(counts)
    if not np.isfinite(values).all() or (values < 0).any() or (values != np.floor(values)).any():
        raise ValueError("the matrix holds other values than counts")
    if not np.isfinite(xy).all():
        raise ValueError("there are cells without a position")
