"""tl.biomarkers by blocks of genes and out of core: the same table to the bit, in bounded memory."""

from __future__ import annotations

from importlib import import_module
from itertools import pairwise
from typing import Any
from weakref import WeakSet

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from conftest import grid_positions, poisson_section
from hypothesis import given
from hypothesis import strategies as some
from test_tl_chunks import _stored

import stxtools as st
from stxtools._data import chunks as _chunks
from stxtools._data.expression import GeneBlocks, gene_slices

HOW: dict[str, Any] = {"n_null": 66, "show_progress": False}
CALLS: dict[str, dict[str, Any]] = {
    "total": {},
    "reference": {"reference": "b"},
    "composition": {"covariates": ["composition", "x"]},
    "libraries": {"library_key": "library"},
    "between": {"groupby": "sick", "library_key": "quarter"},
}


@pytest.fixture(scope="module")
def tissue() -> ad.AnnData:
    """Three bands with markers, in two sections whose rows are interleaved."""
    rng = np.random.default_rng(0)
    xy = grid_positions(24)
    band = (xy[:, 0] + 3 * np.sin(xy[:, 1] / 4)).astype(int).clip(0, 23) // 8
    rate = np.tile(rng.gamma(1.0, 1.0, 50), (len(xy), 1))
    for k in range(3):
        rate[band == k, 6 * k : 6 * k + 6] *= 3
    out = poisson_section(
        rate, xy, rng, band=np.array(list("abc"))[band], two=np.where(band == 0, "in", "out"),
        library=np.where(xy[:, 1] < 12, "l0", "l1"), sick=np.where(xy[:, 1] // 6 < 2, "yes", "no"),
        quarter=(xy[:, 1] // 6).astype(int).astype(str), x=xy[:, 0],
    )  # fmt: skip
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


@pytest.mark.parametrize("call", CALLS)
def test_number_of_gene_blocks_does_not_change_the_table(tissue, call, little_memory, monkeypatch):
    blocks: set[tuple[int, int]] = set()
    block = GeneBlocks.block
    monkeypatch.setattr(
        GeneBlocks, "block", lambda self, genes: blocks.add((genes.start, genes.stop)) or block(self, genes)
    )
    found = _table(tissue, **CALLS[call])
    assert len(blocks) > 3
    blocks.clear()
    monkeypatch.setattr(st.settings, "max_memory", 2.0)
    pd.testing.assert_frame_equal(found, _table(tissue, **CALLS[call]), check_exact=True)
    assert len(blocks) == 1


@pytest.mark.parametrize(
    ("kind", "call"),
    [("backed", "total"), ("backed_zarr", "composition"), ("dask", "composition"), ("zarr", "total"),
     ("backed", "libraries"), ("dask", "between")],
)  # fmt: skip
def test_out_of_core_equals_in_memory(tissue, tmp_path, kind, call, little_memory):
    lazy = _stored(tissue, kind, tmp_path)
    assert _chunks.is_out_of_core(lazy.X)
    pd.testing.assert_frame_equal(_table(lazy, **CALLS[call]), _table(tissue, **CALLS[call]), check_exact=True)
    assert _chunks.is_out_of_core(lazy.X)


def test_rows_read_are_linear_in_the_number_of_sections(tissue, monkeypatch):
    read = []
    to_csr = _chunks.to_csr
    monkeypatch.setattr(_chunks, "to_csr", lambda matrix: read.append(matrix.shape[0]) or to_csr(matrix))

    def rows_per_observation(n_copies: int) -> float:
        many = ad.concat([tissue] * n_copies, label="copy", index_unique="-")
        many.obs["library"] = many.obs["library"].astype(str) + many.obs["copy"].astype(str)
        read.clear()
        _table(many, library_key="library")
        return sum(read) / many.n_obs

    assert rows_per_observation(4) <= 1.1 * rows_per_observation(1)


def test_second_moments_of_a_section_are_held_while_it_is_tested(tissue, little_memory, monkeypatch):
    space = import_module("stxtools.stats._region_test").ExpressionSpace
    held, numbers, components = WeakSet(), [], space.components

    def recorded(self: Any, *args: Any, **kwargs: Any) -> Any:
        held.add(self)
        numbers.append(len(held))
        return components(self, *args, **kwargs)

    monkeypatch.setattr(space, "components", recorded)
    table = _table(tissue, library_key="quarter")
    assert set(numbers) == {1}
    assert table["n_libraries"].max() == 4


@pytest.mark.slow
def test_two_dask_workers_give_the_same_table(tissue, tmp_path, little_memory):
    distributed = pytest.importorskip("distributed")
    backed, dask = _stored(tissue, "backed", tmp_path), _stored(tissue, "zarr", tmp_path)
    how: dict[str, Any] = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with distributed.LocalCluster(**how) as cluster, distributed.Client(cluster) as client:
        tables = [_table(backed), _table(dask)]
        worked = client.run(lambda dask_worker: dask_worker.state.task_counter.current_count())
    assert len(worked) == 2
    for table in tables:
        pd.testing.assert_frame_equal(table, _table(tissue), check_exact=True)


def test_expression_is_read_in_chunks_of_rows_and_blocks_of_genes(tissue, tmp_path, little_memory, monkeypatch):
    lazy = _stored(tissue, "backed", tmp_path)
    read, blocks = [], []
    to_csr, block = _chunks.to_csr, GeneBlocks.block
    monkeypatch.setattr(_chunks, "to_csr", lambda matrix: read.append(to_csr(matrix)) or read[-1])
    monkeypatch.setattr(GeneBlocks, "block", lambda self, genes: blocks.append(block(self, genes)) or blocks[-1])
    _table(lazy, covariates="composition")
    assert max(part.shape[0] for part in read) <= 200
    assert max(part.nnz for part in blocks) <= 5000 < tissue.X.nnz / 3


def test_thinning_out_of_core_is_an_error(tissue, tmp_path):
    lazy = _stored(tissue, "dask", tmp_path)
    record = {"call": "tl.segment", "slots": ["obs/segment"], "versions": {"stxtools": "0"}}
    lazy.obs["segment"], lazy.uns["segment"] = lazy.obs["band"], {"params": record}
    with pytest.raises(ValueError, match=r"out of core.*to_memory.*protect=None"):
        st.tl.biomarkers(lazy, "segment", **HOW)
    assert list(lazy.uns) == ["segment"]
    with pytest.warns(UserWarning, match="optimistic"):
        st.tl.biomarkers(lazy, "segment", protect=None, **HOW)


@pytest.mark.parametrize("kwargs", [{}, {"covariates": "composition"}, {"library_key": "library"}])
def test_group_and_complement_mirror_each_other_together_and_alone(tissue, kwargs):
    both = _table(tissue, "two", groups=["in", "out"], **kwargs)
    for group in ("in", "out"):
        alone = _table(tissue, "two", groups=[group], **kwargs)
        pd.testing.assert_frame_equal(both[both["group"] == group].reset_index(drop=True), alone, check_exact=True)
    one, other = (part.set_index("names").filter(like="scores") for _, part in both.groupby("group"))
    np.testing.assert_allclose(one, -other.loc[one.index], rtol=1e-12)


@given(some.lists(some.integers(0, 50), min_size=1, max_size=60), some.floats(0.5, 500))
def test_gene_slices_cover_every_gene_once_within_the_limit(sizes, most):
    slices = gene_slices(np.array(sizes), most)
    assert [slices[0].start, slices[-1].stop] == [0, len(sizes)]
    assert all(a.stop == b.start for a, b in pairwise(slices))
    assert all(s.start < s.stop for s in slices)
    if sum(sizes) <= most:
        assert len(slices) == 1
    assert all(sum(sizes[s]) <= most or s.stop - s.start == 1 for s in slices)


def test_variable_genes_of_a_large_matrix_come_from_a_sample_of_it(tissue, monkeypatch):
    """The sample does not depend on how expression is divided."""
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
