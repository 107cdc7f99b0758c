"""The folder of a run: what is finished is kept in ``unfinished/`` until everything is, and then takes its place."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import h5py
from anndata import AnnData
from anndata.io import read_h5ad, write_elem
from filelock import FileLock, Timeout

from stxtools._files import PART, sync_folder, whole, write_text
from stxtools._version import __version__

from .options import UsageError, flag

RECORD = "run.json"
DATA = "adata.h5ad"
TABLE = "biomarkers.csv"
REPORT = "report.html"
FIGURES = {"segments": "segment"} | {f: f for f in ("region_graph", "attention", "biomarkers", "history")}
RESULTS = (DATA, TABLE, REPORT, *(f"{name}.png" for name in FIGURES), RECORD)
_STEP = "step.h5ad"
_FREE = {"out", "overwrite", "resume", "quiet", "max_memory"}  # they do not change the result
_SLOTS = ("obs", "var", "obsm", "varm", "obsp", "varp", "uns")


def write_h5ad(adata: AnnData, path: Path) -> None:
    """Write an ``.h5ad`` file; after an error, such as a full disk, ``path`` is as it was."""
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

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.path = Path(options["out"]).expanduser()
        self.work = self.path / "unfinished"
        sources = [*options["input"], *(p for p in (options["model"], options["pretrained"]) if p is not None)]
        self.record: dict[str, Any] = {
            "stxtools": __version__,
            "options": {name: value for name, value in options.items() if name not in _FREE},
            "files": {source: _stamp(Path(source).expanduser()) for source in sources},
            "seconds": {},
        }
        self._lock = FileLock(self.work / ".lock")
        self._new = not self.path.exists()

    @property
    def finished(self) -> list[str]:
        """Names of the steps whose results are saved."""
        return list(self.record["seconds"])

    def look(self, *, overwrite: bool, resume: bool) -> bool:
        """See what is there, without a change; return False where ``resume`` finds a run that is complete."""
        out = f"--out={str(self.path)!r}"
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"{out} is a file; name a folder.")
        begun = (self.work / RECORD).exists()
        if overwrite or not (self.path.is_dir() and any(self.path.iterdir())):
            return True
        if not resume:
            hint = "--resume goes on with the unfinished run in it, " if begun else ""
            raise UsageError(f"{out} is not empty: {hint}--overwrite replaces the results in it.")
        record = (self.work if begun else self.path) / RECORD
        if not record.exists():
            raise UsageError(f"{out} holds no run that could be resumed; --overwrite starts anew.")
        self._take_over(record)
        return begun

    def _take_over(self, path: Path) -> None:
        """Go on with what an earlier run has finished, if it had the same options."""
        try:
            then = json.loads(path.read_text(encoding="utf-8"))
            old, new = _conditions(then), _conditions(self.record)
            seconds = dict(then["seconds"])
        except (ValueError, KeyError, TypeError, AttributeError) as err:
            raise UsageError(f"{str(path)!r} is damaged; --overwrite starts anew.") from err
        changed = [f"{k} was {old.get(k, 'not given')}, now {new.get(k, 'not given')}" for k in old | new
                   if old.get(k) != new.get(k)]  # fmt: skip
        if changed:
            raise UsageError(f"The run in {str(self.path)!r} was started otherwise: {'; '.join(changed)}. Give the "
                             "same, or start anew with --overwrite.")  # fmt: skip
        self.record["seconds"] = seconds

    def create(self) -> None:
        """Make the folder, where no other run writes."""
        out = f"--out={str(self.path)!r}"
        try:
            self.work.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(blocking=False)  # it ends with this process, however that ends
            for path in [] if self.finished else self.work.iterdir():
                if path.name != ".lock":
                    path.unlink()
            for part in self.work.glob(f".*{PART}*"):  # of a process that was killed
                part.unlink(missing_ok=True)
            self.save()
        except Timeout:
            raise UsageError(f"Another run is writing to {out}; wait, or name another folder.") from None
        except OSError as err:
            raise UsageError(f"Nothing can be written to {out}: {err.strerror or err}.") from err

    def discard(self) -> None:
        """Leave nothing behind of a run that has finished no step."""
        self._lock.release()
        shutil.rmtree(self.work, ignore_errors=True)
        if self._new and self.path.is_dir() and not any(self.path.iterdir()):
            self.path.rmdir()

    def save(self, step: str | None = None, seconds: float = 0.0, adata: AnnData | None = None) -> None:
        """Write down that a step is finished, and its results (without expression, which the input holds)."""
        if adata is not None:
            slots: dict[str, Any] = {name: getattr(adata, name) for name in _SLOTS}
            write_h5ad(AnnData(**slots), self.work / _STEP)
        if step is not None:
            self.record["seconds"][step] = round(seconds, 2)
        write_text(self.work / RECORD, json.dumps(self.record, indent=1) + "\n")

    def restore(self, adata: AnnData) -> None:
        """Put the results of the finished steps into what was read from the input."""
        saved = read_h5ad(self.work / _STEP)
        for name in _SLOTS:
            setattr(adata, name, getattr(saved, name))

    def publish(self) -> None:
        """Put all results in their place."""
        for name in RESULTS:  # the record is the last: until it is moved, the run counts as unfinished
            if (self.work / name).exists():
                (self.work / name).replace(self.path / name)
        sync_folder(self.path)
        self._lock.release()
        shutil.rmtree(self.work)


def _stamp(path: Path) -> str:
    """Size and time of change of a file or folder that is read."""
    stats = [file.stat() for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()]
    changed = datetime.fromtimestamp(max((s.st_mtime for s in stats), default=0))
    return f"{sum(s.st_size for s in stats):,} bytes of {changed}"


def _conditions(record: Mapping[str, Any]) -> dict[str, str]:
    """What decides the results of a run, by the name that a user knows."""
    options = {f"--{flag(name)}": value for name, value in record["options"].items()}
    said = {name: "not given" if value in (None, [], ()) else repr(value) for name, value in options.items()}
    return {"stxtools": record["stxtools"], **said, **{repr(name): stamp for name, stamp in record["files"].items()}}
