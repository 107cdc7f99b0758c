"""The page of results: every table and figure, with what it was measured on."""

from __future__ import annotations

from pathlib import Path

import experiments
import matplotlib.pyplot as plt
import pandas as pd
import report

import stxtools as st

_HEAD = """# Results of `python benchmarks/paper`

Written by that command; what it means is said in [the experiments](../experiments.md). {kind}

Values are mean ± standard deviation over {seeds}; every seed draws its own tissue (generated data), its own blocks and
its own models. Accuracy, precision and recall are in per cent; precision, recall and AUROC are averages over classes,
AUROC one class against the rest.
"""
_QUICK = "**This is the quick run: fewer seeds, folds and cases than the full one.**"
_PART = "**It was broken off before all seeds were through: see the number of seeds in each table.**"
_FULL = "This is the full run."


def write_page(out: Path, work: Path, tables: dict[str, pd.DataFrame], *, quick: bool, seeds: int | None) -> None:
    kind = _QUICK if quick else _FULL
    counted = "the seeds given" if seeds is None else f"{seeds} seeds"
    text = [_HEAD.format(kind=kind if seeds is not None else f"{kind} {_PART}", seeds=counted)]
    for number, (platform, title) in enumerate(
        (("visium", "Visium-like tissue, 10,000 x 50"), ("merfish", "MERFISH-like tissue, 5,000 x 30")), start=1
    ):
        if platform in tables:
            targets = {"region": "tissue class", "biomarker": "disease"}
            text += [
                f"## Table {number}: {title}, spatial blocks\n",
                report.scores_table(tables[platform], targets, platform),
                "\nPublished figures are for data and splits that are not at hand; they stand here for orientation.\n",
                report.against_floors(tables[platform], "accuracy", "region") + "\n",
                report.against_floors(tables[platform], "auroc", "region") + "\n",
            ]
            report.bars(out, f"figure{number}", tables[platform], "auroc", "region")
            text.append(f"![AUROC of each model](figure{number}.png)\n\nFigure {number}: AUROC of the tissue class.\n")
    text += _attention(out, quick=quick)
    noise = {p: tables[f"{p}_noise"] for p in ("visium", "merfish") if f"{p}_noise" in tables}
    if noise:
        text += ["## Table 3: accuracy of the tissue class under noise\n", report.noise_table(noise), ""]
        report.lines(out, "figure4", noise)
        text.append("![Accuracy against noise](figure4.png)\n\nFigure 4: accuracy against noise.\n")
    mse = {p: tables[f"{p}_mse"] for p in ("visium", "merfish") if f"{p}_mse" in tables}
    if mse:
        text += [
            "## Table 4: mean squared error of genes that were hidden\n",
            report.metric_table(mse, "mse", "expression"),
            "\nLog-normalised expression, scaled so that predicting the training mean gives about 1.\n",
        ]
        report.bars(out, "figure5", next(iter(mse.values())), "mse", "expression")
        text.append(f"![MSE of hidden genes](figure5.png)\n\nFigure 5: the same for {next(iter(mse))}.\n")
    text += _sensitivity(out, work, quick=quick)
    text += _real(out, tables)
    leaky = {n: tables[f"{n}_leaky"] for n in ("visium", "dlpfc", "xenium") if f"{n}_leaky" in tables}
    if leaky:
        text += [
            "## What leaks: random splits beside blocks\n",
            report.metric_table(leaky, "accuracy", "region", by_scheme=True),
            "\nIn a random split the neighbours of a test observation are learned from. These figures are not accuracy "
            "on new tissue.\n",
        ]
    (out / "results.md").write_text("\n".join(text).rstrip() + "\n", encoding="utf-8")


def _attention(out: Path, *, quick: bool) -> list[str]:
    """Compartments, their prediction, and the attention of the joint network."""
    adata = experiments.generated("visium", 1_000 if quick else 2_500)(0)
    how = {"show_progress": False}
    st.tl.segment(adata, labels_key="compartment", key_added="guide", **how)
    st.tl.region_graph(adata, "guide")
    st.tl.multitask(adata, "disease", "compartment", **how)
    _, axes = plt.subplots(1, 2, figsize=(10, 4.6), layout="constrained")
    st.pl.segment(adata, key="compartment_pred", ax=axes[0], title="tissue class, predicted")
    st.pl.attention(adata, ax=axes[1], title="attention between regions")
    report.save(out, "figure3")
    return [
        "## Figure 3: attention\n",
        "![Attention map](figure3.png)\n\nFigure 3: predicted tissue class and the regions that attention goes to, on "
        f"{adata.n_obs:,} spots of Visium-like tissue (labels of all spots were seen: an illustration, not a test).\n",
    ]


def _sensitivity(out: Path, work: Path, *, quick: bool) -> list[str]:
    adata = experiments.sensitivity(work, quick=quick)
    st.pl.sensitivity(adata)
    report.save(out, "figure6")
    trials = adata.uns["tune"]["trials"]["value"]
    return [
        "## Figure 6: AUROC over the weights of the two losses\n",
        "![AUROC over alpha and beta](figure6.png)\n\nFigure 6: mean AUROC of both tasks on MERFISH-like tissue of "
        f"{adata.n_obs:,} cells, blocks held out, one seed. Between the worst and the best cell lie "
        f"{trials.max() - trials.min():.3f}.\n",
    ]


def _real(out: Path, tables: dict[str, pd.DataFrame]) -> list[str]:
    text = ["## Real sections\n"]
    for name, title, targets in (
        ("dlpfc", "Cortex (dlpfc 151673): layers, spatial blocks", {"region": "layer"}),
        ("xenium", "Breast carcinoma (Xenium): regions and tumour, spatial blocks",
         {"region": "region", "biomarker": "tumour"}),
    ):  # fmt: skip
        if name in tables:
            text += [f"### {title}\n", report.scores_table(tables[name], targets), ""]
            text.append(report.against_floors(tables[name], "accuracy", "region") + "\n")
    if "her2st" in tables:
        text += [
            "### HER2-positive breast tumours: tumour, one patient left out at a time\n",
            report.scores_table(tables["her2st"], {"biomarker": "tumour"}),
            "\nAUROC by the patient who was left out:\n",
            report.per_fold(tables["her2st"], "auroc"),
            "",
        ]
    return text if len(text) > 1 else [*text, "No real section was at hand in this run.\n"]
