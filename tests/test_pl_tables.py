"""Plots of biomarkers, training curves, stability, faithfulness of attention and targets."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from conftest import assert_same
from scipy import sparse
from test_pl_images import write_tables

import stxtools as st

FDR = 0.05


@pytest.fixture
def adata(make_section: Callable[..., ad.AnnData]) -> ad.AnnData:
    adata = make_section()
    rng = np.random.default_rng(1)
    parts = []
    for group in ("tumour", "normal"):
        p = np.sort(10.0 ** -rng.uniform(0, 20, adata.n_vars))
        change = rng.normal(0, 2, adata.n_vars)
        parts.append(pd.DataFrame({
            "group": group, "names": rng.permutation(adata.var_names.to_numpy()),
            "scores": np.sort(-np.log10(p) * np.sign(change))[::-1], "logfoldchanges": change,
            "auroc": 1 / (1 + np.exp(-change)), "pvals": p, "pvals_adj": p,
            "attribution": rng.uniform(0, 1, adata.n_vars), "n_libraries": 1,
            "pct_nz_group": rng.uniform(0, 1, adata.n_vars), "pct_nz_reference": 0.1, "direction_consistent": True,
        }))  # fmt: skip
    parts[1].loc[3:, "pvals_adj"] = 0.9
    table = pd.concat(parts, ignore_index=True)
    table["group"] = table["group"].astype("category")
    adata.uns["biomarkers"] = table
    adata.uns["biomarkers_params"] = {"groupby": "disease"}
    adata.uns["segment"] = {
        "params": {},
        "history": pd.DataFrame({
            "stage": ["masked"] * 3 + ["fit"] * 4,
            "epoch": [0, 1, 2, 0, 1, 2, 3],
            "loss": [3.0, 2.0, 1.0, 9.0, 5.0, 4.0, 3.0],
            "val_loss": [np.nan] * 3 + [9.0, 6.0, 5.0, 7.0],
        }),
    }  # fmt: skip
    return adata


def _dots(ax: plt.Axes):
    return next(c for c in ax.collections if c.get_label() == "genes")


def test_ranked_genes_have_one_panel_per_group(adata: ad.AnnData) -> None:
    before = adata.copy()
    axes = st.pl.biomarkers(adata, n_genes=6)
    assert [ax.get_title() for ax in axes] == ["tumour vs. rest", "normal vs. rest"]
    table = before.uns["biomarkers"]
    for ax in axes:
        part = table[table["group"] == ax.get_title().removesuffix(" vs. rest")].iloc[:6]
        assert [t.get_text() for t in ax.get_yticklabels()] == list(part["names"])
        np.testing.assert_allclose(_dots(ax).get_offsets()[:, 0], part["auroc"])
        sizes = _dots(ax).get_sizes()
        assert (np.argsort(sizes) == np.argsort(part["pct_nz_group"].to_numpy())).all()
        bottom, top = ax.get_ylim()
        assert bottom > top, "the first gene is at the top"
    assert axes[0].get_xlim() == axes[1].get_xlim()
    axes[0].figure.canvas.draw()
    assert list(adata.uns) == list(before.uns)
    pd.testing.assert_frame_equal(adata.uns["biomarkers"], table)


def test_ranked_genes_are_hollow_where_not_significant(adata: ad.AnnData) -> None:
    ax = st.pl.biomarkers(adata, group="normal", n_genes=6)
    white = (_dots(ax).get_facecolors()[:, :3] == 1).all(axis=1)
    assert white.tolist() == [False] * 3 + [True] * 3
    texts = [t.get_text() for t in ax.figure.legends[0].get_texts()]
    assert "not significant" in texts
    assert f"FDR ≤ {FDR}" in texts
    everything = st.pl.biomarkers(adata, group="normal", n_genes=6, fdr=1)
    assert not (_dots(everything).get_facecolors()[:, :3] == 1).all(axis=1).any()


def test_ranked_genes_are_colored_by_the_sign_of_the_change(adata: ad.AnnData) -> None:
    ax = st.pl.biomarkers(adata, group="tumour", n_genes=8, fdr=1)
    change = adata.uns["biomarkers"]["logfoldchanges"].to_numpy()[:8]
    face = _dots(ax).get_facecolors()
    assert ((face[:, 0] > face[:, 2]) == (change > 0)).all(), "red is higher, blue is lower"


def test_effect_chooses_the_column_drawn(adata: ad.AnnData) -> None:
    ax = st.pl.biomarkers(adata, group="tumour", effect="scores", n_genes=3)
    np.testing.assert_allclose(_dots(ax).get_offsets()[:, 0], adata.uns["biomarkers"]["scores"][:3])
    del adata.uns["biomarkers"]["attribution"]
    with pytest.raises(KeyError, match="attribution"):
        st.pl.biomarkers(adata, effect="attribution")
    with pytest.raises(ValueError, match="effect"):
        st.pl.biomarkers(adata, effect="names")


def test_volcano_draws_raw_p_values_and_the_fdr_threshold(adata: ad.AnnData) -> None:
    table = adata.uns["biomarkers"]
    table["pvals"] = table["pvals"] / 100
    table.loc[0, "pvals"] = 0.0
    _, ax = plt.subplots()
    assert st.pl.biomarkers(adata, "tumour", kind="volcano", n_genes=5, ax=ax) is ax
    part = table[table["group"] == "tumour"]
    drawn = {c.get_label(): c.get_offsets() for c in ax.collections}
    passed = part["pvals_adj"] <= FDR
    assert len(drawn["not significant"]) == (~passed).sum()
    assert len(drawn["higher"]) == (passed & (part["logfoldchanges"] >= 0)).sum()
    assert len(drawn["lower"]) == (passed & (part["logfoldchanges"] < 0)).sum()
    heights = np.concatenate([o[:, 1] for o in drawn.values()])
    assert np.isfinite(heights).all()
    assert heights.max() == pytest.approx(-np.log10(part["pvals"][part["pvals"] > 0].min()))
    assert ax.get_ylabel() == "$-\\log_{10}$ p"
    named = {t.get_text() for t in ax.texts if not t.get_text().startswith("FDR")}
    assert named == set(part[passed].sort_values("pvals")["names"][:5]), "the top points"
    line = next(line for line in ax.lines if len(set(line.get_ydata())) == 1 and line.get_linestyle() == "--")
    significant = np.concatenate([drawn["higher"], drawn["lower"]])[:, 1]
    assert drawn["not significant"][:, 1].max() < line.get_ydata()[0] < significant.min()


def test_volcano_explains_its_colors_and_has_no_line_that_does_not_divide(adata: ad.AnnData) -> None:
    ax = st.pl.biomarkers(adata, "normal", kind="volcano")
    assert [t.get_text() for t in ax.figure.legends[0].get_texts()][-1] == "not significant"
    assert any(line.get_linestyle() == "--" for line in ax.lines)
    table = adata.uns["biomarkers"]
    table.loc[table["pvals"].idxmin(), "pvals_adj"] = 0.9  # a correction that is not monotone in p
    ax = st.pl.biomarkers(adata, table.loc[table["pvals"].idxmin(), "group"], kind="volcano")
    assert not any(line.get_linestyle() == "--" for line in ax.lines)
    ax = st.pl.biomarkers(adata, "normal", kind="volcano", fdr=0, ax=plt.subplots()[1])
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["not significant"]


def test_only_significant_genes_set_the_colors_of_ranked_genes(adata: ad.AnnData) -> None:
    adata.uns["biomarkers"].loc[adata.uns["biomarkers"]["pvals_adj"] > FDR, "logfoldchanges"] = 50.0
    ax = st.pl.biomarkers(adata, "normal", n_genes=6)
    (bar,) = (a for a in ax.figure.axes if a is not ax)
    assert bar.get_xlim()[1] < 20
    ax.figure.canvas.draw()
    assert 0.5 in ax.get_xticks(), "of no effect"
    ax = st.pl.biomarkers(adata, "normal", n_genes=6, fdr=0)
    assert ax.figure.axes == [ax], "no gene has a colour"
    assert "FDR ≤ 0" not in [t.get_text() for t in ax.figure.legends[0].get_texts()]


def _crossings(lines: list[np.ndarray]) -> int:
    def side(a, b, c):
        return np.sign((b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]))

    return sum(
        side(*p, q[0]) * side(*p, q[1]) < 0 and side(*q, p[0]) * side(*q, p[1]) < 0
        for i, p in enumerate(lines)
        for q in lines[:i]
    )


@pytest.mark.parametrize("seed", range(5))
def test_leader_lines_of_a_volcano_do_not_cross(adata: ad.AnnData, seed: int) -> None:
    rng = np.random.default_rng(seed)
    table = adata.uns["biomarkers"]
    table["pvals"] = 10.0 ** -np.minimum(rng.exponential(2, len(table)) + 2, 5)  # many at the same height
    table["pvals_adj"] = table["pvals"]
    ax = st.pl.biomarkers(adata, "tumour", kind="volcano", n_genes=25)
    lines = [line.get_xydata() for line in ax.lines if line.get_label() == "_leader"]
    assert len(lines) >= 10
    assert _crossings(lines) == 0


@pytest.mark.parametrize("n_genes", [3, 12, 25])
def test_gene_names_in_a_volcano_do_not_overlap(adata: ad.AnnData, n_genes: int) -> None:
    ax = st.pl.biomarkers(adata, group="tumour", kind="volcano", n_genes=n_genes)
    ax.figure.canvas.draw()
    boxes = [super(type(t), t).get_window_extent() for t in ax.texts if not t.get_text().startswith("FDR")]
    assert len(boxes) >= 3
    for i, a in enumerate(boxes):
        assert ax.get_window_extent().contains(*a.get_points().mean(axis=0))
        assert sum(a.shrunk(0.9, 0.7).overlaps(b.shrunk(0.9, 0.7)) for b in boxes[:i]) == 0


@pytest.mark.parametrize("named", ["lower", "both"])
def test_the_fdr_of_a_volcano_lies_over_no_name(adata: ad.AnnData, named: str) -> None:
    table = adata.uns["biomarkers"]
    table["pvals"] = table["pvals_adj"] = np.where(np.arange(len(table)) % 3, np.geomspace(0.01, 0.04, len(table)), 0.1)
    change = table["logfoldchanges"].abs()
    table["logfoldchanges"] = np.where(np.arange(len(table)) % 2, change if named == "both" else -change / 2, -change)
    ax = st.pl.biomarkers(adata, group="tumour", kind="volcano", n_genes=50)
    ax.figure.canvas.draw()
    boxes = {t.get_text(): super(type(t), t).get_window_extent() for t in ax.texts}
    threshold = boxes.pop("FDR 0.05", None)
    assert (threshold is None) == (named == "both"), "the legend says it, too"
    assert threshold is None or sum(threshold.shrunk(0.9, 0.7).overlaps(b) for b in boxes.values()) == 0


@pytest.mark.parametrize(
    ("how", "error", "match"),
    [
        ({"group": "unknown"}, ValueError, "tumour"), ({"kind": "pie"}, ValueError, "kind"),
        ({"n_genes": 0}, ValueError, "n_genes"), ({"key": "segment"}, KeyError, r"st\.tl\.biomarkers"),
    ],
)  # fmt: skip
def test_wrong_arguments_of_biomarkers_raise(
    adata: ad.AnnData, how: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        st.pl.biomarkers(adata, **how)
    with pytest.raises(ValueError, match="group='tumour'"):
        st.pl.biomarkers(adata, ax=plt.subplots()[1])


def test_history_draws_losses_and_marks_the_best_epoch(adata: ad.AnnData) -> None:
    axes = st.pl.history(adata)
    assert [ax.get_title() for ax in axes] == ["masked", "fit"]
    assert [line.get_label() for line in axes[0].lines] == ["training"]
    training, validation, best = axes[1].lines
    assert training.get_ydata().tolist() == [9.0, 5.0, 4.0, 3.0]
    assert validation.get_ydata().tolist() == [9.0, 6.0, 5.0, 7.0]
    assert (best.get_xdata()[0], best.get_ydata()[0]) == (2, 5.0)
    _, ax = plt.subplots()
    assert st.pl.history(adata, stage="fit", ax=ax) is ax


def test_wrong_arguments_of_history_raise(adata: ad.AnnData) -> None:
    _, ax = plt.subplots()
    with pytest.raises(ValueError, match="stage='masked'"):
        st.pl.history(adata, ax=ax)
    with pytest.raises(ValueError, match="choose one of 'masked', 'fit'"):
        st.pl.history(adata, stage="unknown")
    adata.uns["segment"]["history"] = adata.uns["segment"]["history"].iloc[:0]
    with pytest.raises(ValueError, match="empty"):
        st.pl.history(adata)


def test_stability_marks_the_chosen_number_of_segments(make_section):
    adata = make_section()
    curve = pd.DataFrame({"n_segments": [1, 2, 3, 4], "stability": [1, 0.9, 0.5, 0.6], "bic": [2.0, 5.0, 3.0, 4.0]})
    adata.uns["segment"] = {"params": {"n_segments": 3}, "stability": curve}
    ax = st.pl.stability(adata)
    assert [list(line.get_xdata()) for line in ax.lines] == [[2, 3, 4], [3]], "one segment is not chosen by BIC"
    assert ax.lines[1].get_ydata()[0] == 3.0
    assert ax.get_legend().get_texts()[0].get_text() == "chosen: 3"
    adata.uns["segment"]["params"]["n_segments"] = 4
    assert st.pl.stability(adata).get_legend().get_texts()[0].get_text() == "chosen: 4, the largest tried"
    _, own = plt.subplots()
    own.set_title("mine")
    assert st.pl.stability(adata, ax=own).get_title() == "mine"
    del adata.uns["segment"]["stability"]
    with pytest.raises(KeyError, match="n_segments"):
        st.pl.stability(adata)


def test_gene_names_do_not_overlap_in_low_axes(adata: ad.AnnData) -> None:
    ax = plt.subplots(figsize=(3, 1.5))[1]
    st.pl.biomarkers(adata, "tumour", n_genes=20, ax=ax, legend=False, show=False)
    ax.figure.canvas.draw()
    boxes = [label.get_window_extent() for label in ax.get_yticklabels()]
    assert len(boxes) == 20
    assert all(upper.y0 >= lower.y1 for upper, lower in itertools.pairwise(boxes))


def test_ranked_genes_against_one_group_show_both_directions(adata: ad.AnnData) -> None:
    table = adata.uns["biomarkers"]
    adata.uns["biomarkers_params"]["reference"] = "normal"
    adata.uns["biomarkers"] = table[table["group"] == "tumour"]
    ax = st.pl.biomarkers(adata, n_genes=4)
    part = adata.uns["biomarkers"]
    higher, lower = part[part["scores"] >= 0].head(4), part[part["scores"] < 0].tail(4)
    assert len(lower) == 4
    assert [t.get_text() for t in ax.get_yticklabels()] == [*higher["names"], *lower["names"]]
    places = _dots(ax).get_offsets()[:, 1]
    assert np.diff(places).max() == np.diff(places)[3] > 1, "a gap between the directions"
    adata.uns["biomarkers_params"]["reference"] = "rest"
    assert len(st.pl.biomarkers(adata, n_genes=4).get_yticklabels()) == 4


def test_attention_fidelity_lines_equal_the_table(adata: ad.AnnData) -> None:
    write_tables(adata)
    before = adata.copy()
    axes = st.pl.attention_fidelity(adata)
    assert [a.get_title() for a in axes] == ["edges removed", "edges kept", "regions removed", "regions kept"]
    lines = {line.get_label(): line.get_xydata() for line in axes[0].lines}
    np.testing.assert_allclose(lines["attention"], [[20, 0.2], [40, 0.4]])
    np.testing.assert_allclose(lines["random"], [[20, 0.4], [40, 0.8]])
    assert len({axis.get_ylim() for axis in axes}) == 1, "panels compare"
    assert all(tick.get_visible() for axis in axes for tick in axis.get_yticklabels())
    _, ax = plt.subplots()
    assert st.pl.attention_fidelity(adata, "edges", ax=ax) is ax
    with pytest.raises(ValueError, match="unit"):
        st.pl.attention_fidelity(adata, ax=ax)
    assert_same(before, adata)


@pytest.fixture
def with_targets() -> ad.AnnData:
    out = ad.AnnData(sparse.csr_matrix(np.ones((4, 5), dtype=np.float32)))
    out.var_names = list("abcde")
    parts = [
        pd.DataFrame(
            {"group": g, "names": list("abcde"), "scores": np.arange(5.0)[::-1], "logfoldchanges": 1.0,
             "pvals_adj": [0.01, 0.01, 0.9, 0.9, 0.9], "n_libraries": 1}
        )
        for g in ("tumour", "rest")
    ]  # fmt: skip
    out.uns["biomarkers"] = pd.concat(parts, ignore_index=True).astype({"group": str, "names": str})
    drugs = pd.DataFrame({"gene_name": ["a", "a", "b"], "drug_name": ["X", "Y", "Z"], "approved": [True, True, False]})
    ranks = pd.DataFrame(
        {"targetId": ["a", "c"], "isInMembrane": [1.0, 0.0], "hasSafetyEvent": [-1.0, np.nan], "symbol": ["a", "c"]}
    )
    with pytest.warns(UserWarning, match="not in it"):
        st.tl.targets(out, drugs)
    with pytest.warns(UserWarning, match="not in it"):
        st.tl.targets(out, ranks.drop(columns="targetId"), symbol_col="symbol")
    return out


def _cells(ax: plt.Axes) -> dict[tuple[int, int], np.ndarray]:
    """Colours of the cells that are known, by column and row."""
    (mesh,) = ax.collections
    values, colors = mesh.get_array(), mesh.get_facecolors().reshape(*mesh.get_array().shape, 4)
    return {(j, i): colors[i, j] for i, j in zip(*np.nonzero(~np.ma.getmaskarray(values)), strict=True)}


def test_heatmap_shows_the_columns_of_the_table(with_targets):
    ax = st.pl.targets(with_targets, group="tumour", n_genes=3)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a", "b", "c"]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["approved drugs", "drugs", "membrane protein", "safety"]
    assert [t.get_color() for t in ax.get_yticklabels()] == ["black", "black", "#999999"]
    at = _cells(ax)
    assert set(at) == {(0, 0), (1, 0), (2, 0), (3, 0), (1, 1), (2, 2)}
    assert at[2, 0][2] > at[2, 0][0]  # blue: for
    assert at[3, 0][0] > at[3, 0][2]  # red: against
    # of the known cells, row by row; in grey, the minus tells red from blue
    assert [t.get_text() for t in ax.texts] == ["2", "2", "", "\N{MINUS SIGN}", "1", ""]


def test_one_panel_per_group_or_given_axes_and_columns(with_targets):
    before = with_targets.copy()
    axes = st.pl.targets(with_targets, legend=False)
    assert [a.get_title() for a in axes] == ["tumour", "rest"]
    _, own = plt.subplots()
    assert st.pl.targets(with_targets, group="rest", columns=["n_drugs", "drugs"], ax=own) is own
    assert [t.get_text() for t in own.get_xticklabels()] == ["drugs", "drugs"]
    assert_same(before, with_targets)


def test_favourable_cells_are_blue_and_unfavourable_ones_red(with_targets):
    table = with_targets.uns["biomarkers"].query("group == 'tumour'").reset_index(drop=True)
    given = {
        "n_drugs": [0, 3], "in_x": [True, False], "tractability_sm": ["", "Approved Drug"],
        "hasSafetyEvent": [-1.0, np.nan],
    }  # fmt: skip
    with_targets.uns["biomarkers"] = table.iloc[:2].assign(**given)
    with_targets.uns["targets_params"] = {"t": {"columns": list(given)}}
    ax = st.pl.targets(with_targets, columns=list(given), n_genes=2)
    at = _cells(ax)
    assert set(at) == {(0, 1), (1, 0), (1, 1), (2, 1), (3, 0)}  # 0, "" and NaN say nothing
    for cell in ((0, 1), (1, 0), (2, 1)):
        assert at[cell][2] > at[cell][0] + 0.2, "blue: for"
    assert at[3, 0][0] > at[3, 0][2] + 0.2, "red: against"
    assert abs(at[1, 1][0] - at[1, 1][2]) < 0.1, "neither"


def test_wrong_arguments_of_targets_raise(with_targets):
    with pytest.raises(KeyError, match="nope"):
        st.pl.targets(with_targets, columns=["nope"])
    with pytest.raises(ValueError, match="nope"):
        st.pl.targets(with_targets, group="nope")
    _, ax = plt.subplots()
    with pytest.raises(ValueError, match="`ax` takes one group"):
        st.pl.targets(with_targets, ax=ax)
    with_targets.uns["biomarkers"] = with_targets.uns["biomarkers"][
        ["group", "names", "scores", "logfoldchanges", "pvals_adj"]
    ]
    with pytest.raises(KeyError, match=r"st\.tl\.targets"):
        st.pl.targets(with_targets)
