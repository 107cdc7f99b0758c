"""tl.biomarkers and get.biomarkers: numbers, calibration, designs, round trips, errors."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from conftest import grid_positions, null_regions, poisson_section, read_back
from scipy import sparse
from sklearn.metrics import roc_auc_score

import stxtools as st

COLUMNS = [
    "group", "names", "scores", "logfoldchanges", "pvals", "pvals_adj", "scores_composition", "pvals_composition",
    "pvals_adj_composition", "beyond_composition", "pct_nz_group", "pct_nz_reference", "ci_low", "ci_high",
    "certain_logfoldchanges", "auroc", "attribution", "n_libraries", "direction_consistent", "rank_score",
]  # fmt: skip


def _smooth(xy: np.ndarray, length: float, rng: np.random.Generator) -> np.ndarray:
    frequency = rng.standard_normal((200, 2)) / length
    return np.cos(xy @ frequency.T + rng.uniform(0, 2 * np.pi, 200)).sum(axis=1) / 10


def smooth_section(seed: int, n_markers: int = 0, n_vars: int = 60, side: int = 26, fold: float = 3.0) -> ad.AnnData:
    """Genes vary smoothly; ``n_markers`` of them are ``fold`` as high in a smooth region."""
    rng = np.random.default_rng(seed)
    xy = grid_positions(side)
    rate = np.exp(0.5 * np.stack([_smooth(xy, 5.0, rng) for _ in range(n_vars)], axis=1)) * 2
    region = _smooth(xy, 5.0, rng)
    region = region > np.quantile(region, 0.7)
    rate[:, :n_markers] *= np.where(region, fold, 1.0)[:, None]
    out = poisson_section(rate, xy * 100, rng, region=np.where(region, "in", "out"), library=f"lib{seed}")
    out.obs_names = [f"s{seed}_{i}" for i in range(len(xy))]
    return out


def _tested() -> ad.AnnData:
    adata = smooth_section(0, n_markers=6)
    st.tl.biomarkers(adata, "region", groups=["in", "out"], n_null=150)
    return adata


@pytest.fixture(scope="module")
def tested() -> ad.AnnData:
    return _tested()


def test_table_has_the_documented_columns_and_order(tested):
    table = tested.uns["biomarkers"]
    assert list(table.columns) == COLUMNS
    assert len(table) == 2 * tested.n_vars
    assert list(pd.unique(table["group"])) == ["in", "out"]
    for _, part in table.groupby("group"):
        assert set(part["names"]) == set(tested.var_names)
    assert table["pvals"].between(0, 1).all()
    assert (table["pvals_adj"] >= table["pvals"] - 1e-12).all()
    assert not table.drop(columns=["ci_low", "ci_high", "direction_consistent"]).isna().any().any()
    params = tested.uns["biomarkers_params"]
    assert params["method"] == "random_regions"
    assert params["versions"]["stxtools"] == st.__version__
    assert {"python", "numpy", "scipy", "torch"} < set(params["versions"])  # which round
    assert list(params["design"]) == ["within", "within"]


def test_library_key_is_read_from_the_segmentation():
    adata = ad.concat([smooth_section(0), smooth_section(1)], uns_merge="first")
    adata.uns["region"] = {"params": {"library_key": "library"}}
    st.tl.biomarkers(adata, "region", protect=None, n_null=100)
    assert adata.uns["biomarkers_params"]["library_key"] == "library"
    assert set(adata.uns["biomarkers"]["n_libraries"]) == {2}


def test_planted_markers_are_found_and_no_others(tested):
    up = st.get.biomarkers(tested, "in", fdr=0.05, sign="up")
    markers = {f"g{i}" for i in range(6)}
    assert len(markers & set(up["names"])) >= 4
    assert len(set(up["names"]) - markers) <= 1
    truth = tested.var_names.isin(markers)
    part = st.get.biomarkers(tested, "in").set_index("names").loc[tested.var_names]
    assert roc_auc_score(truth, part["scores"]) > 0.95
    assert roc_auc_score(truth, part["attribution"].abs()) >= 0.9
    assert part["attribution"].abs().sum() == pytest.approx(1)


def test_auroc_fold_changes_and_fractions_equal_references(tested):
    inside = (tested.obs["region"] == "in").to_numpy()
    depth = np.asarray(tested.X.sum(axis=1))
    linear = tested.X.toarray() / depth * np.median(depth)
    part = st.get.biomarkers(tested, "in").set_index("names").loc[tested.var_names]
    expected = [roc_auc_score(inside, linear[:, j].astype(np.float32)) for j in range(tested.n_vars)]
    np.testing.assert_allclose(part["auroc"], expected, atol=1e-3)
    ratio = np.log2((linear[inside].mean(0) + 1e-3) / (linear[~inside].mean(0) + 1e-3))
    np.testing.assert_allclose(part["logfoldchanges"], ratio, atol=1e-4)
    np.testing.assert_allclose(part["pct_nz_group"], (linear[inside] > 0).mean(0), atol=1e-6)
    np.testing.assert_allclose(part["pct_nz_reference"], (linear[~inside] > 0).mean(0), atol=1e-6)


def test_two_groups_mirror_each_other(tested):
    a = st.get.biomarkers(tested, "in").set_index("names").loc[tested.var_names]
    b = st.get.biomarkers(tested, "out").set_index("names").loc[tested.var_names]
    np.testing.assert_allclose(a["logfoldchanges"], -b["logfoldchanges"], atol=1e-6)
    np.testing.assert_allclose(a["auroc"], 1 - b["auroc"], atol=1e-9)
    np.testing.assert_array_equal(a["pvals"], b["pvals"])
    np.testing.assert_array_equal(a["scores"], -b["scores"])
    np.testing.assert_allclose(a["ci_low"], -b["ci_high"], atol=1e-6)
    np.testing.assert_allclose(a["rank_score"], -b["rank_score"], rtol=0.05, atol=1e-3)


def test_only_the_second_of_two_groups_is_tested():
    adata = smooth_section(0, n_markers=6, side=16)
    adata.obs["flag"] = (adata.obs["region"] == "in").to_numpy()
    adata.obs["ordered"] = adata.obs["region"].cat.reorder_categories(["out", "in"])
    for groupby, group, other in (("flag", "True", "False"), ("ordered", "in", "out"), ("region", "out", "in")):
        st.tl.biomarkers(adata, groupby, n_null=60)
        table, params = adata.uns["biomarkers"], adata.uns["biomarkers_params"]
        assert list(pd.unique(table["group"])) == [group]
        assert table["names"].is_unique
        assert (list(params["groups"]), params["reference"]) == ([group], other)
        with pytest.raises(ValueError, match=r"Of two groups only the second.*groups=\["):
            st.get.biomarkers(adata, other)
    found = table.set_index("names")
    st.tl.biomarkers(adata, "region", groups=["in"], n_null=60)
    np.testing.assert_array_equal(adata.uns["biomarkers"].set_index("names").loc[found.index, "pvals"], found["pvals"])
    st.tl.biomarkers(adata, "region", reference="out", n_null=60)
    assert list(pd.unique(adata.uns["biomarkers"]["group"])) == ["in"]


@pytest.mark.parametrize("groups", ["all", ["rest"]])
def test_a_group_may_be_called_rest(groups):
    adata = smooth_section(0, n_markers=4, n_vars=20, side=14)
    names = np.where(adata.obsm["spatial"][:, 0] < 400, "edge", adata.obs["region"].astype(str))
    adata.obs["plain"], adata.obs["part"] = names, np.where(names == "out", "rest", names)
    st.tl.biomarkers(adata, "part", groups=groups, n_null=50)
    got = adata.uns["biomarkers"]
    st.tl.biomarkers(adata, "plain", groups="all" if groups == "all" else ["out"], n_null=50)
    expected = adata.uns["biomarkers"]
    pd.testing.assert_frame_equal(got.assign(group=got["group"].replace("rest", "out")), expected)


def test_direction_consistent_is_missing_for_a_single_library(tmp_path):
    adata = ad.concat([smooth_section(s, 3, n_vars=20, side=12) for s in range(2)], merge="same")
    dense = adata.X.toarray()
    dense[(adata.obs["library"] == "lib0").to_numpy(), 7] = 0  # a gene of one library only
    adata.X = sparse.csr_matrix(dense)
    st.tl.biomarkers(adata, "region", library_key="library", n_null=60)
    st.tl.biomarkers(adata, "region", library_key=False, n_null=60, key_added="pooled")
    column = adata.uns["biomarkers"].set_index("names")["direction_consistent"]
    assert column.dtype == "boolean"
    assert column["g7"] is pd.NA
    assert column.drop("g7").notna().all()
    assert adata.uns["pooled"]["direction_consistent"].isna().all()
    for back in read_back(adata, tmp_path):
        for key in ("biomarkers", "pooled"):
            pd.testing.assert_frame_equal(back.uns[key], adata.uns[key])


def _assert_same_table(adata: ad.AnnData, exact: bool = True, **kwargs) -> None:
    """Check that observations in another order give the same table.

    Attributions and components are sums over observations, the same to rounding.
    """
    order = np.random.default_rng(1).permutation(adata.n_obs)
    tables = []
    for work in (adata, adata[order].copy()):
        st.tl.biomarkers(work, n_null=60, key_added="table", show_progress=False, **kwargs)
        tables.append(work.uns["table"])
    pd.testing.assert_frame_equal(*tables, rtol=1e-9, atol=1e-12)
    if exact:
        rounded = ["attribution", *(c for c in tables[0] if c.endswith("_composition"))]
        pd.testing.assert_frame_equal(*(t.drop(columns=rounded) for t in tables), check_exact=True)


@pytest.mark.parametrize("covariates", [None, "composition"])
def test_order_of_observations_does_not_matter(covariates):
    adata = smooth_section(1, 4, side=20, n_vars=40)
    _assert_same_table(adata, groupby="region", covariates=covariates, exact=covariates is None)
    adata.obsm["spatial"] = adata.obsm["spatial"] // 300  # several observations at a position
    _assert_same_table(adata, groupby="region", covariates=covariates, library_key=False, exact=covariates is None)
    adata = ad.concat([smooth_section(s, 3, n_vars=20, side=12) for s in range(3)], merge="same")
    _assert_same_table(adata, groupby="region", covariates=covariates, library_key="library", exact=covariates is None)


def test_planted_disease_genes_are_found_at_the_nominal_fdr():
    calls = []
    for seed in range(4):
        adata = st.datasets.synthetic_tissue(n_patients=3, sections_per_patient=2, disease="lesion", random_state=seed)
        st.tl.biomarkers(adata, "disease", library_key="section")
        table = adata.uns["biomarkers"].set_index("names").loc[adata.var_names]
        called, planted = table["pvals_adj"] <= 0.05, adata.var["is_biomarker"]
        assert (np.sign(table["scores"]) == np.sign(adata.var["true_logfc"]))[called & planted].all()
        calls.append((called[planted].sum(), called[~planted].sum()))
    found, false = np.transpose(calls)
    assert (found >= 4).all()
    assert false[0] == 0
    assert false.sum() <= 0.05 * (found + false).sum()


def test_random_regions_of_a_real_section_have_no_markers(real_section):
    adata = real_section("xenium_breast_idc")
    adata.uns, called = {}, []
    for _ in null_regions(adata, 4):
        st.tl.biomarkers(adata, "null", groups=["in"], n_null=100)
        called.append((adata.uns["biomarkers"][["pvals_adj", "pvals_adj_composition"]] < 0.05).mean())
    assert (np.mean(called, axis=0) <= 0.02).all()


def test_same_seed_gives_the_same_bits_and_leaves_the_input():
    tables = []
    for seed in (0, 0, 1):
        adata = smooth_section(1, 3)
        before = adata.X.copy()
        st.tl.biomarkers(adata, "region", n_null=60, random_state=seed)
        assert (before != adata.X).nnz == 0
        tables.append(adata.uns["biomarkers"])
    pd.testing.assert_frame_equal(tables[0], tables[1], check_exact=True)
    assert not np.array_equal(tables[0]["pvals"], tables[2]["pvals"])


def test_counts_and_log_expression_give_the_same_table():
    counts = smooth_section(2, 3)
    counts.X.data[::20] = 0  # stored, but not expressed
    logged = sc.pp.log1p(sc.pp.normalize_total(counts, copy=True), copy=True)
    logged.X.eliminate_zeros()
    for adata in (counts, logged):
        st.tl.biomarkers(adata, "region", groups=["in"], n_null=60)
    one, two = (adata.uns["biomarkers"].set_index("names").loc[counts.var_names] for adata in (counts, logged))
    np.testing.assert_allclose(one["auroc"], two["auroc"], atol=1e-4)  # rounding breaks ties
    for column in ("scores", "scores_composition"):
        np.testing.assert_allclose(one[column], two[column], atol=1e-3)


def test_other_groups_and_missing_values_are_not_part_of_the_reference():
    adata = smooth_section(3, 4)
    kind = np.where(adata.obs["region"] == "in", "a", np.where(adata.obsm["spatial"][:, 0] > 1300, "b", "c"))
    adata.obs["kind"] = pd.Series(kind, index=adata.obs_names).where(np.arange(adata.n_obs) % 7 > 0)
    st.tl.biomarkers(adata, "kind", groups=["a"], reference="b", key_added="found", n_null=60)
    assert {"found", "found_params"} <= set(adata.uns)
    assert "found_score" in adata.var
    part = adata.uns["found"].set_index("names").loc[adata.var_names]
    for column, group in (("pct_nz_group", "a"), ("pct_nz_reference", "b")):
        share = (adata.X.toarray()[(adata.obs["kind"] == group).to_numpy()] > 0).mean(0)
        np.testing.assert_allclose(part[column], share, atol=1e-6)


def test_genes_without_variance_are_not_tested():
    adata = smooth_section(4, 2, n_vars=20)
    dense = adata.X.toarray()
    dense[:, 5] = 0
    dense[3:, 6] = 0
    adata.X = sparse.csr_matrix(dense)
    st.tl.biomarkers(adata, "region", groups=["in"], n_null=60)
    row = st.get.biomarkers(adata, "in").set_index("names").loc["g5"]
    assert (row["scores"], row["pvals"], row["auroc"], row["n_libraries"]) == (0, 1, 0.5, 0)
    assert row["logfoldchanges"] == 0
    assert row["direction_consistent"] is pd.NA


def test_groups_of_one_observation_are_omitted_with_a_warning():
    adata = smooth_section(6, side=16)
    adata.obs["kind"] = np.where(adata.obs["region"] == "in", "a", "b").astype(object)
    adata.obs.iloc[0, adata.obs.columns.get_loc("kind")] = "single"
    with pytest.warns(UserWarning, match="not tested"):
        st.tl.biomarkers(adata, "kind", n_null=60)
    assert list(pd.unique(adata.uns["biomarkers"]["group"])) == ["a", "b"]
    with pytest.raises(ValueError, match="fewer than 3 observations"):
        st.tl.biomarkers(adata, "kind", groups=["single"])


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"groupby": "nope"}, KeyError, "nope"),
        ({"groups": ["nope"]}, ValueError, "nope"),
        ({"groups": "in"}, TypeError, "list of group names"),
        ({"groups": ["in"], "reference": "in"}, ValueError, "itself"),
        ({"reference": "nope"}, ValueError, "reference"),
        ({"method": "wilcoxon"}, ValueError, "random_regions"),
        ({"n_null": 3}, ValueError, "n_null"),
        ({"layer": "nope"}, KeyError, "nope"),
        ({"layer": "negative"}, ValueError, "negative values"),
        ({"spatial_key": "nope"}, KeyError, "nope"),
        ({"library_key": "nope"}, KeyError, "nope"),
        ({"key_added": "a/b"}, ValueError, "/"),
        ({"groupby": "one"}, ValueError, "1 class"),
        ({"groupby": "float"}, TypeError, "floating"),
    ],
)
def test_wrong_arguments_leave_the_data_unchanged(kwargs, error, match):
    adata = smooth_section(7, side=8)
    adata.obs["one"], adata.obs["float"] = "x", 1.5
    adata.layers["negative"] = adata.X.toarray() - 2.0
    with pytest.raises(error, match=match):
        st.tl.biomarkers(adata, **{"groupby": "region", **kwargs})
    assert not adata.uns
    assert list(adata.var.columns) == []


def test_get_biomarkers_filters_the_table(tested):
    with pytest.raises(KeyError, match=r"st\.tl\.biomarkers"):
        st.get.biomarkers(smooth_section(8, side=8))
    with pytest.raises(ValueError, match="nope"):
        st.get.biomarkers(tested, "nope")
    down = st.get.biomarkers(tested, "in", sign="down", n_top=4)
    assert (down["scores"] < 0).all()
    assert down["names"].tolist() == tested.uns["biomarkers"].query("group == 'in'")["names"].tolist()[-4:]
    assert len(st.get.biomarkers(tested, n_top=2)) == 4
    assert (st.get.biomarkers(tested, fdr=0.01)["pvals_adj"] <= 0.01).all()
    before = tested.uns["biomarkers"].copy()
    table = st.get.biomarkers(tested)
    table["scores"] = 0.0
    pd.testing.assert_frame_equal(before, tested.uns["biomarkers"])
