"""A table on disk to which finished rows are appended, so that a long run can go on after an interruption."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_MARK = "# stxtools evaluation, settings "


def settings_fingerprint(settings: Mapping[str, Any]) -> str:
    """Short digest of everything that a row depends on and does not name itself."""
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Checkpoint:
    """Rows in a CSV file, the first line of which tells the settings they were made with.

    Parameters
    ----------
    path
        The file, or None to keep rows in memory only.
    fingerprint
        Digest of the settings.
    columns
        Columns of the table.
    text
        Those that hold text.

    Raises
    ------
    ValueError
        If the file holds something else, or rows made with other settings or other data.
    """

    def __init__(
        self, path: str | os.PathLike[str] | None, fingerprint: str, columns: Sequence[str], text: Sequence[str]
    ) -> None:
        self.path = None if path is None else Path(path).expanduser()
        self.columns, self.rows = list(columns), []
        self._text = list(text)
        if self.path is None:
            return
        if self.path.is_dir() or not self.path.parent.exists():
            raise ValueError(f"`checkpoint={str(self.path)!r}` must name a file in a folder that exists.")
        if self.path.exists() and self.path.stat().st_size:
            self.rows = self._read(fingerprint)
        else:
            self.path.write_text(f"{_MARK}{fingerprint}\n{','.join(self.columns)}\n", encoding="utf-8")

    def _read(self, fingerprint: str) -> list[dict[str, Any]]:
        path = Path(str(self.path))
        content = path.read_text(encoding="utf-8")
        if not content.startswith(_MARK):
            raise ValueError(f"`checkpoint={str(path)!r}` is not a table of `st.tl.evaluate`; name another file.")
        first = content.split("\n", 1)[0].removeprefix(_MARK).strip()
        if first != fingerprint:
            raise ValueError(
                f"`checkpoint={str(path)!r}` was written with other data or settings (fingerprint {first}, now "
                f"{fingerprint}); name another file, or delete it to start anew."
            )
        if not content.endswith("\n"):  # cut off in the middle of a row
            content = content[: content.rfind("\n") + 1]
            path.write_text(content, encoding="utf-8")
        from io import StringIO

        table = pd.read_csv(
            StringIO(content),
            comment="#",
            float_precision="round_trip",
            dtype=dict.fromkeys(self._text, str),
            keep_default_na=False,
            na_values={c: [""] for c in self.columns if c not in self._text},
        )
        return table.to_dict("records")

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows in one go: to the table and to the file."""
        self.rows += [dict(r) for r in rows]
        if self.path is None:
            return
        text = pd.DataFrame(list(rows), columns=self.columns).to_csv(index=False, header=False)
        with self.path.open("a", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
