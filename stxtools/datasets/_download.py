"""Files from public addresses: fetched once, complete or not at all, and checked each time they are used."""

from __future__ import annotations

import re
import shutil
import tarfile
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from stxtools._progress import is_shown
from stxtools._warn import at_caller

_CHECKSUM = re.compile(r"(sha256:)?[0-9a-fA-F]{64}|md5:[0-9a-fA-F]{32}|sha1:[0-9a-fA-F]{40}")


@dataclass(frozen=True)
class RemoteFile:
    """A file, the address it comes from, and its checksum (``"sha256:..."``) where one is known."""

    name: str
    url: str
    known_hash: str | None = None


def fetch(
    files: tuple[RemoteFile, ...],
    folder: Path,
    *,
    help_text: str,
    known_hash: Mapping[str, str] | None = None,
    show_progress: bool | None = None,
) -> None:
    """Put ``files`` into ``folder``, downloading those that are not there, and check every one."""
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
        fetch_one(file, folder, chosen.get(file.name), help_text=help_text, show_progress=show_progress)


def fetch_one(
    file: RemoteFile, folder: Path, known_hash: str | None, *, help_text: str, show_progress: bool | None
) -> Path:
    """Return the path of a checked file.

    Where no checksum is known, the first copy is taken unchecked, with a warning, and its checksum is recorded beside
    it, so that later calls read the same file.
    """
    path = folder / file.name
    record = folder / f"{file.name}.sha256"
    recorded = f"sha256:{record.read_text().split()[0]}" if record.exists() and path.exists() else None
    expected = known_hash or file.known_hash or recorded
    if not path.exists():
        _download(file, path, expected, help_text=help_text, show_progress=show_progress)
    elif expected is not None:
        _check(path, expected)
    if expected is None:
        import pooch

        found = pooch.file_hash(str(path))
        record.write_text(f"{found}  {file.name}\n")
        warnings.warn(
            f"No checksum of {file.name} is published: this copy was not checked. Its own, sha256:{found}, is recorded "
            f"in {record.name} and holds from now on; compare it with a colleague's, or pass one as `known_hash=`.",
            UserWarning,
            stacklevel=at_caller(),
        )
    return path


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

    A folder that is there already must hold what the archive does.
    """
    target = archive.parent / member
    if target.is_dir():
        _check_folder(archive, member, target)
        return target
    scratch = Path(tempfile.mkdtemp(prefix=f".{member}-", dir=archive.parent))
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(scratch, filter="data")
        if not (scratch / member).is_dir():
            raise ValueError(f"{archive} holds no folder {member!r}; delete it and call again.")
        (scratch / member).rename(target)
    except (tarfile.TarError, EOFError, OSError) as err:
        raise ValueError(f"{archive} cannot be unpacked ({err}); delete it and call again.") from err
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _check_folder(archive: Path, member: str, target: Path) -> None:
    """Check that every file of the archive's folder ``member`` lies in ``target``, equal to the byte."""
    try:
        with tarfile.open(archive) as tar:
            for entry in tar:
                parts = Path(entry.name).parts
                if entry.isfile() and member in parts:
                    path = target.joinpath(*parts[parts.index(member) + 1 :])
                    if not _is_equal(tar.extractfile(entry), path, entry.size):
                        raise ValueError(
                            f"{path} is missing or is not what {archive.name} holds. Delete the folder {target} and "
                            "call again: it is unpacked anew."
                        )
    except (tarfile.TarError, EOFError, OSError) as err:
        raise ValueError(f"{archive} cannot be unpacked ({err}); delete it and call again.") from err


def _is_equal(content: IO[bytes] | None, path: Path, size: int) -> bool:
    if content is None or not path.is_file() or path.stat().st_size != size:
        return False
    with path.open("rb") as file:
        while block := content.read(1 << 20):
            if file.read(len(block)) != block:
                return False
    return True
