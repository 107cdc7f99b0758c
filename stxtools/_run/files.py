"""The output folder: results of finished steps are in ``unfinished/`` until the run is complete."""

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

from stxtools import _keys
from stxtools._files import PART, atomic_write, sync_folder, write_text
from stxtools._version import __version__

from .options import UsageError, flag

RECORD = "run.json"
DATA = "adata.h5ad"
TABLE = "biomarkers.csv"
REPORT = "report.html"
FIGURES = {"segments": "segment"} | {f: f for f in ("region_graph", "attention", "biomarkers", "history")}
RESULTS = (DATA, TABLE, REPORT, *(f"{name}.png" for name in FIGURES), RECORD)
_STEP = "step.h5ad"
_WITHOUT_EFFECT = {"out", "overwrite", "resume", "quiet", "max_memory"}  # on the results
_SLOTS = ("obs", "var", "obsm", "varm", "obsp", "varp", "uns")


def write_h5ad(adata: AnnData, path: Path) -> None:
    """Write an ``.h5ad`` file; after an error, such as a full disk, ``path`` is as it was."""
    adata.strings_to_categoricals()
    with atomic_write(path) as part, _DeferredErrorFile(part, "w+") as stream:
        try:
            with h5py.File(stream, "w") as file:
                write_elem(file, "/", adata)
        except Exception:  # of whatever kind h5py makes of the error that is raised below
            if stream.error is None:
                raise
        if stream.error is not None:
            raise stream.error


class _DeferredErrorFile(io.FileIO):
    """A file that stores its first error: HDF5 crashes the process where a write fails while it closes."""

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


def write_table(adata: AnnData, path: str | Path, key: str = _keys.BIOMARKERS) -> None:
    """Write a table, such as the biomarkers, as CSV."""
    with atomic_write(path) as part:
        table = adata.uns[key]
        table.to_csv(part, index=table.index.name is not None, float_format="%.6g")


class Folder:
    """The output folder of a run, and its record of finished steps."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.path = Path(options["out"]).expanduser()
        self.work = self.path / "unfinished"
        sources = [*options["input"], *(p for p in (options["model"], options["pretrained"]) if p is not None)]
        self.record: dict[str, Any] = {
            "stxtools": __version__,
            "options": {name: value for name, value in options.items() if name not in _WITHOUT_EFFECT},
            "files": {source: _stamp(Path(source).expanduser()) for source in sources},
            "seconds": {},
        }
        self._flag = f"--out={str(self.path)!r}"
        self._lock = FileLock(self.work / ".lock")
        self._is_new = not self.path.exists()

    @property
    def finished(self) -> list[str]:
        """Names of the steps whose results are saved."""
        return list(self.record["seconds"])

    def check(self, *, overwrite: bool, resume: bool) -> bool:
        """Check what the folder holds; return False where ``resume`` finds a complete run."""
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"{self._flag} is a file; name a folder.")
        begun = (self.work / RECORD).exists()
        if overwrite or not (self.path.is_dir() and any(self.path.iterdir())):
            return True
        if not resume:
            hint = "--resume goes on with the unfinished run in it, " if begun else ""
            raise UsageError(f"{self._flag} is not empty: {hint}--overwrite replaces the results in it.")
        record = (self.work if begun else self.path) / RECORD
        if not record.exists():
            raise UsageError(f"{self._flag} holds no run that could be resumed; --overwrite starts anew.")
        self._resume(record)
        return begun

    def _resume(self, path: Path) -> None:
        """Take over the finished steps of an earlier run, if it had the same options."""
        try:
            earlier = json.loads(path.read_text(encoding="utf-8"))
            old, new = _conditions(earlier), _conditions(self.record)
            seconds = dict(earlier["seconds"])
        except (ValueError, KeyError, TypeError, AttributeError) as err:
            raise UsageError(f"{str(path)!r} is damaged; --overwrite starts anew.") from err
        changed = [f"{k} was {old.get(k, 'not given')}, now {new.get(k, 'not given')}" for k in old | new
                   if old.get(k) != new.get(k)]  # fmt: skip
        if changed:
            raise UsageError(f"The run in {str(self.path)!r} was started with other options or files: "
                             f"{'; '.join(changed)}. Give the same, or start anew with --overwrite.")  # fmt: skip
        self.record["seconds"] = seconds

    def create(self) -> None:
        """Create the folder, and lock it against other runs."""
        try:
            self.work.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(blocking=False)  # it ends with this process, however that ends
            # a new run starts empty; a resumed one removes partial files of a process that was killed
            for path in self.work.glob(f".*{PART}*" if self.finished else "*"):
                if path.name != ".lock":
                    path.unlink(missing_ok=True)
            self.save()
        except Timeout:
            raise UsageError(f"Another run is writing to {self._flag}; wait, or name another folder.") from None
        except OSError as err:
            raise UsageError(f"Nothing can be written to {self._flag}: {err.strerror or err}.") from err

    def discard(self) -> None:
        """Remove what a run without a finished step has created."""
        self._lock.release()
        shutil.rmtree(self.work, ignore_errors=True)
        if self._is_new and self.path.is_dir() and not any(self.path.iterdir()):
            self.path.rmdir()

    def save(self, step: str | None = None, seconds: float = 0.0, adata: AnnData | None = None) -> None:
        """Record a finished step, and save its results (without expression, which the input holds)."""
        if adata is not None:
            slots: dict[str, Any] = {name: getattr(adata, name) for name in _SLOTS}
            write_h5ad(AnnData(**slots), self.work / _STEP)
        if step is not None:
            self.record["seconds"][step] = round(seconds, 2)
        write_text(self.work / RECORD, json.dumps(self.record, indent=1) + "\n")

    def restore(self, adata: AnnData) -> None:
        """Add the results of the finished steps to the input."""
        saved = read_h5ad(self.work / _STEP)
        for name in _SLOTS:
            setattr(adata, name, getattr(saved, name))

    def publish(self) -> None:
        """Move the results of a complete run to the folder."""
        for name in RESULTS:  # the record is the last: until it is moved, the run counts as unfinished
            if (self.work / name).exists():
                (self.work / name).replace(self.path / name)
        sync_folder(self.path)
        self._lock.release()
        shutil.rmtree(self.work)


def _stamp(path: Path) -> str:
    """Return size and modification time of a file or folder."""
    stats = [file.stat() for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()]
    changed = datetime.fromtimestamp(max((s.st_mtime for s in stats), default=0))
    return f"{sum(s.st_size for s in stats):,} bytes of {changed}"


def _conditions(record: Mapping[str, Any]) -> dict[str, str]:
    """Return what the results of a run depend on: version, options as flags, and files."""
    options = {f"--{flag(name)}": repr(v) for name, v in record["options"].items() if v not in (None, [], ())}
    return {"stxtools": record["stxtools"], **options, **{repr(name): stamp for name, stamp in record["files"].items()}}
