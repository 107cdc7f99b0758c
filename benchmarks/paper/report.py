"""Tables (Markdown) and figures (PNG) of the results."""

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
    """Format a row per model: accuracy, precision, recall and AUROC of each target."""
    metrics = ("accuracy", "precision", "recall", "auroc")
    summary = st.get.evaluation(carrier(table))
    several = len(targets) > 1
    head = ["model", "seeds", *(f"{name + ': ' if several else ''}{m.upper() if m == 'auroc' else m + ' %'}"
                       for name in targets.values() for m in metrics)]  # fmt: skip
    if platform:
        head.append("published accuracy %, AUROC")
    rows = [head]
    for model in dict.fromkeys(table["model"]):
        cells = [NAMES.get(model, model), _seeds(table, model)]
        for target in targets:
            own = summary[(summary["model"] == model) & (summary["target"] == target)]
            for metric in metrics:
                part = own[own["metric"] == metric]
                cells.append(_cell(part.iloc[0], metric != "auroc") if len(part) else "–")
        if platform:
            accuracy, auroc = PUBLISHED.get((platform, model), (None, None))
            cells.append(
                ", ".join(x for x in (f"{100 * accuracy:.1f}" if accuracy else "", str(auroc or "")) if x) or "–"
            )
        rows.append(cells)
    return markdown(rows)


def _seeds(table: pd.DataFrame, model: str) -> str:
    return str(table.loc[table["model"] == model, "seed"].nunique())


def noise_table(tables: dict[str, pd.DataFrame]) -> str:
    """Format accuracy at each noise level, and the loss at the highest: mean and standard deviation over seeds."""
    tables = {name: t[t["target"] == "region"] for name, t in tables.items()}
    levels = sorted({x for t in tables.values() for x in t["noise"]})
    rows = [["tissue", "model", "seeds", *(f"{100 * x:.0f} % noise" for x in levels), "points lost"]]
    for name, table in tables.items():
        for model in dict.fromkeys(table["model"]):
            by_seed = table[table["model"] == model].pivot_table(values="accuracy", index="seed", columns="noise")
            by_seed = by_seed.reindex(columns=levels).dropna()  # an unfinished seed would not be comparable
            if len(by_seed):
                by_seed["lost"] = by_seed[levels[0]] - by_seed[levels[-1]]
                stat = pd.DataFrame({"mean": by_seed.mean(), "sd": by_seed.std(ddof=1)})
                cells = [_cell(row, percent=True) for _, row in stat.iterrows()]
                rows.append([name, NAMES.get(model, model), str(len(by_seed)), *cells])
    return markdown(rows)


def metric_table(tables: dict[str, pd.DataFrame], metric: str, target: str, *, by_scheme: bool = False) -> str:
    """Format one metric: a column per data set (and scheme), and the number of seeds."""
    columns: dict[str, pd.DataFrame] = {}
    for name, table in tables.items():
        summary = st.get.evaluation(carrier(table), metric, target=target)
        for scheme in dict.fromkeys(summary["scheme"]) if by_scheme else [None]:
            part = summary if scheme is None else summary[summary["scheme"] == scheme]
            label = name if scheme is None else f"{name}: {scheme}{' (leaky)' if part['leaky'].all() else ''}"
            columns[label] = part.set_index("model")
    models = dict.fromkeys(m for part in columns.values() for m in part.index)
    rows = [["model", "seeds", *columns]]
    for model in models:
        seeds = ", ".join(dict.fromkeys(str(p.loc[model, "n"]) for p in columns.values() if model in p.index))
        cells = [_cell(p.loc[model], metric in ("accuracy",)) if model in p.index else "–" for p in columns.values()]
        rows.append([NAMES.get(model, model), seeds, *cells])
    return markdown(rows)


def per_fold(table: pd.DataFrame, metric: str) -> str:
    """Format the mean over seeds of each fold, a held-out patient."""
    wide = table.pivot_table(values=metric, index="model", columns="fold", aggfunc="mean", sort=False)
    rows = [["model", "seeds", *(f"without {c}" for c in wide.columns), "mean", "worst"]]
    for model, values in wide.iterrows():
        cells = [f"{v:.3f}" for v in (*values, values.mean(), values.min())]
        rows.append([NAMES.get(str(model), str(model)), _seeds(table, str(model)), *cells])
    return markdown(rows)


def save(folder: Path, name: str) -> None:
    plt.savefig(folder / f"{name}.png", dpi=DPI, bbox_inches="tight")
    plt.close("all")


def _named(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(model=table["model"].map(lambda m: NAMES.get(m, m)))


def bars(folder: Path, name: str, tables: dict[str, pd.DataFrame], metric: str, target: str) -> None:
    """Draw a panel of models for each data set."""
    models = max(t["model"].nunique() for t in tables.values())
    size = ((0.75 * models + 1.2) * len(tables), 4.2)
    _, axes = plt.subplots(1, len(tables), figsize=size, squeeze=False, layout="constrained")
    for ax, (title, table) in zip(axes[0], tables.items(), strict=True):
        st.pl.evaluation(carrier(_named(table)), metric, target=target, ax=ax, title=title)
    save(folder, name)


def lines(folder: Path, name: str, tables: dict[str, pd.DataFrame]) -> None:
    """Draw accuracy against noise, a panel for each data set."""
    size = (3.6 * len(tables) + 2.4, 3.4)
    figure, axes = plt.subplots(1, len(tables), figsize=size, squeeze=False, layout="constrained")
    for ax, (title, table) in zip(axes[0], tables.items(), strict=True):
        st.pl.robustness(carrier(_named(table)), target="region", ax=ax, title=title, legend=False)
    figure.legend(*axes[0][-1].get_legend_handles_labels(), loc="outside right center", frameon=False)
    save(folder, name)


def heat_map(folder: Path, name: str, trials: pd.DataFrame) -> pd.DataFrame:
    """Draw AUROC over alpha and beta; return the mean and standard deviation over seeds of each cell."""
    cells = trials.groupby(["alpha", "beta"])["value"].agg(["mean", "std", "size"]).reset_index()
    cells = cells.rename(columns={"mean": "value", "std": "value_sd", "size": "seeds"}).assign(state="COMPLETE")
    out = ad.AnnData(np.zeros((1, 1), dtype=np.float32))
    out.uns["tune"] = {"trials": cells, "params": {"metric": "auroc"}}
    st.pl.sensitivity(out, show=False)
    save(folder, name)
    return cells
