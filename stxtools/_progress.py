"""One way to show progress, in terminals and notebooks, that can be switched off."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from ._settings import settings

if TYPE_CHECKING:
    from tqdm.std import tqdm

T = TypeVar("T")


def is_shown(show_progress: bool | None) -> bool:
    """Decide whether a bar is shown: the argument, then the setting, then "a person is watching"."""
    for choice in (show_progress, settings.show_progress):
        if choice is not None:
            return choice
    in_notebook = "ipykernel" in sys.modules
    return in_notebook or (sys.stderr is not None and sys.stderr.isatty())


@contextmanager
def progress(total: int | None, desc: str, show_progress: bool | None = None) -> Iterator[tqdm[Any]]:
    """Open a bar of ``total`` steps; call ``.update(1)`` on it. It shows rate and remaining time."""
    from tqdm.auto import tqdm

    with tqdm(total=total, desc=desc, disable=not is_shown(show_progress), leave=False) as bar:
        yield bar


def track(items: Iterable[T], desc: str, total: int | None = None, show_progress: bool | None = None) -> Iterator[T]:
    """Iterate with a bar."""
    from tqdm.auto import tqdm

    yield from tqdm(items, total=total, desc=desc, disable=not is_shown(show_progress), leave=False)
