"""Series in time: datasets.synthetic_series, tl.trends, tl.track and what is read and drawn of them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import stxtools as st


def test_series_has_the_truth_that_it_tells() -> None:
    adata = st.datasets.synthetic_series(4, 2, sections_per_subject=2, obs_per_section=300, random_state=3)
    assert adata.shape == (4 * 2 * 2 * 300, 80)
    assert adata.obs.groupby("subject", observed=True)["time"].nunique().eq(1).all()
    assert adata.obs.groupby("subject", observed=True)["section"].nunique().eq(2).all()
    present = adata.obs.groupby("time")["compartment"].agg(lambda c: set(c.astype(str)))
    lineage = adata.uns["synthetic"]["lineage"]
    for (start, end), part in lineage.groupby(["time_from", "time_to"]):
        assert set(part["source"]) - {""} == present[start]
        assert set(part["target"]) - {""} == present[end]
        moved = part[(part["source"] != part["target"]) & (part["source"] != "") & (part["target"] != "")]
        assert set(moved["source"].str[:2]) <= {"c4", "c5"}
    assert set(lineage.loc[lineage["source"] == "", "target"]) == {"c6"}
    assert set(lineage.loc[lineage["target"] == "", "source"]) == {"c7"}
    again = st.datasets.synthetic_series(4, 2, sections_per_subject=2, obs_per_section=300, random_state=3)
    assert (adata.X != again.X).nnz == 0
    shares = pd.crosstab(adata.obs["time"], adata.obs["compartment"], normalize="index")
    assert shares.loc[3, "c2"] > 1.6 * shares.loc[0, "c2"]
    assert shares.loc[3, "c3"] < 0.6 * shares.loc[0, "c3"]


def test_series_plants_trends_inside_their_compartment() -> None:
    adata = st.datasets.synthetic_series(3, 6, n_vars=60, logfc=2.0, difficulty=0.0, mean_depth=3000, random_state=1)
    for gene, row in adata.var[adata.var["trend"] != "none"].iterrows():
        inside = adata[adata.obs["compartment"] == row["trend_in"]]
        other = adata.var_names[(adata.var["trend"] == "none") & (adata.var["marker_of"] == "none")]
        value = inside[:, gene].X.toarray().ravel() / inside[:, other].X.sum(axis=1).A1
        start, middle, end = np.log2(pd.Series(value).groupby(inside.obs["time"].to_numpy()).mean())
        wanted = (0.5, 1.0) if row["trend"] == "linear" else (1.0, 0.0)
        np.testing.assert_allclose((middle - start, end - start), row["true_logfc"] * np.array(wanted), atol=0.5)


@pytest.mark.parametrize(
    ("kwargs", "error"),
    [
        ({"n_times": 1}, ValueError),
        ({"n_vars": 5}, ValueError),
        ({"platform": "xenium"}, ValueError),
        ({"logfc": "x"}, TypeError),
    ],
)
def test_series_says_what_is_wrong(kwargs: dict[str, object], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(kwargs))):
        st.datasets.synthetic_series(**kwargs)  # type: ignore[arg-type]
