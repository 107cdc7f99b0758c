"""All comparisons of a call, on expression that is read by blocks of genes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stxtools._progress import progress
from stxtools._spatial.order import position_order
from stxtools._validate import Libraries
from stxtools.stats._design import Design, Outcome, compare_between, outcome_within
from stxtools.stats._region_test import Contrast, SectionView, compare_regions

if TYPE_CHECKING:
    from stxtools._data.expression import GeneBlocks
    from stxtools.stats._composition import Covariates
    from stxtools.stats._meta_analysis import Alternative
    from stxtools.tl._describe._features import Features


def compare(
    expression: GeneBlocks | Features, designs: list[Design], codes: NDArray[np.int64], libs: Libraries,
    xy: NDArray[np.float64], names: NDArray[np.str_], covariates: Covariates | None, *,
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
            own = None if covariates is None else covariates.subset(rows)
            own_depth, own_genes = (None if each is None else each[rows] for each in (depth, n_genes))
            views[i] = SectionView(expression, rows, xy[rows], seed, own_depth, own, own_genes, plain)
    sides = [{i: d.sides(codes[views[i].rows]) for i in d.libraries} for d in designs]
    composition = covariates is not None and covariates.composition
    questions = (composition, not composition) if both else (composition,)
    within: dict[int, list[Contrast]] = {}
    for k, design in enumerate(designs):
        if design.kind != "within":
            continue
        contrasts = []
        for i in design.libraries:
            inside, outside = sides[k][i]
            used = inside | outside
            contrasts.append(Contrast(views[i].subset(used), inside[used], n_null, (seed, i), questions, alternative))
        within[k] = contrasts
    computed = [c for contrasts in within.values() for c in contrasts]
    between = [k for k, design in enumerate(designs) if design.kind == "between"]
    outcomes: dict[int, Outcome] = {}
    with progress(len(computed) + len(between), "testing genes", show_progress) as bar:
        compare_regions(computed, expression.limit, done=bar.update)
        for k in between:
            libraries = designs[k].libraries
            parts = [views[i] for i in libraries], [sides[k][i] for i in libraries]
            outcomes[k] = compare_between(*parts, alternative)
            bar.update(1)
    outcomes |= {k: outcome_within(contrasts) for k, contrasts in within.items()}
    return [outcomes[k] for k in range(len(designs))]
