"""The table of :func:`stxtools.tl.biomarkers`: one design's rows, their order, and scanpy's layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from stxtools._slots import storable_columns
from stxtools._types import Array, Floats
from stxtools.stats._design import Design, Outcome, shrink
from stxtools.stats._meta_analysis import Alternative, Combined, adjust_bh, expression_weights, signed_z
from stxtools.stats._section import FLATTER, ONE_COUNT, PSEUDO, Description

FDR = 0.05  # of the genes that stand first, and of the intervals
_LEAST_Z = 0.1  # a score nearer to 0 does not determine the error of the effect
_HALVINGS = 50  # of the interval in which a fold change is sought
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
    limits = _limits(tested, z, adjusted_p, weights, alternative)
    offset = 1.0 / FLATTER if design.kind == "within" and not composition else 1.0
    low, high = (_fold_changes(limit, described, offset, PSEUDO) for limit in limits)
    nearer = np.where(z > 0, *limits)
    certain = np.nan_to_num(_fold_changes(nearer, described, offset, ONE_COUNT))
    size = np.asarray(np.round(np.abs(attribution), _DIGITS), dtype=np.float64)
    rank = np.where(size > 0, stats.rankdata(size) / len(size), 0.0)
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
    known = tested.n_libraries > 0  # genes that are not expressed would agree
    return table, _spearman(size[known], np.abs(z[known]))


def _adjusted(tested: Combined, weights: Floats, alternative: Alternative) -> tuple[Floats, Floats]:
    """Return signed normal scores, and adjusted p-values: 1 on the other side of the ``alternative``."""
    z, adjusted_p = signed_z(tested.statistic, tested.df), adjust_bh(tested.pvals, weights)
    if alternative != "two-sided":
        adjusted_p = np.where(z > 0 if alternative == "greater" else z < 0, adjusted_p, 1.0)
    return z, adjusted_p


def _limits(
    tested: Combined, z: Floats, adjusted_p: Floats, weights: Floats, alternative: Alternative
) -> tuple[Floats, Floats]:
    """Return confidence limits of effects with a false coverage rate of :data:`FDR`.

    The level is that of the p-value at which Benjamini & Hochberg call a gene (Benjamini & Yekutieli 2005): a gene is
    called if and only if its interval excludes 0. The limit on the side of a one-sided ``alternative`` is infinite. NaN
    where the score is near 0 or, being one-sided, not of the sign of the effect: their ratio is the standard error.
    """
    called, t = adjusted_p <= FDR, np.abs(tested.statistic)
    share = max(int(called.sum()), 1) / max(len(t), 1)
    sides = 2 if alternative == "two-sided" else 1
    critical = stats.t.isf(np.clip(FDR * share * weights / sides, 5e-301, 0.5), tested.df)
    critical = np.where(called, np.minimum(critical, t), critical)  # rounding at the last gene called
    known = (tested.effect * z > 0) & (np.abs(z) >= _LEAST_Z)
    half = np.divide(np.abs(tested.effect) * critical, t, out=np.full(len(t), np.nan), where=known)
    low = np.where(known & (alternative == "less"), -np.inf, tested.effect - half)
    return low, np.where(known & (alternative == "greater"), np.inf, tested.effect + half)


def _fold_changes(effect: Floats, described: Description, offset: float, pseudo: float) -> Floats:
    """Return log2 ratios of means of x, ``pseudo`` added, for a difference ``effect`` of means of log(1 + x / offset).

    The mean over both sides is the observed one. Counts are Poisson, as large as the share of zeros implies.
    """
    mean, difference = described.mean, described.mean_group - described.mean_reference
    slope = (mean - described.mean_reference) @ difference / max(float(difference @ difference), 1e-300)
    share = float(np.clip(slope, 1e-3, 1 - 1e-3))  # of the group
    nonzero = share * described.nonzero_group + (1 - share) * described.nonzero_reference
    one = mean / -np.log1p(-np.clip(nonzero, 1e-9, 1 - 1e-9))  # a count on the scale of the mean
    one = np.where(one > 0, one, 1.0)

    def mean_log(x: Floats) -> Floats:
        seen = -np.expm1(-x / one)
        return seen * np.log1p(np.divide(x, seen * offset, out=np.zeros_like(x), where=seen > 0))

    up = effect >= 0
    low, high = np.where(up, 0.0, -mean / (1 - share)), np.where(up, mean / share, 0.0)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        below = mean_log(mean + (1 - share) * middle) - mean_log(mean - share * middle) < effect
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    found = np.where(up, low, high)
    ratio = np.log2((mean + (1 - share) * found + pseudo) / (mean - share * found + pseudo))
    return np.where(np.isfinite(effect), ratio, effect)


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
    # zarr can store no record with such a field
    groups = storable_columns([str(t["group"].iloc[0]) for t in tables], bad=":")
    params = {"groupby": groupby, "reference": reference, "method": method, "use_raw": False, "layer": layer,
              "corr_method": "benjamini-hochberg"}  # fmt: skip
    out: dict[str, Any] = {"params": {k: v for k, v in params.items() if v is not None}}
    for column, dtype in _TWIN.items():
        wide = pd.DataFrame({group: table[column].to_numpy() for group, table in zip(groups, tables, strict=True)})
        out[column] = wide.to_records(index=False, column_dtypes=dtype)
    return out


def _spearman(a: Floats, b: Floats) -> float:
    known = len(a) >= 3 and np.ptp(a) > 0 and np.ptp(b) > 0
    return float(np.corrcoef(stats.rankdata(a), stats.rankdata(b))[0, 1]) if known else float("nan")
