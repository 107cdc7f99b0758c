"""Package-wide settings: folder of data sets, progress bars, memory of a step, trainer."""

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
        """Check a value and set it."""
        if name == "datasetdir":
            if not isinstance(value, (str, os.PathLike)) or not str(value):
                raise TypeError(f"settings.datasetdir must be the path of a folder, not {value!r}.")
            value = Path(value).expanduser()
        elif name == "show_progress":
            if value is not None and not isinstance(value, bool):
                raise TypeError(f"settings.show_progress must be True, False or None, not {value!r}.")
        elif name == "max_memory":
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
                raise TypeError(f"settings.max_memory must be a positive number of GB, not {value!r}.")
            value = float(value)
        elif name == "trainer":
            if not isinstance(value, Mapping) or not all(isinstance(k, str) for k in value):
                raise TypeError(f"settings.trainer must map argument names to values, not {value!r}.")
            if reserved := sorted({"accelerator", "devices"}.intersection(value)):
                raise ValueError(f"settings.trainer cannot hold {reserved}: the calls set them.")
            value = dict(value)
        else:
            raise AttributeError(f"There is no settings.{name}; there are {', '.join(f.name for f in fields(self))}.")
        super().__setattr__(name, value)


settings = Settings()
