"""pl.targets draws what the table holds."""

from __future__ import annotations

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from conftest import assert_same
from scipy import sparse

import stxtools as st


@pytest.fixture
def adata() -> ad.AnnData:
    out = ad.AnnData(sparse.csr_matrix(np.ones((4, 5), dtype=np.float32)))
    out.var_names = list("abcde")
    parts = [
        pd.DataFrame(
            {"group": g, "names": list("abcde"), "scores": np.arange(5.0)[::-1], "logfoldchanges": 1.0,
             "pvals_adj": [0.01, 0.01, 0.9, 0.9, 0.9]}
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


def test_heatmap_shows_the_columns_of_the_table(adata):
    ax = st.pl.targets(adata, group="tumour", n_genes=3)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a", "b", "c"]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["approved drugs", "drugs", "membrane protein", "safety"]
    assert [t.get_color() for t in ax.get_yticklabels()] == ["black", "black", "#999999"]
    at = _cells(ax)
    assert set(at) == {(0, 0), (1, 0), (2, 0), (3, 0), (1, 1), (2, 2)}
    assert at[2, 0][2] > at[2, 0][0]  # blue: for
    assert at[3, 0][0] > at[3, 0][2]  # red: against
    assert {t.get_text() for t in ax.texts} == {"2", "1", ""}


def test_one_panel_per_group_or_given_axes_and_columns(adata):
    before = adata.copy()
    axes = st.pl.targets(adata, legend=False)
    assert [a.get_title() for a in axes] == ["tumour", "rest"]
    _, own = plt.subplots()
    assert st.pl.targets(adata, group="rest", columns=["n_drugs", "drugs"], ax=own) is own
    assert [t.get_text() for t in own.get_xticklabels()] == ["drugs", "drugs"]
    assert_same(before, adata)


def test_favourable_cells_are_blue_and_unfavourable_ones_red(adata):
    table = adata.uns["biomarkers"].query("group == 'tumour'").reset_index(drop=True)
    given = {
        "n_drugs": [0, 3], "in_x": [True, False], "tractability_sm": ["", "Approved Drug"],
        "hasSafetyEvent": [-1.0, np.nan],
    }  # fmt: skip
    adata.uns["biomarkers"] = table.iloc[:2].assign(**given)
    adata.uns["targets_params"] = {"t": {"columns": list(given)}}
    ax = st.pl.targets(adata, columns=list(given), n_genes=2)
    at = _cells(ax)
    assert set(at) == {(0, 1), (1, 0), (1, 1), (2, 1), (3, 0)}  # 0, "" and NaN say nothing
    for cell in ((0, 1), (1, 0), (2, 1)):
        assert at[cell][2] > at[cell][0] + 0.2, "blue: for"
    assert at[3, 0][0] > at[3, 0][2] + 0.2, "red: against"
    assert abs(at[1, 1][0] - at[1, 1][2]) < 0.1, "neither"


def test_wrong_arguments_of_targets_raise(adata):
    with pytest.raises(KeyError, match="nope"):
        st.pl.targets(adata, columns=["nope"])
    with pytest.raises(ValueError, match="nope"):
        st.pl.targets(adata, group="nope")
    _, ax = plt.subplots()
    with pytest.raises(ValueError, match="`ax` takes one group"):
        st.pl.targets(adata, ax=ax)
    adata.uns["biomarkers"] = adata.uns["biomarkers"][["group", "names", "scores", "logfoldchanges", "pvals_adj"]]
    with pytest.raises(KeyError, match=r"st\.tl\.targets"):
        st.pl.targets(adata)
