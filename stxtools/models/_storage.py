"""Model files: weights as safetensors, the rest as JSON in the same file's header. No pickle."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stxtools._checks import check_writable

FORMAT = "stxtools-model"
FORMAT_VERSION = 1


def save_model(
    path: str | os.PathLike[str], kind: str, config: dict[str, Any], arrays: dict[str, NDArray[Any]]
) -> Path:
    """Write a model file, whole or not at all.

    Parameters
    ----------
    path
        Where to write; ``.stx`` is the usual ending.
    kind
        Class that can read it.
    config
        Anything JSON can hold.
    arrays
        Weights and other arrays.
    """
    from safetensors.numpy import save_file

    check_writable(path)
    target = Path(path).expanduser()
    header = {"format": FORMAT, "version": FORMAT_VERSION, "kind": kind, "config": config}
    part = target.with_name(target.name + ".part")
    try:
        contiguous = {k: np.ascontiguousarray(v) for k, v in arrays.items()}
        save_file(contiguous, str(part), metadata={FORMAT: json.dumps(header)})
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return target


def model_kind(path: str | os.PathLike[str]) -> str:
    """Return the class that a model file was saved from, "" where that cannot be told."""
    from safetensors import SafetensorError, safe_open

    source = Path(path).expanduser()
    if not source.is_file():
        return ""
    try:
        with safe_open(str(source), framework="numpy") as file:
            return str(json.loads((file.metadata() or {}).get(FORMAT, "{}")).get("kind", ""))
    except SafetensorError:
        return ""


def load_model(path: str | os.PathLike[str], kind: str) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Read a model file and check that it is one, of the kind asked for.

    Returns
    -------
    Config and arrays.
    """
    from safetensors import SafetensorError, safe_open

    source = Path(path).expanduser()
    if not source.is_file():
        raise FileNotFoundError(f"There is no model file {str(source)!r}.")
    try:
        with safe_open(str(source), framework="numpy") as file:
            header = json.loads((file.metadata() or {}).get(FORMAT, "{}"))
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as err:
        raise ValueError(f"{str(source)!r} is not a model file written by stxtools: {err}") from err
    if header.get("format") != FORMAT:
        raise ValueError(f"{str(source)!r} is a safetensors file, but not one written by stxtools.")
    if header["version"] > FORMAT_VERSION:
        raise ValueError(f"{str(source)!r} was written by a newer stxtools (format {header['version']}); upgrade.")
    if header["kind"] != kind:
        raise ValueError(
            f"{str(source)!r} holds a {header['kind']}, not a {kind}; load it with models.{header['kind']}."
        )
    return header["config"], arrays
