"""Model files: safetensors with metadata as JSON in the header, and a checksum of both."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from importlib import import_module
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from stxtools._checks import check_writable
from stxtools._files import atomic_write
from stxtools._types import Array

_FORMAT = "stxtools-model"
_FORMAT_VERSION = 4

_ARRAY, _KIND = "__array__", "__kind__"  # keys of the name of an array, and of the class of a dataclass
_DATACLASSES = {
    "GeneProjection": "_projection", "FeatureScaling": "_section", "SmoothedGenes": "tissuenet.features",
    "GeneClassifier": "ensemble.gene_classifier", "LabelMoments": "ensemble.gene_means", "Trees": "ensemble.trees",
    "Linear": "ensemble.discriminant", **dict.fromkeys(("Weights", "Stack", "Ensemble"), "ensemble.stacking"),
}  # fmt: skip

_RENAMED = {"elsewhere": "unlabelled"}  # fields that older files name differently
_SHAPES = {
    "GeneProjection": {"genes": "g", "mean": "g", "components": "gf", "variance": "f", "gene_scale": "g"},
    "FeatureScaling": {"centre": "f", "scale": "f", "own": "sf", "shared": "sf", "axes": "fa", "error": "s"},
    "LabelMoments": {"factor": "rf", "rest": "f", "mean": "f", "cross": "fk", "prior": "k"},
    "GeneClassifier": {"centre": "sg", "unit": "sg"},
    "Linear": {"coef": "fk", "intercept": "k"},
    "SmoothedGenes": {"gene_scale": "g", "scale": "f", "axes": "fa"},
    "Featurizer": {"node_centre": "n", "node_scale": "n", "own_centre": "m", "own_scale": "m", "unit": "1",
                   "expression_centre": "e", "expression_scale": "e"},
    "Trees": {"child": "n2", "feature": "n", "threshold": "n", "share": "nk", "roots": "t"},
}  # fmt: skip
_SIMPLE: dict[str, Any] = {"None": type(None), "bool": bool, "int": int, "float": (int, float), "str": str}

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class ModelFile:
    """Metadata (``config``) and arrays of a saved model of the class ``kind``."""

    path: Path
    kind: str
    config: Mapping[str, Any]
    arrays: Mapping[str, Array]

    def value(self, name: str, annotation: str) -> Any:
        """Return an attribute of the model, checked to be of a type."""
        stored = self.config.get(name, {}) if name == "ids" else self.config[name]  # an older student has no ids
        value = self.restored(stored)
        check_type(name, value, annotation)
        return value

    def restored(self, value: Any) -> Any:
        """Return the value that :func:`packed` was given."""
        if not isinstance(value, dict):
            return value
        if _ARRAY in value:
            return self.arrays[value[_ARRAY]]
        parts = {name: self.restored(part) for name, part in value.items() if name != _KIND}
        if _KIND not in value:
            return parts
        parts = {str(_RENAMED.get(name, name)): part for name, part in parts.items()}
        kind = getattr(import_module(f"stxtools.models.{_DATACLASSES[value[_KIND]]}"), value[_KIND])
        for f in fields(kind):
            if f.name in parts:
                check_type(f"{value[_KIND]}.{f.name}", parts[f.name], str(f.type))
        check_shapes(value[_KIND], parts)
        return kind(**parts)

    def module(self, make: Callable[[], M], prefix: str) -> M:
        """Return a module made by ``make``, with the weights of the file, in eval mode."""
        with torch.device("meta"), _SkipInit():
            module = make()
        weights = {
            name.removeprefix(prefix): torch.from_numpy(value.copy())
            for name, value in self.arrays.items() if name.startswith(prefix)
        }  # fmt: skip
        types = {name: value.dtype for name, value in module.state_dict().items()}
        module.load_state_dict(weights, assign=True)
        if wrong := [name for name, value in weights.items() if value.dtype != types[name]]:
            raise ValueError(f"the type of {wrong[0]} is {weights[wrong[0]].dtype}, not {types[wrong[0]]}")
        return module.eval()


def check_type(name: str, value: Any, annotation: str) -> None:
    """Check a value of a model file against its annotation: simple types, lists and dicts of them, arrays, classes."""
    if not any(_has_type(value, kind) for kind in annotation.split(" | ")):
        raise ValueError(f"{name} is {str(value)[:40]!r}, not {annotation}")


def _has_type(value: Any, kind: str) -> bool:
    outer, _, inner = kind.rstrip("]").partition("[")
    if kind in _SIMPLE:
        finite = not isinstance(value, float) or isfinite(value)
        return isinstance(value, _SIMPLE[kind]) and finite and (kind == "bool" or not isinstance(value, bool))
    if outer in ("list", "dict"):
        item = inner.removeprefix("str, ") + "]" * inner.count("[")
        values = value.values() if isinstance(value, dict) else value
        return type(value).__name__ == outer and all(_has_type(v, item) for v in values)
    if outer in ("Floats", "Floats32", "Ints", "Bools", "NDArray"):
        letter = "b" if kind == "Bools" else "i" if "int" in kind.lower() else "f"
        return isinstance(value, np.ndarray) and value.dtype.kind == letter
    return kind in ("Any", type(value).__name__)


def check_shapes(kind: str, parts: Mapping[str, Any]) -> None:
    """Check that arrays have the axes of ``_SHAPES``, and the same size along axes of one letter."""
    sizes = {"1": 1, "2": 2}
    for name, axes in _SHAPES.get(kind, {}).items():
        if parts.get(name) is None:
            continue
        shape = np.shape(parts[name])
        if len(shape) != len(axes) or any(sizes.setdefault(x, n) != n for x, n in zip(axes, shape, strict=True)):
            raise ValueError(f"{kind}.{name} has the shape {shape}, which does not fit the others")


class _SkipInit(TorchFunctionMode):
    """Skip random initialisation, which imports PyTorch's compiler on the meta device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in {"normal_", "uniform_", "kaiming_normal_", "kaiming_uniform_"}:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def packed(value: Any, name: str, arrays: dict[str, Array]) -> Any:
    """Return ``value`` for JSON: arrays are moved to ``arrays`` by name, dataclasses become dicts."""
    if isinstance(value, np.ndarray):
        arrays[name] = value
        return {_ARRAY: name}
    kind = {}
    if is_dataclass(value):
        kind, value = {_KIND: type(value).__name__}, vars(value)
    if not isinstance(value, dict):
        return value
    return kind | {key: packed(part, f"{name}.{key}" if name else key, arrays) for key, part in value.items()}


def write_model(path: str | os.PathLike[str], kind: str, config: dict[str, Any], arrays: Mapping[str, Array]) -> None:
    """Write a model file atomically; ``config`` is stored as JSON."""
    from safetensors.numpy import save

    check_writable(path)
    if bad := _not_finite(arrays):
        raise ValueError(
            f"The model's {bad!r} holds values that are not finite: its training has diverged. Train it again "
            "with a lower learning rate, e.g. `params={'lr': 1e-3}`; nothing was saved."
        )
    contiguous = {k: np.ascontiguousarray(v) for k, v in arrays.items()}
    header = {"format": _FORMAT, "version": _FORMAT_VERSION, "kind": kind, "config": config}
    header["checksum"] = _checksum(header, contiguous)
    content = save(contiguous, metadata={_FORMAT: json.dumps(header)})
    try:
        with atomic_write(path) as part:
            part.write_bytes(content)
    except OSError as err:
        raise OSError(err.errno, f"The model cannot be written ({err.strerror})", str(path)) from err


def _not_finite(arrays: Mapping[str, Array]) -> str | None:
    """Return the name of an array with NaN or infinite values, if there is one."""
    for name, value in arrays.items():
        # leaves of trees have infinite thresholds, and sections with a centre of their own no error
        allowed = {"threshold": np.isinf, "error": np.isnan}.get(name.rpartition(".")[2])
        if not (np.isfinite(value) | (False if allowed is None else allowed(value))).all():
            return name
    return None


def read_model(path: str | os.PathLike[str]) -> ModelFile:
    """Read a model file; a ValueError where it is of another version or kind, or damaged."""
    from safetensors import SafetensorError, safe_open

    source = _existing(path)
    try:
        with safe_open(str(source), framework="numpy") as file:
            text = (file.metadata() or {}).get(_FORMAT)
            arrays = {key: file.get_tensor(key) for key in file.keys()} if text is not None else {}  # noqa: SIM118
    except (SafetensorError, TypeError) as err:  # TypeError: a type that numpy lacks
        raise ValueError(
            f"{str(source)!r} is not a model file written by stxtools, or it is damaged ({err}). Copy it again from "
            "where it came from, or train the model again."
        ) from err
    except OSError as err:
        raise OSError(err.errno, f"The model file cannot be read ({err.strerror or err})", str(source)) from err
    if text is None:
        raise ValueError(f"{str(source)!r} is a safetensors file, but not a model file written by stxtools.")
    header = _header(source, text, arrays)
    return ModelFile(source, header["kind"], header["config"], arrays)


def _existing(path: str | os.PathLike[str]) -> Path:
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"A model is read from a path, not from {path!r}.")
    source = Path(path).expanduser()
    if not os.path.isfile(source):  # Path.is_file raises for names too long
        raise FileNotFoundError(
            f"There is no model file {str(source)!r}, and `st.models.available()` has no model of this name."
        )
    return source


def _header(source: Path, text: str, arrays: Mapping[str, Array]) -> dict[str, Any]:
    """Return the metadata of a model file of this version, whose content is what was saved."""
    try:
        header = dict(json.loads(text))
        version = header["version"]
        if version == _FORMAT_VERSION and header.get("checksum") != _checksum(header, arrays):
            raise ValueError("its values are not those that were saved: the checksum differs")
        if bad := _not_finite(arrays):
            raise ValueError(f"{bad!r} holds values that are not finite")
    except (ValueError, TypeError, KeyError, RecursionError) as err:
        raise ValueError(
            f"The model file {str(source)!r} is damaged ({type(err).__name__}: {err}). Copy it again from where it "
            "came from, or train and save the model again."
        ) from err
    if version != _FORMAT_VERSION:
        older = isinstance(version, int) and version < _FORMAT_VERSION
        raise ValueError(
            f"{str(source)!r} was written by {'an older' if older else 'a newer'} stxtools (file format "
            f"{str(version)[:20]}, not {_FORMAT_VERSION}); {'train the model again' if older else 'upgrade'}."
        )
    return header


def _checksum(header: Mapping[str, Any], arrays: Mapping[str, Array]) -> str:
    """SHA-256 of the metadata and of all arrays with their names, types and shapes."""
    described = {key: value for key, value in header.items() if key != "checksum"}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for name in sorted(arrays):
        value = arrays[name]
        digest.update(f"\n{name} {value.dtype.str} {value.shape}\n".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()
