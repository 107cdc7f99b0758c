"""Plots of an evaluation against its table."""

from __future__ import annotations

from collections.abc import Callable

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pytest
from test_tl_evaluate import FAST

import stxtools as st


@pytest.fixture
def adata(generated: Callable[..., ad.AnnData]) -> ad.AnnData:
    return generated(400, 20, difficulty=0.3, random_state=1)


@pytest.fixture(scope="module")
def evaluated(generated: Callable[..., ad.AnnData]) -> ad.AnnData:
    out = generated(400, 20, difficulty=0.3, random_state=1)
    st.tl.evaluate(
        out, FAST, region_key="compartment", biomarker_key="disease", n_seeds=2, noise=[0.0, 0.2],
        scheme=["block", "random"], max_folds=2,
    )  # fmt: skip
    return out


def test_evaluation_plot_draws_the_means(evaluated: ad.AnnData) -> None:
    axes = st.pl.evaluation(evaluated, "accuracy")
    assert isinstance(axes, list)
    assert [ax.get_title() for ax in axes] == ["biomarker", "region"]
    table = st.get.evaluation(evaluated, "accuracy", target="region").query("noise == 0")
    means = np.concatenate([line.get_ydata() for line in axes[1].lines if line.get_marker() == "o"])
    np.testing.assert_allclose(sorted(means), sorted(table["mean"]), rtol=1e-6)
    assert not axes[1].patches, "no bar that does not start at 0"
    assert "random (leaky)" in [t.get_text() for t in axes[0].figure.legends[0].get_texts()]


def test_robustness_plot_draws_the_means_of_each_noise_level(evaluated: ad.AnnData) -> None:
    ax = st.pl.robustness(evaluated, target="region")
    table = st.get.evaluation(evaluated, "accuracy", target="region")
    lines = [np.asarray(line.get_ydata(), dtype=float) for line in ax.lines]
    drawn = {tuple(np.round(line, 6)) for line in lines if len(line) == 2}
    for _, part in table.groupby(["model", "scheme"]):
        assert tuple(np.round(part.sort_values("noise")["mean"], 6)) in drawn
    _, own = plt.subplots()
    assert st.pl.robustness(evaluated, target="biomarker", ax=own, title="x") is own
    assert own.get_title() == "x"


def test_plots_without_results_name_the_missing_call(evaluated: ad.AnnData, adata: ad.AnnData) -> None:
    with pytest.raises(KeyError, match=r"st\.tl\.evaluate"):
        st.pl.evaluation(adata)
    with pytest.raises(KeyError, match=r"st\.tl\.tune"):
        st.pl.sensitivity(adata)
    with pytest.raises(ValueError, match="not measured"):
        st.pl.evaluation(evaluated, "mse")
    with pytest.raises(ValueError, match="takes one target"):
        st.pl.evaluation(evaluated, ax=plt.subplots()[1])
    with pytest.raises(ValueError, match=r"not measured .* 'mse' is that of `genes`"):
        st.get.evaluation(evaluated, "mse")
    with pytest.raises(ValueError, match="omit it, or `per_seed`"):
        st.get.evaluation(evaluated, versus="lda", per_seed=True)
    with pytest.raises(ValueError, match="not in the evaluation"):
        st.get.evaluation(evaluated, target="expression")
    with pytest.raises(ValueError, match="is not in the evaluation"):
        st.get.evaluation(evaluated, versus="unet")
    one = evaluated.copy()
    one.uns["evaluation"] = one.uns["evaluation"].query("noise == 0")
    with pytest.raises(ValueError, match="Only the noise level 0"):
        st.pl.robustness(one)
