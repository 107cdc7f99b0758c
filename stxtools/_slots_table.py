"""Slots that each call writes into AnnData: ``_slots.tsv``, the one table behind docstrings, a page and its test.

Keys are those of a call with its default ``key_added``. A part in braces stands for the value of a
parameter (``{biomarker_key}``) or for a section's name (``{library}``).
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from . import _keys

PARAMS = "parameters, seed and versions"


@dataclass(frozen=True)
class SlotRow:
    """One slot that a call writes.

    ``where`` is an attribute of AnnData (``"obs"``), or of the regions' AnnData (``"regions.obs"``). ``key`` is a
    path of keys with ``/`` between them for what lies deeper in ``uns``, and empty for ``X``.
    ``always`` is false for a slot that depends on the input; ``meaning`` then says on what.
    """

    call: str
    where: str
    key: str
    type: str
    shape: str
    meaning: str
    always: bool = True

    @property
    def code(self) -> str:
        """The slot as a user would type it."""
        root, _, attribute = self.where.rpartition(".")
        owner = f'uns["{_keys.REGIONS}"].{attribute}' if root else self.where
        return owner + "".join(f'["{part}"]' for part in self.key.split("/") if part)


_TABLE = Path(__file__).with_name("_slots.tsv").read_text(encoding="utf-8").splitlines()
_ROWS = csv.reader(_TABLE[1:], delimiter="\t", quoting=csv.QUOTE_NONE)
SLOTS = tuple(
    SlotRow(call, where, key, kind, shape, meaning, always == "yes")
    for call, where, key, kind, shape, meaning, always in _ROWS
)
