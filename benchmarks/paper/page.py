"""Write the page of results: all tables and figures with their captions."""

from __future__ import annotations

import csv
from itertools import groupby
from pathlib import Path

import pandas as pd
import report
from attention import attention_figure
from differences import difference_table
from experiments import JOINT, SENSITIVITY

_HEAD = """# Results of `python benchmarks/paper`

That command wrote this page; the [experiments](../experiments.md) page discusses it. {kind}

Values are mean ± standard deviation over {seeds}. Each seed draws its own tissue (synthetic data), blocks and models.
Accuracy, precision and recall are in per cent; precision, recall and one-against-rest AUROC are averages over classes.
Differences are paired by split: a fold of a seed or, where patients are held out, a patient averaged over seeds. They
are given ± standard error, with the number of standard errors in brackets: from 2 (MSE: -2), the framework is better.
The best of the other models is bold. Published values are from data and splits that are not available.

Rows were measured with stxtools {sources} (version and digest of the models' code).
"""
_QUICK = "**This is the quick run: fewer seeds, folds and cases than the full one.**"
_PART = "**It ended before all seeds were complete: see the number of seeds in each table.**"
_FULL = "This is the full run."


BOTH = {"region": "tissue class", "biomarker": "disease"}


def _differences(
    table: pd.DataFrame, targets: dict[str, str], metrics: tuple[str, ...] = ("accuracy", "auroc")
) -> list[str]:
    """Return the framework minus each other model, if both were run."""
    if "framework" not in set(table["model"]) or table["model"].nunique() < 2:
        return []
    shown = difference_table(table, targets, metrics)
    return ["\nFramework minus each:\n", shown, ""]


def write_page(
    out: Path, work: Path, tables: dict[str, pd.DataFrame], *, quick: bool, seeds: int | None, sources: str
) -> None:
    """Write ``results.md`` and its figures for all cases that have rows."""
    kind = _QUICK if quick else _FULL
    counted = "the seeds given" if seeds is None else f"{seeds} seed{'s' if seeds > 1 else ''}"
    kind = kind if seeds is not None else f"{kind} {_PART}"
    text = [_HEAD.format(kind=kind, seeds=counted, sources=sources)]
    for number, (platform, title) in enumerate(
        (("visium", "Visium-like tissue, 10,000 x 50"), ("merfish", "MERFISH-like tissue, 5,000 x 30")), start=1
    ):
        if platform in tables:
            text += [
                f"## Table {number}: {title}, spatial blocks\n",
                report.scores_table(tables[platform], BOTH, platform),
                *_differences(tables[platform], BOTH),
            ]
            report.bars(out, f"figure{number}", {title: tables[platform]}, "auroc", "region")
            text.append(f"![AUROC of each model](figure{number}.png)\n\nFigure {number}: AUROC of the tissue class.\n")
    text += _attention(out, work, quick=quick)
    noise = {p: tables[f"{p}_noise"] for p in ("visium", "merfish") if f"{p}_noise" in tables}
    if noise:
        text += ["## Table 3: accuracy of the tissue class under noise\n", report.noise_table(noise), ""]
        report.lines(out, "figure4", noise)
        text.append("![Accuracy against noise](figure4.png)\n\nFigure 4: accuracy against noise.\n")
    text += _mse(out, {p: tables[f"{p}_mse"] for p in ("visium", "merfish") if f"{p}_mse" in tables})
    if SENSITIVITY in tables:
        text += _sensitivity(out, tables[SENSITIVITY])
    if "ablation" in tables:
        text += _ablation(tables["ablation"])
    text += _real(tables)
    leaky = {n: tables[f"{n}_leaky"] for n in ("visium", "dlpfc", "xenium") if f"{n}_leaky" in tables}
    if leaky:
        text += [
            "## Leakage: random splits beside blocks\n",
            report.metric_table(leaky, "accuracy", "region", by_scheme=True),
            "\nIn a random split, models are trained on the neighbours of test observations, so this is not the "
            "accuracy on new tissue.\n",
        ]
    (out / "results.md").write_text(tables_beside("\n".join(text), out), encoding="utf-8")


def tables_beside(text: str, out: Path) -> str:
    """Write each table as a CSV file into ``out`` and replace it by a directive; return the page."""
    lines: list[str] = []
    number = 0
    for is_table, rows in groupby(text.rstrip().split("\n"), key=lambda line: line.startswith("| ")):
        if not is_table:
            lines += rows
            continue
        number += 1
        cells = [[c.strip() for c in row.strip("|").split("|")] for row in rows]
        with (out / f"table{number:02d}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([cells[0], *cells[2:]])  # the second row is a rule
        lines += [f"```{{csv-table}}\n:file: table{number:02d}.csv\n:header-rows: 1\n```"]
    return "\n".join(lines) + "\n"


def _attention(out: Path, work: Path, *, quick: bool) -> list[str]:
    """Return the section on attention and saliency of each model, on the same tissue."""
    adata = attention_figure(out, work, quick=quick)
    return [
        "## Figure 3: attention\n",
        "![Attention maps](figure3.png)\n\nFigure 3: truth and prediction. Framework: attention between regions "
        "(width and colour of the edges), and length of the gradient of the predicted class in each spot's input. "
        "U-Net alone: the same gradient. Graph network alone: mean attention that a spot gets from its neighbours. "
        f"{adata.n_obs:,} spots of Visium-like tissue, each panel on its own scale. This is an illustration, not a "
        "test: the labels of all spots were seen.\n",
    ]


def _mse(out: Path, tables: dict[str, pd.DataFrame]) -> list[str]:
    """Return the section on hidden genes."""
    found = {name: t[t["target"] == "expression"] for name, t in tables.items()}
    found = {name: t for name, t in found.items() if len(t)}
    if not found:
        return []
    text = [
        "## Table 4: mean squared error of hidden genes\n",
        report.metric_table(found, "mse", "expression"),
        "\nLog-normalised expression, scaled so that predicting the training mean gives about 1.\n",
    ]
    for name, table in found.items():
        text += _differences(table, {"expression": name}, ("mse",))
    report.bars(out, "figure5", found, "mse", "expression")
    return [*text, "![MSE of hidden genes](figure5.png)\n\nFigure 5: mean squared error of hidden genes.\n"]


def _sensitivity(out: Path, trials: pd.DataFrame) -> list[str]:
    cells = report.heat_map(out, "figure6", trials)
    seeds, spread = trials["seed"].nunique(), cells["value_sd"].mean()
    within = "" if pd.isna(spread) else f"; the mean standard deviation over seeds within a cell is {spread:.4f}"
    return [
        "## Figure 6: AUROC over the weights of the two losses\n",
        "![AUROC over alpha and beta](figure6.png)\n\nFigure 6: mean AUROC of both tasks on MERFISH-like tissue of "
        f"{int(trials['n_obs'].iloc[0]):,} cells, a third of the blocks held out, mean ± standard deviation over "
        f"{seeds} seeds, each with its own tissue. The best and the worst cell differ by "
        f"{cells['value'].max() - cells['value'].min():.4f}{within}.\n",
    ]


def _ablation(table: pd.DataFrame) -> list[str]:
    """Return the ablation: parts removed one by one; single tasks are judged on their own task only."""
    trained = {"tissue class alone": "region", "disease alone": "biomarker"}
    wanted = table["model"].map(trained)
    table = table[wanted.isna() | (wanted == table["target"])]
    size = int(table["n_train"].max() + table["n_test"].max())
    return [
        "## Ablation: the framework with parts removed\n",
        f"MERFISH-like tissue of {size:,} cells, a fifth of the blocks held out. Single tasks are evaluated on what "
        "they were trained for.\n",
        report.scores_table(table, BOTH),
        f"\nEach minus {JOINT.removesuffix(' (default)')}:\n",
        difference_table(table, BOTH, one=JOINT, reverse=True),
        "",
    ]


def _real(tables: dict[str, pd.DataFrame]) -> list[str]:
    text = ["## Real sections\n"]
    for name, title, targets in (
        ("dlpfc", "Cortex (dlpfc 151673): layers, spatial blocks", {"region": "layer"}),
        ("xenium", "Breast carcinoma (Xenium): regions and tumour, spatial blocks",
         {"region": "region", "biomarker": "tumour"}),
    ):  # fmt: skip
        if name in tables:
            text += [f"### {title}\n", report.scores_table(tables[name], targets), ""]
            text += _differences(tables[name], targets)
    if "her2st" in tables:
        targets = {"biomarker": "tumour"}
        text += [
            "### HER2-positive breast tumours: tumour, one patient held out at a time\n",
            report.scores_table(tables["her2st"], targets),
            "",
            *_differences(tables["her2st"], targets),
            "\nAUROC by held-out patient:\n",
            report.per_fold(tables["her2st"], "auroc"),
            "",
        ]
    return text if len(text) > 1 else [*text, "This run had no real section.\n"]
