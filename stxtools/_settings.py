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
    """

    def __init__(self) -> None:
        self._datasetdir = Path(os.environ.get("STXTOOLS_DATASETDIR", "~/.cache/stxtools")).expanduser()
        self._show_progress: bool | None = None

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

    def __repr__(self) -> str:
        return f"Settings(datasetdir={str(self.datasetdir)!r}, show_progress={self.show_progress})"


settings = Settings()
