"""Base class of all models, and reading of saved ones."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, ClassVar, Generic, Self, TypeVar

import torch
from torch import nn

from ._params import resolve
from ._projection import GeneProjection
from ._section import FeatureScaling
from ._shipped import shipped_path
from ._storage import ModelFile, packed, read_model, write_model

P = TypeVar("P")
N = TypeVar("N", bound=nn.Module)

# modules of the classes, which are imported only when needed
_MODULES = {"Segmenter": "segmenter.model", "TissueNet": "tissuenet.model", "TissueStudent": "tissuenet.student"}


class BaseModel(ABC, Generic[P, N]):
    """A network with its parameters and preprocessing, without training data."""

    params_type: type[P]
    used_by: ClassVar[str]  # public call that applies the model
    saved: ClassVar[dict[str, str]] = {  # attributes that a model file holds, and their types
        "use_rep": "str | None", "projection": "GeneProjection | None", "scaling": "FeatureScaling",
        "ids": "dict[str, str]",
    }  # fmt: skip
    enough_genes: int | None = None  # of the required genes, that predict as well as all; None if all count
    genes: list[str] | None = None  # read by observation beside the features
    target_sum: float | None = None  # to which their counts are normalised

    def __init__(self, params: P | Mapping[str, Any] | None = None) -> None:
        self.params: P = resolve(params, self.params_type)
        self.history: list[dict[str, Any]] = []
        self.projection: GeneProjection | None = None
        self.use_rep: str | None = None
        self.ids: dict[str, str] = {}  # second names of its genes, such as Ensembl identifiers
        self.scaling = FeatureScaling()
        self.net: N | None = None

    @property
    def n_features(self) -> int:
        """Number of input features of an observation."""
        return len(self.scaling.centre)

    @property
    def read_genes(self) -> list[str]:
        """Names of all genes that it reads."""
        return self.required_genes

    @property
    def required_genes(self) -> list[str]:
        """The genes of the representation, of which a section must have some."""
        return [] if self.projection is None else self.projection.genes

    @abstractmethod
    def _new_net(self) -> N:
        """Return the untrained network."""

    def params_dict(self) -> dict[str, Any]:
        """Return the parameters as values that JSON and h5ad can hold."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self.params).items()}

    def fitted_net(self) -> N:
        """Return the network, which must be fitted."""
        if self.net is None:
            raise ValueError(f"This {type(self).__name__} is not trained; call `fit` or load a saved one.")
        return self.net

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save weights (safetensors) and metadata (JSON) to one file."""
        arrays = {f"net.{name}": value.detach().cpu().numpy() for name, value in self._weights().items()}
        config = {"params": self.params_dict()} | packed(self._state(), "", arrays)
        write_model(path, type(self).__name__, config, arrays)

    def _weights(self) -> Mapping[str, torch.Tensor]:
        return self.fitted_net().state_dict()

    def _state(self) -> dict[str, Any]:
        state, read = {name: getattr(self, name) for name in self.saved}, set(self.read_genes)
        return state | {"ids": {gene: second for gene, second in self.ids.items() if gene in read}}

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Load a saved model of this class; :func:`stxtools.models.load` loads one of any class.

        Raises
        ------
        FileNotFoundError, ValueError
            If the file does not exist, is damaged, or holds something else or a model of another class.
        """
        return _read(path, (cls.__name__,))

    @classmethod
    def _from_file(cls, file: ModelFile) -> Self:
        try:
            known = cls().params_dict()  # an older version may have had more
            self = cls({name: value for name, value in file.config["params"].items() if name in known})
            for name, annotation in cls.saved.items():
                setattr(self, name, file.value(name, annotation))
            self._read_net(file)
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError) as err:
            raise ValueError(
                f"The model file {str(file.path)!r} was written by another version of stxtools: its content does not "
                f"fit a {cls.__name__} of this version ({err}). Train and save the model again."
            ) from err
        return self

    def _read_net(self, file: ModelFile) -> None:
        self.net = file.module(self._new_net, "net.")


def load(path: str | os.PathLike[str]) -> BaseModel[Any, Any]:
    """Load a saved model of any class.

    Parameters
    ----------
    path
        File written by ``save_model=`` of a tool or by ``save`` of a model, or a name in :func:`available`.

    Returns
    -------
    A :class:`Segmenter`, :class:`TissueNet` or :class:`TissueStudent`, to pass as ``model=``.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If the file is damaged, or not a model file of this version of stxtools.

    Examples
    --------
    >>> import stxtools as st
    >>> adata = st.datasets.synthetic_tissue(n_obs=500)
    >>> st.tl.segment(adata, n_segments=3, save_model="tissue.stx")
    >>> st.models.load("tissue.stx").classes
    ['0', '1', '2']
    """
    return _read(path)


def model_of(model: Any, *kinds: str, param: str = "model") -> Any:
    """Return a fitted model, given itself or as a path, after checking that it is one of ``kinds`` (if any)."""
    if isinstance(model, (str, os.PathLike)):
        return _read(model, kinds)
    if not isinstance(model, BaseModel):
        wanted = " or ".join(f"stxtools.models.{kind}" for kind in kinds) or "model of stxtools"
        raise TypeError(f"`{param}` must be a path or a {wanted}, not {type(model).__name__}.")
    _check_kind(f"`{param}` is", type(model), kinds)
    return model


def _read(path: str | os.PathLike[str], kinds: Sequence[str] = ()) -> Any:
    file = read_model(shipped_path(path))
    if file.kind not in _MODULES:
        raise ValueError(
            f"{str(file.path)!r} holds a {file.kind[:40]}, which this version of stxtools does not have; train the "
            "model again."
        )
    cls = getattr(import_module(f"stxtools.models.{_MODULES[file.kind]}"), file.kind)
    _check_kind(f"{str(file.path)!r} holds", cls, kinds)
    return cls._from_file(file)


def _check_kind(subject: str, cls: type[BaseModel[Any, Any]], kinds: Sequence[str]) -> None:
    if kinds and not any(base.__name__ in kinds for base in cls.__mro__):
        raise ValueError(f"{subject} a {cls.__name__}, not a {' or '.join(kinds)}; apply it with `{cls.used_by}`.")
