"""Plots of the faithfulness of attention."""

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
    assert st.pl.attention_fidelity(judged, "edges", ax=ax) is ax
    assert_same(before, judged)


def test_what_is_wrong_is_said(judged, line):
    with pytest.raises(ValueError, match="unit"):
        st.pl.attention_fidelity(judged, ax=plt.subplots()[1])
    with pytest.raises(KeyError, match=r"st\.tl\.embed"):
        st.pl.attention(judged, key="attention_gradient")
    del judged.uns["attention_fidelity"]
    with pytest.raises(KeyError, match=r"st\.tl\.attention_fidelity"):
        st.pl.attention_fidelity(judged)
