"""The folder of a run, whose files are there whole or not at all: written beside their place, then renamed.

What is finished is kept in ``unfinished/`` until everything is, and then takes its place.
"""

from __future__ import annotations

import io
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from stxtools._version import __version__

from .options import Options, UsageError, that_matter

if TYPE_CHECKING:
    from anndata import AnnData

_PART = ".part"
RECORD = "run.json"
DATA = "adata.h5ad"
TABLE = "biomarkers.csv"
REPORT = "report.html"
FIGURES = ("segments", "region_graph", "attention", "biomarkers", "history")
RESULTS = (DATA, TABLE, REPORT, *(f"{name}.png" for name in FIGURES), RECORD)
_STEP = "step.h5ad"
_SLOTS = ("obs", "var", "obsm", "varm", "obsp", "varp", "uns")


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


class Folder:
    """Where a run writes, and its record of what is finished."""

    def __init__(self, options: Options) -> None:
        self.path = Path(options.out).expanduser()
        self.work = self.path / "unfinished"
        self.record: dict[str, Any] = {
            "stxtools": __version__,
            "options": that_matter(options),
            "files": _stamps([*options.input, *(p for p in (options.model, options.pretrained) if p is not None)]),
            "finished": [],
            "seconds": {},
            "results": [],
        }
        self._lock = FileLock(self.work / ".lock")
        self._new = False

    @property
    def finished(self) -> list[str]:
        """Names of the steps whose results are saved."""
        return list(self.record["finished"])

    def look(self, *, overwrite: bool, resume: bool) -> bool:
        """See what is there, without a change; return False where ``resume`` finds a run that is complete."""
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"--out={str(self.path)!r} is a file; name a folder.")
        begun = (self.work / RECORD).exists()
        there = self.path.is_dir() and any(self.path.iterdir())
        if there and not overwrite and not resume:
            hint = "--resume goes on with the unfinished run in it, " if begun else ""
            raise UsageError(f"--out={str(self.path)!r} is not empty: {hint}--overwrite replaces the results in it.")
        if resume and begun:
            self._compare(self.work / RECORD)
        elif resume and (self.path / RECORD).exists():
            self._compare(self.path / RECORD)
            return False
        elif resume and there:
            raise UsageError(f"--out={str(self.path)!r} holds no run that could be resumed; --overwrite starts anew.")
        return True

    def create(self) -> None:
        """Make the folder, where no other run writes."""
        self._new = not self.path.exists()
        try:
            self.work.mkdir(parents=True, exist_ok=True)
            self._acquire()
            if not self.finished:
                shutil.rmtree(self.work)
                self.work.mkdir()
                self._acquire()
            remove_parts(self.work)
            self.save()
        except OSError as err:
            raise UsageError(f"Nothing can be written to --out={str(self.path)!r}: {err.strerror or err}.") from err

    def discard(self) -> None:
        """Leave nothing behind of a run that has finished no step."""
        self._lock.release()
        shutil.rmtree(self.work, ignore_errors=True)
        if self._new and self.path.is_dir() and not any(self.path.iterdir()):
            self.path.rmdir()

    def _acquire(self) -> None:
        """Keep a second process out; the lock ends with this process, however that ends."""
        self._lock.release()
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            raise UsageError(
                f"Another run is writing to --out={str(self.path)!r}; wait, or name another folder."
            ) from None

    def _compare(self, path: Path) -> None:
        """Take over what an earlier run has finished, if it had the same options."""
        try:
            then: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            parts = [(then[key], self.record[key]) for key in ("options", "files")]
            finished = [str(name) for name in then["finished"]]
        except (ValueError, KeyError, TypeError) as err:
            raise UsageError(f"{str(path)!r} is damaged; --overwrite starts anew.") from err
        if then["stxtools"] != __version__:
            raise UsageError(
                f"The run in {str(self.path)!r} was started with stxtools {then['stxtools']}, this is {__version__}; "
                "--overwrite starts anew."
            )
        options, stamps = (_differences(old, new) for old, new in parts)
        if options:
            changed = "; ".join(f"--{k.replace('_', '-')} was {_said(a)}, now {_said(b)}" for k, a, b in options)
            raise UsageError(
                f"The run in {str(self.path)!r} was started with other arguments: {changed}. Give the same, or start "
                "anew with --overwrite."
            )
        if stamps:
            raise UsageError(
                f"{', '.join(repr(name) for name, *_ in stamps)} changed since the run in {str(self.path)!r} was "
                "started; start anew with --overwrite."
            )
        self.record |= {"finished": finished, "seconds": dict(then["seconds"]), "results": list(then["results"])}

    def save(self, step: str | None = None, seconds: float = 0.0, adata: AnnData | None = None) -> None:
        """Write down that a step is finished, and its results (without expression, which the input holds)."""
        if adata is not None:
            from anndata import AnnData as _AnnData

            slots: dict[str, Any] = {name: getattr(adata, name) for name in _SLOTS}
            write_h5ad(_AnnData(**slots), self.work / _STEP)
        if step is not None:
            self.record["finished"] = [*self.finished, step]
            self.record["seconds"][step] = round(seconds, 2)
            self.record["results"] = [name for name in RESULTS if (self.work / name).exists()]
        write_text(self.work / RECORD, json.dumps(self.record, indent=1) + "\n")

    def restore(self, adata: AnnData) -> None:
        """Put the results of the finished steps into what was read from the input."""
        from anndata import read_h5ad

        saved = read_h5ad(self.work / _STEP)
        for name in _SLOTS:
            setattr(adata, name, getattr(saved, name))

    def publish(self) -> None:
        """Put all results in their place; an earlier run's that this one does not have are removed."""
        for name in RESULTS:  # the record is the last: until it is moved, the run counts as unfinished
            if (self.work / name).exists():
                (self.work / name).replace(self.path / name)
            elif name not in self.record["results"]:
                (self.path / name).unlink(missing_ok=True)
        sync_folder(self.path)
        self._lock.release()
        shutil.rmtree(self.work)


def _stamps(sources: Sequence[str]) -> dict[str, list[int]]:
    """Size and time of change of the files that are read."""
    out = {}
    for source in sources:
        path = Path(source).expanduser()
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        stats = [os.stat(file) for file in files if file.is_file()]
        out[str(path.resolve())] = [sum(s.st_size for s in stats), max((s.st_mtime_ns for s in stats), default=0)]
    return out


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    return [(key, old.get(key), new.get(key)) for key in dict.fromkeys([*old, *new]) if old.get(key) != new.get(key)]


def _said(value: Any) -> str:
    return "not given" if value in (None, [], ()) else repr(value)
