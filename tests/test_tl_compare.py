"""tl.compare, get.compare, pl.compare: subjects are the units of replication."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from conftest import grid_positions, poisson_section
from scipy import optimize, special, stats

import stxtools as st
from stxtools.stats._subjects import compare_subjects


def _cohort(n_subjects: int = 6, *, share: float = 1.0, fold: float = 1.0, seed: int = 0) -> ad.AnnData:
    """Sections of 20 x 20 spots with two bands; in half of the subjects band "b" grows and gene 0 rises in "a"."""
    rng, parts = np.random.default_rng(seed), []
    for s in range(n_subjects):
        case = s % 2 == 1
        border = 5 * (share if case else 1.0) * np.exp(rng.normal(0, 0.1))
        xy = grid_positions(20)
        band = np.where(xy[:, 1] < round(border), "b", "a")
        rate = np.exp(rng.normal(0.5, 0.8, 300)) if s == 0 else parts[0].uns["rate"]
        rate_here = rate * np.exp(rng.normal(0, 0.2, 300))
        values = np.tile(rate_here, (400, 1))
        if case:
            values[band == "a", 0] *= fold
        part = poisson_section(values, xy, rng, band=band, condition="case" if case else "control", subject=f"p{s}")
        part.uns["rate"] = rate
        parts.append(part)
    out = ad.concat(parts, label="section", keys=[f"s{i}" for i in range(n_subjects)], index_unique="-")
    out.obs["condition"] = pd.Categorical(out.obs["condition"], ["control", "case"])
    return out


def _compared(adata: ad.AnnData, **kwargs: object) -> pd.DataFrame:
    st.tl.compare(adata, "condition", "subject", groupby="band", library_key="section", **kwargs)  # type: ignore[arg-type]
    return adata.uns["compare"]


def _changes(table: pd.DataFrame) -> pd.Series:
    return table.set_index(["kind", "compartment", "names"])["logfoldchanges"]


def test_shares_expression_and_contacts_by_hand() -> None:
    adata = _cohort()
    table = _compared(adata)
    sizes = pd.crosstab(adata.obs["subject"], adata.obs["band"])
    share = np.log2((sizes["b"] + 0.5) / (sizes.sum(axis=1) + 1))
    case = np.arange(6) % 2 == 1
    row = table[(table["kind"] == "share") & (table["compartment"] == "b")].iloc[0]
    assert row["logfoldchanges"] == pytest.approx(share[case].mean() - share[~case].mean())
    assert (row["n_group"], row["n_reference"]) == (3, 3)

    inside = adata[adata.obs["band"] == "a"]
    bulk = np.array([inside[inside.obs["subject"] == f"p{i}"].X.astype(float).sum(axis=0).A1 for i in range(6)])
    million = np.log2((bulk + 0.5) / (bulk.sum(axis=1, keepdims=True) + 1) * 1e6)
    genes = table[(table["kind"] == "expression") & (table["compartment"] == "a")].set_index("names")
    wanted = million[case].mean(axis=0) - million[~case].mean(axis=0)
    np.testing.assert_allclose(genes["logfoldchanges"], wanted[adata.var_names.get_indexer(genes.index)])

    # one straight border of 20 spots: 20 of the (19 * 20 + 20 * 19) neighbouring pairs of a square lattice
    first = adata[adata.obs["subject"] == "p0"]
    row_of = first.obsm["spatial"][:, 1]
    b = (first.obs["band"] == "b").to_numpy()
    degree = 4.0 - (row_of == 0) - (row_of == 19) - np.isin(first.obsm["spatial"][:, 0], (0, 19))
    expected = degree[b].sum() * degree[~b].sum() / degree.sum()
    one = ad.concat([first, adata[adata.obs["subject"] == "p1"]], label="section", keys=["x", "y"], index_unique="-")
    contact = _compared(one).query("kind == 'contact'").iloc[0]
    assert contact["mean_reference"] == pytest.approx((20 + 0.5) / (expected + 0.5))


def test_shares_are_relative_and_genes_of_few_subjects_are_omitted() -> None:
    adata = _cohort()
    subject = adata.obs["subject"].to_numpy()
    adata = adata[(subject != "p1") | (np.arange(adata.n_obs) % 3 > 0)].copy()
    adata.X = adata.X.multiply(1 - np.outer(~adata.obs["subject"].isin(["p0", "p1"]), np.arange(300) == 7)).tocsr()
    table = _compared(adata)
    sizes = pd.crosstab(adata.obs["subject"], adata.obs["band"])
    share = np.log2((sizes["b"] + 0.5) / (sizes.sum(axis=1) + 1))
    row = table[(table["kind"] == "share") & (table["compartment"] == "b")].iloc[0]
    assert row["logfoldchanges"] == pytest.approx(share.iloc[1::2].mean() - share.iloc[::2].mean())
    assert "g7" not in set(table["names"])  # three subjects of the smaller side would have to express it
    assert "g8" in set(table["names"])


def _by_hand(x: np.ndarray, values: np.ndarray, arrangements: list[np.ndarray], *, paired: bool) -> pd.DataFrame:
    """Regress columns on ``x``: limma's moderated t, over its root mean square under the ``arrangements`` of ``x``."""
    df = len(x) - (1 if paired else 2)

    def fit(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        design = x[:, None] if paired else np.c_[x, np.ones(len(x))]
        coef = np.linalg.lstsq(design, values, rcond=None)[0]
        return coef[0], ((values - design @ coef) ** 2).sum(axis=0) / df, np.linalg.inv(design.T @ design)[0, 0]

    effect, variance, unscaled = fit(x)
    e = np.log(variance) - special.digamma(df / 2) + np.log(df / 2)
    half = optimize.brentq(lambda y: special.polygamma(1, y) - e.var(ddof=1) + special.polygamma(1, df / 2), 1e-3, 1e3)
    scale, m = np.exp(e.mean() + special.digamma(half) - np.log(half)), values.shape[1]
    weight = 2 * half / (2 * half + df) * (m - 3) / (m - 1)  # of a prior estimated from m features (Morris 1983)
    prior = df * weight / (1 - weight)

    def moderated(variance: np.ndarray) -> np.ndarray:
        return (prior * scale + df * variance) / (prior + df)

    null = [slope / np.sqrt(moderated(v) * u) for slope, v, u in map(fit, arrangements)]
    spread = max(1.0, np.sqrt(np.mean(stats.norm.isf(stats.t.sf(np.abs(null), df + prior)) ** 2)))
    error = spread * np.sqrt(moderated(variance) * unscaled)
    return pd.DataFrame({
        "effect": effect, "ci_low": effect - stats.t.ppf(0.975, df + prior) * error,
        "pvals": 2 * stats.t.sf(np.abs(effect / error), df + prior),
    })  # fmt: skip


@pytest.mark.parametrize("paired", [False, True])
def test_p_values_and_limits_by_hand(paired: bool) -> None:
    """Every arrangement of eight subjects but the true one and its mirror image; every flip of six pairs but two."""
    rng = np.random.default_rng(0)
    group = np.tile([True, False], 6 if paired else 4)
    values = rng.standard_t(2, (len(group), 30)) * np.exp(rng.normal(0, 0.5, 30))
    values += group[:, None] * rng.normal(0, 2, 30)
    every = [np.array(a) for a in product((0.0, 1.0), repeat=6 if paired else 8)]
    if paired:
        others = [2 * a - 1 for a in every if 0 < a.sum() < 6]
        expected = _by_hand(np.ones(6), values[group] - values[~group], others, paired=True)
    else:
        others = [a for a in every if a.sum() == 4 and 0 < a[group].sum() < 4]
        expected = _by_hand(group.astype(float), values, others, paired=False)
    found = compare_subjects(values, group, None, 0, paired=paired)
    for column in expected:
        np.testing.assert_allclose(found[column], expected[column], rtol=1e-6)


@pytest.mark.parametrize(("n", "paired"), [(6, False), (10, False), (12, True)])
def test_p_values_without_an_effect_are_calibrated(n: int, paired: bool) -> None:
    rng, called = np.random.default_rng(1), []
    group = np.tile([True, False], 6) if paired else np.arange(n) < n // 2
    for _ in range(10):
        noise = rng.normal(size=(n, 1500)) + (np.repeat(rng.normal(0, 3, (6, 1500)), 2, axis=0) if paired else 0)
        values = noise * np.exp(rng.normal(-1, 0.4, 1500))
        pvals = compare_subjects(values, group, rng.normal(size=1500), 0, paired=paired)["pvals"]
        called.append([(pvals <= 0.05).mean(), (pvals <= 0.005).mean()])
    at_5, at_half = np.mean(called, axis=0)
    assert 0.03 < at_5 <= 0.06
    assert at_half <= 0.008


@pytest.mark.parametrize("paired", [False, True])
def test_prior_of_few_features_has_few_degrees_of_freedom(paired: bool) -> None:
    """Shares of three compartments: a common variance has no more degrees of freedom than they have together."""
    rng, group = np.random.default_rng(3), np.tile([True, False], 3)
    pvals = np.concatenate([compare_subjects(rng.normal(size=(6, 3)), group, None, 0, paired=paired)["pvals"]
                            for _ in range(500)])  # fmt: skip
    assert (pvals <= 0.01).mean() < 0.018  # 3 standard errors, for triples of one variance
    assert (pvals <= 0.001).mean() < 0.005


def test_few_features_of_unequal_variance_are_calibrated() -> None:
    """Three values cannot show that their variances differ."""
    rng, group = np.random.default_rng(123), np.arange(6) < 3
    pvals = [compare_subjects(rng.normal(size=(6, 3)) * np.exp(rng.normal(0, 0.7, 3)), group, None, 0)["pvals"]
             for _ in range(800)]  # fmt: skip
    assert (np.concatenate(pvals) <= 0.01).mean() < 0.014  # nominal 0.01, standard error 0.002


def test_prior_variance_follows_the_expression_level() -> None:
    rng = np.random.default_rng(0)
    level, group = rng.normal(size=3000), np.arange(6) < 3
    pvals = compare_subjects(rng.normal(size=(6, 3000)) * np.exp(level), group, level, 0)["pvals"]
    called = [(pvals[some] <= 0.05).mean() for some in (level < -0.5, level > 0.5)]
    assert 0.03 < min(called) <= max(called) < 0.07


def test_variance_of_few_values_follows_their_level() -> None:
    rng, group, level = np.random.default_rng(0), np.arange(8) < 4, np.linspace(-1, 1, 6)
    pvals = [compare_subjects(rng.normal(size=(8, 6)) * np.exp(-level), group, level, 0)["pvals"] for _ in range(300)]
    called = (np.array(pvals) <= 0.05).mean(axis=0)  # 0.083 to 0.007 around a common variance
    assert called[-1] > 0.02
    assert called[0] < 0.09


def test_variance_of_shares_depends_on_the_size_of_compartments() -> None:
    """A share of few observations varies more: each is compared with the variance expected of its size."""
    rng, group = np.random.default_rng(1), np.arange(6) < 3
    shares = rng.dirichlet(np.array([0.4, 0.3, 0.15, 0.1, 0.04, 0.01]) * 50, 6)
    band = np.concatenate([rng.choice(list("abcdef"), 400, p=p) for p in shares])
    subject = np.repeat([f"p{i}" for i in range(6)], 400)
    condition = np.where(np.repeat(group, 400), "case", "control")
    adata = poisson_section(np.ones((2400, 3)), np.tile(grid_positions(20), (6, 1)), rng, band=band, subject=subject,
                            section=subject, condition=pd.Categorical(condition, ["control", "case"]))  # fmt: skip
    found = _compared(adata).query("kind == 'share'").set_index("compartment")["pvals"]
    sizes = pd.crosstab(subject, band)
    values = np.log2((sizes + 0.5) / 401).to_numpy()
    expected = compare_subjects(values, group, np.log2(sizes.mean() + 0.5).to_numpy(), 0)["pvals"]
    np.testing.assert_allclose(found[sizes.columns], expected)


def test_planted_gene_and_doubled_share_are_found_in_six_subjects() -> None:
    found = []
    for seed in range(5):
        table = _compared(_cohort(share=2.0, fold=2.5, seed=seed))
        gene = table[(table["kind"] == "expression") & (table["compartment"] == "a") & (table["names"] == "g0")].iloc[0]
        share = table[(table["kind"] == "share") & (table["compartment"] == "b")].iloc[0]
        found.append((gene["pvals"] <= 0.05 and gene["scores"] > 0, share["pvals"] <= 0.05 and share["scores"] > 0))
    assert (np.mean(found, axis=0) >= 0.6).all()


def _paired(n_subjects: int = 5, **kwargs: float) -> ad.AnnData:
    """Two sections of each subject, one in each condition; subjects differ more than conditions."""
    adata = _cohort(2 * n_subjects, **kwargs)  # type: ignore[arg-type]
    number = adata.obs["section"].str[1:].astype(int)
    adata.obs["subject"] = "p" + (number // 2).astype(str)
    return adata


def test_comparison_within_subjects_by_hand() -> None:
    adata = _paired(fold=3.0)
    table = _compared(adata)
    assert list(adata.uns["compare_params"]["within_subjects"]) == ["case"]
    sizes = pd.crosstab([adata.obs["subject"], adata.obs["condition"]], adata.obs["band"])
    share = np.log2((sizes["b"] + 0.5) / (sizes.sum(axis=1) + 1)).unstack()
    row = table[(table["kind"] == "share") & (table["compartment"] == "b")].iloc[0]
    assert row["logfoldchanges"] == pytest.approx((share["case"] - share["control"]).mean())
    assert (row["n_group"], row["n_reference"]) == (5, 5)
    gene = table[(table["kind"] == "expression") & (table["compartment"] == "a")].set_index("names").loc["g0"]
    assert gene["pvals_adj"] <= 0.05
    assert gene["logfoldchanges"] == pytest.approx(np.log2(3), abs=0.3)
    # a subject with one condition is omitted with a warning
    fewer = adata[~((adata.obs["subject"] == "p0") & (adata.obs["condition"] == "case"))].copy()
    with pytest.warns(UserWarning, match="within the 4 subject.*omitted: 'p0'"):
        found = _compared(fewer)
    assert set(found.loc[found["kind"] == "share", "n_group"]) == {4}
    without = _compared(adata[adata.obs["subject"] != "p0"].copy())
    pd.testing.assert_series_equal(_changes(found), _changes(without))


def test_few_subjects_have_no_p_values_and_missing_compartments_are_omitted() -> None:
    adata = _cohort(8)
    adata.obs.loc[(adata.obs["subject"] == "p1") & (adata.obs["band"] == "b"), "band"] = "a"
    table = _compared(adata)
    assert set(table.loc[(table["kind"] == "expression") & (table["compartment"] == "b"), "n_group"]) == {3}
    assert set(table.loc[table["kind"] == "contact", "n_group"]) == {3}
    few = _compared(adata[adata.obs["subject"].isin(["p0", "p1", "p2", "p3"])].copy())
    assert few["pvals"].isna().all()
    assert few["pvals_adj"].isna().all()
    genes = few[(few["kind"] == "expression") & (few["compartment"] == "a")]
    assert np.isfinite(genes["ci_low"]).all()
    assert (genes["ci_low"] < genes["ci_high"]).all()


def test_log_expression_gives_the_changes_of_counts() -> None:
    counts = _cohort(8)
    logged = st.pp.normalize(counts, copy=True)
    del logged.layers["counts"]
    found = _changes(_compared(logged))
    assert np.corrcoef(found, _changes(_compared(counts)).reindex(found.index))[0, 1] > 0.99


def test_table_depends_on_the_reference_and_not_on_row_order_or_storage(tmp_path: Path) -> None:
    adata = _cohort(fold=3.0)
    table = _compared(adata)
    permuted = adata[np.random.default_rng(0).permutation(adata.n_obs)].copy()
    pd.testing.assert_frame_equal(_compared(permuted), table)
    other = _compared(adata.copy(), reference="case")
    assert set(other["group"]) == {"control"}
    np.testing.assert_allclose(_changes(table), -_changes(other).reindex(_changes(table).index))
    adata.write_h5ad(tmp_path / "a.h5ad")
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    st.tl.compare(backed, "condition", "subject", groupby="band", library_key="section", key_added="again")
    pd.testing.assert_frame_equal(backed.uns["again"], table)


def test_observations_without_a_subject_have_no_contacts() -> None:
    adata = _cohort()
    lost = (adata.obs["band"] == "a").to_numpy() & (np.random.default_rng(0).random(adata.n_obs) < 0.5)
    adata.obs.loc[lost, "subject"] = np.nan
    reordered = adata.copy()
    reordered.obs["band"] = pd.Categorical(reordered.obs["band"], ["b", "a"])
    tables = [_compared(one).query("kind == 'contact'") for one in (adata[~lost].copy(), adata, reordered)]
    for table in tables[1:]:
        np.testing.assert_allclose(table["logfoldchanges"], tables[0]["logfoldchanges"])


def test_get_compare_filters_and_pl_compare_draws_the_table() -> None:
    adata = _cohort(fold=3.0)
    table = _compared(adata)
    genes = st.get.compare(adata, "expression", compartment="a", fdr=0.05)
    assert "g0" in set(genes["names"])
    assert (genes["pvals_adj"] <= 0.05).all()
    with pytest.raises(ValueError, match="`compartment` names 'c'"):
        st.get.compare(adata, compartment="c")
    axes = st.pl.compare(adata, n_top=5, show=False)
    assert [len(axis.get_yticks()) for axis in axes] == [2, 1, 5]
    drawn = axes[2].collections[-1].get_offsets()[:, 0]
    first = table[table["kind"] == "expression"].sort_values("pvals").head(5)
    np.testing.assert_allclose(drawn, first["logfoldchanges"])
    n = adata.obs.groupby("condition", observed=True)["subject"].nunique()
    assert axes[0].get_xlabel().endswith(f"case (n = {n['case']}) against control (n = {n['control']})")

    def legend(axes):
        return [text.get_text() for text in axes[0].figure.legends[0].texts]

    assert legend(axes) == ["higher", "not significant"]
    adata.uns["compare"]["pvals_adj"] = adata.uns["compare"]["pvals"] = np.nan
    assert legend(st.pl.compare(adata, n_top=5, show=False)) == ["not tested: few subjects"]
    with pytest.raises(ValueError, match="there are 3"):
        st.pl.compare(adata, ax=axes[0])
    with pytest.raises(KeyError, match="no comparison"):
        st.get.compare(adata, key="other")


def test_wrong_arguments_leave_the_data_unchanged() -> None:
    adata = _cohort()
    adata.obs["mixed"] = np.where(np.arange(adata.n_obs) % 2 == 0, "u", "v")
    adata.obs["one"] = "same"
    before = sorted(adata.uns)
    for args, match in (
        (("mixed", "subject"), "several values in `adata.obs\\['mixed'\\]`"),
        (("condition", "mixed"), "several values"),
        (("one", "subject"), "needs 2"),
    ):
        with pytest.raises(ValueError, match=match):
            st.tl.compare(adata, *args, groupby="band", library_key="section")
    lost = adata.copy()
    lost.obs.loc[lost.obs["condition"] == "case", "subject"] = np.nan
    with pytest.raises(ValueError, match="No subject"):
        _compared(lost)
    with pytest.raises(ValueError, match="is not a condition"):
        _compared(adata, reference="neither")
    with pytest.raises(KeyError, match="segment"):
        st.tl.compare(adata, "condition", "subject", library_key="section")
    assert sorted(adata.uns) == before
