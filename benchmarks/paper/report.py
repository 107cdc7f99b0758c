"""Tables (markdown) and figures (PNG) out of what was measured."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import matplotlib as mpl
import numpy as np
import pandas as pd
from experiments import PUBLISHED

import stxtools as st

mpl.use("Agg")
import matplotlib.pyplot as plt

DPI = 80
NAMES = {
    "framework": "framework", "unet": "U-Net alone", "gnn": "GNN alone, on spots", "random_forest": "random forest",
    "random_forest_means": "random forest, neighbour means", "lda": "shrinkage LDA, neighbour means",
    "logistic": "logistic regression, neighbour means", "nearest_label": "nearest label (no expression)",
}  # fmt: skip


def carrier(table: pd.DataFrame) -> ad.AnnData:
    """Return an AnnData that holds an evaluation, for `st.get` and `st.pl`."""
    out = ad.AnnData(np.zeros((1, 1), dtype=np.float32))
    out.uns["evaluation"] = table.reset_index(drop=True)
    return out


def _cell(row: pd.Series, percent: bool) -> str:
    scale, digits = (100, 1) if percent else (1, 3)
    sd = "" if np.isnan(row["sd"]) else f" ± {scale * row['sd']:.{digits}f}"
    return f"{scale * row['mean']:.{digits}f}{sd}"


def markdown(rows: list[list[str]]) -> str:
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def scores_table(table: pd.DataFrame, targets: dict[str, str], platform: str | None = None) -> str:
    """One row per model: accuracy, precision, recall and AUROC of each target."""
    metrics = ("accuracy", "precision", "recall", "auroc")
    summary = st.get.evaluation(carrier(table))
    several = len(targets) > 1
    head = ["model", "seeds", *(f"{name + ': ' if several else ''}{m.upper() if m == 'auroc' else m + ' %'}"
                       for name in targets.values() for m in metrics)]  # fmt: skip
    if platform:
        head.append("published accuracy %, AUROC")
    rows = [head]
    for model in dict.fromkeys(table["model"]):
        cells = [NAMES.get(model, model), str(table.loc[table["model"] == model, "seed"].nunique())]
        for target in targets:
            own = summary[(summary["model"] == model) & (summary["target"] == target)]
            for metric in metrics:
                part = own[own["metric"] == metric]
                cells.append(_cell(part.iloc[0], metric != "auroc") if len(part) else "-")
        if platform:
            accuracy, auroc = PUBLISHED.get((platform, model), (None, None))
            cells.append(
                ", ".join(x for x in (f"{100 * accuracy:.1f}" if accuracy else "", str(auroc or "")) if x) or "-"
            )
        rows.append(cells)
    return markdown(rows)


def against_floors(table: pd.DataFrame, metric: str, target: str) -> str:
    """The framework minus each other model, with the standard error over seeds."""
    parts = []
    for model in dict.fromkeys(table["model"]):
        if model == "framework":
            continue
        found = st.get.evaluation(carrier(table), metric, target=target, versus=model)
        row = found[found["model"] == "framework"]
        if len(row):
            difference, error = row["difference"].iloc[0], row["se"].iloc[0]
            sure = np.isfinite(error) and difference > 2 * error
            note = "" if sure else " (not by two standard errors)" if np.isfinite(error) else " (one seed)"
            se = f" ± {error:.3f}" if np.isfinite(error) else ""
            parts.append(f"{NAMES[model]} {difference:+.3f}{se}{note}")
    return f"Framework minus each ({metric}, paired by seed, ± standard error): " + "; ".join(parts) + "."


def noise_table(tables: dict[str, pd.DataFrame]) -> str:
    """Accuracy at each level, and what the highest costs."""
    summaries = {name: st.get.evaluation(carrier(t), "accuracy", target="region") for name, t in tables.items()}
    levels = sorted({x for s in summaries.values() for x in s["noise"]})
    rows = [["tissue", "model", *(f"{100 * x:.0f} % noise" for x in levels), "points lost"]]
    for name, summary in summaries.items():
        for model in dict.fromkeys(summary["model"]):
            part = summary[summary["model"] == model].set_index("noise")
            lost = 100 * (part["mean"].loc[levels[0]] - part["mean"].loc[levels[-1]])
            rows.append([name, NAMES[model], *(_cell(part.loc[x], True) for x in levels), f"{lost:.1f}"])
    return markdown(rows)


def metric_table(tables: dict[str, pd.DataFrame], metric: str, target: str, *, by_scheme: bool = False) -> str:
    """One metric, a column per data set (and scheme)."""
    columns: dict[str, pd.DataFrame] = {}
    for name, table in tables.items():
        summary = st.get.evaluation(carrier(table), metric, target=target)
        for scheme in dict.fromkeys(summary["scheme"]) if by_scheme else [None]:
            part = summary if scheme is None else summary[summary["scheme"] == scheme]
            label = name if scheme is None else f"{name}: {scheme}{' (leaky)' if part['leaky'].all() else ''}"
            columns[label] = part.set_index("model")
    models = dict.fromkeys(m for part in columns.values() for m in part.index)
    rows = [["model", *columns]]
    for model in models:
        cells = [_cell(p.loc[model], metric in ("accuracy",)) if model in p.index else "-" for p in columns.values()]
        rows.append([NAMES[model], *cells])
    return markdown(rows)


def per_fold(table: pd.DataFrame, metric: str) -> str:
    """Mean over seeds of each fold: patients that were left out."""
    wide = table.pivot_table(values=metric, index="model", columns="fold", aggfunc="mean", sort=False)
    rows = [["model", *(f"without {c}" for c in wide.columns), "mean", "worst"]]
    for model, values in wide.iterrows():
        cells = [f"{v:.3f}" for v in (*values, values.mean(), values.min())]
        rows.append([NAMES[str(model)], *cells])
    return markdown(rows)


def save(folder: Path, name: str) -> None:
    plt.savefig(folder / f"{name}.png", dpi=DPI, bbox_inches="tight")
    plt.close("all")


def bars(folder: Path, name: str, table: pd.DataFrame, metric: str, target: str) -> None:
    named = table.assign(model=table["model"].map(lambda m: NAMES.get(m, m)))
    st.pl.evaluation(carrier(named), metric, target=target)
    save(folder, name)


def lines(folder: Path, name: str, tables: dict[str, pd.DataFrame]) -> None:
    _, axes = plt.subplots(1, len(tables), figsize=(4.6 * len(tables), 3.4), squeeze=False, layout="constrained")
    for i, (ax, (title, table)) in enumerate(zip(axes[0], tables.items(), strict=True)):
        named = table.assign(model=table["model"].map(lambda m: NAMES.get(m, m)))
        st.pl.robustness(carrier(named), target="region", ax=ax, title=title, legend=i == len(tables) - 1)
    save(folder, name)
