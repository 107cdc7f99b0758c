"""Differences between one model and the others, paired by split."""

from __future__ import annotations

import numpy as np
import pandas as pd
from report import NAMES, markdown

_UNIT = ["scheme", "noise", "seed", "fold"]


def paired(table: pd.DataFrame, one: str, other: str, metric: str) -> tuple[float, float, int]:
    """Return the mean of ``one`` minus ``other``, its standard error, and the number of splits.

    Splits are the folds of each seed. Where whole sections are held out, the seeds of a section are averaged first,
    because the sections are the replicates.
    """
    wide = table[table["model"].isin([one, other])].pivot_table(values=metric, index=_UNIT, columns="model")
    if not {one, other} <= set(wide.columns):
        return np.nan, np.nan, 0
    difference = (wide[one] - wide[other]).dropna()
    if set(difference.index.get_level_values("scheme")) == {"library"}:
        difference = difference.groupby(level="fold").mean()
    n = len(difference)
    return float(difference.mean()), float(difference.std(ddof=1) / np.sqrt(n)) if n > 1 else np.nan, n


def _cell(found: tuple[float, float, int], percent: bool) -> str:
    mean, error, n = found
    scale, digits = (100, 2) if percent else (1, 4)
    if not n:
        return "–"
    if not np.isfinite(error):
        return f"{scale * mean:+.{digits}f}"
    ratio = f" ({mean / error:+.1f})" if error > 1e-9 else ""  # equal differences have no standard error
    return f"{scale * mean:+.{digits}f} ± {scale * error:.{digits}f}{ratio}"


def difference_table(
    table: pd.DataFrame,
    targets: dict[str, str],
    metrics: tuple[str, ...] = ("accuracy", "auroc"),
    *,
    one: str = "framework",
    reverse: bool = False,
) -> str:
    """Format a row per other model: ``one`` minus it, ± standard error, and the number of standard errors in brackets.

    With ``reverse``, each other model minus ``one``. The best of the others is in bold.
    """
    others = [m for m in dict.fromkeys(table["model"]) if m != one]
    columns = [(target, metric) for target in targets for metric in metrics]
    head = [f"{targets[t]}: {'AUROC' if m == 'auroc' else 'MSE' if m == 'mse' else f'{m}, points'}" for t, m in columns]
    rows = [["model", "seeds", "splits", *head]]
    best = {}
    for target, metric in columns:
        means = table[table["target"] == target].groupby("model")[metric].mean().reindex(others).dropna()
        best[target, metric] = (means.idxmin() if metric == "mse" else means.idxmax()) if len(means) else ""
    for other in others:
        cells, splits, seeds = [], 0, 0
        for target, metric in columns:
            part = table[(table["target"] == target) & table[metric].notna()]
            found = paired(part, other, one, metric) if reverse else paired(part, one, other, metric)
            text = _cell(found, metric == "accuracy")
            cells.append(f"**{text}**" if other == best[target, metric] and not reverse else text)
            both = set(part.loc[part["model"] == one, "seed"]) & set(part.loc[part["model"] == other, "seed"])
            splits, seeds = max(splits, found[2]), max(seeds, len(both))
        rows.append([NAMES.get(other, other), str(seeds), str(splits), *cells])
    return markdown(rows)
