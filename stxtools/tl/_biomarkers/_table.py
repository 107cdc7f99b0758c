"""The table of :func:`stxtools.tl.biomarkers`: one design's rows, their order, and scanpy's layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm, rankdata

from stxtools._types import Array, Floats
from stxtools.stats._design import Design, Outcome, shrink
from stxtools.stats._meta_analysis import Alternative, Combined, adjust_bh, expression_weights, signed_z
from stxtools.stats._section import ONE_COUNT, PSEUDO

FDR = 0.05  # of the genes that stand first, and of the intervals
_LEAST_Z = 0.1  # a test statistic nearer to 0 does not tell the error of the fold change
_DIGITS = 10  # of an attribution: below is rounding, which may not rank genes
_TWIN = {"names": object, "scores": np.float32, "logfoldchanges": np.float32, "pvals": np.float64,
         "pvals_adj": np.float64}  # fmt: skip
COLUMNS = (
    "group", "names", "scores", "logfoldchanges", "pvals", "pvals_adj", "scores_composition", "pvals_composition",
    "pvals_adj_composition", "scores_total", "pvals_total", "pvals_adj_total", "beyond_composition", "pct_nz_group",
    "pct_nz_reference", "ci_low", "ci_high", "certain_logfoldchanges", "auroc", "attribution", "n_libraries",
    "direction_consistent", "rank_score",
)  # fmt: skip


def design_table(
    design: Design, outcome: Outcome, attribution: Floats, gene_names: Array, *,
    adjusted: bool, composition: bool, alternative: Alternative,
) -> tuple[pd.DataFrame, float]:  # fmt: skip
    """Return a design's table in the order of the genes, and the rank correlation of attribution and scores.

    ``adjusted``: ``rank_score`` comes from the effect adjusted for covariates. ``composition``: composition is among
    them, and the other question is the total effect.
    """
    described, tested = outcome.described, outcome.tested
    effect, error = described.effect, outcome.error
    if adjusted and design.kind == "within":
        effect, error = tested.effect, outcome.tested_error
    weights = expression_weights(described.mean)
    z, adjusted_p = _adjusted(tested, weights, alternative)
    change = np.log2((described.mean_group + PSEUDO) / (described.mean_reference + PSEUDO))
    low, high = _intervals(change, z, adjusted_p, weights, alternative)
    damped = np.log2((described.mean_group + ONE_COUNT) / (described.mean_reference + ONE_COUNT))
    bounds = _intervals(damped, z, adjusted_p, weights, alternative)
    certain = np.sign(z) * np.maximum(np.nan_to_num(np.where(z > 0, bounds[0], -bounds[1])), 0.0)
    size = np.asarray(np.round(np.abs(attribution), _DIGITS), dtype=np.float64)
    rank = np.where(size > 0, rankdata(size) / len(size), 0.0)
    tail = tested.pvals / 2 if alternative == "two-sided" else np.minimum(tested.pvals, 1 - tested.pvals)
    score = shrink(effect, error) * (1 - tail) * (0.9 + 0.1 * rank)
    score = np.where((tested.n_libraries > 0) & (effect * z > 0), score, 0.0)
    other_z = other_p = other_adjusted = np.full(len(z), np.nan)
    if outcome.other is not None:
        other_z, other_adjusted = _adjusted(outcome.other, weights, alternative)
        other_p = outcome.other.pvals
    other = "total" if composition else "composition"
    table = pd.DataFrame({
        "group": np.full(len(gene_names), design.name, dtype=object), "names": gene_names,
        "scores": z, "logfoldchanges": change, "pvals": tested.pvals, "pvals_adj": adjusted_p,
        f"scores_{other}": other_z, f"pvals_{other}": other_p, f"pvals_adj_{other}": other_adjusted,
        "beyond_composition": (adjusted_p if composition else other_adjusted) <= FDR,
        "pct_nz_group": described.nonzero_group, "pct_nz_reference": described.nonzero_reference,
        "ci_low": low, "ci_high": high, "certain_logfoldchanges": np.where(adjusted_p <= FDR, certain, 0.0),
        "auroc": described.auroc, "attribution": attribution, "n_libraries": tested.n_libraries,
        # one library agrees with none
        "direction_consistent": pd.arrays.BooleanArray(tested.agreement == 1, tested.n_libraries < 2),
        "rank_score": score,
    })  # fmt: skip
    return table, _spearman(size, np.abs(z))


def _adjusted(tested: Combined, weights: Floats, alternative: Alternative) -> tuple[Floats, Floats]:
    """Return signed normal scores, and adjusted p-values: 1 on the other side of the ``alternative``."""
    z, adjusted_p = signed_z(tested.statistic, tested.df), adjust_bh(tested.pvals, weights)
    if alternative != "two-sided":
        adjusted_p = np.where(z > 0 if alternative == "greater" else z < 0, adjusted_p, 1.0)
    return z, adjusted_p


def _intervals(
    change: Floats, z: Floats, adjusted_p: Floats, weights: Floats, alternative: Alternative
) -> tuple[Floats, Floats]:
    """Return confidence limits of log2 fold changes with a false coverage rate of :data:`FDR`.

    The level is that of the p-value at which Benjamini & Hochberg call a gene (Benjamini & Yekutieli 2005): a gene is
    called if and only if its interval excludes 0. The limit on the side of a one-sided ``alternative`` is infinite. NaN
    where change and test differ in sign, or the statistic is near 0: their ratio, the standard error, is not finite.
    """
    called = adjusted_p <= FDR
    share = max(int(called.sum()), 1) / max(len(z), 1)
    sides = 2 if alternative == "two-sided" else 1
    critical = norm.isf(np.clip(FDR * share * weights / sides, 5e-301, 0.5))
    critical = np.where(called, np.minimum(critical, np.abs(z)), critical)  # rounding at the last gene called
    known = (change * z > 0) & (np.abs(z) >= _LEAST_Z)
    half = np.divide(np.abs(change) * critical, np.abs(z), out=np.full(len(z), np.nan), where=known)
    low = np.where(known & (alternative == "less"), -np.inf, change - half)
    return low, np.where(known & (alternative == "greater"), np.inf, change + half)


def sort_genes(table: pd.DataFrame, alternative: Alternative) -> pd.DataFrame:
    """Sort a group's genes: called up first, called down last (reversed for "less"), then by ``rank_score``."""
    z = table["scores"].to_numpy()
    side = np.sign(z) * (table["pvals_adj"].to_numpy() <= FDR)
    table = table.iloc[np.lexsort((-z, -table["rank_score"].to_numpy(), -side))]
    return table[::-1] if alternative == "less" else table


def scanpy_twin(
    tables: Sequence[pd.DataFrame], groupby: str, reference: str, method: str, layer: str | None
) -> dict[str, Any]:
    """Return tables of one group each in the layout of :func:`scanpy.tl.rank_genes_groups`."""
    groups = [str(t["group"].iloc[0]) for t in tables]
    params = {"groupby": groupby, "reference": reference, "method": method, "use_raw": False, "layer": layer,
              "corr_method": "benjamini-hochberg"}  # fmt: skip
    out: dict[str, Any] = {"params": {k: v for k, v in params.items() if v is not None}}
    for column, dtype in _TWIN.items():
        wide = pd.DataFrame({group: table[column].to_numpy() for group, table in zip(groups, tables, strict=True)})
        out[column] = wide.to_records(index=False, column_dtypes=dtype)
    return out


def _spearman(a: Floats, b: Floats) -> float:
    known = len(a) >= 3 and np.ptp(a) > 0 and np.ptp(b) > 0
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1]) if known else float("nan")
