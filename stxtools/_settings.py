"""Package-wide settings: where data lie, whether progress is shown, how much memory a step may take."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


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
        Memory in GB for the dense working arrays of a step: tiles of a raster in the U-Net, chunks of a matrix that is
        read from a file. Starts at 2. Data and results come on top.
    trainer
        Arguments for every :class:`lightning.pytorch.Trainer` beside those of a call: ``{"strategy": "ddp_spawn"}``,
        ``{"strategy": "ddp", "num_nodes": 2}``. Starts empty.
    """

    def __init__(self) -> None:
        self._datasetdir = Path(os.environ.get("STXTOOLS_DATASETDIR", "~/.cache/stxtools")).expanduser()
        self._show_progress: bool | None = None
        self._max_memory = 2.0
        self._trainer: dict[str, Any] = {}

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
    def max_memory(self) -> float:
        """Memory in GB for the dense working arrays of a step."""
        return self._max_memory

    @max_memory.setter
    def max_memory(self, value: float) -> None:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
            raise TypeError(f"settings.max_memory is a positive number of GB, not {value!r}.")
        self._max_memory = float(value)

    @property
    def trainer(self) -> dict[str, Any]:
        """Arguments for every Lightning Trainer beside those of a call."""
        return dict(self._trainer)

    @trainer.setter
    def trainer(self, value: Mapping[str, Any]) -> None:
        taken = {"accelerator", "devices", "max_epochs", "callbacks"}
        if not isinstance(value, Mapping) or not all(isinstance(k, str) for k in value):
            raise TypeError(f"settings.trainer is a mapping of argument names to values, not {value!r}.")
        if taken & set(value):
            raise ValueError(f"settings.trainer cannot hold {sorted(taken & set(value))}: the calls set them.")
        self._trainer = dict(value)

    def __repr__(self) -> str:
        return (
            f"Settings(datasetdir={str(self.datasetdir)!r}, show_progress={self.show_progress}, "
            f"max_memory={self.max_memory:g})"
        )


settings = Settings()
