"""Figures of attention's fidelity, and attention of several kinds side by side."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from conftest import assert_same

import stxtools as st


@pytest.fixture
def judged(line):
    rows = [
        {"library": "lib0", "unit": u, "method": m, "mode": mode, "share": s, "change": s * (1 + i), "flipped": s / 2,
         "n_regions": 5}
        for u in ("edges", "regions") for i, m in enumerate(("attention", "random"))
        for mode in ("remove", "keep") for s in (0.2, 0.4)
    ]  # fmt: skip
    line.uns["attention_fidelity"] = {"table": pd.DataFrame(rows)}
    line.uns["regions"].obsp["attention_corrected"] = line.uns["regions"].obsp["attention"]
    line.obs["attention_saliency"] = np.linspace(0, 1, line.n_obs)
    yield line
    plt.close("all")


def test_lines_show_the_table(judged):
    before = judged.copy()
    axes = st.pl.attention_fidelity(judged)
    assert [a.get_title() for a in axes] == ["edges removed", "edges kept", "regions removed", "regions kept"]
    drawn = {line.get_label(): line.get_xydata() for line in axes[0].lines}
    np.testing.assert_allclose(drawn["attention"], [[20, 0.2], [40, 0.4]])
    np.testing.assert_allclose(drawn["random"], [[20, 0.4], [40, 0.8]])
    _, ax = plt.subplots()
    assert st.pl.attention_fidelity(judged, "edges", value="flipped", ax=ax) is ax
    assert_same(before, judged)


def test_what_is_wrong_is_said(judged, line):
    with pytest.raises(ValueError, match="unit"):
        st.pl.attention_fidelity(judged, ax=plt.subplots()[1])
    with pytest.raises(ValueError, match="side by side"):
        st.pl.attention(judged, key=["attention"], ax=plt.subplots()[1])
    del judged.uns["attention_fidelity"]
    with pytest.raises(KeyError, match=r"st\.tl\.attention_fidelity"):
        st.pl.attention_fidelity(judged)


def test_several_kinds_side_by_side(judged):
    keys = ["attention", "attention_corrected", "attention_saliency"]
    axes = st.pl.attention(judged, key=keys, library="lib0")
    assert [a.get_title() for a in axes] == ["attention", "attention corrected", "attention saliency"]
    assert len(axes[0].collections) > len(axes[2].collections)
    with pytest.raises(KeyError, match="nope"):
        st.pl.attention(judged, key=["attention", "nope"], library="lib0")


def test_several_kinds_of_several_sections_are_rows_of_panels(judged):
    axes = st.pl.attention(judged, ["attention", "attention_saliency"])
    assert [a.get_title() for a in axes] == [
        "attention: lib0", "attention saliency: lib0", "attention: lib1", "attention saliency: lib1",
    ]  # fmt: skip
    labels = {a.get_xlabel() for a in axes[0].figure.axes} - {""}
    assert labels == {"attention between regions", "attention saliency"}, "a colour bar for each key"


def test_models_beside_the_truth(judged):
    """Classes are drawn in their colours, numbers up to a percentile, and every panel has its title."""
    judged.obs["truth"] = pd.Categorical(np.where(np.arange(judged.n_obs) % 2, "in", "out"))
    judged.obs.loc[judged.obs_names[0], "attention_saliency"] = 1e6
    keys, titles = ["truth", "attention", "attention_saliency"], ["truth", "framework", "U-Net alone"]
    before = judged.copy()
    axes = st.pl.attention(judged, key=keys, title=titles, library="lib0")
    assert [a.get_title() for a in axes] == titles
    drawn = {tuple(c) for c in axes[0].collections[0].get_facecolors()}
    assert len(drawn) == 2
    assert axes[2].collections[0].norm.vmax < 2
    (legend,) = axes[0].figure.legends
    assert {"in", "out"} <= {t.get_text() for t in legend.get_texts()}
    (legend,) = st.pl.attention(judged, key=["truth", "attention_saliency"], library="lib0")[0].figure.legends
    assert [t.get_text() for t in legend.get_texts()] == ["truth", "in", "out"], "segments are not drawn there"
    assert_same(before.obs, judged.obs)
    with pytest.raises(ValueError, match="one title for each"):
        st.pl.attention(judged, key=keys, title="one", library="lib0")
    with pytest.raises(ValueError, match="several keys"):
        st.pl.attention(judged, title=titles)
