"""One hostile input: draw it from its number, call the function, and judge the outcome."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import _content  # noqa: F401  (registers changes)
import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
from _calls import CALLS, FREE, MODELS, NO_ADATA, Call, hostile_values
from _data import CHANGES, HOW, QUICK, QUICK_NET, Change, finished, fresh
from _files import damage
from _judge import SUBJECTS, differences, faults, fingerprint, global_state, is_named, where_raised

import stxtools as st

LIMIT = 300  # seconds of a call; a whole training takes 10 to 60 on a busy core
PARAMETERS, FILES, OTHER = "parameters", "damaged model files", "no AnnData at all"
SHARES = {
    PARAMETERS: 0.3, "matrix and type": 0.08, "values": 0.09, "size": 0.05, "coordinates": 0.11, "names": 0.06,
    "annotations": 0.1, "earlier results, foreign content": 0.13, FILES: 0.05, OTHER: 0.03,
}  # fmt: skip
_VISIUM = "V1_Adult_Mouse_Brain"
OWN = ("obs/band", "obs/disease", "obs/library", "obs/score", "obsm/spatial", "uns/note", "X", "layers/counts")


class TooLong(BaseException):
    """A call exceeded its time limit."""


@dataclass
class Row:
    """A call and its outcome."""

    number: int
    kind: str
    call: str
    what: str
    outcome: str = ""
    error: str = ""
    where: str = ""
    changed: str = ""
    faults: str = ""
    state: str = ""
    seconds: float = 0.0


@dataclass
class Bench:
    """Data and model files from which each input is made."""

    seed: int
    folder: Path
    fresh: ad.AnnData = field(init=False)
    finished: ad.AnnData = field(init=False)

    def __post_init__(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.fresh, self.finished = fresh(), finished(self.folder)
        (self.folder / "text.stx").write_text("this is no table, no model and no section\n1,2\n")
        for name in ("dlpfc_151673.h5ad", "osmfish_mouse_sscortex.h5ad"):
            (self.folder / name).write_bytes(b"\x89HDF\r\n\x1a\n broken")
        for name, files in {
            "visium_mouse_brain": [f"{_VISIUM}_filtered_feature_bc_matrix.h5", f"{_VISIUM}_spatial.tar.gz"],
            "merfish_breast_cancer": ["cell_by_gene.csv", "cell_metadata.csv"],
        }.items():
            (self.folder / name).mkdir()
            for file in files:
                (self.folder / name / file).write_text("cell,GENE1\n1,x\n")

    def run(self, number: int) -> Row:
        """Draw input ``number``, call and judge it."""
        rng = np.random.default_rng([self.seed, number])
        kind = str(rng.choice(list(SHARES), p=list(SHARES.values())))
        with tempfile.TemporaryDirectory() as name, _inside(Path(name)):
            folder = Path(name)
            shutil.copytree(self.folder, folder, dirs_exist_ok=True)
            st.settings.datasetdir = folder
            if kind == FILES:
                return self._file(number, rng, folder)
            if kind == OTHER or (kind == PARAMETERS and rng.random() < 0.12):
                return self._other(number, kind, rng, folder)
            return self._data(number, kind, rng, folder)

    def _data(self, number: int, kind: str, rng: np.random.Generator, folder: Path) -> Row:
        weights = np.array([c.weight for c in CALLS])
        call = CALLS[rng.choice(len(CALLS), p=weights / weights.sum())]
        adata, said = self._changed(call, kind, rng, folder)
        arguments = call.arguments(folder)
        if call.variants and rng.random() < 0.4:
            arguments |= call.variants[rng.integers(len(call.variants))]
        if rng.random() < 0.1 and "copy" in call.parameters:
            arguments["copy"] = True
        n = 1 + int(rng.random() < 0.3) if kind == PARAMETERS else int(rng.random() < 0.1)
        for parameter in rng.choice(call.parameters, min(n, len(call.parameters)), replace=False):
            said.append(_put(call, str(parameter), arguments, rng))
        row = Row(number, kind, call.name, "; ".join(said))
        return _judged(row, call.function, adata, arguments, set(call.parameters), draw=rng.random() < 0.3)

    def _changed(self, call: Call, kind: str, rng: np.random.Generator, folder: Path) -> tuple[ad.AnnData, list[str]]:
        """Return a copy of the data with one or two faults, and their names."""
        while True:
            with_results = call.results or kind.startswith("earlier") or rng.random() < 0.25
            adata = (self.finished if with_results else self.fresh).copy()
            changes = [c for c in CHANGES if c.kind == kind]
            chosen: list[Change] = [changes[rng.integers(len(changes))]] if changes else []
            if rng.random() < 0.2:
                chosen.append(CHANGES[rng.integers(len(CHANGES))])
            if any(c.needs_results for c in chosen) and not with_results:
                continue
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    for c in chosen:
                        adata = c.apply(adata, rng, folder)
            except Exception:  # such data cannot exist
                continue
            return adata, [f"{c.kind}: {c.name}" for c in chosen]

    def _other(self, number: int, kind: str, rng: np.random.Generator, folder: Path) -> Row:
        if kind == OTHER and rng.random() < 0.7:
            call = CALLS[rng.integers(len(CALLS))]
            adata = NO_ADATA[rng.integers(len(NO_ADATA))]
            row = Row(number, kind, call.name, f"adata={_short(adata)}")
            return _judged(row, call.function, adata, call.arguments(folder), {*call.parameters})
        call = FREE[rng.integers(len(FREE))]
        arguments, said = call.arguments(folder), []
        if call.parameters:
            said = [_put(call, str(p), arguments, rng) for p in rng.choice(call.parameters, 1)]
        row = Row(number, PARAMETERS, call.name, "; ".join(said))
        return _judged(row, lambda a, **how: call.function(**how), None, arguments, set(call.parameters))

    def _file(self, number: int, rng: np.random.Generator, folder: Path) -> Row:
        name = list(MODELS)[rng.integers(len(MODELS))]
        path = folder / "damaged.stx"
        said = f"{name}: {damage(self.folder / f'{name}.stx', path, rng)}"
        kind = getattr(st.models, MODELS[name])
        if rng.random() < 0.5:
            loaded: list[Any] = []
            row = _judged(Row(number, FILES, f"models.{MODELS[name]}.load", said),
                          lambda a, path: loaded.append(kind.load(path)), None, {"path": path}, {"path"})  # fmt: skip
            if row.outcome != "ok" or name == "pretrained":
                return row
            path = loaded[0]
        adata = (self.finished if name.startswith("net") else self.fresh).copy()
        both = {"biomarker_key": "disease", "region_key": "band"}
        where, student = {"library_key": "library"}, {"save_model": "new.stx", "params": {"epochs": 1}}
        uses: list[tuple[str, dict[str, Any]]] = {
            "net": [
                ("multitask", {"model": path, **both, **HOW}),
                ("attention_fidelity", {"model": path, "of": "network", "max_regions": 1, "show_progress": False}),
                ("distill", {"model": path, **student, **HOW}),
            ],
            "net_student": [("multitask", {"model": path, **both, **where, **HOW})],
            "pretrained": [("segment", {"n_segments": 3, "pretrained": path, "params": {"epochs": 1}, **where, **HOW})],
        }.get(
            name,
            [("segment", {"model": path, **where, **HOW})],
        )
        call, arguments = uses[rng.integers(len(uses))]
        function = getattr(st.tl, call)
        known = set(inspect.signature(function).parameters)
        return _judged(Row(number, FILES, f"tl.{call}", said), function, adata, arguments, known)


def _unwritable(adata: ad.AnnData) -> bool:
    with tempfile.TemporaryDirectory() as folder, _silence():
        try:
            adata.write_h5ad(f"{folder}/a.h5ad")
        except Exception:  # of any kind: the data were hostile
            return True
    return False


def _is_own(path: str) -> bool:
    """Return whether the path is a user's own column, matrix or note."""
    return any(path == own or path.startswith((f"{own}/", f"{own}[")) for own in OWN)


def _put(call: Call, parameter: str, arguments: dict[str, Any], rng: np.random.Generator) -> str:
    values = hostile_values(call, parameter)
    value = values[rng.integers(len(values))]
    if parameter == "params" and isinstance(value, dict) and value:
        quick = QUICK_NET if call.name in {"tl.embed", "tl.multitask"} else arguments.get("params", QUICK)
        value = {**(quick if isinstance(quick, dict) else {}), **value}
    arguments[parameter] = value
    return f"{parameter}={_short(value)}"


def _short(value: Any) -> str:
    text = repr(value).replace("\n", " ")
    return text if len(text) <= 80 else text[:77] + "..."


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    here = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(here)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    text = io.StringIO()
    with contextlib.redirect_stderr(text), contextlib.redirect_stdout(text), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _ring(signum: int, frame: Any) -> None:
    raise TooLong


def _judged(
    row: Row, function: Callable[..., Any], adata: Any, arguments: dict[str, Any], parameters: set[str], *,
    draw: bool = False,
) -> Row:  # fmt: skip
    before = fingerprint(adata)
    pristine = adata.copy() if isinstance(adata, ad.AnnData) and not adata.isbacked else None
    state, start, found = global_state(), time.perf_counter(), None
    signal.signal(signal.SIGALRM, _ring)
    signal.setitimer(signal.ITIMER_REAL, LIMIT)
    try:
        with _silence():
            found = function(adata, **arguments)
            if draw and row.call.startswith("pl."):
                for number in plt.get_fignums():
                    plt.figure(number).canvas.draw()
        row.outcome = "ok"
    except TooLong:
        row.outcome = "no end"
    except Exception as err:
        signal.setitimer(signal.ITIMER_REAL, 0)
        row.outcome = "named" if is_named(err, parameters | SUBJECTS) else "unnamed"
        row.error = f"{type(err).__name__}: {str(err)[:300]}".replace("\n", " ")
        row.where = where_raised(err)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    row.seconds = time.perf_counter() - start
    row.state = ", ".join(k for k, v in global_state().items() if v != state[k])
    plt.close("all")
    after = fingerprint(adata)
    changed = differences(before, after)
    if row.outcome != "ok":
        row.changed = ", ".join(changed[:5])
        return row
    row.faults = "; ".join(_result_faults(row.call, adata, found, before, changed, pristine)[:3])
    return row


def _result_faults(
    call: str, adata: Any, found: Any, before: dict[str, str], changed: list[str], pristine: ad.AnnData | None
) -> list[str]:
    """Return the faults of what a successful call wrote or returned."""
    if call.startswith(("pl.", "get.")):
        out = [f"{p} changed" for p in changed if not p.endswith("_colors")]
        return out
    out = []
    if isinstance(found, ad.AnnData) and isinstance(adata, ad.AnnData):  # copy=True
        out += [f"{p} changed with copy=True" for p in changed]
        adata, changed = found, differences(before, fingerprint(found))
    if not isinstance(adata, ad.AnnData):
        return faults(found, [p for p in fingerprint(found) if p != "X"]) if isinstance(found, ad.AnnData) else []
    free = ("X", "layers/counts") if call in {"pp.normalize", "pp.add_noise"} else ()  # noised: with copy=True
    out += [
        f"{p} changed" for p in changed
        if p in before and _is_own(p) and p.split("[")[0] not in free
    ]  # fmt: skip
    wrong = faults(adata, changed)
    if wrong and wrong[0].startswith(("cannot be", "lost")) and pristine is not None and _unwritable(pristine):
        wrong = []  # what was there before cannot be written either
    return out + wrong


def run(seed: int, numbers: list[int], verbose: bool = False) -> list[dict[str, object]]:
    """Run inputs by their numbers."""
    logging.disable(logging.WARNING)
    out = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(seed, Path(folder))
        for number in numbers:
            row = bench.run(number)
            out.append(asdict(row))
            if verbose:
                sys.stdout.write("\n".join(f"{k:9} {v}" for k, v in asdict(row).items() if v != "") + "\n\n")
    return out
