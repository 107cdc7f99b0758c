"""The base of all fitted models: parameters, fitted check, device, files; and the one way to read a saved model."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, ClassVar, Generic, Self, TypeVar

import torch
from torch import nn

from ._params import as_dict, resolve
from ._projection import GeneProjection
from ._section import FeatureScaling
from ._shipped import shipped_path
from ._storage import ModelFile, packed, read_model, write_model

P = TypeVar("P")
N = TypeVar("N", bound=nn.Module)

# where a class is defined: one that is not asked for is not imported, nor what it needs
_MODULES = {"Segmenter": "segmenter.model", "TissueNet": "tissuenet.model", "TissueStudent": "tissuenet.student"}


class BaseModel(ABC, Generic[P, N]):
    """A network with its parameters and what it reads. Once fitted, it holds no training data."""

    params_type: type[P]
    used_by: ClassVar[str]  # the public call that applies a model of this class
    saved: ClassVar[tuple[str, ...]] = ("use_rep", "projection", "scaling")  # attributes that a model file holds

    def __init__(self, params: P | Mapping[str, Any] | None = None) -> None:
        self.params: P = resolve(params, self.params_type)
        self.history: list[dict[str, Any]] = []
        self.projection: GeneProjection | None = None
        self.use_rep: str | None = None
        self.scaling = FeatureScaling()
        self.net: N | None = None

    @property
    def n_features(self) -> int:
        """Length of the feature vectors of the observations."""
        return len(self.scaling.centre)

    @abstractmethod
    def _new_net(self) -> N:
        """Return the untrained network."""

    def params_dict(self) -> dict[str, Any]:
        """Parameters as plain values."""
        return as_dict(self.params)

    def fitted_net(self) -> N:
        """Return the network, which must be fitted."""
        if self.net is None:
            raise ValueError(f"This {type(self).__name__} is not trained; call `fit` or load a saved one.")
        return self.net

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write weights (safetensors) and description (JSON) to one file."""
        arrays = {f"net.{name}": value.detach().cpu().numpy() for name, value in self._weights().items()}
        config = {"params": self.params_dict()} | packed(self._state(), "", arrays)
        write_model(path, type(self).__name__, config, arrays)

    def _weights(self) -> Mapping[str, torch.Tensor]:
        return self.fitted_net().state_dict()

    def _state(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.saved}

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a model of this class that :meth:`save` wrote; :func:`stxtools.models.load` reads one of any class.

        Raises
        ------
        FileNotFoundError, ValueError
            If there is no such file, or it is another one, a model of another class, or damaged.
        """
        return _opened(path, (cls.__name__,))

    @classmethod
    def from_file(cls, file: ModelFile) -> Self:
        """Make the model that a file holds."""
        try:
            known = cls().params_dict()  # an older version may have had more
            self = cls({name: value for name, value in file.config["params"].items() if name in known})
            for name in cls.saved:
                setattr(self, name, file.restored(file.config[name]))
            self._read_net(file)
        except (KeyError, TypeError, ValueError, RuntimeError) as err:
            raise ValueError(
                f"The model file {str(file.path)!r} was written by another version of stxtools: it is whole, but does "
                f"not hold what a {cls.__name__} of this version does ({err}). Train and save the model again."
            ) from err
        return self

    def _read_net(self, file: ModelFile) -> None:
        self.net = file.module(self._new_net, "net.")


def load(path: str | os.PathLike[str]) -> BaseModel[Any, Any]:
    """Read a saved model, whatever its class.

    Parameters
    ----------
    path
        A file that ``save_model=`` of a tool or the model's ``save`` wrote, or a name of :func:`available`.

    Returns
    -------
    A :class:`Segmenter`, :class:`TissueNet` or :class:`TissueStudent`, ready to be given as ``model=``.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no model file of this version of stxtools, or is damaged.

    Examples
    --------
    >>> import stxtools as st
    >>> adata = st.datasets.synthetic_tissue(n_obs=500)
    >>> st.tl.segment(adata, n_segments=3, save_model="tissue.stx")
    >>> st.models.load("tissue.stx").classes
    ['0', '1', '2']
    """
    return _opened(path)


def model_of(model: Any, *kinds: str, param: str = "model") -> Any:
    """Return a fitted model, or the one in the file of that path, of one of these ``kinds`` (if any are named)."""
    if isinstance(model, (str, os.PathLike)):
        return _opened(model, kinds)
    if not isinstance(model, BaseModel):
        wanted = " or ".join(f"stxtools.models.{kind}" for kind in kinds) or "model of stxtools"
        raise TypeError(f"`{param}` must be a path or a {wanted}, not {type(model).__name__}.")
    _check_kind(f"`{param}` is", type(model), kinds)
    return model


def _opened(path: str | os.PathLike[str], kinds: Sequence[str] = ()) -> Any:
    file = read_model(shipped_path(path))
    if file.kind not in _MODULES:
        raise ValueError(
            f"{str(file.path)!r} holds a {file.kind[:40]}, which this version of stxtools does not have; train the "
            "model again."
        )
    found = getattr(import_module(f"stxtools.models.{_MODULES[file.kind]}"), file.kind)
    _check_kind(f"{str(file.path)!r} holds", found, kinds)
    return found.from_file(file)


def _check_kind(what: str, found: type[BaseModel[Any, Any]], kinds: Sequence[str]) -> None:
    if kinds and not any(c.__name__ in kinds for c in found.__mro__):
        raise ValueError(f"{what} a {found.__name__}, not a {' or '.join(kinds)}; apply it with `{found.used_by}`.")
