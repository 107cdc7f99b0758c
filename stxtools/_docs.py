"""Fill the docstrings of public functions with shared texts at import, and the table of slots that they write.

Parameters of the signature that a docstring does not describe get the texts of ``_parameters.tsv``. "Returns" and
"Raises", where a docstring has none, and the import in an example are added. ``%(slots)s`` stands for the function's
rows of ``_slots.tsv``; ``%(returns)s`` for the section "Returns".
"""

from __future__ import annotations

import csv
import inspect
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

from . import _keys

F = TypeVar("F", bound=Callable[..., Any])

WIDTH = 116
RETURNS = {
    "get": "Returns\n-------\nA DataFrame, a copy of the selected rows in their stored order.",
    "pl": "Returns\n-------\nNone if the figure is shown, else the Axes, or a list of Axes for several panels.",
    "pp": "Returns\n-------\nNone, or the modified copy with ``copy=True``. Sets the following fields:\n\n%(slots)s",
}
RETURNS["tl"] = RETURNS["pp"]
RAISES = """Raises
------
KeyError, {os_error}TypeError, ValueError
    If {what} that an argument names is missing, or an argument or the data cannot be used."""
FILES = {"attribution_model", "model", "net", "path", "pretrained", "save_model", "table"}  # parameters that name one
IMPORT_ERROR = "ImportError\n    If an optional dependency is not installed."
IMPORT = ">>> import stxtools as st"
EMBED = ("tl.embed",)  # the slots that other calls write as this one does
PARAMS = "parameters, seed and versions"


@dataclass(frozen=True)
class SlotRow:
    """One slot that a call writes with its default ``key_added``; a part of its key in braces is a value of the input.

    - ``where``: Attribute of AnnData (``"obs"``), or of the regions' AnnData (``"regions.obs"``).
    - ``key``: Path of keys with ``/`` between them for what lies deeper in ``uns``; empty for ``X``.
    - ``always``: False for a slot that depends on the input; ``meaning`` then says on what.
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


def _read_table(name: str) -> list[list[str]]:
    lines = Path(__file__).with_name(name).read_text(encoding="utf-8").splitlines()
    return list(csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))


SLOTS = tuple(
    SlotRow(call, where, key, kind, shape, meaning, always == "yes")
    for call, where, key, kind, shape, meaning, always in _read_table("_slots.tsv")[1:]
)
# the first that fits is taken; before a dot stands the namespace, or another parameter, of the functions it is for
PARAMETERS = dict(_read_table("_parameters.tsv"))


def complete_docstring(function: F) -> F:
    """Fill the placeholders in the docstring of a public function."""
    if function.__doc__ is None:  # python -OO
        return function
    namespace = function.__module__.split(".")[1]
    rows = [row for row in SLOTS if row.call == f"{namespace}.{function.__name__}"]
    text, returns = inspect.cleandoc(function.__doc__), RETURNS.get(namespace, "")
    text = text.replace("%(returns)s", returns)
    if "\nReturns\n" not in text:
        text = text.replace("\nExamples\n", f"\n{returns}\n\nExamples\n")
    if "\nParameters\n" not in text:
        text = text.replace("\nReturns\n", "\nParameters\n----------\n\nReturns\n")
    if "\nRaises\n" not in text:
        names = inspect.signature(function).parameters
        os_error, what = ("OSError, ", "a key or file") if FILES & names.keys() else ("", "a key")
        raises = RAISES.format(os_error=os_error, what=what) + (f"\n{IMPORT_ERROR}" if "pip install" in text else "")
        text = text.replace("\nExamples\n", f"\n{raises}\n\nExamples\n")
    if "stxtools as st" not in text:
        text = text.replace("\nExamples\n--------\n", f"\nExamples\n--------\n{IMPORT}\n")
    text = text.replace("%(slots)s", "\n".join(_slots(rows)))
    before, head, rest = text.partition("Parameters\n----------\n")
    own, end, after = rest.partition("\nReturns\n")
    parameters = _parameters(function, own.rstrip(), namespace, rows)
    text = before + head + "\n".join(parameters) + "\n" + end + after
    function.__doc__ = text
    return function


def _parameters(function: Callable[..., Any], own: str, namespace: str, rows: list[SlotRow]) -> list[str]:
    """Return the descriptions in the order of the signature: the docstring's own and the shared ones."""
    described = described_parameters(own)
    taken = inspect.signature(function).parameters
    missing = taken.keys() - described.keys()
    # the default of `key_added` names where parameters are written: uns["segment"]["params"], uns["compare_params"]
    key = next((row.key.split("/")[0].removesuffix("_params") for row in rows if row.meaning.startswith(PARAMS)), "")
    for heads, text in PARAMETERS.items():
        limited_to, _, own_names = heads.rpartition(".")
        names = own_names.split(", ")
        if limited_to in {"", namespace, *taken} and missing.issuperset(names):
            entry = [", ".join(names), *_wrap(text.replace("{key}", key), indent="    ", first="    ")]
            described.update(dict.fromkeys(names, entry))
            missing -= set(names)
    if missing:
        raise KeyError(f"{function.__qualname__}: no description of {', '.join(sorted(missing))}")
    ordered = [described[name] for name in taken]
    return [line for i, entry in enumerate(ordered) if entry not in ordered[:i] for line in entry]


def described_parameters(section: str) -> dict[str, list[str]]:
    """Return the entry of each parameter in a section of a docstring; the first line of an entry names them."""
    entries = [entry.splitlines() for entry in re.split(r"\n(?=\S)", section.rstrip("\n")) if entry]
    return {name.strip(): entry for entry in entries for name in entry[0].split(",")}


def _slots(rows: list[SlotRow]) -> list[str]:
    """Return a list of the slots; those in one dictionary of ``uns``, or that differ in the key only, are one item."""
    lines: list[str] = []
    for item, group in groupby(rows, key=_item):
        same = list(group)
        codes = ", ".join(dict.fromkeys(f"``{re.sub('(biomarker|region)_key', 'key', row.code)}``" for row in same))
        if item == EMBED:
            text = f"{codes}: as :func:`stxtools.tl.embed` writes them"
        elif same[0].where == "uns" and "/" in same[0].key:
            root, _, _ = same[0].code.partition("]")
            paths = {row: f"``{row.code.removeprefix(root + ']')}``" for row in same}
            inner = [code if row.meaning == PARAMS else f"{code} ({row.meaning})" for row, code in paths.items()]
            text = f"``{root}]``, a dict: {', '.join(inner)}"
        else:
            size = "" if same[0].shape == "-" else f", {same[0].shape}"
            text = f"{codes} ({same[0].type}{size}): {same[0].meaning}"
        lines += _wrap(text, indent="  ", first="- ")
    return lines


def _item(row: SlotRow) -> tuple[str, ...]:
    """Return the key by which rows are grouped into items of the list."""
    root, _, inner = row.key.partition("/")
    if row.call != "tl.embed" and replace(row, call="tl.embed") in SLOTS:
        return EMBED
    return (root,) if row.where == "uns" and inner else (row.type, row.shape, row.meaning)


def _wrap(text: str, indent: str, first: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
