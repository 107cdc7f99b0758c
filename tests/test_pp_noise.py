"""pp.add_noise: standard deviation, reproducibility, and no effect on the original layers."""

from __future__ import annotations

from collections.abc import Callable

import anndata as ad
import numpy as np
import pytest
from conftest import assert_same
from scipy import sparse

import stxtools as st


@pytest.fixture
def counts(make_section: Callable[..., ad.AnnData]) -> ad.AnnData:
    return make_section("hex", rows=40, cols=40, n_vars=40)


@pytest.mark.parametrize("block", [50, 4_000_000])
def test_count_noise_keeps_depth(counts: ad.AnnData, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr("stxtools._data.noise._BLOCK", block)  # molecules redistributed at a time
    out = st.pp.add_noise(counts, 0.2, kind="counts", copy=True)
    np.testing.assert_array_equal(out.X.sum(axis=1), counts.X.sum(axis=1))
    assert (out.X.data > 0).all()
    assert (out.X.data == np.rint(out.X.data)).all()
    assert out.X.dtype == counts.X.dtype
    total = counts.X.sum()
    assert out.X.minimum(counts.X).sum() < total  # something moved
    kept = (counts.X - out.X).maximum(0).sum() / total
    assert 0 < kept <= 0.2


def test_noise_on_8_bit_counts_does_not_overflow() -> None:
    adata = ad.AnnData(np.full((60, 4), 250, dtype=np.uint8))
    adata.X[::2] = 200
    moved = st.pp.add_noise(adata, 0.2, kind="counts", copy=True)
    np.testing.assert_array_equal(moved.X.sum(axis=1), adata.X.sum(axis=1))
    assert moved.X.max() > 255
    assert st.pp.add_noise(adata, 0.2, copy=True).X.min() > 150  # a standard deviation is 25


def test_count_noise_of_level_1_draws_from_the_mean_profile(counts: ad.AnnData) -> None:
    out = st.pp.add_noise(counts, 1.0, kind="counts", copy=True)
    profile = np.asarray(counts.X.sum(axis=0)).ravel()
    drawn = np.asarray(out.X.sum(axis=0)).ravel()
    np.testing.assert_allclose(drawn, profile, atol=5 * np.sqrt(profile.max()))
    # in each band of tissue, too: what was its own is gone
    band = (counts.obs["band"] == "a").to_numpy()
    share = np.asarray(out.X[band].sum(axis=0)).ravel() / out.X[band].sum()
    np.testing.assert_allclose(share, profile / profile.sum(), atol=0.003)


@pytest.mark.parametrize("level", [0.05, 0.2])
def test_count_noise_has_the_stated_expectation(counts: ad.AnnData, level: float) -> None:
    """Expectation of a gene: (1 - level) of its own + level * depth * its share."""
    draws = [st.pp.add_noise(counts, level, kind="counts", random_state=s, copy=True).X for s in range(20)]
    mean = np.asarray(sum(d[:300].toarray() for d in draws)) / 20
    share = np.asarray(counts.X.sum(axis=0)).ravel() / counts.X.sum()
    own = counts.X[:300].toarray()
    expected = (1 - level) * own + level * own.sum(axis=1, keepdims=True) * share
    assert np.abs((mean - expected).mean(axis=0)).max() < 0.05


@pytest.mark.parametrize("level", [0.1, 0.5])
def test_gaussian_noise_has_the_stated_standard_deviation(counts: ad.AnnData, level: float) -> None:
    st.pp.normalize(counts)
    out = st.pp.add_noise(counts, level, copy=True)
    clean, noised = counts.X.toarray(), out.X.toarray()
    assert (noised[clean == 0] == 0).all()
    assert (noised >= 0).all()
    sd = clean.std(axis=0)
    far = clean > 5 * level * sd  # where the clip at 0 plays no part
    change = ((noised - clean) / (level * sd))[far]
    assert abs(change.mean()) < 0.02
    assert change.std() == pytest.approx(1, rel=0.03)


def test_gaussian_noise_on_counts_keeps_integers(counts: ad.AnnData) -> None:
    out = st.pp.add_noise(counts, 0.3, copy=True)
    assert (out.X.data == np.rint(out.X.data)).all()
    assert (out.X.data > 0).all()
    high = counts.X.toarray() > 5
    assert abs((out.X.toarray() - counts.X.toarray())[high].mean()) < 0.05


def test_gaussian_noise_on_z_scores_is_not_clipped(counts: ad.AnnData) -> None:
    dense = counts.X.toarray()
    counts.X = (dense - dense.mean(axis=0)) / dense.std(axis=0)
    out = st.pp.add_noise(counts, 0.2, copy=True)
    assert isinstance(out.X, np.ndarray)
    assert (out.X - counts.X).std() == pytest.approx(0.2, rel=0.02)


def test_noise_on_a_representation_leaves_expression_unchanged(counts: ad.AnnData) -> None:
    st.pp.normalize(counts, n_comps=6)
    out = st.pp.add_noise(counts, 0.1, use_rep="X_pca", copy=True)
    change = out.obsm["X_pca"] - counts.obsm["X_pca"]
    np.testing.assert_allclose(change.std(axis=0), 0.1 * counts.obsm["X_pca"].std(axis=0), rtol=0.1)
    assert (out.X != counts.X).nnz == 0
    assert st.pp.add_noise(counts, 0.1, use_rep="X_pca") is None
    np.testing.assert_array_equal(counts.obsm["noise"], out.obsm["X_pca"])


def test_level_zero_changes_nothing(counts: ad.AnnData) -> None:
    for kind in ("gaussian", "counts"):
        out = st.pp.add_noise(counts, 0, kind=kind, copy=True)
        assert (out.X != counts.X).nnz == 0
        assert sparse.issparse(out.X)


def test_noise_is_written_to_a_layer_and_x_is_kept(counts: ad.AnnData) -> None:
    before = counts.X.copy()
    assert st.pp.add_noise(counts, 0.1, kind="counts", key_added="noisy") is None
    assert (before != counts.X).nnz == 0
    assert (counts.layers["noisy"] != before).nnz > 0
    assert counts.uns["noisy"]["params"]["level"] == 0.1
    dense = counts.copy()
    dense.X = counts.X.toarray()
    st.pp.add_noise(dense, 0.1, kind="counts", key_added="noisy")
    np.testing.assert_array_equal(dense.layers["noisy"], counts.layers["noisy"].toarray())


def test_same_seed_same_noise(counts: ad.AnnData) -> None:
    for kind in ("gaussian", "counts"):
        one, two, other = (st.pp.add_noise(counts, 0.2, kind=kind, random_state=s, copy=True).X for s in (1, 1, 2))
        assert (one != two).nnz == 0
        assert (one != other).nnz > 0


def test_copy_holds_no_values_without_noise(counts: ad.AnnData) -> None:
    st.pp.normalize(counts)
    counts.raw = counts
    gaussian = st.pp.add_noise(counts, 0.2, copy=True)
    assert gaussian.raw is None
    assert "counts" not in gaussian.layers
    assert "X_pca" not in gaussian.obsm
    molecules = st.pp.add_noise(counts, 0.2, kind="counts", copy=True)
    assert (molecules.layers["counts"] != molecules.X).nnz == 0
    assert (counts.layers["counts"] != molecules.X).nnz > 0
    assert "log1p" not in molecules.uns
    st.pp.normalize(molecules)
    assert "counts" in counts.layers
    assert "X_pca" in counts.obsm
    assert counts.raw is not None


@pytest.mark.parametrize(
    ("level", "kwargs", "error", "message"),
    [
        (1.5, {}, ValueError, "at most 1"),
        (-0.1, {}, ValueError, "at least 0"),
        ("10%", {}, TypeError, "number"),
        (0.1, {"kind": "salt"}, ValueError, "choose one of"),
        (0.1, {"layer": "nowhere"}, KeyError, "nowhere"),
        (0.1, {"use_rep": "nowhere"}, KeyError, "nowhere"),
        (0.1, {"use_rep": np.ones(2)}, TypeError, "must be a string"),
        (0.1, {"use_rep": "X_pca", "kind": "counts"}, ValueError, "cannot be combined"),
        (0.1, {"layer": "halves", "kind": "counts"}, ValueError, "integer counts"),
        (0.1, {"key_added": "a/b"}, ValueError, "/"),
    ],
)
def test_wrong_arguments_raise_and_change_nothing(
    level, kwargs: dict, error: type, message: str, counts: ad.AnnData
) -> None:
    counts.layers["halves"] = counts.X / 2
    before = counts.copy()
    with pytest.raises(error, match=message):
        st.pp.add_noise(counts, level, **kwargs)
    assert_same(before, counts)
