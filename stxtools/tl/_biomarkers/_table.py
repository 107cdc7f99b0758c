"""The table of :func:`stxtools.tl.biomarkers`: one design's rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from stxtools.stats._design import Design, Outcome, shrink
from stxtools.stats._meta_analysis import adjust_bh, signed_z
from stxtools.stats._section import PSEUDO

if TYPE_CHECKING:
    from numpy.typing import NDArray

_DIGITS = 10  # of an attribution: below is rounding, which may not rank genes
COLUMNS = (
    "group",
    "names",
    "scores",
    "zscores",
    "logfoldchanges",
    "auroc",
    "effect",
    "effect_se",
    "pvals",
    "pvals_adj",
    "attribution",
    "attribution_rank",
    "n_libraries",
    "direction_consistent",
    "pct_nz_group",
    "pct_nz_reference",
)


def design_table(
    design: Design,
    outcome: Outcome,
    attribution: NDArray[np.float64],
    gene_names: NDArray[np.object_],
    *,
    adjusted: bool,
) -> tuple[pd.DataFrame, float]:
    """Return a design's table in the order of the genes, and how attribution and evidence agree.

    ``adjusted``: rank by the effect that was adjusted for covariates.
    """
    found, tested = outcome.described, outcome.tested
    effect, error = found.effect, outcome.error
    if adjusted and design.kind == "within":
        effect, error = tested.effect, outcome.tested_error
    z = signed_z(tested.statistic, tested.df)
    size = np.asarray(np.round(np.abs(attribution), _DIGITS), dtype=np.float64)
    rank = np.where(size > 0, rankdata(size) / len(size), 0.0)
    score = shrink(effect, error) * (1 - tested.pvals / 2) * (0.9 + 0.1 * rank)
    score = np.where((tested.n_libraries > 0) & (effect * z > 0), score, 0.0)
    columns = (
        np.full(len(gene_names), design.name, dtype=object),
        gene_names,
        score,
        z,
        np.log2((found.mean_group + PSEUDO) / (found.mean_reference + PSEUDO)),
        found.auroc,
        effect,
        error,
        tested.pvals,
        adjust_bh(tested.pvals),
        attribution,
        rank,
        tested.n_libraries,
        pd.arrays.BooleanArray(tested.agreement == 1, tested.n_libraries < 2),  # one library agrees with none
        found.nonzero_group,
        found.nonzero_reference,
    )
    return pd.DataFrame(dict(zip(COLUMNS, columns, strict=True))), _spearman(size, np.abs(z))


def _spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])
