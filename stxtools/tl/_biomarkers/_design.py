"""Which groups are compared with what, which comparisons the data allow, and their tests."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stxtools._checks import listing
from stxtools._progress import progress
from stxtools._spatial.points import position_order
from stxtools._validate import Libraries
from stxtools._warn import warn
from stxtools.stats._composition import Covariates
from stxtools.stats._design import Design, Outcome, compare_between, outcome_within
from stxtools.stats._region_test import Contrast, SectionView, compare_regions
from stxtools.stats._section import MIN_OBS

if TYPE_CHECKING:
    from stxtools._data.expression import GeneBlocks
    from stxtools.stats._meta_analysis import Alternative
    from stxtools.tl._describe import Features


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
            f"Group(s) {listing(alone)} of `{groupby}` and their reference {reference!r} occur in different libraries, "
            "with fewer than two on one side. The library is the replicate, so a comparison between libraries "
            "needs at least two on each side: add libraries, or compare groups that occur in the same library."
        )
    out = [d for d in planned if d.kind != "small"]
    small = [d.name for d in planned if d.kind == "small"]
    if small and (explicit or not out):
        raise ValueError(
            f"Group(s) {listing(small)} of `{groupby}` or their reference {reference!r} have fewer than {MIN_OBS} "
            "observations in every section; leave them out with `groups=[...]`, or merge them with others."
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


def compare(
    expression: GeneBlocks | Features, designs: list[Design], codes: NDArray[np.int64], libs: Libraries,
    xy: NDArray[np.float64], names: NDArray[np.str_], covariates: Covariates, *,
    n_null: int, seed: int, show_progress: bool | None, alternative: Alternative = "two-sided", both: bool = True,
    plain: bool = False,
) -> list[Outcome]:  # fmt: skip
    """Test every design; results do not depend on the order of rows.

    ``both``: ask the other question, too. ``plain``: smooth variation is not weighed down, as on strips.
    """
    depth, n_genes = expression.depth, expression.n_genes
    views: dict[int, SectionView] = {}
    order = position_order(xy, names)
    for i in range(len(libs)):
        rows = order[(libs.codes[order] == i) & (codes[order] >= 0)]
        if len(rows):
            own_depth, own_genes = (None if each is None else each[rows] for each in (depth, n_genes))
            own = covariates.subset(rows)
            views[i] = SectionView(expression, rows, xy[rows], seed, own_depth, own, own_genes, plain)
    sides = [{i: d.sides(codes[views[i].rows]) for i in d.libraries} for d in designs]
    questions = (covariates.composition, not covariates.composition)[: 1 + both]
    outcomes: dict[int, Outcome] = {}
    contrasts: dict[int, list[Contrast]] = {}
    for k, design in enumerate(designs):
        for i in design.libraries if design.kind == "within" else ():
            used = np.logical_or(*sides[k][i])
            view, label = views[i].subset(used), sides[k][i][0][used]
            contrasts.setdefault(k, []).append(Contrast(view, label, n_null, (seed, i), questions, alternative))
    computed = [c for within in contrasts.values() for c in within]
    between = [k for k, design in enumerate(designs) if design.kind == "between"]
    with progress(len(computed) + len(between), "testing genes", show_progress) as bar:
        compare_regions(computed, expression.limit, done=bar.update)
        for k in between:
            parts = [views[i] for i in designs[k].libraries], [sides[k][i] for i in designs[k].libraries]
            outcomes[k] = compare_between(*parts, alternative)
            bar.update(1)
    outcomes |= {k: outcome_within(within) for k, within in contrasts.items()}
    return [outcomes[k] for k in range(len(designs))]
