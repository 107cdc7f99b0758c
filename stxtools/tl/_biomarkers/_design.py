"""Which groups are compared with what, which comparisons the data allow, and their tests."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from stxtools._checks import listing
from stxtools._progress import progress
from stxtools._spatial.points import position_order
from stxtools._types import Array, Ints
from stxtools._warn import warn
from stxtools.stats._composition import Covariates
from stxtools.stats._design import Design, Outcome, compare_between, outcome_within
from stxtools.stats._region_test import Contrast, SectionView, compare_regions
from stxtools.stats._section import MIN_OBS

if TYPE_CHECKING:
    from stxtools._data.expression import GeneBlocks
    from stxtools._data.sections import Geometry
    from stxtools.stats._meta_analysis import Alternative
    from stxtools.tl._describe._scores import ScoreMatrix


def chosen_groups(groups: Any, reference: Any, names: list[str], groupby: str) -> list[str]:
    """Return the groups to test, checked; of two groups, ``"all"`` is the last one, the first its reference."""
    if not isinstance(reference, str) or (reference != "rest" and reference not in names):
        raise ValueError(f"`reference={reference!r}` is neither 'rest' nor a group of `{groupby}`; it has {names}.")
    compared = None if reference == "rest" else reference  # a group may be called "rest" too
    if isinstance(groups, str) and groups == "all":
        return names[-1:] if len(names) == 2 and compared is None else [n for n in names if n != compared]
    if isinstance(groups, str) or not isinstance(groups, Iterable):
        raise TypeError(f"`groups` must be 'all' or a list of group names, such as [{names[0]!r}], not {groups!r}.")
    chosen = list(dict.fromkeys(str(g) for g in groups))
    unknown = [g for g in chosen if g not in names]
    if unknown or not chosen:
        raise ValueError(f"`groups` names {unknown or 'no group'}; `{groupby}` has {names}.")
    if compared in chosen:
        raise ValueError(f"`reference={reference!r}` is also in `groups`; a group cannot be compared with itself.")
    return chosen


def testable(planned: list[Design], reference: str, groupby: str, *, explicit: bool) -> list[Design]:
    """Return the comparisons that can be made; raise or warn where others cannot."""
    alone = [d.name for d in planned if d.kind == "unreplicated"]
    if alone:
        raise ValueError(
            f"Group(s) {listing(alone)} of `{groupby}` and their reference {reference!r} occur in different libraries, "
            "with fewer than two on one side. The library is the replicate, so a comparison between libraries "
            "needs at least two on each side: add libraries, or compare groups that occur in the same library."
        )
    if between := [d.name for d in planned if d.kind == "between" and d.subjects is not None]:
        raise ValueError(
            f"Group(s) {listing(between)} of `{groupby}` and their reference {reference!r} lie in different libraries. "
            "With subjects as replicates, compare them by `st.tl.compare(adata, condition_key, subject_key)`."
        )
    large = [d for d in planned if d.kind != "small"]
    small = [d.name for d in planned if d.kind == "small"]
    if small and (explicit or not large):
        raise ValueError(
            f"Group(s) {listing(small)} of `{groupby}` or their reference {reference!r} have fewer than {MIN_OBS} "
            "observations in every section; omit them with `groups=[...]`, or merge them with others."
        )
    if small:
        warn(f"Group(s) {small} of `{groupby}` are not tested: fewer than {MIN_OBS} observations in every section.")
    return large


def group_sizes(designs: list[Design], codes: Ints, libs: Ints) -> dict[str, Ints]:
    """Return the numbers of tested observations of each group and of its reference."""
    tested = [[side[np.isin(libs, d.libraries)].sum() for side in d.sides(codes)] for d in designs]
    return dict(zip(("n_obs_group", "n_obs_reference"), np.array(tested, dtype=np.int64).T, strict=True))


def warn_single(designs: list[Design], groupby: str, library_key: str | bool | None) -> None:
    """Warn where a comparison rests on one library, or one subject, although several were named."""
    single = [d.name for d in designs if d.kind == "within" and len(set(d.replicates)) == 1]
    if library_key is not None and single:
        unit = "library" if designs[0].subjects is None else "subject"
        warn(
            f"Group(s) {single} of `{groupby}` are compared within a single {unit}: their p-values do not "
            "generalise to other sections (`n_libraries` is 1)."
        )


def compare(
    expression: GeneBlocks | ScoreMatrix, designs: list[Design], codes: Ints, where: Geometry, names: Array,
    covariates: Covariates, *, n_null: int, seed: int, show_progress: bool | None,
    alternative: Alternative = "two-sided", both: bool = True, unweighted: bool = False,
) -> list[Outcome]:  # fmt: skip
    """Test every design; results do not depend on the order of rows.

    ``both``: answer the other question, too. ``unweighted``: smooth variation is not weighed down, as on strips.
    """
    rows, depth, n_genes = np.arange(len(codes)), expression.depth, expression.n_genes
    everything = SectionView(expression, rows, where.xy, seed, depth, covariates, n_genes, unweighted)
    order = position_order(where.xy, names)
    order = order[codes[order] >= 0]
    views = [everything.take(order[where.libs.codes[order] == i]) for i in range(len(where.libs))]
    questions = (covariates.composition, not covariates.composition)[: 1 + both]

    def contrast(design: Design, i: int) -> Contrast:
        inside, outside = design.sides(codes[views[i].rows])
        used = inside | outside
        view = views[i] if used.all() else views[i].take(np.flatnonzero(used))
        return Contrast(view, inside[used], n_null, (seed, i), questions, alternative)

    contrasts = [[contrast(d, i) for i in d.libraries] if d.kind == "within" else [] for d in designs]
    flat = list(chain.from_iterable(contrasts))
    outcomes: list[Outcome] = []
    with progress(len(flat) + contrasts.count([]), "testing genes", show_progress) as bar:
        compare_regions(flat, expression.limit, done=bar.update)
        for design, within in zip(designs, contrasts, strict=True):
            if within:
                outcomes.append(outcome_within(within, design))
                continue
            compared = [views[i] for i in design.libraries]
            sides = [design.sides(codes[view.rows]) for view in compared]
            outcomes.append(compare_between(compared, sides, alternative))
            bar.update(1)
    return outcomes
