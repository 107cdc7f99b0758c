"""Package-wide settings: where data lie, whether progress is shown."""

from __future__ import annotations

import os
from pathlib import Path


class Settings:
    """Settings that hold for a whole process.

    Attributes
    ----------
    datasetdir
        Folder in which :mod:`stxtools.datasets` looks for sections and into which it downloads them.
        Starts as the environment variable ``STXTOOLS_DATASETDIR``, else ``~/.cache/stxtools``.
    show_progress
        Whether long calls show a progress bar: ``True``, ``False``, or ``None`` for "in a terminal or a notebook".
    max_memory
        Bytes that one intermediate array may take before a call works in tiles or chunks.
    """

    def __init__(self) -> None:
        self._datasetdir = Path(os.environ.get("STXTOOLS_DATASETDIR", "~/.cache/stxtools")).expanduser()
        self._show_progress: bool | None = None
        self._max_memory: int = 2 * 1024**3

    @property
    def datasetdir(self) -> Path:
        """Folder of the data sets."""
        return self._datasetdir

    @datasetdir.setter
    def datasetdir(self, value: str | os.PathLike[str]) -> None:
        self._datasetdir = Path(value).expanduser()

    @property
    def show_progress(self) -> bool | None:
        """Whether long calls show a progress bar (``None``: in a terminal or a notebook)."""
        return self._show_progress

    @show_progress.setter
    def show_progress(self, value: bool | None) -> None:
        if value is not None and not isinstance(value, bool):
            raise TypeError(f"settings.show_progress is True, False or None, not {value!r}.")
        self._show_progress = value

    @property
    def max_memory(self) -> int:
        """Bytes that one intermediate array may take."""
        return self._max_memory

    @max_memory.setter
    def max_memory(self, value: int) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"settings.max_memory is a positive number of bytes, not {value!r}.")
        self._max_memory = value

    def __repr__(self) -> str:
        return (
            f"Settings(datasetdir={str(self.datasetdir)!r}, show_progress={self.show_progress}, "
            f"max_memory={self.max_memory})"
        )


settings = Settings()
