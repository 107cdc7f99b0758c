"""Out-of-core expression gives the same numbers as expression in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata.experimental import read_elem_lazy, read_lazy
from scipy import sparse
from sklearn.decomposition import PCA

import stxtools as st
from stxtools._data.expression import Expression

h5py = pytest.importorskip("h5py")
KINDS = ("csr", "csc", "dense", "backed", "backed_csc", "backed_dense", "dask", "dask_columns", "zarr")


def _stored(adata: ad.AnnData, kind: str, folder: Path) -> ad.AnnData:
    """The same section with ``X`` of another type, or in a file."""
    matrix = {"csc": sparse.csc_matrix, "backed_csc": sparse.csc_matrix}.get(kind, sparse.csr_matrix)(adata.X)
    out = ad.AnnData(
        matrix.toarray() if kind in ("dense", "backed_dense") else matrix,
        obs=adata.obs.copy(),
        var=adata.var.copy(),
        obsm={"spatial": adata.obsm["spatial"].copy()},
    )
    if kind in ("backed", "backed_csc", "backed_dense", "dask"):
        out.write_h5ad(folder / f"{kind}.h5ad")
    if kind in ("backed", "backed_csc", "backed_dense"):
        return ad.read_h5ad(folder / f"{kind}.h5ad", backed="r")
    if kind == "dask":
        out.X = read_elem_lazy(h5py.File(folder / f"{kind}.h5ad")["X"], chunks=(60, adata.n_vars))
    if kind == "dask_columns":
        out.X = pytest.importorskip("dask.array").from_array(adata.X.toarray(), chunks=(70, 11))
    if kind.endswith("zarr"):
        zarr = pytest.importorskip("zarr")
        out.write_zarr(folder / "x.zarr")
        stored = zarr.open(str(folder / "x.zarr"))["X"]
        out.X = read_elem_lazy(stored) if kind == "zarr" else ad.io.sparse_dataset(stored)
    return out


def is_out_of_core(matrix: Any) -> bool:
    return not isinstance(matrix, (np.ndarray, sparse.spmatrix, sparse.sparray))


@pytest.fixture
def section(make_section: Callable[..., ad.AnnData]) -> ad.AnnData:
    return make_section("hex", rows=16, cols=14)


@pytest.fixture
def new(make_section: Callable[..., ad.AnnData]) -> ad.AnnData:
    """A section that a model has not seen."""
    return make_section("hex", rows=14, cols=18, seed=5)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stxtools._data.chunks.rows_per_chunk", lambda n_vars: 50)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", ["counts", "linear", "log"])
def test_log_expression_equals_that_in_memory(
    section: ad.AnnData, tmp_path: Path, small_chunks: None, kind: str, scale: str
) -> None:
    if scale == "linear":
        section.X = section.X * np.float32(7.3)
    if scale == "log":
        section.X = st.pp.normalize(section, copy=True).X
    stored = _stored(section, kind, tmp_path)
    assert is_out_of_core(stored.X) == (kind not in ("csr", "csc", "dense"))
    for adata in (section, stored):
        st.tl.region_graph(adata, "band", max_size=20)
    found, expected = stored.uns["regions"], section.uns["regions"]
    assert found.uns["params"]["expression_scale"] == expected.uns["params"]["expression_scale"] == scale
    np.testing.assert_array_equal(found.X.toarray(), expected.X.toarray())
    logged = section if scale == "log" else st.pp.normalize(section, copy=True)
    region = pd.get_dummies(section.obs["region_id"])[list(expected.obs_names)].to_numpy(dtype=float)
    mean = region.T @ logged.X.toarray() / region.sum(axis=0)[:, None]
    np.testing.assert_allclose(expected.X.toarray(), mean, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("values", "scale"),
    [((9, 1), "counts"), ((1, 4.5), "log"), ((4.5, 99.5), "linear"), ((9, 99.5), "linear")],
)
def test_scale_is_detected_over_all_chunks(
    section: ad.AnnData, tmp_path: Path, small_chunks: None, values: tuple[float, float], scale: str
) -> None:
    section.X.data[:] = 1
    for row, value in zip((0, section.n_obs - 1), values, strict=True):  # of the first chunk and of the last
        section.X[row, section.X[row].indices[0]] = value
    lazy = _stored(section, "backed", tmp_path)
    st.tl.region_graph(lazy, "band")
    assert lazy.uns["regions"].uns["params"]["expression_scale"] == scale


def test_negative_value_in_a_late_chunk_is_an_error(section: ad.AnnData, tmp_path: Path, small_chunks: None) -> None:
    section.X.data[-1] = -1
    with pytest.raises(ValueError, match="negative values"):
        st.tl.biomarkers(_stored(section, "backed", tmp_path), "band", n_null=50)


@pytest.fixture
def model(section: ad.AnnData, quick_unet: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "model.stx"
    st.tl.segment(section, 3, params=quick_unet, save_model=path)
    return path


def _assert_same_segments(lazy: ad.AnnData, in_memory: ad.AnnData) -> None:
    assert is_out_of_core(lazy.X)
    assert in_memory.obs["segment"].tolist() == lazy.obs["segment"].tolist()
    for key in ("X_unet", "segment_proba"):
        np.testing.assert_array_equal(in_memory.obsm[key], lazy.obsm[key])


@pytest.mark.parametrize("kind", ["backed", "backed_csc", "dask", "zarr"])
def test_model_applied_out_of_core_equals_in_memory(
    new: ad.AnnData, model: Path, tmp_path: Path, small_chunks: None, kind: str
) -> None:
    lazy = _stored(new, kind, tmp_path)
    for adata in (new, lazy):
        st.tl.segment(adata, model=model)
    _assert_same_segments(lazy, new)


def test_training_on_a_small_matrix_out_of_core_equals_in_memory(
    section: ad.AnnData, quick_unet: dict[str, Any], tmp_path: Path, small_chunks: None
) -> None:
    lazy = _stored(section, "backed", tmp_path)
    for adata in (section, lazy):
        st.tl.segment(adata, 3, params=quick_unet)
    _assert_same_segments(lazy, section)


def test_batches_in_a_stored_representation_do_not_load_the_file(
    line: ad.AnnData, quick_unet: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lazy, library = _stored(line, "backed", tmp_path), line.obs["library"].cat.codes.to_numpy()
    lazy.obsm["X_pca"] = np.random.default_rng(0).normal(size=(line.n_obs, 5)) + 50.0 * library[:, None]
    monkeypatch.setattr("stxtools._data.expression.to_csr", None)  # that would
    st.tl.segment(lazy, 2, params=quick_unet, library_key="library", key_added="found")
    assert lazy.obs["found"].nunique() == 2


def test_training_on_a_large_matrix_uses_components_of_a_sample(
    section: ad.AnnData, quick_unet: dict[str, Any], tmp_path: Path, small_chunks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They equal scikit-learn's; the training with them equals that in memory."""
    taken, sample = [], Expression.sample
    monkeypatch.setattr("stxtools._data.expression.MAX_SAMPLED", section.X.nnz // 2)
    monkeypatch.setattr(Expression, "sample", lambda *args: taken.append(sample(*args)) or taken[-1])
    lazy = _stored(section, "dask", tmp_path)
    st.tl.segment(lazy, 3, params=quick_unet, save_model=tmp_path / "few.stx")
    found = st.models.load(tmp_path / "few.stx").projection
    assert found is not None
    assert found.gene_scale is None
    assert section.n_obs // 3 < taken[0].shape[0] < section.n_obs
    depth = float(np.median(np.asarray(section.X.sum(axis=1))))  # of all observations
    assert found.target_sum == pytest.approx(depth)

    def logged(counts: sparse.csr_matrix) -> np.ndarray:
        return np.log1p(counts.toarray() / np.asarray(counts.sum(axis=1)) * depth)

    pca = PCA(found.components.shape[1]).fit(logged(taken[0]))
    np.testing.assert_allclose(found.mean, pca.mean_, rtol=1e-5)
    products = found.components.T @ pca.components_.T
    np.testing.assert_allclose(np.abs(products), np.eye(len(products)), atol=1e-3)
    section.obsm["X_pca"] = (logged(section.X) - found.mean) @ found.components
    st.tl.segment(section, 3, params=quick_unet, use_rep="X_pca")
    np.testing.assert_allclose(section.obsm["segment_proba"], lazy.obsm["segment_proba"], atol=1e-4)


def test_read_lazy_works_with_obs_and_var_in_memory(new: ad.AnnData, model: Path, tmp_path: Path) -> None:
    pytest.importorskip("xarray")
    new.write_zarr(tmp_path / "new.zarr")
    lazy = read_lazy(str(tmp_path / "new.zarr"))
    with pytest.raises(TypeError, match="to_memory"):
        st.tl.segment(lazy, model=model)
    lazy.obs, lazy.var = lazy.obs.to_memory(), lazy.var.to_memory()
    for adata in (new, lazy):
        st.tl.segment(adata, model=model)
    _assert_same_segments(lazy, new)


@pytest.mark.slow
def test_two_dask_workers_give_the_same_segments(
    new: ad.AnnData, model: Path, tmp_path: Path, small_chunks: None
) -> None:
    distributed = pytest.importorskip("distributed")
    backed, dask = _stored(new, "backed", tmp_path), _stored(new, "dask", tmp_path)
    st.tl.segment(new, model=model)
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        st.tl.segment(backed, model=model)
        st.tl.segment(dask, model=model)
        worked = client.run(lambda dask_worker: dask_worker.state.task_counter.current_count())
    assert len(worked) == 2
    for lazy in (backed, dask):
        _assert_same_segments(lazy, new)


def test_nan_in_a_late_chunk_is_an_error_and_nothing_is_written(new: ad.AnnData, model: Path, tmp_path: Path) -> None:
    new.X.data[-1] = np.nan
    lazy = _stored(new, "dask", tmp_path)
    with pytest.raises(ValueError, match="NaN or infinite"):
        st.tl.segment(lazy, model=model)
    assert list(lazy.obs.columns) == list(new.obs.columns)
    assert "segment" not in lazy.uns


@pytest.mark.parametrize("kind", ["dask", "dask_columns", "zarr"])
def test_normalize_keeps_a_dask_array_out_of_core(section: ad.AnnData, tmp_path: Path, kind: str) -> None:
    lazy = _stored(section, kind, tmp_path)
    for adata in (section, lazy):
        st.pp.normalize(adata, n_top_genes=8, n_comps=3, scale=True)
    assert is_out_of_core(lazy.X)
    assert is_out_of_core(lazy.layers["counts"])
    lazy.write_h5ad(tmp_path / "lazy.h5ad")
    back = ad.read_h5ad(tmp_path / "lazy.h5ad")
    for name in ("counts", None):
        np.testing.assert_array_equal(*(np.asarray(a.to_df(name)) for a in (back, section)))
    assert isinstance(back.X, np.ndarray) == (kind == "dask_columns")
    pd.testing.assert_frame_equal(back.var, section.var)
    np.testing.assert_array_equal(lazy.obsm["X_pca"], section.obsm["X_pca"])


def test_normalize_projects_a_large_dask_array_on_components_of_a_sample(
    section: ad.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stxtools._data.expression.MAX_SAMPLED", section.X.nnz // 2)
    lazy = _stored(section, "dask", tmp_path)
    st.pp.normalize(lazy, n_comps=3, scale=True)
    st.pp.normalize(section, n_comps=3)
    np.testing.assert_array_equal(lazy.X.compute().toarray(), section.X.toarray())
    logged, scores = section.X.toarray(), lazy.obsm["X_pca"]
    weights = np.linalg.lstsq(np.c_[logged, np.ones(len(logged))], scores, rcond=None)[0]
    np.testing.assert_allclose(np.c_[logged, np.ones(len(logged))] @ weights, scores, atol=1e-4)
    deviation = np.tile(logged.std(axis=0, ddof=1)[:, None], 3)
    np.testing.assert_allclose(lazy.varm["PCs"] / weights[:-1], deviation, rtol=0.1)  # that of the sample


def test_evaluate_out_of_core_equals_in_memory(section: ad.AnnData, tmp_path: Path) -> None:
    lazy = _stored(section, "dask", tmp_path)
    for adata in (section, lazy):
        st.tl.evaluate(adata, ["lda"], region_key="band", n_folds=3, n_seeds=1, show_progress=False)
    np.testing.assert_allclose(*(st.get.evaluation(adata, "accuracy")["mean"] for adata in (lazy, section)))
