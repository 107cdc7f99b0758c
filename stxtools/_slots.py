"""Writing results: all slots of a call at its end, or none of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ._version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

_MISSING = object()


@dataclass
class Slots:
    """Results waiting to be written; :meth:`write` puts them into an AnnData, all or none."""

    obs: dict[str, Any] = field(default_factory=dict)
    var: dict[str, Any] = field(default_factory=dict)
    obsm: dict[str, Any] = field(default_factory=dict)
    varm: dict[str, Any] = field(default_factory=dict)
    obsp: dict[str, Any] = field(default_factory=dict)
    layers: dict[str, Any] = field(default_factory=dict)
    uns: dict[str, Any] = field(default_factory=dict)
    X: Any = None

    def write(self, adata: AnnData) -> None:
        """Write every slot; on any error (or Ctrl-C) put back what was there and raise."""
        if adata.is_view:
            adata.uns = dict(adata.uns)  # anndata's own way from a view to an AnnData of its own
        undo: list[tuple[Any, str, Any]] = []
        old_x = adata.X if self.X is not None else None
        try:
            for name in ("obs", "var", "obsm", "varm", "obsp", "layers", "uns"):
                container = getattr(adata, name)
                for key, value in getattr(self, name).items():
                    undo.append((container, key, container.get(key, _MISSING)))
                    container[key] = value
            if self.X is not None:
                adata.X = self.X
        except BaseException:
            for container, key, value in reversed(undo):
                if value is not _MISSING:
                    container[key] = value
                elif key in container:
                    del container[key]
            if old_x is not None:
                adata.X = old_x
            raise


def categorical(codes: NDArray[np.int64], names: Sequence[str]) -> pd.Categorical:
    """Return an obs column from codes (-1 = missing) and class names that h5ad gives back equal."""
    return pd.Categorical.from_codes(np.asarray(codes), categories=pd.Index(list(names)))


def proba_frame(proba: NDArray[Any], names: Sequence[str], index: pd.Index) -> pd.DataFrame:
    """Class probabilities (observations x classes) with the class names as columns."""
    return pd.DataFrame(np.asarray(proba, dtype=np.float32), index=index, columns=list(names))


def provenance(**params: Any) -> dict[str, Any]:
    """Parameters, seed and versions as h5ad can store them: no None, tuple, set or path."""
    clean = {k: _storable(v) for k, v in params.items() if v is not None}
    clean["versions"] = {"stxtools": __version__} | {name: version(name) for name in ("anndata", "scanpy")}
    return clean


def _storable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _storable(v) for k, v in value.items() if v is not None}
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return float(value)
    if isinstance(value, (list, tuple, set, frozenset)):
        items = sorted(value) if isinstance(value, (set, frozenset)) else list(value)
        return (
            np.array([str(v) for v in items], dtype=object)
            if any(isinstance(v, str) for v in items)
            else np.array(items)
        )
    if isinstance(value, np.ndarray):
        return value
    return str(value)
