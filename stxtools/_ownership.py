"""Whose output a slot holds: calls replace their own earlier output, and nothing else.

Every call lists the slots that it wrote in the ``params`` of its record in ``uns``. A slot is named by its path,
``("obs", "segment")`` or ``("uns", "regions", "obsm", "X_gnn")``, in records joined by ``/``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from anndata import AnnData

from ._validate import check_key_added

Path = tuple[str, ...]

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
        raise ValueError(f"`adata.{_code(path)}` is there already and {by}: it would be lost. {mend}.")


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


def records(uns: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """All parameters that this package wrote: entries of ``uns``, or one or two levels inside them."""
    for value in uns.values():
        inner = value.uns if hasattr(value, "uns") else value
        yield from _records_in(inner, depth=2)


def _records_in(value: Any, depth: int) -> Iterator[Any]:
    if not isinstance(value, Mapping):
        return
    versions = value.get("versions")
    if isinstance(versions, Mapping) and "stxtools" in versions:
        yield value
    elif depth:
        for inner in value.values():
            yield from _records_in(inner, depth - 1)


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


def _code(path: Path) -> str:
    """A slot as a user would type it."""
    return ".".join(f"{container}[{key!r}]" for container, key in zip(path[::2], path[1::2], strict=True))
