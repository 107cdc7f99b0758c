"""Damaged model files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

HEAD = "stxtools-model"
VALUES: list[Any] = [None, 5, -1.0, "x", "", [], [1], {}, {"a": 1}, True, 1e300, 10**400, [[]], "\u0000", float("nan")]


def damage(source: Path, target: Path, rng: np.random.Generator) -> str:
    """Write a damaged copy of a model file and describe the damage."""
    content = source.read_bytes()
    how = rng.integers(8)
    if how == 0:
        length = int(rng.integers(len(content)))
        target.write_bytes(content[:length])
        return f"cut to {length} of {len(content)} bytes"
    if how == 1:
        changed = bytearray(content)
        at = [int(rng.integers(len(content))) for _ in range(int(rng.integers(1, 4)))]
        for place in at:
            changed[place] ^= int(1 << rng.integers(8))
        target.write_bytes(bytes(changed))
        return f"bits changed at {at}"
    with safe_open(str(source), framework="numpy") as file:
        header = json.loads((file.metadata() or {})[HEAD])
        arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    if rng.random() < 0.7:
        header.pop("checksum", None)  # as files of earlier versions
    text, said = None, ""
    if how in {2, 3, 4}:
        said = _array(arrays, rng)
    elif how in {5, 6}:
        said = _description(header, rng)
    else:
        text = ["[" * 100_000, "{", "null", "[]", "{}", "5", '"x"', "{" * 500 + "}" * 500][rng.integers(8)]
        said = f"description {text[:10]}"
    target.write_bytes(save(arrays, metadata={HEAD: json.dumps(header) if text is None else text}))
    return said


def _array(arrays: dict[str, np.ndarray], rng: np.random.Generator) -> str:
    name = sorted(arrays)[rng.integers(len(arrays))]
    value, how = arrays[name], rng.integers(9)
    if how == 0:
        del arrays[name]
        return f"{name} missing"
    if how == 1:
        arrays[name] = value[None]
    elif how == 2:
        arrays[name] = np.concatenate([value.ravel(), value.ravel()])
    elif how == 3:
        arrays[name] = np.zeros(value.shape, [np.int8, np.float64, np.float16, bool, np.uint64][rng.integers(5)])
    elif how == 4:
        arrays[name] = value[:0] if value.ndim else value[None][:0]
    elif how == 5:
        arrays["more." + name] = value
    else:
        flat = value.astype(value.dtype).reshape(-1).copy()
        worst = (
            [np.nan, np.inf, -np.inf, 3e38, -1e30, 0.0, -1.0] if value.dtype.kind == "f" else [-1, 0, 10**6, -(2**31)]
        )
        flat[rng.integers(len(flat)) if rng.random() < 0.5 else slice(None)] = worst[rng.integers(len(worst))]
        arrays[name] = flat.reshape(value.shape)
    return f"{name}: {how}"


def _description(header: dict[str, Any], rng: np.random.Generator) -> str:
    where = [header, header["config"], header["config"]["params"]][rng.choice(3, p=[0.2, 0.4, 0.4])]
    key = sorted(where)[rng.integers(len(where))]
    if rng.random() < 0.2:
        del where[key]
        return f"{key} missing"
    where[key] = VALUES[rng.integers(len(VALUES))]
    return f"{key} = {str(where[key])[:20]}"
