"""tl.biomarkers by blocks of genes and out of core: the same table to the bit, in bounded memory."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata.experimental import read_elem_lazy
from hypothesis import given
from hypothesis import strategies as some
from scipy import sparse

import stxtools as st
from stxtools._data import chunks as _chunks
from stxtools._data.expression import GeneBlocks, gene_slices

h5py = pytest.importorskip("h5py")
HOW: dict[str, Any] = {"n_null": 66, "show_progress": False}
CALLS: dict[str, dict[str, Any]] = {
    "total": {},
    "reference": {"reference": "b"},
    "composition": {"covariates": ["composition", "x"]},
    "libraries": {"library_key": "library"},
}


@pytest.fixture(scope="module")
def tissue() -> ad.AnnData:
    """Three bands with markers of their own, in two sections whose observations are mixed."""
    rng = np.random.default_rng(0)
    xy = np.stack(np.meshgrid(np.arange(24.0), np.arange(24.0)), -1).reshape(-1, 2)
    band = (xy[:, 0] + 3 * np.sin(xy[:, 1] / 4)).astype(int).clip(0, 23) // 8
    rate = np.tile(rng.gamma(1.0, 1.0, 50), (len(xy), 1))
    for k in range(3):
        rate[band == k, 6 * k : 6 * k + 6] *= 3
    out = ad.AnnData(sparse.csr_matrix(rng.poisson(rate).astype(np.float32)))
    out.obs_names, out.var_names = [f"o{i}" for i in range(len(xy))], [f"g{i}" for i in range(50)]
    out.obsm["spatial"] = xy
    out.obs["band"] = pd.Categorical(np.array(list("abc"))[band])
    out.obs["two"] = pd.Categorical(np.where(band == 0, "in", "out"))
    out.obs["library"] = pd.Categorical(np.where(xy[:, 1] < 12, "l0", "l1"))
    out.obs["sick"] = pd.Categorical(np.where(xy[:, 1] // 6 < 2, "yes", "no"))
    out.obs["quarter"] = pd.Categorical((xy[:, 1] // 6).astype(int).astype(str))
    out.obs["x"] = xy[:, 0]
    return out[rng.permutation(out.n_obs)].copy()


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five blocks of genes or so, chunks of 200 observations."""
    monkeypatch.setattr(st.settings, "max_memory", 64 * 5000 / 2**30)
    monkeypatch.setattr("stxtools._data.chunks.rows_per_chunk", lambda n_vars: 200)


def _table(adata: ad.AnnData, groupby: str = "band", **kwargs: Any) -> pd.DataFrame:
    out = adata if _chunks.is_out_of_core(adata.X) else adata.copy()
    st.tl.biomarkers(out, groupby, **HOW, **kwargs)
    return out.uns["biomarkers"]


def _stored(adata: ad.AnnData, kind: str, folder: Path) -> ad.AnnData:
    path = folder / f"x.{'zarr' if 'zarr' in kind else 'h5ad'}"
    if "zarr" in kind:
        zarr = pytest.importorskip("zarr")
        adata.write_zarr(path)
        stored = zarr.open(str(path), mode="r")["X"]
    else:
        adata.write_h5ad(path)
        if kind == "backed h5ad":
            return ad.read_h5ad(path, backed="r")
        stored = h5py.File(path, "r")["X"]
    out = ad.AnnData(obs=adata.obs.copy(), var=adata.var.copy(), obsm={"spatial": adata.obsm["spatial"]})
    lazy = "dask" in kind
    out.X = read_elem_lazy(stored, chunks=(190, adata.n_vars)) if lazy else ad.io.sparse_dataset(stored)
    return out


@pytest.mark.parametrize("call", CALLS)
def test_blocks_of_genes_change_nothing(tissue, call, little_memory, monkeypatch):
    seen: set[tuple[int, int]] = set()
    block = GeneBlocks.block
    monkeypatch.setattr(
        GeneBlocks, "block", lambda self, genes: seen.add((genes.start, genes.stop)) or block(self, genes)
    )
    found = _table(tissue, **CALLS[call])
    assert len(seen) > 3
    seen.clear()
    monkeypatch.setattr(st.settings, "max_memory", 2.0)
    pd.testing.assert_frame_equal(found, _table(tissue, **CALLS[call]), check_exact=True)
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("kind", "call"),
    [
        ("backed h5ad", "total"),
        ("backed zarr", "composition"),
        ("dask h5ad", "composition"),
        ("dask zarr", "total"),
        ("dask h5ad", "libraries"),
    ],
)
def test_out_of_core_equals_in_memory(tissue, tmp_path, kind, call, little_memory):
    lazy = _stored(tissue, kind, tmp_path)
    assert _chunks.is_out_of_core(lazy.X)
    pd.testing.assert_frame_equal(_table(lazy, **CALLS[call]), _table(tissue, **CALLS[call]), check_exact=True)
    assert _chunks.is_out_of_core(lazy.X)


def test_between_libraries(tissue, tmp_path, little_memory, monkeypatch):
    lazy = _stored(tissue, "dask h5ad", tmp_path)
    kwargs = {"groupby": "sick", "library_key": "quarter"}
    found = _table(lazy, **kwargs)
    monkeypatch.setattr(st.settings, "max_memory", 2.0)
    pd.testing.assert_frame_equal(found, _table(tissue, **kwargs), check_exact=True)
    assert (found["n_libraries"].max(), found["group"].nunique()) == (4, 1)


@pytest.mark.slow
def test_two_workers_give_the_same(tissue, tmp_path, little_memory):
    distributed = pytest.importorskip("distributed")
    backed, dask = _stored(tissue, "backed h5ad", tmp_path), _stored(tissue, "dask zarr", tmp_path)
    how: dict[str, Any] = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with distributed.LocalCluster(**how) as cluster, distributed.Client(cluster) as client:
        tables = [_table(backed), _table(dask)]
        worked = client.run(lambda dask_worker: dask_worker.state.task_counter.current_count())
    assert len(worked) == 2
    for table in tables:
        pd.testing.assert_frame_equal(table, _table(tissue), check_exact=True)


def test_never_is_all_expression_in_memory(tissue, tmp_path, little_memory, monkeypatch):
    lazy = _stored(tissue, "backed h5ad", tmp_path)
    read, blocks = [], []
    to_csr, block = _chunks.to_csr, GeneBlocks.block

    def seen(matrix: Any) -> Any:
        out = to_csr(matrix)
        read.append(out.shape[0])
        return out

    def given_out(self: GeneBlocks, genes: slice) -> Any:
        out = block(self, genes)
        blocks.append(out.nnz)
        return out

    monkeypatch.setattr(_chunks, "to_csr", seen)
    monkeypatch.setattr(GeneBlocks, "block", given_out)
    _table(lazy, covariates="composition")
    assert max(read) <= 200
    assert max(blocks) <= 5000 < tissue.X.nnz / 3


def test_thinning_out_of_core_is_refused(tissue, tmp_path):
    work = tissue.copy()
    record = {"call": "tl.segment", "slots": ["obs/segment"], "versions": {"stxtools": "0"}}
    work.uns["segment"] = {"params": record}
    work.obs["segment"] = work.obs["band"]
    lazy = _stored(work, "dask h5ad", tmp_path)
    lazy.uns["segment"] = work.uns["segment"]
    with pytest.raises(ValueError, match=r"out of core.*to_memory.*protect=None"):
        st.tl.biomarkers(lazy, "segment", **HOW)
    assert list(lazy.uns) == ["segment"]
    with pytest.warns(UserWarning, match="optimistic"):
        st.tl.biomarkers(lazy, "segment", protect=None, **HOW)


@pytest.mark.parametrize("kwargs", [{}, {"covariates": "composition"}, {"library_key": "library"}])
def test_a_group_and_its_complement_give_together_what_each_gives_alone(tissue, kwargs):
    both = _table(tissue, "two", groups=["in", "out"], **kwargs)
    for group in ("in", "out"):
        alone = _table(tissue, "two", groups=[group], **kwargs)
        pd.testing.assert_frame_equal(both[both["group"] == group].reset_index(drop=True), alone, check_exact=True)
    one, other = (part.set_index("names")["scores"] for _, part in both.groupby("group"))
    np.testing.assert_allclose(one, -other[one.index], rtol=1e-12)


@given(some.lists(some.integers(0, 50), min_size=1, max_size=60), some.floats(0.5, 500))
def test_slices_cover_every_gene_once_and_are_small(seen, most):
    slices = gene_slices(np.array(seen), most)
    assert [slices[0].start, slices[-1].stop] == [0, len(seen)]
    assert all(a.stop == b.start for a, b in pairwise(slices))
    assert all(s.start < s.stop for s in slices)
    if sum(seen) <= most:
        assert len(slices) == 1
    assert all(sum(seen[s]) <= most or s.stop - s.start == 1 for s in slices)


def test_variable_genes_of_a_large_matrix_come_from_a_part_of_it(tissue, monkeypatch):
    """The cap does not depend on how expression is stored or divided."""
    monkeypatch.setattr("stxtools.tl._biomarkers._probe.N_TOP_GENES", 30)
    monkeypatch.setattr("stxtools._data.representation.N_TOP_GENES", 30)
    whole = _table(tissue, "two")
    for limit in ("tl._biomarkers._probe._MOST", "_data.expression.MAX_SAMPLED"):
        monkeypatch.setattr(f"stxtools.{limit}", tissue.X.nnz // 2)
    part = _table(tissue, "two")
    monkeypatch.setattr(st.settings, "max_memory", 64 * 5000 / 2**30)
    pd.testing.assert_frame_equal(_table(tissue, "two"), part, check_exact=True)
    both = [t.set_index(["group", "names"])["attribution"] for t in (whole, part)]
    assert np.corrcoef(both[0], both[1][both[0].index])[0, 1] > 0.95
