"""Checks of plain arguments: each error says what was found and what is allowed. No AnnData here."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np

LARGEST = 2**31 - 1
LARGEST_SEED = 2**32 - 1  # numpy's RandomState, which scikit-learn seeds, takes no larger one
_ZARR_FILES = frozenset({".zarray", ".zgroup", ".zattrs", ".zmetadata", "zarr.json"})
_LONGEST = 200  # bytes: a file name has 255, and suffixes are put behind a key


def listing(names: Iterable[Any], limit: int = 12) -> str:
    shown = [repr(str(n)) for n in names]
    if not shown:
        return "none"
    return ", ".join(shown[:limit]) + (f", ... ({len(shown)} in all)" if len(shown) > limit else "")


def check_choice(param: str, value: Any, allowed: Collection[Any]) -> None:
    """Check that ``value`` is one of ``allowed``."""
    plain = value is None or isinstance(value, (str, bool, int, float))  # a table compares value by value
    if not plain or value not in allowed:
        raise ValueError(f"`{param}={value!r}` is not understood; choose one of {listing(allowed)}.")


def check_key(param: str, value: Any) -> str:
    """Check that a key is text."""
    if not isinstance(value, str):
        raise TypeError(f"`{param}` must be a key, a str, not {value!r}.")
    return value


def check_names(param: str, value: Any, what: str) -> list[str]:
    """Return one name or several as a list of strings."""
    if isinstance(value, str):
        return [value]
    many = isinstance(value, (Sequence, np.ndarray)) or hasattr(value, "to_numpy")
    if not many or np.ndim(np.asarray(value, dtype=object)) != 1:
        raise TypeError(f"`{param}` must be {what} or a list of them, not {value!r}.")
    return [str(x) for x in value]


def check_int(param: str, value: Any, *, minimum: int | None = None, maximum: int | None = LARGEST) -> int:
    """Check an integer within bounds and return it as a Python int; by default what 32 bits hold is the most."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"`{param}` must be an integer, not {value!r}.")
    _check_bounds(param, value, minimum, maximum)
    return int(value)


def check_seed(value: Any) -> int:
    """Check ``random_state`` and return it as a Python int."""
    return check_int("random_state", value, minimum=0, maximum=LARGEST_SEED)


def unstorable(name: str, *, column: bool = False) -> str | None:
    """Say why h5ad and zarr cannot hold an element (or a ``column`` of a frame) of this name; None where they can."""
    if not name:
        return "is empty"
    if not column and any(sign in name for sign in "/\\"):
        return r"contains '/' or '\\'"
    if "\0" in name:
        return "contains the NUL character"
    if set(name) == {"."}:
        return "consists of dots"
    if name == "_index" or name in _ZARR_FILES:
        return "is a name that the file format uses itself"
    try:
        length = len(name.encode("utf-8"))
    except UnicodeEncodeError:
        return "contains characters that UTF-8 cannot encode"
    return f"is {length} bytes long, more than {_LONGEST}" if length > _LONGEST else None


def check_number(param: str, value: Any, *, minimum: float | None = None, maximum: float | None = None) -> float:
    """Check a finite number within bounds and return it as a Python float."""
    if isinstance(value, bool) or not isinstance(value, Real) or not _is_finite(value):
        raise TypeError(f"`{param}` must be a finite number, not {value!r}.")
    _check_bounds(param, value, minimum, maximum)
    return float(value)


def _is_finite(value: Real) -> bool:
    try:
        return bool(np.isfinite(float(value)))
    except OverflowError:  # an integer beyond all floats
        return False


def _check_bounds(param: str, value: Any, minimum: float | None, maximum: float | None) -> None:
    if (minimum is not None and value < minimum) or (maximum is not None and value > maximum):
        low = "" if minimum is None else f"at least {minimum}"
        high = "" if maximum is None or value < LARGEST == maximum else f"at most {maximum}"
        raise ValueError(f"`{param}={value}` is out of range: it must be {' and '.join(p for p in (low, high) if p)}.")


def check_bool(param: str, value: Any) -> bool:
    """Check a boolean."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"`{param}` must be True or False, not {value!r}.")
    return bool(value)


def check_path(param: str, value: Any) -> Path:
    """Check the name of a file or folder and return it as a path, in the user's home where it begins with ``~``."""
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"`{param}` must be a path, not {value!r}.")
    if not str(value) or "\0" in str(value):
        raise ValueError(f"`{param}={str(value)!r}` cannot name a file or folder.")
    return Path(os.path.expanduser(value))  # Path.expanduser raises where there is no such user


def check_writable(path: str | os.PathLike[str]) -> None:
    """Check, before any work is done, that a file can be written there."""
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"A file to write must be named by a string or a path, not {path!r}.")
    if "\0" in str(path) or not str(path):
        raise ValueError(f"{str(path)!r} cannot name a file.")
    target = Path(path).expanduser()
    if len(os.fsencode(target.name)) > _LONGEST:
        raise ValueError(
            f"The file name {target.name[:40]!r}... is longer than {_LONGEST} bytes; choose a shorter one."
        )
    if target.is_dir():
        raise IsADirectoryError(f"{str(target)!r} is a folder; name a file, e.g. {str(target / 'model.stx')!r}.")
    if not target.parent.exists():
        raise FileNotFoundError(f"The folder {str(target.parent)!r} does not exist; create it first.")
    if not target.parent.is_dir():
        raise NotADirectoryError(f"{str(target.parent)!r} is a file, not a folder in which one can be written.")
    if target.exists() and not target.is_file():
        raise ValueError(f"{str(target)!r} is a device or a pipe; name a file.")
    if not os.access(target.parent, os.W_OK):
        raise PermissionError(f"The folder {str(target.parent)!r} cannot be written to; choose another one.")
