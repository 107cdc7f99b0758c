"""Contents of a model file, value by value: each is checked, and a wrong one is named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.overrides import TorchFunctionMode

from ._params import resolve

LARGEST = 1e18  # values of a model are far below; products of larger ones leave the range of float32
_SHOWN = 3  # names in a message

M = TypeVar("M", bound=nn.Module)
P = TypeVar("P")


def damaged(path: Path, what: str) -> ValueError:
    """Return the error of a file that no longer holds what was written."""
    return ValueError(
        f"The model file {str(path)!r} is damaged: {what}. Copy it again from where it came from, or train and save "
        "the model again."
    )


def beyond(value: NDArray[Any]) -> NDArray[np.bool_]:
    """Where floats are not finite, or larger than those of any trained model."""
    return ~(np.abs(value) <= min(LARGEST, float(np.finfo(value.dtype).max)))


class ModelFile:
    """Description (``config``) and arrays of a model file, of the class ``kind``.

    ``intact`` says whether its checksum is right. It is looked at last, by :meth:`finish`: what is wrong says more.
    """

    def __init__(
        self,
        path: Path,
        config: Mapping[str, Any],
        arrays: Mapping[str, NDArray[Any]],
        intact: bool = True,
        kind: str = "",
    ) -> None:
        self.path, self.config, self.arrays, self._intact, self.kind = path, config, arrays, intact, kind

    def damaged(self, what: str) -> ValueError:
        """Return the error that says so."""
        return damaged(self.path, what)

    def finish(self) -> None:
        """Check, after all values were found right on their own, that they are those that were saved."""
        if not self._intact:
            raise self.damaged("its values are not those that were saved (the checksum differs)")

    # ---------------------------------------------------------------- description

    def _value(self, key: str, kind: type | tuple[type, ...], what: str) -> Any:
        if key not in self.config:
            raise self.damaged(f"its description lacks {key!r}")
        value = self.config[key]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.damaged(f"{key!r} in its description is {_short(value)}, not {what}")
        return value

    def params(self, kind: type[P]) -> P:
        """Parameters."""
        params = self._value("params", dict, "a mapping")
        try:
            return resolve(params, kind)
        except (TypeError, ValueError) as err:
            raise self.damaged(f"its parameters are none that a model can have ({err})") from err

    def text(self, key: str) -> str | None:
        """Text, or None where there is none."""
        if self.config.get(key) is None:
            return None
        return str(self._value(key, str, "text"))

    def number(
        self, key: str, default: float | None = None, *, minimum: float = 0.0, above: float | None = None
    ) -> float:
        """Finite number; ``default`` where there is none."""
        if default is not None and self.config.get(key) is None:
            return default
        return self._number(key, self._value(key, (int, float), "a number"), minimum, above)

    def optional_number(self, key: str) -> float | None:
        """Positive number, or None."""
        return None if self.config.get(key) is None else self.number(key, above=0.0)

    def _number(self, key: str, value: Any, minimum: float, above: float | None) -> float:
        right = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= LARGEST
        if not right or not isfinite(value) or value < minimum or (above is not None and value <= above):
            bound = f"above {above:g}" if above is not None else f"of at least {minimum:g}"
            raise self.damaged(f"{key!r} in its description is {_short(value)}, not a finite number {bound}")
        return float(value)

    def names(self, key: str) -> list[str]:
        """Names, each once."""
        return self._names(key, self._value(key, list, "a list of names"))

    def optional_names(self, key: str) -> list[str] | None:
        """Names, or None."""
        return None if self.config.get(key) is None else self.names(key)

    def paired_names(self, first: str, second: str) -> dict[str, str]:
        """Names of one list with those of another."""
        keys, values = self.names(first), self.names(second)
        if len(keys) != len(values):
            raise self.damaged(f"it has {len(values)} names in {second!r} for {len(keys)} in {first!r}")
        return dict(zip(keys, values, strict=True))

    def _names(self, key: str, value: Any) -> list[str]:
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value) or len(set(value)) < len(value):
            raise self.damaged(f"{key!r} in its description is {_short(value)}, not a list of names, each once")
        return list(value)

    def names_by_task(self, key: str) -> dict[str, list[str]]:
        """Task -> names, one at least."""
        value = self._value(key, dict, "a mapping of tasks to names")
        found = {str(task): self._names(f"{key}[{task!r}]", names) for task, names in value.items()}
        for task, names in found.items():
            if not names:
                raise self.damaged(f"the task {task!r} of {key!r} in its description has no names")
        return found

    def numbers_by_task(self, key: str, tasks: Mapping[str, Any]) -> dict[str, float]:
        """Task -> number of at least 0, for some of ``tasks``."""
        value = self._value(key, dict, "a mapping of tasks to numbers")
        self.check_tasks(key, value, tasks)
        return {task: self._number(f"{key}[{task!r}]", number, 0.0, None) for task, number in value.items()}

    def check_tasks(self, key: str, found: Any, tasks: Mapping[str, Any]) -> None:
        """Check that only ``tasks`` are named."""
        unknown = sorted(set(found) - set(tasks))
        if unknown:
            raise self.damaged(f"{key!r} in its description names {unknown[:_SHOWN]}, which are none of its tasks")

    # ---------------------------------------------------------------- arrays

    def array(
        self,
        name: str,
        shape: tuple[int | None, ...],
        *,
        kind: str = "f",
        minimum: float | None = None,
        maximum: float | None = None,
        above: float | None = None,
        endless: bool = False,
    ) -> NDArray[Any]:
        """Return an array of a shape (None: any length but 0), kind of type and range (infinite where ``endless``)."""
        if name not in self.arrays:
            raise self.damaged(f"it lacks the array {name!r}")
        value = self.arrays[name]
        self._check_form(name, value, shape, kind)
        if kind == "f":
            self._check_range(name, value, endless)
        low = -np.inf if minimum is None else minimum
        high = np.inf if maximum is None else maximum
        outside = (value < low) | (value > high)
        if above is not None:
            outside |= value <= above
        if outside.any():
            raise self.damaged(f"its array {name!r} holds {value[outside].flat[0]}, which is out of range")
        return value

    def _check_form(self, name: str, value: NDArray[Any], shape: tuple[int | None, ...], kind: str) -> None:
        if value.dtype.kind != kind:
            raise self.damaged(f"its array {name!r} is of the type {value.dtype}")
        fits = value.ndim == len(shape) and all(
            a > 0 if b is None else a == b for a, b in zip(value.shape, shape, strict=True)
        )
        if not fits:
            wanted = ", ".join("any" if n is None else str(n) for n in shape)
            raise self.damaged(f"its array {name!r} has the shape {value.shape}, not ({wanted})")

    def _check_range(self, name: str, value: NDArray[Any], endless: bool = False) -> None:
        outside = np.isnan(value) if endless else beyond(value)
        if outside.any():
            raise self.damaged(f"its array {name!r} holds {value[outside].flat[0]}, which no trained model has")

    def weights(self, make: Callable[[], M], prefix: str) -> dict[str, torch.Tensor]:
        """Weights of the module that ``make`` returns, each of the shape and type that the module has."""
        return self._weights(_outline(make), prefix)

    def module(self, make: Callable[[], M], prefix: str) -> M:
        """Return the module that ``make`` makes, with the file's weights, in eval mode.

        It is made without memory and without random numbers, and gets the weights once they are known to fit.
        """
        module = _outline(make)
        module.load_state_dict(self._weights(module, prefix), assign=True)
        return module.eval()

    def _weights(self, module: nn.Module, prefix: str) -> dict[str, torch.Tensor]:
        expected = module.state_dict()
        found = {name.removeprefix(prefix) for name in self.arrays if name.startswith(prefix)}
        for what, names in (("lacks", set(expected) - found), ("has besides", found - set(expected))):
            if names:
                shown = ", ".join(repr(prefix + name) for name in sorted(names)[:_SHOWN])
                raise self.damaged(f"it {what} the weights {shown}" + (" and others" if len(names) > _SHOWN else ""))
        for name, tensor in expected.items():
            value = self.arrays[prefix + name]
            self._check_form(prefix + name, value, tuple(tensor.shape), "f" if tensor.is_floating_point() else "i")
            if tensor.is_floating_point():
                self._check_range(prefix + name, value)
        return {
            name: torch.from_numpy(self.arrays[prefix + name].copy()).to(tensor.dtype)
            for name, tensor in expected.items()
        }


class _Uninitialised(TorchFunctionMode):
    """Leave out the drawing of first weights: on torch's meta device it would import its compiler."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in {"normal_", "uniform_", "kaiming_normal_", "kaiming_uniform_"}:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def _outline(make: Callable[[], M]) -> M:
    """Return a module whose weights have shapes and no memory."""
    with torch.device("meta"), _Uninitialised():
        return make()


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
