"""Time series: datasets.synthetic_series, tl.trends, tl.track, their tables and plots."""

from __future__ import annotations

import sys
from itertools import permutations
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from conftest import grid_positions, poisson_section
from scipy import stats

import stxtools as st
from stxtools.models.transport import Coupling, shared_mass
from stxtools.stats._subjects import jonckheere, regress_subjects


def test_series_follows_its_documented_lineage() -> None:
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


def test_series_plants_trends_in_their_compartment_only() -> None:
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
def test_wrong_arguments_of_series_are_reported(kwargs: dict[str, object], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(kwargs))):
        st.datasets.synthetic_series(**kwargs)  # type: ignore[arg-type]


def _bands(times: list[float], *, per_time: int = 3, fold: float = 1.0, seed: int = 0) -> ad.AnnData:
    """Sections of 12 x 12 spots with two bands; gene 0 rises in "a" by ``fold`` over the whole time."""
    rng, parts, rate = np.random.default_rng(seed), [], np.exp(np.random.default_rng(9).normal(1.5, 0.5, 100))
    for i, time in enumerate(np.repeat(times, per_time)):
        xy = grid_positions(12)
        band = np.where(xy[:, 1] < 5, "b", "a")
        values = np.tile(rate * np.exp(rng.normal(0, 0.1, 100)), (144, 1))
        values[band == "a", 0] *= fold ** ((time - times[0]) / (times[-1] - times[0]))
        parts.append(poisson_section(values, xy, rng, band=band, time=time, animal=f"a{i}"))
    return ad.concat(parts, label="section", keys=[f"s{i}" for i in range(len(parts))], index_unique="-")


def _trends(adata: ad.AnnData, **kwargs: Any) -> pd.DataFrame:
    st.tl.trends(adata, "time", subject_key="animal", groupby="band", library_key="section", **kwargs)
    return adata.uns[kwargs.get("key_added", "trends")]


def test_regression_of_one_feature_equals_scipy() -> None:
    """A single feature shares no variance with others."""
    rng, x = np.random.default_rng(0), np.repeat([0.0, 1.0, 2.5, 7.0], 3)
    values = rng.normal(size=(12, 1)) + x[:, None]
    found, plain = regress_subjects(values, x, (x < 3, x > 3), None, 0), stats.linregress(x, values[:, 0])
    assert found["effect"][0] == pytest.approx(plain.slope)
    assert plain.pvalue * (1 - 1e-9) <= found["pvals"][0] < 5 * plain.pvalue + 1e-6
    assert found["ci_low"][0] < plain.slope < found["ci_high"][0]


def test_jonckheere_p_values_equal_those_of_all_permutations() -> None:
    rng = np.random.default_rng(0)
    x, values = np.array([0.0, 0, 1, 1, 2, 2]), rng.normal(size=(6, 4))
    values[2, 3] = np.nan
    values[:, 2] = x

    def ordered(y: np.ndarray) -> float:
        return float(sum(y[j] > y[i] for i in range(len(y)) for j in range(len(y)) if at[j] > at[i]))

    for feature, found in enumerate(jonckheere(values, x)):
        known = np.isfinite(values[:, feature])
        at, y = x[known], values[known, feature]
        null = np.array([ordered(np.array(p)) for p in permutations(np.argsort(np.argsort(y)))])
        if feature != 2:
            seen = abs(ordered(y) - null.mean())
            assert found == pytest.approx(min(1.0, (np.abs(null - null.mean()) >= seen - 1e-9).mean()))
    x, values = np.repeat([0.0, 1.0], 30), rng.normal(size=(60, 1))
    mann_whitney = stats.mannwhitneyu(values[:30, 0], values[30:, 0], method="asymptotic").pvalue
    assert jonckheere(values, x)[0] == pytest.approx(mann_whitney)
    assert np.isnan(jonckheere(values, np.zeros(60))[0])


def test_p_values_without_a_trend_are_uniform() -> None:
    rng, found, x = np.random.default_rng(1), [], np.repeat([0.0, 1.0, 2.0], 3)
    for _ in range(10):
        values = rng.normal(size=(9, 1000)) * np.exp(rng.normal(-1, 0.4, 1000))
        found.append(regress_subjects(values, x, (x < 1, x > 1), None, 0)["pvals"])
    pvals = np.concatenate(found)
    assert stats.kstest(pvals, "uniform").statistic <= 0.04
    assert (pvals <= 0.005).mean() <= 0.008


def test_trends_of_expression_and_area_by_hand() -> None:
    adata = _bands([0.0, 1.0, 4.0], fold=4.0)
    table = _trends(adata)
    gene = table[(table["kind"] == "expression") & (table["compartment"] == "a")].set_index("feature").loc["g0"]
    inside = adata[adata.obs["band"] == "a"]
    bulk = np.array([inside[inside.obs["animal"] == f"a{i}"].X.astype(float).sum(axis=0).A1 for i in range(9)])
    million = np.log2((bulk[:, 0] + 0.5) / (bulk.sum(axis=1) + 1) * 1e6)
    times = np.repeat([0.0, 1.0, 4.0], 3)
    assert gene["slope"] == pytest.approx(stats.linregress(times, million).slope)
    assert gene["ci_low"] < 0.5 < gene["ci_high"]
    assert gene["pvals_adj"] <= 0.05
    assert gene["pvals_order"] == pytest.approx(2 / 1680)
    called = table[(table["kind"] == "expression") & (table["pvals_adj"] <= 0.05)]
    assert set(called["feature"]) == {"g0"}
    area = table[(table["kind"] == "area") & (table["compartment"] == "b")].iloc[0]
    assert (area["mean_start"], area["slope"]) == (pytest.approx(60), pytest.approx(0, abs=1e-12))
    values = adata.uns["trends_values"]
    assert values.shape == (len(table), 9)
    np.testing.assert_allclose(values.loc[gene.name == table["feature"]].iloc[0], million, rtol=1e-5)

    permuted = adata[np.random.default_rng(0).permutation(adata.n_obs)].copy()
    pd.testing.assert_frame_equal(_trends(permuted), table)


def test_trends_of_few_subjects_have_intervals_but_no_p_values() -> None:
    few = _trends(_bands([0.0, 1.0, 2.0], per_time=2))
    assert few[["pvals", "pvals_order", "pvals_adj"]].isna().all(axis=None)
    genes = few[few["kind"] == "expression"]
    assert (genes["ci_low"] < genes["ci_high"]).all()


def test_trends_omit_subjects_without_the_compartment_and_pool_sections() -> None:
    adata = _bands([0.0, 1.0])
    adata.obs.loc[(adata.obs["animal"] == "a0") & (adata.obs["band"] == "b"), "band"] = "a"
    table = _trends(adata).set_index(["kind", "compartment"]).sort_index()
    assert set(table.loc[("expression", "b"), "n_subjects"]) == {5}
    assert table.loc[("expression", "b"), "pvals"].isna().all()
    assert table.loc[("expression", "a"), "pvals"].notna().all()

    adata = _bands([0.0, 1.0])
    twice = ad.concat([adata, adata], label="copy", keys=["x", "y"], index_unique="-")
    twice.obs["section"] = twice.obs["section"].astype(str) + twice.obs["copy"].astype(str)
    one, two = _trends(adata).query("kind == 'area'"), _trends(twice).query("kind == 'area'")
    np.testing.assert_allclose(one["mean_start"], two["mean_start"])


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda o: o.assign(time="E9"), TypeError, "finite numbers"),
        (lambda o: o.assign(time=pd.to_datetime(o["time"], unit="D")), TypeError, "'1970-01-01"),
        (lambda o: o.assign(time=1.0), ValueError, "at least two"),
        (lambda o: o.assign(time=np.arange(len(o))), ValueError, "several values"),
        (lambda o: o.assign(section="s"), ValueError, "several values"),
        (lambda o: o.drop(columns="time"), KeyError, "time_key"),
    ],
)
def test_wrong_columns_for_trends_are_reported(change: Any, error: type[Exception], match: str) -> None:
    adata = _bands([0.0, 1.0])
    adata.obs = change(adata.obs)
    with pytest.raises(error, match=match):
        _trends(adata)
    assert not [key for key in adata.uns if key.startswith("trends")]


@pytest.fixture(scope="module")
def series() -> ad.AnnData:
    adata = st.datasets.synthetic_series(3, 2, obs_per_section=300, difficulty=0.3, random_state=1)
    st.tl.region_graph(adata, "compartment", library_key="section", max_size=20)
    return adata


@pytest.fixture(scope="module")
def tracked(series: ad.AnnData) -> ad.AnnData:
    return st.tl.track(series, "time", copy=True)


def _triples(links: pd.DataFrame) -> set[tuple[float, str, str]]:
    return set(zip(links["time_from"], links["source"], links["target"], strict=True))


def _linked(adata: ad.AnnData) -> set[tuple[float, str, str]]:
    return _triples(adata.uns["track"]["links"].query("event != 'none'"))


def test_track_recovers_the_lineage(tracked: ad.AnnData) -> None:
    truth = tracked.uns["synthetic"]["lineage"]
    assert _linked(tracked) == _triples(truth)
    links = tracked.uns["track"]["links"]
    event = links.set_index(["time_from", "source", "target"])["event"]
    for row in truth.itertuples():
        wanted = "appears" if row.source == "" else "disappears" if row.target == "" else None
        same = truth[truth["time_from"] == row.time_from]
        if wanted is None:
            splits, merges = (same["source"] == row.source).sum() > 1, (same["target"] == row.target).sum() > 1
            wanted = "splits" if splits else "merges" if merges else "continues"
        assert event[row.time_from, row.source, row.target] == wanted
    inside = links[(links["source"] != "") & (links["target"] != "")]
    assert (inside.loc[inside["event"] != "none", "pvals_adj"] <= 0.01).all()
    totals = tracked.uns["track"]["compartments"].set_index(["time", "compartment"])
    for (time, name), part in inside.groupby(["time_from", "source"]):
        np.testing.assert_allclose(part["forward"] * totals.loc[(time, name), "share"], part["mass"])
        assert totals.loc[(time, name), "next"] == pytest.approx(min(part["forward"].sum(), 1))
    of = tracked.obs.groupby("track", observed=True)["compartment"].agg(lambda c: set(c.astype(str).str[:2]))
    assert [len(names) for names in of] == [1] * 7, "a lineage is one territory"
    assert tracked.obs["track_next"].isna().equals(tracked.obs["time"] == 2)
    assert tracked.obs["track_previous"].isna().equals(tracked.obs["time"] == 0)


def test_track_does_not_depend_on_names_rotation_or_scale(series: ad.AnnData, tracked: ad.AnnData) -> None:
    """Compartments renamed time by time, and sections permuted, mirrored and scaled, are matched as before."""
    adata = series.copy()
    at = adata.obs["compartment"].astype(str) + "@" + adata.obs["time"].astype(str)
    rename = dict(zip(at.unique(), np.random.default_rng(0).permutation(at.nunique()).astype(str), strict=True))
    adata.obs["own"] = pd.Categorical(at.map(rename))
    late = (adata.obs["time"] == 1).to_numpy()
    adata.obsm["spatial"][late] = adata.obsm["spatial"][late] @ np.array([[0.0, 3.0], [3.0, 0.0]])
    del adata.obs["region_id"], adata.uns["regions"]
    st.tl.region_graph(adata, "own", library_key="section", max_size=20)
    st.tl.track(adata, "time")
    back = {number: name.split("@")[0] for name, number in rename.items()} | {"": ""}
    assert {(t, back[s], back[e]) for t, s, e in _linked(adata)} == _linked(tracked)


def test_pairs_of_one_later_section_are_no_replicates() -> None:
    """The labels of a later section are permuted once for all of its pairs: equal pairs add nothing."""
    rng = np.random.default_rng(0)
    compartments, weight = rng.integers(0, 3, (2, 12)), np.full(12, 1 / 12)
    coupling = Coupling(rng.dirichlet(np.ones(144)).reshape(12, 12), *compartments, weight, weight)
    one, four = (
        shared_mass({(i, 9): coupling for i in range(n)}, (3, 3), 199, np.random.default_rng(1)) for n in (1, 4)
    )
    np.testing.assert_array_equal(one.pvals, four.pvals)
    np.testing.assert_allclose(one.mass, four.mass)
    assert np.ptp(one.pvals) > 0.5


def test_track_to_a_single_compartment_is_not_significant(series: ad.AnnData) -> None:
    adata = series[series.obs["time"] < 2].copy()
    adata.obs["own"] = adata.obs["compartment"].astype(str).where(adata.obs["time"] == 0, "all")
    del adata.obs["region_id"], adata.uns["regions"]
    st.tl.region_graph(adata, "own", library_key="section")
    st.tl.track(adata, "time")
    assert (adata.uns["track"]["links"].query("mass > 0")["pvals"].dropna() == 1).all()


def test_track_pairs_sections_of_a_subject_and_caps_regions(series: ad.AnnData, tracked: ad.AnnData) -> None:
    adata = series.copy()
    adata.obs["animal"] = adata.obs["subject"].astype(str).str[-1]
    st.tl.track(adata, "time", subject_key="animal", max_regions=25, key_added="own")
    assert adata.uns["own"]["params"]["n_pairs"].tolist() == [2, 2]
    assert tracked.uns["track"]["params"]["n_pairs"].tolist() == [4, 4]
    regions = adata.uns["own"]["regions"]
    assert (regions["library_from"].str[3] == regions["library_to"].str[3]).all()
    assert regions.groupby(["library_from", "library_to"])["region_from"].nunique().max() <= 25
    assert set(regions["region_from"]) <= set(adata.uns["regions"].obs_names)
    truth = adata.uns["synthetic"]["lineage"]
    found = _triples(adata.uns["own"]["links"].query("event not in ('none', 'appears', 'disappears')"))
    assert len(found & _triples(truth)) >= 0.8 * len(found)


def test_wrong_input_for_track_is_reported(series: ad.AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    adata = series.copy()
    with pytest.raises(KeyError, match="region_graph"):
        st.tl.track(adata, "time", regions_key="other")
    adata.obs["none"] = np.nan
    with pytest.raises(ValueError, match="at least two"):
        st.tl.track(adata, "none")
    adata.obs["late"] = adata.obs["time"].where(adata.obs["time"] > 0)
    with pytest.raises(ValueError, match="has no time"):
        st.tl.track(adata, "late")
    monkeypatch.setitem(sys.modules, "ot", None)
    with pytest.raises(ImportError, match="POT"):
        st.tl.track(adata, "time")
    assert "track" not in adata.uns
    assert "track" not in adata.obs


def test_get_track_filters_and_pl_track_draws_the_links(tracked: ad.AnnData) -> None:
    links = st.get.track(tracked, event=["splits", "merges"], fdr=0.01)
    assert set(links["event"]) == {"splits", "merges"}
    assert st.get.track(tracked, event="splits and merges").empty  # not an error: nothing does, here
    found = {"event": st.get.track(tracked)["event"].to_numpy(), "fdr": st.get.track(tracked, fdr=0.01)["event"]}
    assert (found["event"] == "disappears").sum() == (found["fdr"] == "disappears").sum() > 0
    assert len(found["fdr"]) < len(found["event"])
    assert len(st.get.track(tracked, "compartments")) == tracked.obs.groupby("time")["compartment"].nunique().sum()
    ax = st.pl.track(tracked, legend=False)
    bars = [p for p in ax.patches if p.get_height() > 0]
    assert sum(bar.get_height() for bar in bars) == pytest.approx(3)
    drawn = tracked.uns["track"]["links"]["event"].isin(["continues", "splits", "merges"]).sum()
    assert len(ax.collections) == drawn, "a ribbon per link"
    axes = st.pl.track(tracked, "tissue")
    assert [axis.get_title()[-1] for axis in axes] == list("001122")
    with pytest.raises(ValueError, match="event"):
        st.get.track(tracked, event="dies")
    with pytest.raises(ValueError, match="filter links"):
        st.get.track(tracked, "regions", fdr=0.1)
    with pytest.raises(KeyError, match=r"st\.tl\.track"):
        st.pl.track(tracked, key="other")


def test_a_trend_is_drawn_where_it_was_seen_on_the_scale_of_its_fit() -> None:
    adata = _bands([0.0, 1.0, 4.0], fold=4.0)
    _trends(adata)
    values = adata.uns["trends_values"]
    early = np.asarray(adata.uns["trends_params"]["times"]) == 0
    values.iloc[:, np.flatnonzero(early)] = np.nan
    ax = st.pl.trends(adata, "expression", compartment="a", feature="g0")
    ax.figure.canvas.draw()
    x, y = ax.lines[0].get_data()
    assert (x.min(), x.max()) == (1, 4), "no line before the first value"
    assert np.ptp(np.diff(np.log(y))) < 1e-9
    assert ax.get_yscale() == "log"
    assert ax.get_xlim()[0] < 0, "all panels show all times"


def test_get_trends_filters_and_pl_trends_draws_the_lines() -> None:
    adata = _bands([0.0, 1.0, 4.0], fold=4.0)
    _trends(adata)
    table = st.get.trends(adata, "expression", compartment="a", feature=["g0", "g1"], values=True)
    assert list(table.columns[-9:]) == sorted(adata.obs["animal"].unique())
    axes = st.pl.trends(adata, "expression", compartment="a", feature=["g0", "g1"])
    assert [axis.get_title() for axis in axes] == ["g0 (a)", "g1 (a)"]
    line = axes[0].lines[0].get_ydata()
    row = table.iloc[0]
    np.testing.assert_allclose((line[0], line[-1]), (row["mean_start"], row["mean_end"]), rtol=1e-4)
    assert len(axes[0].collections[1].get_offsets()) == 9
    ax = st.pl.trends(adata, "expression", heatmap=True, n_top=5)
    assert ax.collections[0].get_array().shape == (5, 3)
    assert "g0 (a) *" in [tick.get_text() for tick in ax.get_yticklabels()]
    with pytest.raises(ValueError, match="feature"):
        st.pl.trends(adata, "expression", feature="none")
    with pytest.raises(KeyError, match=r"st\.tl\.trends"):
        st.get.trends(adata, key="other")
