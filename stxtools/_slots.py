"""Writing results: all slots of a call at its end, or none of them, and never over what something else wrote.

Every call lists the slots that it wrote in the ``params`` of its record in ``uns``, and replaces these only. A slot is
named by its path, ``("obs", "segment")`` or ``("uns", "regions", "obsm", "X_gnn")``, in records joined by ``/``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
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

Path = tuple[str, ...]

_MISSING = object()
_CONTAINERS = ("obs", "var", "obsm", "varm", "obsp", "layers", "uns")
# calls that write the same slots: each may replace what another of its group wrote
_SHARED = (frozenset({"tl.embed", "tl.multitask"}),)
# calls whose `key_added` names their entry in `uns` alone
_FIXED_NAMES = frozenset({"pp.normalize", "tl.embed", "tl.multitask", "tl.attention_fidelity"})
_PALETTE = "_colors"  # a palette follows its column, as in scanpy


def check_free(adata: AnnData, call: str, **slots: Iterable[str]) -> None:
    """Check, before any work, that a call would replace nothing but its own output: ``obs=[key], uns=[key]``."""
    check_paths_free(adata, call, [(container, key) for container, keys in slots.items() for key in keys])


def free_key(adata: AnnData, call: str, key_added: str | None, default: str, **suffixes: Iterable[str]) -> str:
    """Return the checked output name, after :func:`check_free` for what begins with it: ``uns=["", "_params"]``."""
    key = check_key_added(key_added, default)
    check_free(adata, call, **{where: [f"{key}{end}" for end in ends] for where, ends in suffixes.items()})
    return key


@dataclass
class Slots:
    """Results waiting to be written; :meth:`write` puts them into an AnnData, all or none.

    - ``inner``: What is written into the AnnData that ``uns`` holds under this key.
    - ``replaces``: Slots, such as ``"uns/log1p"``, that the call replaces whoever wrote them.
    - ``open_ended``: Columns of tables in ``uns`` in which an infinite number is an open limit.
    - ``missing``: Slots in which NaN means "none", and the rows where it may stand (None: any). Every other number must
      be finite, but those in tables of ``uns``, where NaN says that a column does not apply.
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
        sign(adata, self.call, self.uns, paths)
        uns = dict(self.uns)
        for key, slots in self.inner.items():  # an AnnData that gets something new inside is a copy
            uns[key] = adata.uns[key].copy()
            for name in _CONTAINERS:
                for inner_key, value in getattr(slots, name).items():
                    getattr(uns[key], name)[inner_key] = _named(value, uns[key]) if name == "obsm" else value
        if adata.is_view:
            adata.uns = dict(adata.uns)  # anndata's own way from a view to an AnnData of its own
        undo: list[tuple[Any, str, Any]] = []
        old_x = adata.X if self.X is not None else None
        try:
            for name in _CONTAINERS:
                container = getattr(adata, name)
                for key, value in (uns if name == "uns" else getattr(self, name)).items():
                    undo.append((container, key, container.get(key, _MISSING)))
                    container[key] = _named(value, adata) if name == "obsm" else value
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

    def paths(self) -> list[Path]:
        """Paths of all slots, those inside an inner AnnData included."""
        found: list[Path] = [(name, key) for name in _CONTAINERS for key in getattr(self, name)]
        return found + [("uns", key, *path) for key, slots in self.inner.items() for path in slots.paths()]

    def check_finite(self, owner: str = "") -> None:
        """Check that all numbers are finite, but where ``missing`` says that there may be none."""
        for name in _CONTAINERS[:-1]:
            for key, value in getattr(self, name).items():
                allowed = self.missing.get(f"{name}/{key}", _NOWHERE)
                _check_finite(self.call, f"{owner}{name}[{key!r}]", value, allowed)
        if self.X is not None:
            _check_finite(self.call, f"{owner}X", self.X, _NOWHERE)
        for key, value in self.uns.items():
            if isinstance(value, pd.DataFrame):
                value = value.drop(columns=list(self.open_ended))
            _check_finite_uns(self.call, f"{owner}uns[{key!r}]", value)
        for key, slots in self.inner.items():
            slots.check_finite(f"{owner}uns[{key!r}].")


def check_paths_free(adata: AnnData, call: str, paths: Iterable[Path], replaces: Collection[str] = ()) -> None:
    """:func:`check_free` for paths; those in ``replaces`` belong to the call whoever wrote them."""
    family = next((group for group in _SHARED if call in group), frozenset({call}))
    for path in paths:
        slot = "/".join(path)
        if slot in replaces or slot.endswith(_PALETTE) or not _is_there(adata, path):
            continue
        writers = {str(p["call"]) for p in records(adata.uns) if "call" in p and slot in slots_of(p)}
        if writers & family:
            continue
        by = f"`st.{min(writers)}` wrote it" if writers else f"nothing says that `st.{call}` wrote it"
        fixed = call in _FIXED_NAMES and not (path[0] == "uns" and len(path) == 2)
        mend = "Rename or delete it first" if fixed else "Pass `key_added=` to write under another name, or delete it"
        code = ".".join(f"{container}[{key!r}]" for container, key in zip(path[::2], path[1::2], strict=True))
        raise ValueError(f"`adata.{code}` is there already and {by}: it would be lost. {mend}.")


def sign(adata: AnnData, call: str, uns: Mapping[str, Any], paths: Sequence[Path]) -> None:
    """Write the call's name and slots into the new records; slots of its earlier one that remain stay listed."""
    for key, value in uns.items():
        for params in records({key: value}):
            if "call" in params:  # the record of an earlier call, kept beside this one's
                continue
            before = [p for p in records({key: adata.uns.get(key)}) if str(p.get("call")) == call]
            kept = {slot for p in before for slot in slots_of(p) if _is_there(adata, tuple(slot.split("/")))}
            params["call"] = call
            params["slots"] = np.array(sorted(kept | {"/".join(p) for p in paths}), dtype=object)


def slots_of(params: Mapping[str, Any]) -> list[str]:
    """Slots that a record lists."""
    return [str(slot) for slot in np.atleast_1d(np.asarray(params.get("slots", ()), dtype=object))]


def records(uns: Any, depth: int = 3) -> Iterator[dict[str, Any]]:
    """All parameters that this package wrote: entries of ``uns``, or one or two levels inside them."""
    uns = getattr(uns, "uns", uns)
    versions = uns.get("versions") if isinstance(uns, Mapping) else None
    if isinstance(versions, Mapping) and "stxtools" in versions:
        yield uns
    elif depth and isinstance(uns, Mapping):
        for inner in uns.values():
            yield from records(inner, depth - 1)


def _is_there(adata: AnnData, path: Path) -> bool:
    value: Any = adata
    for key in path:
        if hasattr(value, "obsm"):  # an AnnData: its containers are attributes
            value = getattr(value, key)
        elif hasattr(value, "keys") and key in value:
            value = value[key]
        else:
            return False
    return True


def _named(value: Any, adata: AnnData) -> Any:
    """Give a table of observations their names."""
    return value.set_axis(adata.obs_names) if isinstance(value, pd.DataFrame) else value


_NOWHERE = np.zeros(0, dtype=bool)


def _check_finite(call: str, code: str, value: Any, allowed: Bools | None) -> None:
    """Check the numbers of one slot; NaN may stand in the rows ``allowed`` (None: in any)."""
    part = _floats(value)
    if part.size == 0 or (np.isfinite(part.min()) and np.isfinite(part.max())):
        return
    wrong = np.isinf(part) if allowed is None else ~np.isfinite(part)
    if allowed is not None and len(allowed) == len(part):
        wrong &= ~(np.isnan(part) & allowed.reshape(-1, *[1] * (part.ndim - 1)))
    if wrong.any():
        raise ValueError(
            f"`st.{call}` computed {int(wrong.sum())} value(s) for `{code}` that are NaN or infinite; nothing was "
            "written. Check the input for extreme values; where a network was trained, a smaller learning rate "
            "(`params={'lr': ...}`) or another `random_state` may help."
        )


def _check_finite_uns(call: str, code: str, value: Any) -> None:
    """Check arrays and numbers of an entry of ``uns``; in its tables NaN says that a column does not apply."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key != "params" and "versions" not in value:
                _check_finite_uns(call, f"{code}[{key!r}]", inner)
    elif hasattr(value, "obsm"):
        for name in ("obs", "obsm", "obsp"):
            for key in getattr(value, name):
                _check_finite(call, f"{code}.{name}[{key!r}]", getattr(value, name)[key], _NOWHERE)
        _check_finite(call, f"{code}.X", value.X, _NOWHERE)
    else:
        _check_finite(call, code, value, None if isinstance(value, pd.DataFrame) else _NOWHERE)


def _floats(value: Any) -> Array:
    """Floating-point numbers of a slot, in memory; empty where there are none."""
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
    """Return an obs column from codes (-1 = missing) and class names that h5ad gives back equal."""
    return pd.Categorical.from_codes(np.asarray(codes), categories=pd.Index(list(names)))


def put_frame(slots: Slots, key: str, values: Array, names: Sequence[str]) -> None:
    """Put a table of observations x ``names`` into ``obsm[key]``.

    Names that no file can hold (``"L2/3"``) are replaced there; ``uns["{key}_columns"]`` has the true ones.
    """
    columns = _storable_columns(names)
    slots.obsm[key] = pd.DataFrame(np.asarray(values, dtype=np.float32), columns=columns)
    if columns != list(names):
        slots.uns[_keys.columns(key)] = np.array(list(names), dtype=object)


def column_names(adata: AnnData, key: str) -> list[str] | None:
    """True names of the columns of the table ``obsm[key]``; None where there is no table."""
    frame = adata.obsm.get(key)
    if not isinstance(frame, pd.DataFrame):
        return None
    columns = [str(c) for c in frame.columns]
    true = adata.uns.get(_keys.columns(key))
    names = columns if true is None else [str(name) for name in np.ravel(np.asarray(true, dtype=object))]
    return names if _storable_columns(names) == columns else columns  # those of an earlier table may still be there


def _storable_columns(names: Sequence[str]) -> list[str]:
    """Column names that h5ad and zarr can hold, as near to ``names`` as may be and all different."""
    taken = {name for name in names if unstorable(name, column=True) is None and "/" not in name}
    out = list(names)
    for i, name in enumerate(names):
        if name in taken:
            continue
        column = name.replace("/", "_").replace("\0", "_")
        column = f"class_{i}" if unstorable(column, column=True) is not None else column
        while column in taken:
            column += "_"
        taken.add(column)
        out[i] = column
    return out


def provenance(**params: Any) -> dict[str, Any]:
    """Parameters, seed and versions as h5ad can store them: no None, tuple, set or path."""
    clean = {k: _storable(v) for k, v in params.items() if v is not None}
    clean["versions"] = {"stxtools": __version__} | {name: version(name) for name in ("anndata", "scanpy")}
    return clean


def _storable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _storable(v) for k, v in value.items() if v is not None}
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, (list, tuple, set, frozenset)):
        items = sorted(value) if isinstance(value, (set, frozenset)) else list(value)
        texts = any(isinstance(v, str) for v in items)
        return np.array([str(v) for v in items], dtype=object) if texts else np.array(items)
    return value if isinstance(value, (bool, int, float, np.ndarray)) else str(value)
