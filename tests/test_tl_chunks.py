"""Expression that is not in memory gives the same numbers as expression that is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
from anndata.experimental import read_elem_lazy, read_lazy
from scipy import sparse

import stxtools as st
from stxtools import settings
from stxtools._data.chunks import is_out_of_core, map_rows, rows_per_chunk
from stxtools._data.expression import Expression, Survey, log_chunks, log_expression

h5py = pytest.importorskip("h5py")
KINDS = ("csr", "csc", "dense", "backed", "backed_csc", "backed_dense", "dask", "dask_columns", "zarr")


def _stored(adata: ad.AnnData, kind: str, folder: Path) -> ad.AnnData:
    """The same section with ``X`` kept in one of many ways."""
    matrix = {"csc": sparse.csc_matrix, "backed_csc": sparse.csc_matrix}.get(kind, sparse.csr_matrix)(adata.X)
    out = ad.AnnData(
        matrix.toarray() if kind in ("dense", "backed_dense") else matrix,
        obs=adata.obs.copy(),
        var=adata.var.copy(),
        obsm={"spatial": adata.obsm["spatial"].copy()},
    )
    if kind.startswith("backed") or kind == "dask":
        out.write_h5ad(folder / f"{kind}.h5ad")
    if kind.startswith("backed"):
        return ad.read_h5ad(folder / f"{kind}.h5ad", backed="r")
    if kind == "dask":
        out.X = read_elem_lazy(h5py.File(folder / f"{kind}.h5ad")["X"], chunks=(60, adata.n_vars))
    if kind == "dask_columns":
        out.X = pytest.importorskip("dask.array").from_array(adata.X.toarray(), chunks=(70, 11))
    if kind == "zarr":
        zarr = pytest.importorskip("zarr")
        out.write_zarr(folder / "x.zarr")
        out.X = read_elem_lazy(zarr.open(str(folder / "x.zarr"))["X"])
    return out


@pytest.fixture
def section(make_section: Callable[..., ad.AnnData]) -> ad.AnnData:
    return make_section("hex", rows=16, cols=14)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stxtools._data.chunks.rows_per_chunk", lambda n_vars: 50)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", ["counts", "linear", "log"])
def test_log_expression_is_that_in_memory(
    section: ad.AnnData, tmp_path: Path, small_chunks: None, kind: str, scale: str
) -> None:
    if scale == "linear":
        section.X = section.X * np.float32(7.3)
    if scale == "log":
        section.X = log_expression(section)
    expected = log_expression(section)
    found = Expression(_stored(section, kind, tmp_path), in_memory=False)
    assert is_out_of_core(found.matrix) == (kind not in ("csr", "csc", "dense"))
    assert found.scale == Expression(section).scale == scale
    chunks = list(log_chunks(found, lambda logged, rows: logged))
    np.testing.assert_array_equal(sparse.vstack(chunks).toarray(), expected.toarray())
    np.testing.assert_array_equal(found.survey.seen, (section.X != 0).sum(axis=0).A1)


def test_chunks_are_in_order_and_cover_every_row_once(section: ad.AnnData, tmp_path: Path) -> None:
    for kind in ("backed", "dask", "csr"):
        matrix = _stored(section, kind, tmp_path).X
        rows = map_rows(matrix, lambda chunk, rows: (rows, chunk.shape[0]), n_rows=33)
        assert [r.start for r, _ in rows] == sorted(r.start for r, _ in rows)
        assert sum(n for _, n in rows) == section.n_obs
        assert all(r.stop - r.start == n for r, n in rows)
        assert len(rows) > 1


def test_rows_of_a_chunk_follow_the_setting() -> None:
    before = settings.max_memory
    try:
        settings.max_memory = 1
        assert rows_per_chunk(1000) == 2**30 // 4 // 8000
        settings.max_memory = 1e-9
        assert rows_per_chunk(1000) == 256
    finally:
        settings.max_memory = before


def test_scale_is_that_of_all_chunks_together() -> None:
    def of(*rows: list[float]) -> Survey:
        return Survey.of(sparse.csr_matrix(list(rows)))

    counts, low, high = of([9, 1, 0]), of([0, 4.5, 1]), of([0, 99.5, 1])
    assert Survey.joined([counts, counts]).scale == "counts"
    assert Survey.joined([counts, low]).scale == "log"
    assert Survey.joined([low, high, counts]).scale == "linear"
    assert Survey.joined([counts, of([-1, 9, 2])]).scale == "scaled"
    assert of([0, 0, 0]).scale == "counts"
    np.testing.assert_array_equal(Survey.joined([counts, low]).depth, [10, 5.5])
    np.testing.assert_array_equal(Survey.joined([counts, low]).seen, [1, 2, 1])


@pytest.fixture
def model(section: ad.AnnData, quick_unet: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "model.stx"
    st.tl.segment(section, 3, params=quick_unet, save_model=path)
    return path


@pytest.mark.parametrize("kind", ["backed", "backed_csc", "dask", "zarr"])
def test_model_applied_out_of_core_equals_in_memory(
    make_section: Callable[..., ad.AnnData], model: Path, tmp_path: Path, small_chunks: None, kind: str
) -> None:
    new = make_section("hex", rows=14, cols=18, seed=5)
    lazy = _stored(new, kind, tmp_path)
    st.tl.segment(new, model=model)
    st.tl.segment(lazy, model=model)
    assert is_out_of_core(lazy.X)
    assert new.obs["segment"].tolist() == lazy.obs["segment"].tolist()
    np.testing.assert_array_equal(new.obsm["X_unet"], lazy.obsm["X_unet"])
    np.testing.assert_array_equal(new.obsm["segment_proba"], lazy.obsm["segment_proba"])


def test_read_lazy_works_once_the_tables_are_read(
    make_section: Callable[..., ad.AnnData], model: Path, tmp_path: Path
) -> None:
    pytest.importorskip("xarray")
    new = make_section("hex", rows=14, cols=18, seed=5)
    new.write_zarr(tmp_path / "new.zarr")
    lazy = read_lazy(str(tmp_path / "new.zarr"))
    with pytest.raises(TypeError, match="to_memory"):
        st.tl.segment(lazy, model=model)
    lazy.obs, lazy.var = lazy.obs.to_memory(), lazy.var.to_memory()
    st.tl.segment(new, model=model)
    st.tl.segment(lazy, model=model)
    assert is_out_of_core(lazy.X)
    np.testing.assert_array_equal(new.obsm["segment_proba"], lazy.obsm["segment_proba"])


@pytest.mark.parametrize("processes", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_workers_give_the_same(
    make_section: Callable[..., ad.AnnData], model: Path, tmp_path: Path, small_chunks: None, processes: bool
) -> None:
    distributed = pytest.importorskip("distributed")
    new = make_section("hex", rows=14, cols=18, seed=5)
    backed, dask = _stored(new, "backed", tmp_path), _stored(new, "dask", tmp_path)
    st.tl.segment(new, model=model)
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=processes, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        st.tl.segment(backed, model=model)
        st.tl.segment(dask, model=model)
        worked = client.run(lambda dask_worker: dask_worker.state.task_counter.current_count())
    assert len(worked) == 2
    for lazy in (backed, dask):
        np.testing.assert_array_equal(new.obsm["segment_proba"], lazy.obsm["segment_proba"])


def test_nan_in_a_late_chunk_is_reported_and_nothing_written(
    make_section: Callable[..., ad.AnnData], model: Path, tmp_path: Path
) -> None:
    new = make_section("hex", rows=14, cols=18, seed=5)
    new.X.data[-1] = np.nan
    lazy = _stored(new, "dask", tmp_path)
    with pytest.raises(ValueError, match="NaN or infinite"):
        st.tl.segment(lazy, model=model)
    assert list(lazy.obs.columns) == list(new.obs.columns)
    assert "segment" not in lazy.uns


def test_other_calls_read_what_is_out_of_core(section: ad.AnnData, tmp_path: Path) -> None:
    section.obs["band"] = section.obs["band"].astype("category")
    lazy = _stored(section, "dask", tmp_path)
    for adata in (section, lazy):
        st.tl.region_graph(adata, "band", max_size=20)
        st.tl.biomarkers(adata, "band", n_null=50)
    regions, expected = lazy.uns["regions"], section.uns["regions"]
    np.testing.assert_array_equal(regions.X.toarray(), expected.X.toarray())
    assert lazy.uns["biomarkers"].equals(section.uns["biomarkers"])
