"""Writing results: all slots of a call at its end or none, and never over results of another call or the user."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from platform import python_version
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from . import _keys
from ._checks import unstorable
from ._types import Array, Bools, Ints
from ._validate import check_key_added
from ._version import __version__

Path = tuple[str, ...]  # of a slot, such as ("uns", "regions", "obsm", "X_gnn"); lists of slots join it by "/"

_MISSING = object()
_CONTAINERS = ("obs", "var", "obsm", "varm", "obsp", "layers", "uns")
_SHARING = frozenset({"tl.embed", "tl.multitask"})  # calls that may replace each other's slots
# calls whose `key_added` names their entry in `uns` alone
_FIXED_NAMES = frozenset({"pp.normalize", "tl.embed", "tl.multitask", "tl.attention_fidelity"})
_PALETTE = "_colors"  # a palette follows its column, as in scanpy
_NOWHERE = np.zeros(0, dtype=bool)


def check_free(adata: AnnData, call: str, **slots: Iterable[str]) -> None:
    """Check, before any work, that a call would replace only its own output: ``obs=[key], uns=[key]``."""
    check_paths_free(adata, call, [(container, key) for container, keys in slots.items() for key in keys])


def free_key(adata: AnnData, call: str, key_added: str | None, default: str, **suffixes: Iterable[str]) -> str:
    """Return the checked output name, after :func:`check_free` for it with suffixes: ``uns=["", "_params"]``."""
    key = check_key_added(key_added, default)
    check_free(adata, call, **{where: [f"{key}{end}" for end in ends] for where, ends in suffixes.items()})
    return key


@dataclass
class Slots:
    """Results to be written into an AnnData by :meth:`write`, all or none.

    - ``inner``: Results for the AnnData in ``uns`` under this key.
    - ``replaces``: Slots, such as ``"uns/log1p"``, that are replaced whoever wrote them.
    - ``missing``: Slots that may hold NaN, and in which rows (None: in any). All other numbers must be finite, except
      in tables of ``uns``, where NaN means that a column does not apply.
    - ``open_ended``: Columns of tables in ``uns`` in which infinity means an open limit.
    """

    call: str
    obs: dict[str, Any] = field(default_factory=dict)
    var: dict[str, Any] = field(default_factory=dict)
    obsm: dict[str, Any] = field(default_factory=dict)
    varm: dict[str, Any] = field(default_factory=dict)
    obsp: dict[str, Any] = field(default_factory=dict)
    layers: dict[str, Any] = field(default_factory=dict)
    uns: dict[str, Any] = field(default_factory=dict)
    X: Any = None
    inner: dict[str, Slots] = field(default_factory=dict)
    replaces: Collection[str] = ()
    missing: dict[str, Bools | None] = field(default_factory=dict)
    open_ended: Collection[str] = ()

    def write(self, adata: AnnData, copy: bool = False) -> AnnData | None:
        """Write every slot, or return a copy with them; on any error (or Ctrl-C) put back what was there."""
        paths = self.paths()
        check_paths_free(adata, self.call, paths, self.replaces)
        self.check_finite()
        adata = adata.copy() if copy else adata
        _record_slots(adata, self.call, self.uns, paths)
        uns = dict(self.uns)
        for key, slots in self.inner.items():  # the AnnData in `uns` is replaced, not changed
            uns[key] = adata.uns[key].copy()
            for container, inner_key, value in slots.items(uns[key]):
                container[inner_key] = value
        if adata.is_view:
            adata.uns = dict(adata.uns)  # which makes the view an actual AnnData
        undo: list[tuple[Any, str, Any]] = []
        old_x = adata.X if self.X is not None else None
        try:
            for container, key, value in replace(self, uns=uns).items(adata):
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
        return adata if copy else None

    def items(self, adata: AnnData) -> Iterator[tuple[Any, str, Any]]:
        """Yield container, key and value of every slot but ``X``; tables in ``obsm`` get the names of observations."""
        for name in _CONTAINERS:
            for key, value in getattr(self, name).items():
                table = name == "obsm" and isinstance(value, pd.DataFrame)
                yield getattr(adata, name), key, value.set_axis(adata.obs_names) if table else value

    def paths(self) -> list[Path]:
        """Return the paths of all slots, including those of inner AnnData."""
        paths: list[Path] = [(name, key) for name in _CONTAINERS for key in getattr(self, name)]
        return paths + [("uns", key, *path) for key, slots in self.inner.items() for path in slots.paths()]

    def check_finite(self, owner: str = "") -> None:
        """Check that all numbers are finite, except where ``missing`` allows NaN."""
        for name in _CONTAINERS[:-1]:
            for key, value in getattr(self, name).items():
                allowed = self.missing.get(f"{name}/{key}", _NOWHERE)
                _check_finite(self.call, f"{owner}{name}[{key!r}]", value, allowed)
        _check_finite(self.call, f"{owner}X", self.X, _NOWHERE)
        for key, value in self.uns.items():
            if isinstance(value, pd.DataFrame):
                value = value.drop(columns=list(self.open_ended))
            _check_finite_uns(self.call, f"{owner}uns[{key!r}]", value)
        for key, slots in self.inner.items():
            slots.check_finite(f"{owner}uns[{key!r}].")


def check_paths_free(adata: AnnData, call: str, paths: Iterable[Path], replaces: Collection[str] = ()) -> None:
    """Do :func:`check_free` for paths; those in ``replaces`` may be replaced whoever wrote them."""
    allowed = _SHARING if call in _SHARING else {call}
    for path in paths:
        slot = "/".join(path)
        if slot in replaces or slot.endswith(_PALETTE) or not _exists(adata, path):
            continue
        writers = {str(p["call"]) for p in records(adata.uns) if "call" in p and slot in slots_of(p)}
        if writers & allowed:
            continue
        by = f"`st.{min(writers)}` wrote it" if writers else f"no record says that `st.{call}` wrote it"
        fixed = call in _FIXED_NAMES and not (path[0] == "uns" and len(path) == 2)
        mend = "Rename or delete it first" if fixed else "Pass `key_added=` to write under another name, or delete it"
        code = ".".join(f"{container}[{key!r}]" for container, key in zip(path[::2], path[1::2], strict=True))
        raise ValueError(f"`adata.{code}` exists already and {by}: it would be lost. {mend}.")


def _record_slots(adata: AnnData, call: str, uns: Mapping[str, Any], paths: Sequence[Path]) -> None:
    """Write the call's name and slots into its ``params``, with those of its last run that are still there."""
    for key, value in uns.items():
        for params in records({key: value}):
            if "call" in params:  # of an earlier call, kept beside this one's
                continue
            before = [p for p in records({key: adata.uns.get(key)}) if str(p.get("call")) == call]
            kept = {slot for p in before for slot in slots_of(p) if _exists(adata, tuple(slot.split("/")))}
            params["call"] = call
            params["slots"] = np.array(sorted(kept | {"/".join(p) for p in paths}), dtype=object)


def slots_of(params: Mapping[str, Any]) -> list[str]:
    """Return the slots that ``params`` list."""
    return [str(slot) for slot in np.atleast_1d(np.asarray(params.get("slots", ()), dtype=object))]


def records(uns: Any, depth: int = 3) -> Iterator[dict[str, Any]]:
    """Yield all ``params`` that this package wrote into ``uns``, up to two levels deep in its entries."""
    uns = getattr(uns, "uns", uns)
    versions = uns.get("versions") if isinstance(uns, Mapping) else None
    if isinstance(versions, Mapping) and "stxtools" in versions:
        yield uns
    elif depth and isinstance(uns, Mapping):
        for inner in uns.values():
            yield from records(inner, depth - 1)


def _exists(adata: AnnData, path: Path) -> bool:
    value: Any = adata
    for key in path:
        if hasattr(value, "obsm"):  # an AnnData: its containers are attributes
            value = getattr(value, key)
        elif hasattr(value, "keys") and key in value:
            value = value[key]
        else:
            return False
    return True


def _check_finite(call: str, code: str, value: Any, allowed: Bools | None) -> None:
    """Check the numbers of one slot; NaN is allowed in the rows ``allowed`` (None: in any)."""
    numbers = _floats(value)
    if numbers.size == 0 or (np.isfinite(numbers.min()) and np.isfinite(numbers.max())):
        return
    wrong = np.isinf(numbers) if allowed is None else ~np.isfinite(numbers)
    if allowed is not None and len(allowed) == len(numbers):
        wrong &= ~(np.isnan(numbers) & allowed.reshape(-1, *[1] * (numbers.ndim - 1)))
    if wrong.any():
        raise ValueError(
            f"`st.{call}` computed {int(wrong.sum())} value(s) for `{code}` that are NaN or infinite; nothing was "
            "written. Check the input for extreme values; where a network was trained, a smaller learning rate "
            "(`params={'lr': ...}`) or another `random_state` may help."
        )


def _check_finite_uns(call: str, code: str, value: Any) -> None:
    """Check arrays and numbers of an entry of ``uns``; tables may hold NaN."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key != "params" and "versions" not in value:
                _check_finite_uns(call, f"{code}[{key!r}]", inner)
    elif hasattr(value, "obsm"):
        Slots(call, dict(value.obs), obsm=dict(value.obsm), obsp=dict(value.obsp), X=value.X).check_finite(f"{code}.")
    else:
        _check_finite(call, code, value, None if isinstance(value, pd.DataFrame) else _NOWHERE)


def _floats(value: Any) -> Array:
    """Return the floating-point numbers of a slot in memory; empty where there are none."""
    if isinstance(value, pd.DataFrame):
        value = value.select_dtypes(include="floating")
    if isinstance(value, (pd.DataFrame, pd.Series)):
        value = value.to_numpy()
    if sparse.issparse(value):
        value = value.data
    if isinstance(value, (float, np.floating)):
        value = np.atleast_1d(value)
    return value if isinstance(value, np.ndarray) and value.dtype.kind == "f" else np.empty(0)


def categorical(codes: Ints, names: Sequence[str]) -> pd.Categorical:
    """Return an obs column from codes (-1: missing) and class names."""
    return pd.Categorical.from_codes(np.asarray(codes), categories=pd.Index(list(names)))


def put_frame(slots: Slots, key: str, values: Array, names: Sequence[str]) -> None:
    """Put a table of observations x ``names`` into ``obsm[key]``, and names that no file can hold into ``uns``."""
    columns = storable_columns(names)
    slots.obsm[key] = pd.DataFrame(np.asarray(values, dtype=np.float32), columns=columns)
    if columns != list(names):
        slots.uns[_keys.columns(key)] = np.array(list(names), dtype=object)


def column_names(adata: AnnData, key: str) -> list[str] | None:
    """Return the names of the columns of the table ``obsm[key]`` as given; None where there is no table."""
    frame = adata.obsm.get(key)
    if not isinstance(frame, pd.DataFrame):
        return None
    columns = [str(c) for c in frame.columns]
    stored = adata.uns.get(_keys.columns(key))
    names = columns if stored is None else [str(name) for name in np.ravel(np.asarray(stored, dtype=object))]
    owner = key.removesuffix(_keys.proba(""))
    classes = next((adata.obs[c].astype("category") for c in (f"{owner}_pred", owner) if c in adata.obs), None)
    # they may be left from an earlier table
    left = classes is not None and set(columns) == set(classes.cat.categories.astype(str))
    return columns if left or storable_columns(names) != columns else names


def storable_columns(names: Sequence[str], bad: str = "/") -> list[str]:
    """Return unique column names that h5ad and zarr can store: ``names`` where they can, else similar ones."""
    taken = {name for name in names if unstorable(name, column=True) is None and bad not in name}
    out = list(names)
    for i, name in enumerate(names):
        if name in taken:
            continue
        column = name.replace(bad, "_").replace("\0", "_")
        column = f"class_{i}" if unstorable(column, column=True) is not None else column
        while column in taken:
            column += "_"
        taken.add(column)
        out[i] = column
    return out


def provenance(**params: Any) -> dict[str, Any]:
    """Return parameters, seed and versions in types that h5ad can store: no None, tuple, set or path."""
    clean = {k: _storable(v) for k, v in params.items() if v is not None}
    used = ("anndata", "numpy", "scanpy", "scipy", "torch")
    clean["versions"] = {"stxtools": __version__, "python": python_version()} | {name: version(name) for name in used}
    return clean


def _storable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _storable(v) for k, v in value.items() if v is not None}
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, (list, tuple, set, frozenset)):
        items = sorted(value) if isinstance(value, (set, frozenset)) else list(value)
        strings = any(isinstance(v, str) for v in items)
        return np.array([str(v) for v in items], dtype=object) if strings else np.array(items)
    return value if isinstance(value, (bool, int, float, np.ndarray)) else str(value)
