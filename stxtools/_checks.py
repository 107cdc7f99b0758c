"""Checks of arguments that need no AnnData: each error says what was found and what is allowed."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np

LARGEST = 2**31 - 1
LARGEST_SEED = 2**32 - 1  # that numpy's RandomState, as scikit-learn uses it, accepts
_ZARR_FILES = frozenset({".zarray", ".zgroup", ".zattrs", ".zmetadata", "zarr.json"})
_LONGEST = 200  # bytes: a file name has at most 255, and calls append suffixes to keys


def listing(names: Iterable[Any], limit: int = 12) -> str:
    """Return quoted names for a message, the first ``limit`` of them."""
    quoted = [repr(str(name)) for name in names]
    tail = f", ... ({len(quoted)} in all)" if len(quoted) > limit else ""
    return ", ".join(quoted[:limit]) + tail or "none"


def check_choice(param: str, value: Any, allowed: Collection[Any]) -> None:
    """Check that ``value`` is one of ``allowed``."""
    scalar = value is None or isinstance(value, (str, bool, int, float))  # a table would be compared element by element
    if not scalar or value not in allowed:
        raise ValueError(f"`{param}={value!r}` is not valid; choose one of {listing(allowed)}.")


def check_key(param: str, value: Any) -> str:
    """Check that a key is text."""
    if not isinstance(value, str):
        raise TypeError(f"`{param}` must be a string, a key, not {value!r}.")
    return value


def check_names(param: str, value: Any, what: str) -> list[str]:
    """Return one name or several as a list of strings."""
    if isinstance(value, str):
        return [value]
    listed = isinstance(value, (Sequence, np.ndarray)) or hasattr(value, "to_numpy")
    if not listed or np.ndim(np.asarray(value, dtype=object)) != 1:
        raise TypeError(f"`{param}` must be {what} or a list of them, not {value!r}.")
    return [str(name) for name in value]


def check_int(param: str, value: Any, *, minimum: int | None = None, maximum: int | None = LARGEST) -> int:
    """Check an integer within bounds and return it as a Python int; by default it must fit into 32 bits."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"`{param}` must be an integer, not {value!r}.")
    _check_bounds(param, value, minimum, maximum)
    return int(value)


def check_seed(value: Any) -> int:
    """Check ``random_state`` and return it as a Python int."""
    return check_int("random_state", value, minimum=0, maximum=LARGEST_SEED)


def unstorable(name: str, *, column: bool = False) -> str | None:
    """Return why h5ad and zarr cannot store an element (or a ``column`` of a table) of this name; None if they can."""
    if not name:
        return "is empty"
    if not column and any(character in name for character in "/\\"):
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


def check_number(
    param: str, value: Any, *, minimum: float | None = None, maximum: float | None = None, above: float | None = None
) -> float:
    """Check a finite number within bounds, ``above`` an exclusive one, and return it as a Python float."""
    try:
        finite = isinstance(value, Real) and not isinstance(value, bool) and np.isfinite(float(value))
    except OverflowError:  # an integer beyond all floats
        finite = False
    if not finite:
        raise TypeError(f"`{param}` must be a finite number, not {value!r}.")
    _check_bounds(param, value, minimum, maximum)
    if above is not None and value <= above:
        raise ValueError(f"`{param}={value}` is out of range: it must be greater than {above}.")
    return float(value)


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
    """Check the name of a file or folder and return it as a path, with ``~`` expanded."""
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"`{param}` must be a path, not {value!r}.")
    if not str(value) or "\0" in str(value):
        raise ValueError(f"`{param}={str(value)!r}` is not a valid path.")
    return Path(os.path.expanduser(value))  # Path.expanduser raises where there is no such user


def check_writable(value: Any, param: str = "path") -> None:
    """Check, before any work is done, that a file can be written there."""
    target = check_path(param, value)
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
        raise ValueError(f"{str(target)!r} is a device or a pipe; choose a regular file.")
    if not os.access(target.parent, os.W_OK):
        raise PermissionError(f"The folder {str(target.parent)!r} cannot be written to; choose another one.")
