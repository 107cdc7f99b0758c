"""pp.normalize against direct calls of scanpy."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from conftest import assert_same, read_back
from scipy import sparse

import stxtools as st


def _abs_corr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    return np.abs((a * b).sum(axis=0) / np.linalg.norm(a, axis=0) / np.linalg.norm(b, axis=0))


@pytest.fixture
def section(make_section: Callable[..., ad.AnnData]) -> ad.AnnData:
    return make_section("hex", n_vars=120)


@pytest.mark.parametrize("scale", [False, True])
def test_normalize_equals_scanpy(section: ad.AnnData, scale: bool) -> None:
    expected = section.copy()
    sc.pp.highly_variable_genes(expected, n_top_genes=50, flavor="seurat_v3")
    sc.pp.normalize_total(expected)
    sc.pp.log1p(expected)
    raw = section.X.copy()
    st.pp.normalize(section, n_top_genes=50, n_comps=5, scale=scale)
    np.testing.assert_allclose(section.X.toarray(), expected.X.toarray(), rtol=1e-6)
    np.testing.assert_array_equal(section.var["highly_variable"], expected.var["highly_variable"])
    assert (section.layers["counts"] != raw).nnz == 0
    if scale:
        sc.pp.scale(expected)
    sc.pp.pca(expected, n_comps=5)
    assert section.obsm["X_pca"].shape == (section.n_obs, 5)
    assert (_abs_corr(section.obsm["X_pca"], expected.obsm["X_pca"]) > 0.999).all()
    np.testing.assert_allclose(section.uns["pca"]["variance"], expected.uns["pca"]["variance"], rtol=1e-3)
    assert section.varm["PCs"].shape == (120, 5)
    assert (section.varm["PCs"][~section.var["highly_variable"]] == 0).all()
    assert sparse.issparse(section.X)
    assert section.X.dtype == np.float32


@pytest.mark.parametrize("typed", [False, True])
def test_control_probes_among_the_genes_are_warned_about(section: ad.AnnData, typed: bool) -> None:
    names = ["P-1"] if typed else ["Blank-1", "BLANK_0006", "NegControlProbe_00042", "NegPrb3", "UnassignedCodeword_7"]
    section.var_names = [*names, *section.var_names[len(names) :]]
    if typed:
        section.var["feature_types"] = pd.Categorical(["Antibody Capture"] + ["Gene Expression"] * 119)
    with pytest.warns(UserWarning, match=rf"{len(names)} of 120 variables are control probes.*'{names[0]}'") as caught:
        st.pp.normalize(section.copy(), n_comps=3)
    advice = str(caught[0].message).split("`")[1]
    scope = {"adata": section}
    exec(advice, scope)
    with warnings.catch_warnings(action="error"):
        st.pp.normalize(scope["adata"], n_comps=3)
    assert scope["adata"].n_vars == 120 - len(names)


def test_loadings_reproduce_the_scores(section: ad.AnnData) -> None:
    st.pp.normalize(section, n_top_genes=60, n_comps=4)
    x = section.X.toarray().astype(np.float64)
    np.testing.assert_allclose((x - x.mean(axis=0)) @ section.varm["PCs"], section.obsm["X_pca"], atol=1e-3)


@pytest.mark.parametrize("shape", [(300, 900), (900, 400)])
def test_pca_equals_the_singular_value_decomposition(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    rate = 0.05 + np.outer(np.arange(shape[0]) % 3 == 0, np.arange(shape[1]) < 60)
    rate += 2 * np.outer(np.arange(shape[0]) % 5 == 0, np.arange(shape[1]) > 350)
    adata = ad.AnnData(sparse.csr_matrix(rng.poisson(rate).astype(np.float32)))
    adata.obsm["spatial"] = rng.random((shape[0], 2))
    st.pp.normalize(adata, n_comps=2)
    x = adata.X.toarray().astype(np.float64)[:, adata.var["highly_variable"]]
    u, s, _ = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(np.abs(adata.obsm["X_pca"]), np.abs(u * s)[:, :2], rtol=1e-3, atol=1e-3)


def test_small_panel_uses_all_expressed_genes(section: ad.AnnData) -> None:
    x = section.X.toarray()
    x[:, 7] = 0
    section.X = sparse.csr_matrix(x)
    st.pp.normalize(section)
    assert (~section.var["highly_variable"]).sum() == 1
    assert not section.var["highly_variable"].iloc[7]
    assert section.obsm["X_pca"].shape[1] == 20


def test_second_call_starts_from_counts(section: ad.AnnData) -> None:
    st.pp.normalize(section, n_comps=5)
    once = section.copy()
    st.pp.normalize(section, n_comps=5)
    assert (section.X != once.X).nnz == 0
    np.testing.assert_array_equal(section.obsm["X_pca"], once.obsm["X_pca"])


def test_empty_observations_stay_zero(section: ad.AnnData) -> None:
    x = section.X.tolil()
    x[4] = 0
    section.X = x.tocsr()
    out = st.pp.normalize(section, copy=True)
    assert out.X[4].nnz == 0
    assert np.isfinite(out.X.data).all()
    assert np.isfinite(out.obsm["X_pca"]).all()


def test_library_key_ranks_genes_within_sections(make_section: Callable[..., ad.AnnData]) -> None:
    adata = make_section("hex", n_vars=90, libraries=2)
    # the median rank over sections; with a `batch_key`, scanpy 1.12 has other variances
    excess = {
        name: sc.pp.highly_variable_genes(
            adata[adata.obs["library"] == name], n_top_genes=30, flavor="seurat_v3", inplace=False
        ).set_index(adata.var_names)["variances_norm"]
        for name in adata.obs["library"].unique()
    }
    rank = pd.DataFrame(excess).rank(ascending=False)
    rank = rank.where(rank <= 30)
    table = pd.DataFrame({"rank": rank.median(axis=1), "missing": rank.isna().sum(axis=1)})
    expected = table.sort_values(["rank", "missing"]).index[:30]
    st.pp.normalize(adata, n_top_genes=30, library_key="library", n_comps=5)
    assert set(adata.var_names[adata.var["highly_variable"]]) == set(expected)


def test_section_of_one_observation_is_no_obstacle(make_section: Callable[..., ad.AnnData]) -> None:
    adata = make_section("hex", n_vars=90, libraries=2)
    adata.obs["library"] = adata.obs["library"].astype(str)
    adata.obs.loc[adata.obs_names[0], "library"] = "lonely"
    st.pp.normalize(adata, n_top_genes=30, library_key="library", n_comps=5)
    assert adata.var["highly_variable"].sum() == 30


def test_section_without_counts_ranks_no_gene(make_section: Callable[..., ad.AnnData]) -> None:
    adata = make_section("hex", n_vars=90, libraries=2)
    empty = (adata.obs["library"] == adata.obs["library"].unique()[0]).to_numpy()
    adata.X = sparse.csr_matrix(adata.X.multiply(~empty[:, None]))
    other = adata[~empty].copy()
    st.pp.normalize(other, n_top_genes=30, n_comps=5)
    st.pp.normalize(adata, n_top_genes=30, library_key="library", n_comps=5)
    np.testing.assert_array_equal(adata.var["highly_variable"], other.var["highly_variable"])


def test_values_that_are_no_integers_are_normalised(section: ad.AnnData) -> None:
    section.X = sparse.csr_matrix(section.X.multiply(np.pi * 10))
    expected = section.copy()
    sc.pp.normalize_total(expected)
    sc.pp.log1p(expected)
    st.pp.normalize(section, n_top_genes=40)
    np.testing.assert_allclose(section.X.toarray(), expected.X.toarray(), rtol=1e-5)
    assert section.var["highly_variable"].sum() == 40


def test_dense_stays_dense(section: ad.AnnData) -> None:
    dense = section.copy()
    dense.X = dense.X.toarray()
    st.pp.normalize(dense, n_comps=5)
    st.pp.normalize(section, n_comps=5)
    assert isinstance(dense.X, np.ndarray)
    np.testing.assert_array_equal(dense.X, section.X.toarray())
    np.testing.assert_array_equal(dense.obsm["X_pca"], section.obsm["X_pca"])


def test_layer_of_integers_is_normalised(section: ad.AnnData) -> None:
    expected = st.pp.normalize(section, n_comps=5, copy=True)
    section.layers["raw"] = section.X.astype(np.int64)
    section.X = None
    st.pp.normalize(section, layer="raw", n_comps=5)
    np.testing.assert_allclose(section.X.toarray(), expected.X.toarray(), rtol=1e-6)
    assert (section.layers["counts"] != section.layers["raw"]).nnz == 0


def test_counts_do_not_share_memory(section: ad.AnnData) -> None:
    st.pp.normalize(section)
    assert not np.shares_memory(section.X.data, section.layers["counts"].data)


def test_results_survive_files_and_are_read_by_scanpy(tmp_path: Path, section: ad.AnnData) -> None:
    st.pp.normalize(section, n_comps=5)
    assert set(section.uns) == {"pca", "log1p", "normalize"}
    assert section.uns["normalize"]["params"]["n_comps"] == 5
    for read in read_back(section, tmp_path):
        assert_same(section, read)
        sc.tl.rank_genes_groups(read, "band")  # reads uns["log1p"]


def _with_x(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[ad.AnnData], ad.AnnData]:
    return lambda a: ad.AnnData(change(a.X.toarray()), a.obs, a.var, obsm=dict(a.obsm))


def _logged(adata: ad.AnnData) -> ad.AnnData:
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    return adata


@pytest.mark.parametrize(
    ("change", "kwargs", "error", "message"),
    [
        (_logged, {}, ValueError, "already"),
        (_with_x(np.log1p), {}, ValueError, "already"),
        (_with_x(lambda x: x - 1), {}, ValueError, "negative values"),
        (_with_x(lambda x: 0 * x), {}, ValueError, "No gene is expressed"),
        (_with_x(lambda x: np.where(x == x.max(), np.nan, x)), {}, ValueError, "NaN"),
        (lambda a: a[:, :1].copy(), {}, ValueError, "at least 2"),
        (lambda a: a, {"layer": "nowhere"}, KeyError, "nowhere"),
        (lambda a: a, {"target_sum": 0}, ValueError, "greater than 0"),
    ],
    ids=["logged", "logged, unmarked", "negative", "zeros", "NaN", "one gene", "no layer", "target_sum"],
)
def test_unusable_input_raises_and_changes_nothing(
    change: Callable, kwargs: dict, error: type, message: str, section: ad.AnnData
) -> None:
    adata = change(section)
    before = adata.copy()
    with pytest.raises(error, match=message):
        st.pp.normalize(adata, **kwargs)
    assert_same(before, adata)


def test_variable_genes_of_real_counts_equal_those_of_scanpy(real_section: Callable[[str], ad.AnnData]) -> None:
    adata = real_section("dlpfc_151673")
    expected = adata.copy()
    sc.pp.filter_genes(expected, min_cells=3)
    sc.pp.highly_variable_genes(expected, n_top_genes=2000, flavor="seurat_v3")
    st.pp.normalize(adata)
    assert set(adata.var_names[adata.var["highly_variable"]]) == set(
        expected.var_names[expected.var["highly_variable"]]
    )
    assert adata.obsm["X_pca"].shape == (3639, 20)
