"""pp.split_counts: sums, independence, marginals, names, errors."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
from conftest import assert_same
from hypothesis import given, settings
from hypothesis import strategies as hs
from scipy import sparse, stats

import stxtools as st


def _poisson(mean: float = 3.0, shape: tuple[int, int] = (400, 50), seed: int = 0) -> ad.AnnData:
    counts = np.random.default_rng(seed).poisson(mean, shape)
    out = ad.AnnData(sparse.csr_matrix(counts.astype(np.float32)))
    out.obsm["spatial"] = np.random.default_rng(1).uniform(0, 100, (shape[0], 2))
    return out


@given(
    counts=hs.lists(hs.integers(0, 1000), min_size=1, max_size=30),
    fraction=hs.floats(0.01, 0.99),
    seed=hs.integers(0, 100),
)
@settings(max_examples=50, deadline=None)
def test_parts_add_up(counts, fraction, seed):
    adata = ad.AnnData(sparse.csr_matrix(np.array([[*counts, 1]], dtype=np.float32)))
    st.pp.split_counts(adata, fraction, random_state=seed)
    first, second = adata.layers["split_train"], adata.layers["split_test"]
    np.testing.assert_array_equal((first + second).toarray(), adata.X.toarray())
    for part in (first, second):
        assert part.dtype == adata.X.dtype
        assert (part.data > 0).all()


def test_parts_of_poisson_counts_are_poisson_and_independent():
    adata = _poisson(shape=(2000, 20))
    st.pp.split_counts(adata, 0.3)
    train, test = (adata.layers[k].toarray().ravel() for k in ("split_train", "split_test"))
    for part, mean in ((train, 0.9), (test, 2.1)):
        assert part.mean() == pytest.approx(mean, rel=0.02)
        assert part.var() == pytest.approx(mean, rel=0.03)
        values = np.arange(8)
        expected = stats.poisson.pmf(values, mean)
        found = np.array([(part == v).mean() for v in values])
        np.testing.assert_allclose(found, expected, atol=0.01)
    assert abs(np.corrcoef(train, test)[0, 1]) < 4 / np.sqrt(train.size)
    table = np.histogram2d(np.minimum(train, 3), np.minimum(test, 5), bins=[4, 6])[0]
    assert stats.chi2_contingency(table).pvalue > 1e-3


def test_parts_of_overdispersed_counts_correlate_as_documented():
    rng, mean, dispersion = np.random.default_rng(0), 4.0, 0.5
    counts = rng.poisson(mean * rng.gamma(1 / dispersion, dispersion, (100_000, 1)))
    adata = ad.AnnData(sparse.csr_matrix(counts.astype(np.float32)))
    st.pp.split_counts(adata)
    first, second = (adata.layers[k].toarray().ravel() for k in ("split_train", "split_test"))
    excess = dispersion * mean
    assert np.corrcoef(first, second)[0, 1] == pytest.approx(excess / (2 + excess), abs=0.01)


def test_split_depends_on_names_and_not_on_row_order_or_storage():
    adata = _poisson(shape=(60, 9))
    adata.X.data[::5] = 0  # zeros that are stored
    other = adata[np.random.default_rng(0).permutation(adata.n_obs)].copy()
    other.X = other.X.toarray()
    for work in (adata, other):
        st.pp.split_counts(work)
    found = other[adata.obs_names].layers["split_train"]
    np.testing.assert_array_equal(found, adata.layers["split_train"].toarray())
    assert 0 < found.sum() < adata.X.sum()


def test_key_added_names_the_layers_and_params():
    adata = _poisson(shape=(30, 8))
    adata.layers["raw"] = adata.X.toarray()
    st.pp.split_counts(adata, layer="raw", key_added="halves", random_state=3)
    assert isinstance(adata.layers["halves_train"], np.ndarray)
    params = adata.uns["halves"]["params"]
    assert (params["train"], params["test"], params["layer"]) == ("halves_train", "halves_test", "raw")
    assert params["fraction"] == 0.5


def test_same_seed_same_split_of_the_counts_layer():
    adata = _poisson()
    adata.layers["counts"] = adata.X.copy()
    adata.X = adata.X.log1p()
    one = st.pp.split_counts(adata, copy=True)
    two, three = st.pp.split_counts(adata, copy=True), st.pp.split_counts(adata, random_state=1, copy=True)
    assert "split_train" not in adata.layers
    assert (one.layers["split_train"] != two.layers["split_train"]).nnz == 0
    assert (one.layers["split_train"] != three.layers["split_train"]).nnz > 0
    assert (one.layers["split_train"] + one.layers["split_test"] != adata.layers["counts"]).nnz == 0


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"fraction": 0}, ValueError, "empty"),
        ({"fraction": 1.0}, ValueError, "empty"),
        ({"fraction": 1.5}, ValueError, "out of range"),
        ({"layer": "nope"}, KeyError, "nope"),
        ({"layer": "log"}, ValueError, "integer counts"),
        ({"key_added": "a/b"}, ValueError, "/"),
        ({"random_state": -1}, ValueError, "random_state"),
    ],
)
def test_wrong_arguments_raise_and_change_nothing(kwargs, error, match):
    adata = _poisson(shape=(20, 5))
    adata.layers["log"] = adata.X.log1p()
    before = adata.copy()
    with pytest.raises(error, match=match):
        st.pp.split_counts(adata, **kwargs)
    assert_same(before, adata)
