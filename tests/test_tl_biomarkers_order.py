"""tl.biomarkers: the order of the table, its intervals, and scanpy's layout of it."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
from conftest import assert_same, read_back
from scipy import stats
from scipy.stats import false_discovery_control, kstest, norm, rankdata
from test_tl_biomarkers import _smooth, _tested, smooth_section

import stxtools as st


@pytest.fixture(scope="module")
def tested() -> ad.AnnData:
    return _tested()


def test_adjusted_p_values_and_intervals_by_hand(tested):
    """Scores are normal quantiles of the p-values; intervals exclude zero where a gene is significant."""
    expression = sc.pp.normalize_total(tested, copy=True).to_df()  # single precision
    for _, part in tested.uns["biomarkers"].groupby("group"):
        np.testing.assert_allclose(2 * norm.sf(part["scores"].abs()), part["pvals"], rtol=1e-6)
        called = part["pvals_adj"] <= 0.05
        assert 0 < called.sum() < len(part)
        known = part["scores"].abs() >= 0.1
        assert (part["ci_low"].isna() == ~known).all()
        assert (part["ci_high"].isna() == ~known).all()
        out = (part["ci_low"] >= 0) | (part["ci_high"] <= 0)
        assert (out[known] == called[known]).all()
        assert (part["ci_low"] < part["ci_high"])[known].all()
        weight = np.sqrt(expression[part["names"]].mean().to_numpy())
        weight /= weight.mean()
        weighted = np.minimum(part["pvals"] / weight, 1.0)  # Genovese et al. (2006)
        np.testing.assert_allclose(part["pvals_adj"], false_discovery_control(weighted), rtol=1e-6)


def _means(
    log_ratio: np.ndarray, mean: np.ndarray, share: float, pseudo: float = 1e-3
) -> tuple[np.ndarray, np.ndarray]:
    """Means of group and reference, from the log2 ratio, the mean of both and the share of the group."""
    ratio = 2.0 ** np.asarray(log_ratio)
    reference = np.maximum((mean + pseudo * (1 - ratio) * share) / (share * ratio + 1 - share), 0)
    return (mean - (1 - share) * reference) / share, reference


def _effects(log_ratio: np.ndarray, mean: np.ndarray, share: float) -> np.ndarray:
    """Differences of the mean of log(1 + x / 20) for Poisson counts x."""
    k = np.arange(200)
    group, reference = (stats.poisson.pmf(k, m[:, None]) @ np.log1p(k / 20) for m in _means(log_ratio, mean, share))
    return group - reference


def test_limits_by_hand():
    """Both limits are equally far from the effect on the scale of the test, at the level of the significant genes."""
    adata = smooth_section(0, n_markers=6, n_vars=40)
    st.tl.biomarkers(adata, "region", groups=["in"], n_null=60)
    table = adata.uns["biomarkers"].set_index("names")
    mean = sc.pp.normalize_total(adata, copy=True).to_df()[table.index].mean().to_numpy()
    share, called = (adata.obs["region"] == "in").mean(), table["pvals_adj"] <= 0.05
    low, high = (_effects(table[column], mean, share) for column in ("ci_low", "ci_high"))
    half = (high - low) / np.abs(high + low)
    level = 0.05 * called.sum() / len(table) * np.sqrt(mean) / np.sqrt(mean).mean()  # Benjamini & Yekutieli (2005)
    some = (table["scores"].abs() > 0.5).to_numpy()
    assert some.sum() > 20
    # normal quantiles: the table does not hold the degrees of freedom
    np.testing.assert_allclose(half[some], (norm.isf(level / 2) / table["scores"].abs())[some], rtol=0.3)


def test_limits_cover_the_fold_changes_of_called_genes():
    """The false coverage rate of smooth sections, nominal 5 %."""
    missed = []
    for seed in range(4):
        adata = smooth_section(seed, n_markers=30, n_vars=150, fold=2.0)
        st.tl.biomarkers(adata, "region", groups=["in"], n_null=100)
        table = adata.uns["biomarkers"].query("pvals_adj <= 0.05")
        truth = table["names"].isin(adata.var_names[:30]).to_numpy(float)
        missed.append((truth < table["ci_low"]) | (truth > table["ci_high"]))
    missed = np.concatenate(missed)
    assert len(missed) > 60
    assert missed.mean() < 0.2  # 0.57 around `logfoldchanges`, in which smooth variation is left


@pytest.mark.parametrize("design", ["one library", "within", "between"])
def test_certain_changes_and_rank_scores_by_hand(design):
    """The formulas of the method page, from counts."""
    n = 1 if design == "one library" else 4
    adata = ad.concat([smooth_section(s, 5, n_vars=20, side=12, fold=5.0) for s in range(n)])
    library = adata.obs["library"].to_numpy()
    group = (adata.obs["region"] == "in").to_numpy()
    if design == "between":
        group = np.isin(library, ["lib0", "lib2"])
        adata.X[:, :3] = adata.X[:, :3].multiply(np.where(group, 6, 1)[:, None])
    adata.obs["group"] = np.where(group, "in", "out")
    st.tl.biomarkers(adata, "group", groups=["in"], library_key="library" if n > 1 else None, n_null=60)
    table = adata.uns["biomarkers"].set_index("names").loc[adata.var_names]
    z, called = table["scores"].to_numpy(), (table["pvals_adj"] <= 0.05).to_numpy()
    assert 0 < called.sum() < 20

    counts, depth = adata.X.toarray().astype(float), adata.X.sum(axis=1).A1
    linear = counts / depth[:, None] * np.median(depth)
    blocks = [np.ones(adata.n_obs, bool)] if design == "between" else [library == each for each in np.unique(library)]
    mean = [np.mean([linear[b & side].mean(axis=0) for b in blocks], axis=0) for side in (group, ~group)]
    both = np.mean([linear[b].mean(axis=0) for b in blocks], axis=0)
    share = (both - mean[1]) @ (mean[0] - mean[1]) / ((mean[0] - mean[1]) ** 2).sum()
    nearer = _means(np.where(z > 0, table["ci_low"], table["ci_high"]), both, share)
    expected = np.where(called, np.log2((nearer[0] + 1) / (nearer[1] + 1)), 0)
    np.testing.assert_allclose(table["certain_logfoldchanges"], expected, rtol=1e-4, atol=1e-6)

    def root(rows: np.ndarray) -> np.ndarray:
        return np.sqrt(counts[rows].sum(axis=0) / depth[rows].sum() * np.median(depth) + 1)

    each = [[root(side & (library == x)) for x in np.unique(library) if (side & (library == x)).any()]
            for side in (group, ~group)]  # fmt: skip
    if design == "between":
        effect = np.mean(each[0], axis=0) - np.mean(each[1], axis=0)
        error = np.sqrt(sum(np.var(side, axis=0, ddof=1) / 2 for side in each))
    else:
        effects = np.array(each[0]) - np.array(each[1])
        effect = effects.mean(axis=0)
        error = 0 if n == 1 else effects.std(axis=0, ddof=1) / 2
    rank = rankdata(table["attribution"].abs()) / 20
    score = effect**3 / (effect**2 + error**2) * (1 - table["pvals"] / 2) * (0.9 + 0.1 * rank)
    np.testing.assert_allclose(table["rank_score"], np.where(effect * z > 0, score, 0), rtol=1e-4, atol=1e-6)


def _assert_ordered(part):
    """Significant genes that are up, then those that are not significant, then significant genes that are down."""
    called = part["pvals_adj"].to_numpy() <= 0.05
    side = np.sign(part["scores"].to_numpy()) * called
    assert (np.diff(side) <= 0).all()
    certain = part["certain_logfoldchanges"].to_numpy()
    assert (certain[~called] == 0).all()
    assert (certain * part["scores"] >= 0).all()
    bound = np.where(side > 0, part["ci_low"], -part["ci_high"])
    assert (np.abs(certain) <= np.nan_to_num(bound) + 1e-9)[called].all()  # one molecule more takes off
    for same in (-1, 0, 1):
        assert (np.diff(part["rank_score"].to_numpy()[side == same]) <= 0).all()


def test_biomarker_score_is_the_largest_certain_change(tested):
    table = tested.uns["biomarkers"]
    called = table["pvals_adj"] <= 0.05
    best = table.assign(certain=table["certain_logfoldchanges"].abs()).groupby("names")["certain"].max()
    np.testing.assert_allclose(tested.var["biomarker_score"], best[tested.var_names])
    assert ((tested.var["biomarker_score"] > 0) == tested.var_names.isin(table["names"][called])).all()


@pytest.mark.parametrize("seed", range(3))
def test_significant_genes_are_first_and_last_in_the_table(seed):
    adata = smooth_section(20 + seed, n_markers=3 * seed, side=14, fold=6.0)
    left = adata.obsm["spatial"][:, 0] < 650
    adata.obs["kind"] = np.where(adata.obs["region"] == "in", "in", np.where(left, "b", "c"))
    for groupby in ("region", "kind"):
        st.tl.biomarkers(adata, groupby, n_null=60)
        for _, part in adata.uns["biomarkers"].groupby("group"):
            _assert_ordered(part)


def test_significant_genes_of_a_real_section_are_first_and_last(real_section):
    adata = real_section("dlpfc_151675")
    adata = adata[:, np.argsort(-np.asarray(adata.X.sum(axis=0)).ravel())[200:800]].copy()
    st.tl.biomarkers(adata, "layer", covariates="composition", n_null=100)
    called = 0
    for _, part in adata.uns["biomarkers"].groupby("group"):
        _assert_ordered(part)
        called += int((part["pvals_adj"] <= 0.05).sum())
    assert called > 20


def test_scanpy_functions_read_the_table(tested, tmp_path):
    key = "rank_genes_groups_biomarkers"
    for adata in (tested, *read_back(tested, tmp_path)):
        for group, part in adata.uns["biomarkers"].groupby("group"):
            found = sc.get.rank_genes_groups_df(adata, group, key=key)
            assert found["names"].tolist() == part["names"].tolist()
            for column in ("scores", "logfoldchanges", "pvals", "pvals_adj"):
                np.testing.assert_allclose(found[column], part[column], rtol=1e-6)
        assert adata.uns[key]["params"]["groupby"] == "region"
        assert adata.uns[key]["params"]["reference"] == "rest"
        axes = sc.pl.rank_genes_groups(adata, n_genes=5, key=key, show=False)
        assert [t.get_text() for t in axes[0].texts] == tested.uns["biomarkers"]["names"][:5].tolist()
        sc.pl.rank_genes_groups_dotplot(adata, n_genes=2, key=key, show=False, dendrogram=False)


def test_groups_with_a_colon_survive_files(tmp_path):
    """QuPath joins nested classes by one, which zarr cannot store in a record."""
    adata = smooth_section(0, n_markers=6, n_vars=40)
    adata.obs["region"] = adata.obs["region"].map({"in": "Tumor: DCIS", "out": "Tumor_ DCIS"}).astype("category")
    st.tl.biomarkers(adata, "region", groups=["Tumor: DCIS", "Tumor_ DCIS"], n_null=60)
    for back in read_back(adata, tmp_path):
        assert_same(adata, back)
        found = sc.get.rank_genes_groups_df(back, "Tumor_ DCIS_", key="rank_genes_groups_biomarkers")
        assert found["names"].tolist() == st.get.biomarkers(back, "Tumor: DCIS")["names"].tolist()


@pytest.mark.parametrize(("alternative", "sign"), [("greater", 1), ("less", -1)])
def test_one_sided_table_by_hand(tested, alternative, sign, tmp_path):
    adata = tested.copy()
    st.tl.biomarkers(adata, "region", groups=["in", "out"], n_null=150, alternative=alternative)
    adata.write_h5ad(tmp_path / "a.h5ad")
    adata = ad.read_h5ad(tmp_path / "a.h5ad")
    assert adata.uns["biomarkers_params"]["alternative"] == alternative
    two_sided = tested.uns["biomarkers"].set_index(["group", "names"])
    side = "up" if sign > 0 else "down"
    for group, part in adata.uns["biomarkers"].groupby("group"):
        names = part["names"].tolist()
        score, called = sign * part["scores"].to_numpy(), part["pvals_adj"].to_numpy() <= 0.05
        np.testing.assert_allclose(norm.sf(score), part["pvals"], rtol=1e-6)
        np.testing.assert_allclose(norm.sf(sign * part["scores_composition"]), part["pvals_composition"], rtol=1e-6)
        assert called.any() == (group == ("in" if sign > 0 else "out"))  # markers are higher inside
        assert called[: called.sum()].all()  # they stand first
        assert (score[called] > 0).all()
        assert (part["pvals_adj"].to_numpy()[score < 0] == 1).all()
        assert st.get.biomarkers(adata, group, sign=side, n_top=3)["names"].tolist() == names[:3]
        ranked = sc.get.rank_genes_groups_df(adata, group, key="rank_genes_groups_biomarkers")
        assert ranked["names"].tolist() == names
        near, far = ("ci_low", "ci_high") if sign > 0 else ("ci_high", "ci_low")
        known = part[far].notna().to_numpy()
        assert (part[far][known] == sign * np.inf).all()
        assert ((sign * part[near] >= 0) == called)[known].all()
        change = two_sided.loc[group].loc[part["names"], "logfoldchanges"].to_numpy()
        np.testing.assert_array_equal(part["logfoldchanges"], change)
        mean = sc.pp.normalize_total(tested, copy=True).to_df()[names].mean().to_numpy()
        share = (tested.obs["region"] == group).mean()
        both = two_sided.loc[group].loc[names]
        effect = (_effects(both["ci_low"], mean, share) + _effects(both["ci_high"], mean, share)) / 2
        level = 0.05 * max(called.sum(), 1) / len(part) * np.sqrt(mean) / np.sqrt(mean).mean()
        some = known & (np.abs(part["scores"]) > 0.5)
        critical = (1 - _effects(part[near], mean, share) / effect) * part["scores"]
        np.testing.assert_allclose(sign * critical[some], norm.isf(level)[some], rtol=0.3, atol=0.1)


def test_one_sided_p_values_of_random_regions_are_uniform():
    """Regions that no gene marks; the p-values of the other side are one minus these."""
    adata, rng, found = smooth_section(5, side=24, n_vars=40), np.random.default_rng(1), []
    for _ in range(25):
        field = _smooth(adata.obsm["spatial"] / 100, 5.0, rng)
        adata.obs["null"] = np.where(field > np.quantile(field, 0.7), "in", "out")
        st.tl.biomarkers(adata, "null", groups=["in"], n_null=150, alternative="greater")
        found.append(adata.uns["biomarkers"])
    for column in ("pvals", "pvals_composition"):
        greater = np.concatenate([table[column] for table in found])
        for pvals in (greater, 1 - greater):
            assert kstest(pvals, "uniform").statistic < 0.09
            assert np.mean(pvals < 0.01) < 0.02
    assert np.mean([(table["pvals_adj"] <= 0.05).mean() for table in found]) <= 0.02


def test_unknown_alternative_is_an_error(tested):
    before = tested.uns["biomarkers"]
    with pytest.raises(ValueError, match=r"alternative.*two-sided"):
        st.tl.biomarkers(tested, "region", alternative="up")
    assert tested.uns["biomarkers"] is before
