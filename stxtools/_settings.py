"""Package-wide settings: folder of data sets, progress bars, memory of a step, trainer."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any


@dataclass(eq=False)
class Settings:
    """Package-wide settings, changed by assignment: ``st.settings.datasetdir = "data"``.

    Attributes
    ----------
    datasetdir
        Folder from which :mod:`stxtools.datasets` reads sections and to which it downloads them. By default the
        environment variable ``STXTOOLS_DATASETDIR``, else ``~/.cache/stxtools``.
    show_progress
        Whether to show progress bars. None, the default, shows them in terminals and notebooks.
    max_memory
        Memory in GB for the dense working arrays of a step, such as raster tiles in the U-Net or chunks of a matrix on
        disk; data and results are not included. By default 2.
    trainer
        Further arguments of :class:`lightning.fabric.Fabric`, such as ``{"strategy": "ddp_spawn"}`` or
        ``{"strategy": "ddp", "num_nodes": 2}``. By default none.
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
