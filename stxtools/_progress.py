"""One progress bar for each public call, which the slow parts inside it move through their shares of the time."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from time import perf_counter
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from ._globals import limited_blas_threads, release_memory, torch_defaults
from ._settings import settings

if TYPE_CHECKING:
    from tqdm.std import tqdm

P = ParamSpec("P")
R = TypeVar("R")

FEATURES = {"reading expression": 0.5, "choosing genes": 1, "computing components": 1}  # shares of a representation
_LONG = 5.0  # seconds of a call after which memory is released, which takes up to half a second
_FORMAT = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"


def is_shown(show_progress: bool | None) -> bool:
    """Return whether a bar is shown: by the argument, else the setting, else in a notebook or terminal."""
    if show_progress is not None and not isinstance(show_progress, bool):
        raise TypeError(f"`show_progress` must be True, False or None, not {show_progress!r}.")
    for choice in (show_progress, settings.show_progress):
        if choice is not None:
            return choice
    return "ipykernel" in sys.modules or (sys.stderr is not None and sys.stderr.isatty())


class Stage:
    """A part of a call: a range of the bar, through which :meth:`update` and the stages inside it move."""

    def __init__(
        self, bar: tqdm[Any] | None, path: tuple[str, ...], start: float = 0.0, end: float = 1.0,
        total: int | None = None, shares: Mapping[str, float] | None = None,
    ) -> None:  # fmt: skip
        self.bar, self.path, self.total = bar, path, total
        self.start, self.end, self.reached, self.done = start, end, start, 0.0
        self.shares = dict(shares or {})
        self.notes: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "bar": None}  # a bar belongs to the process that draws it

    def update(self, n: float = 1) -> None:
        """Advance by ``n`` of ``total`` steps."""
        self.done += n
        if self.total:
            self._move(self.start + (self.end - self.start) * min(self.done / self.total, 1.0))

    def set_postfix(self, notes: Mapping[str, Any]) -> None:
        """Set the values shown behind the bar from the next :meth:`update` on."""
        self.notes = dict(notes)

    def enter(self, *names: str) -> None:
        """Show the name of the stage inside this one that begins now, and end the one before."""
        if self.bar is not None:
            self.bar.set_description_str(": ".join((*self.path, *names)), refresh=False)
            self._move(self.range_of(names[-1])[0] if names else self.start)
            self.bar.refresh()

    def range_of(self, name: str) -> tuple[float, float]:
        """Return the range of an inner stage that begins now: its share of what is left for it and those after it."""
        if name in self.shares:
            names = list(self.shares)
            left = sum(self.shares[n] for n in names[names.index(name) :])
            start = self.reached
            self.reached += (self.end - start) * self.shares[name] / left
            return start, self.reached
        if self.total:
            done, step = min(self.done, self.total), (self.end - self.start) / self.total
            return self.start + step * done, min(self.start + step * (done + 1), self.end)
        return self.reached, self.reached

    def _move(self, position: float) -> None:
        if self.bar is not None:
            steps = {"step": f"{self.done:.0f}/{self.total}"} if self.total and self.total > 1 else {}
            self.bar.set_postfix(steps | self.notes, refresh=False)
            self.bar.update(max(position - self.bar.n, 0.0))  # a repeated stage does not move it back


_current: ContextVar[Stage | None] = ContextVar("stxtools_stage", default=None)


@contextmanager
def progress(
    total: int | None, desc: str, show_progress: bool | None = None, *,
    shares: Mapping[str, float] | None = None,
) -> Iterator[Stage]:  # fmt: skip
    """Open a stage of the running call, or a bar where no call runs; call ``.update(1)`` on it ``total`` times."""
    shown = is_shown(show_progress)
    outer = _current.get()
    if outer is None:
        inner = Stage(_open_bar() if shown else None, (desc,), total=total, shares=shares)
    elif outer.bar is None or show_progress is False:
        inner = Stage(None, (desc,))
    else:
        path = outer.path if outer.path[-1] == desc else (*outer.path, desc)
        inner = Stage(outer.bar, path, *outer.range_of(desc), total, shares)
    token = _current.set(inner)
    try:
        inner.enter()
        yield inner
        inner._move(inner.end)
        if outer is not None and inner.bar is not None:
            inner.bar.set_description_str(": ".join(outer.path))
    finally:
        _current.reset(token)
        if outer is None and inner.bar is not None:
            inner.bar.close()


def stage(name: str) -> None:
    """Show the name of the stage that the running call begins; outside a call nothing happens."""
    current = _current.get()
    if current is not None:
        current.enter(name)


def progress_bar(shares: Mapping[str, float] | None = None) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a public function with a progress bar, by the ``shares`` of its stages; set up BLAS and PyTorch."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            start = perf_counter()
            bar = progress(None, function.__name__, kwargs.get("show_progress"), shares=shares)  # type: ignore[arg-type]
            with limited_blas_threads(), torch_defaults(), bar:
                out = function(*args, **kwargs)
            if perf_counter() - start > _LONG:
                release_memory()
            return out

        return call

    return decorate


def _open_bar() -> tqdm[Any]:
    from tqdm.auto import tqdm

    # miniters=0: fractions count; smoothing=0: the time that remains follows from the whole call, not its last step
    return tqdm(total=1.0, leave=False, bar_format=_FORMAT, miniters=0, smoothing=0)
