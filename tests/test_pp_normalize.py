"""pp.normalize against direct calls of scanpy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scipy import sparse

import stxtools as st


def _abs_corr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    return np.abs((a * b).sum(axis=0) / np.linalg.norm(a, axis=0) / np.linalg.norm(b, axis=0))


@pytest.fixture
def section(make_section: Callable[..., ad.AnnData]) -> ad.AnnData:
    return make_section("hex", n_vars=120)


@pytest.mark.parametrize("scale", [False, True])
def test_equals_scanpy(section: ad.AnnData, scale: bool) -> None:
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


def test_loadings_give_the_scores(section: ad.AnnData) -> None:
    st.pp.normalize(section, n_top_genes=60, n_comps=4)
    x = section.X.toarray().astype(np.float64)
    np.testing.assert_allclose((x - x.mean(axis=0)) @ section.varm["PCs"], section.obsm["X_pca"], atol=1e-3)


@pytest.mark.parametrize("shape", [(300, 900), (900, 400)])
def test_components_of_sparse_counts(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    rate = 0.05 + np.outer(np.arange(shape[0]) % 3 == 0, np.arange(shape[1]) < 60)
    rate += 2 * np.outer(np.arange(shape[0]) % 5 == 0, np.arange(shape[1]) > 350)
    adata = ad.AnnData(sparse.csr_matrix(rng.poisson(rate).astype(np.float32)))
    adata.obsm["spatial"] = rng.random((shape[0], 2))
    st.pp.normalize(adata, n_comps=2)
    x = adata.X.toarray().astype(np.float64)[:, adata.var["highly_variable"]]
    u, s, _ = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(np.abs(adata.obsm["X_pca"]), np.abs(u * s)[:, :2], rtol=1e-3, atol=1e-3)


def test_small_panel_takes_all_seen_genes(section: ad.AnnData) -> None:
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


def test_library_key_ranks_within_sections(make_section: Callable[..., ad.AnnData]) -> None:
    adata = make_section("hex", n_vars=90, libraries=2)
    # the median rank over sections; with a `batch_key`, scanpy 1.12 has other variances than for each section alone
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


def test_tiny_library_is_no_obstacle(make_section: Callable[..., ad.AnnData]) -> None:
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


def test_not_integers(section: ad.AnnData) -> None:
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


def test_layer_and_integer_dtype(section: ad.AnnData) -> None:
    expected = st.pp.normalize(section, n_comps=5, copy=True)
    section.layers["raw"] = section.X.astype(np.int64)
    section.X = None
    st.pp.normalize(section, layer="raw", n_comps=5)
    np.testing.assert_allclose(section.X.toarray(), expected.X.toarray(), rtol=1e-6)
    assert (section.layers["counts"] != section.layers["raw"]).nnz == 0


def test_counts_do_not_share_memory(section: ad.AnnData) -> None:
    st.pp.normalize(section)
    assert not np.shares_memory(section.X.data, section.layers["counts"].data)


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_round_trip(suffix: str, tmp_path: Path, section: ad.AnnData) -> None:
    st.pp.normalize(section, n_comps=5)
    path = tmp_path / f"a.{suffix}"
    getattr(section, f"write_{suffix}")(path)
    back = getattr(ad, f"read_{suffix}")(path)
    np.testing.assert_array_equal(back.obsm["X_pca"], section.obsm["X_pca"])
    np.testing.assert_array_equal(back.varm["PCs"], section.varm["PCs"])
    assert set(back.uns) == set(section.uns) == {"pca", "log1p", "normalize"}
    assert back.uns["normalize"]["params"]["n_comps"] == 5
    assert back.uns["pca"]["params"] == section.uns["pca"]["params"]
    sc.tl.rank_genes_groups(back, "band")  # reads uns["log1p"]


def _break(adata: ad.AnnData, how: str) -> dict:
    if how == "logged":
        sc.pp.normalize_total(adata)
        sc.pp.log1p(adata)
    elif how == "logged, unmarked":
        adata.X = adata.X.log1p()
    elif how == "negative":
        adata.X = adata.X.toarray() - 1
    elif how == "nothing":
        adata.X = sparse.csr_matrix(adata.shape, dtype=np.float32)
    elif how == "nan":
        adata.X.data[0] = np.nan
    elif how == "one gene":
        adata._inplace_subset_var([0])
    elif how == "no layer":
        return {"layer": "nowhere"}
    elif how == "target":
        return {"target_sum": 0}
    return {}


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ("logged", ValueError, "already"),
        ("logged, unmarked", ValueError, "already"),
        ("negative", ValueError, "negative values"),
        ("nothing", ValueError, "No gene is expressed"),
        ("nan", ValueError, "NaN"),
        ("one gene", ValueError, "at least 2"),
        ("no layer", KeyError, "nowhere"),
        ("target", ValueError, "positive"),
    ],
)
def test_errors_leave_no_trace(how: str, error: type, message: str, section: ad.AnnData) -> None:
    kwargs = _break(section, how)
    before = section.copy()
    with pytest.raises(error, match=message):
        st.pp.normalize(section, **kwargs)
    assert list(section.layers) == list(before.layers)
    assert list(section.obsm) == ["spatial"]
    assert list(section.var.columns) == list(before.var.columns)
    assert set(section.uns) == set(before.uns)
    x, y = (a.X.toarray() if sparse.issparse(a.X) else a.X for a in (section, before))
    np.testing.assert_array_equal(x, y)


def test_real_counts(real_section: Callable[[str], ad.AnnData]) -> None:
    adata = real_section("dlpfc_151673")
    st.pp.normalize(adata)
    assert adata.var["highly_variable"].sum() == 2000
    assert adata.obsm["X_pca"].shape == (3639, 20)


def test_real_values_that_are_no_integers(real_section: Callable[[str], ad.AnnData]) -> None:
    adata = real_section("merfish_hypothalamus")
    st.pp.normalize(adata)
    assert np.isfinite(adata.obsm["X_pca"]).all()
