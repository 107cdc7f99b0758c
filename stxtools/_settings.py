"""Package-wide settings: where data lie, whether progress is shown, how much memory a step may take."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any


@dataclass(eq=False)
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
        Arguments for every :class:`lightning.fabric.Fabric` beside those of a call: ``{"strategy": "ddp_spawn"}``,
        ``{"strategy": "ddp", "num_nodes": 2}``. Starts empty.
    """

    datasetdir: Path = Path(os.environ.get("STXTOOLS_DATASETDIR", "~/.cache/stxtools"))
    show_progress: bool | None = None
    max_memory: float = 2.0
    trainer: dict[str, Any] = field(default_factory=dict)

    def __setattr__(self, name: str, value: Any) -> None:
        """Check a value and keep it."""
        super().__setattr__(name, _checked(name, value))


def _checked(name: str, value: Any) -> Any:
    if name == "datasetdir":
        if not isinstance(value, (str, os.PathLike)) or not str(value):
            raise TypeError(f"settings.datasetdir is the path of a folder, not {value!r}.")
        return Path(value).expanduser()
    if name == "show_progress":
        if value is not None and not isinstance(value, bool):
            raise TypeError(f"settings.show_progress is True, False or None, not {value!r}.")
        return value
    if name == "max_memory":
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
            raise TypeError(f"settings.max_memory is a positive number of GB, not {value!r}.")
        return float(value)
    if name == "trainer":
        taken = {"accelerator", "devices"}
        if not isinstance(value, Mapping) or not all(isinstance(k, str) for k in value):
            raise TypeError(f"settings.trainer is a mapping of argument names to values, not {value!r}.")
        if taken & set(value):
            raise ValueError(f"settings.trainer cannot hold {sorted(taken & set(value))}: the calls set them.")
        return dict(value)
    known = ", ".join(f.name for f in fields(Settings))
    raise AttributeError(f"There is no settings.{name}; there are {known}.")


settings = Settings()
