"""Which groups are compared with what, and which comparisons the data allow."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from stxtools._warn import warn
from stxtools.stats._design import Design
from stxtools.stats._section import MIN_OBS


def chosen_groups(groups: Any, reference: Any, names: list[str], groupby: str) -> list[str]:
    """Return the groups to test, checked; of two groups, ``"all"`` is the last one, the first its reference."""
    if not isinstance(reference, str) or (reference != "rest" and reference not in names):
        raise ValueError(f"`reference={reference!r}` is neither 'rest' nor a group of `{groupby}`; it has {names}.")
    if isinstance(groups, str) and groups == "all":
        return names[-1:] if len(names) == 2 and reference == "rest" else [n for n in names if n != reference]
    if isinstance(groups, str):
        raise TypeError(
            f"`groups` must be 'all' or a list of group names, not the string {groups!r}; use [{groups!r}]."
        )
    if not isinstance(groups, Iterable):
        raise TypeError(f"`groups` must be 'all' or a list of group names, not {groups!r}.")
    chosen = list(dict.fromkeys(str(g) for g in groups))
    unknown = [g for g in chosen if g not in names]
    if unknown or not chosen:
        raise ValueError(f"`groups` names {unknown or 'no group'}; `{groupby}` has {names}.")
    if reference in chosen:
        raise ValueError(f"`reference={reference!r}` is also in `groups`; a group cannot be compared with itself.")
    return chosen


def other_group(chosen: list[str], reference: str, names: list[str]) -> str:
    """Return the reference by its name where the rest is one group."""
    if reference != "rest" or len(names) != 2 or len(chosen) != 1:
        return reference
    return next(n for n in names if n != chosen[0])


def usable(planned: list[Design], reference: str, groupby: str, *, explicit: bool) -> list[Design]:
    """Return the comparisons that can be made; an error or a warning says why others cannot."""
    alone = [d.name for d in planned if d.kind == "unreplicated"]
    if alone:
        raise ValueError(
            f"Group(s) {alone} of `{groupby}` and their reference {reference!r} occur in different libraries, with "
            "fewer than two libraries on one side. The library is the replicate, so a comparison between libraries "
            "needs at least two on each side: add libraries, or compare groups that occur in the same library."
        )
    out = [d for d in planned if d.kind != "small"]
    small = [d.name for d in planned if d.kind == "small"]
    if small and (explicit or not out):
        raise ValueError(
            f"Group(s) {small} of `{groupby}` or their reference {reference!r} have fewer than {MIN_OBS} observations "
            "in every section; leave them out with `groups=[...]`, or merge them with others."
        )
    if small:
        warn(
            f"Group(s) {small} of `{groupby}` are left out: fewer than {MIN_OBS} observations in every section.",
        )
    return out


def warn_single(designs: list[Design], groupby: str, library_key: str | bool | None) -> None:
    """Warn where a comparison rests on one library although several were named."""
    single = [d.name for d in designs if d.kind == "within" and len(d.libraries) == 1]
    if library_key is not None and single:
        warn(
            f"Group(s) {single} of `{groupby}` can be compared within one library only: their p-values speak of that "
            "section and not of others (`n_libraries` is 1).",
        )
