"""pp.align recovers known maps, and improves the agreement of real replicates."""

from __future__ import annotations

from collections.abc import Callable

import anndata as ad
import numpy as np
import pytest
from conftest import assert_same
from scipy.spatial import cKDTree

import stxtools as st


def _linear(angle: float, scale: float, *, flip: bool = False) -> np.ndarray:
    t = np.deg2rad(angle)
    turn = scale * np.array([[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]])
    return turn @ np.diag([-1.0, 1.0]) if flip else turn


def _with_copy(
    adata: ad.AnnData, linear: np.ndarray, shift: tuple[float, float], seed: int | None = None
) -> ad.AnnData:
    """Return the section and a moved copy of it, with fresh sampling noise if there is a seed."""
    moved = adata.copy()
    moved.obsm["spatial"] = np.asarray(adata.obsm["spatial"]) @ linear.T + shift
    if seed is not None:
        moved = st.pp.add_noise(moved, 0.2, kind="counts", random_state=seed, copy=True)
        keep = np.random.default_rng(seed).random(moved.n_obs) < 0.9
        moved = moved[keep].copy()
    return ad.concat({"a": adata, "b": moved}, label="slide", index_unique="-")


def _error(both: ad.AnnData) -> np.ndarray:
    """Distance of moved observations from where they came from, in units of the spacing (100)."""
    names = both.obs_names.str.rsplit("-", n=1).str[0]
    home = dict(zip(names[both.obs["slide"] == "a"], both.obsm["spatial"][both.obs["slide"] == "a"], strict=True))
    moved = (both.obs["slide"] == "b").to_numpy()
    true = np.array([home[n] for n in names[moved]])
    return np.linalg.norm(both.obsm["spatial_aligned"][moved] - true, axis=1) / 100


@pytest.fixture
def tissue(make_section: Callable[..., ad.AnnData]) -> ad.AnnData:
    """Three bands of tissue in an outline without symmetry."""
    adata = make_section("hex", rows=26, cols=22)
    x, y = adata.obsm["spatial"].T
    return adata[(x + 0.6 * y < 2700) & (y > 0.4 * x - 300)].copy()


@pytest.mark.parametrize(("angle", "scale"), [(180, 1.0), (37, 0.9), (-100, 1.1), (0, 1.0)])
def test_known_map_is_recovered(angle: float, scale: float, tissue: ad.AnnData) -> None:
    both = _with_copy(tissue, _linear(angle, scale), (4000.0, -700.0), seed=1)
    assert st.pp.align(both, library_key="slide") is None
    assert np.median(_error(both)) < 1
    found = both.uns["align"]
    assert found["reference"] == "a"
    np.testing.assert_array_equal(found["matrices"]["a"], np.eye(2, 3))
    matrix, moved = found["matrices"]["b"], (both.obs["slide"] == "b").to_numpy()
    xy = both.obsm["spatial"][moved]
    np.testing.assert_allclose(both.obsm["spatial_aligned"][moved], xy @ matrix[:, :2].T + matrix[:, 2])
    np.testing.assert_array_equal(both.obsm["spatial_aligned"][~moved], both.obsm["spatial"][~moved])
    assert 0.8 < found["score"]["b"]["overlap"] <= 1
    assert 0.5 < found["score"]["b"]["correlation"] <= 1


def test_affine_recovers_shear_and_rigid_only_rotates(tissue: ad.AnnData) -> None:
    shear = _linear(50, 1.0) @ np.array([[1.06, 0.04], [0.0, 0.97]])
    both = _with_copy(tissue, shear, (10.0, 20.0))
    st.pp.align(both, library_key="slide", method="affine")
    assert np.median(_error(both)) < 1
    st.pp.align(both, library_key="slide", method="rigid")
    linear = both.uns["align"]["matrices"]["b"][:, :2]
    np.testing.assert_allclose(linear @ linear.T, np.eye(2), atol=1e-9)
    assert np.linalg.det(linear) == pytest.approx(1)


def test_align_never_reflects_a_section(tissue: ad.AnnData) -> None:
    both = _with_copy(tissue, _linear(70, 1.0, flip=True), (10.0, 20.0))
    st.pp.align(both, library_key="slide")
    assert np.linalg.det(both.uns["align"]["matrices"]["b"][:, :2]) > 0


@pytest.mark.parametrize("method", ["rigid", "similarity", "affine"])
def test_landmarks_give_the_exact_map_and_its_inverse(method: str, tissue: ad.AnnData) -> None:
    linear = _linear(-140, 1.0 if method == "rigid" else 1.3)
    if method == "affine":
        linear = linear @ np.array([[1.0, 0.3], [0.0, 0.8]])
    both = _with_copy(tissue, linear, (500.0, 0.0))
    marks = np.array([[0.0, 0], [900, 100], [300, 1500], [800, 900]])
    landmarks = {"a": marks, "b": marks @ linear.T + [500.0, 0.0]}
    st.pp.align(both, "a", library_key="slide", landmarks=landmarks, method=method)
    assert _error(both).max() < 1e-6
    assert both.uns["align"]["score"]["b"]["rmse"] < 1e-6
    back = st.pp.align(both, "b", library_key="slide", landmarks=landmarks, method=method, copy=True)
    there, home = both.uns["align"]["matrices"]["b"], back.uns["align"]["matrices"]["a"]
    np.testing.assert_allclose(home[:, :2] @ there + np.c_[np.zeros((2, 2)), home[:, 2]], np.eye(2, 3), atol=1e-6)


def test_landmarks_of_a_reflected_section_raise(tissue: ad.AnnData) -> None:
    linear = _linear(20, 1.2, flip=True)
    both = _with_copy(tissue, linear, (5.0, 6.0))
    marks = np.array([[0.0, 0], [900, 100], [300, 1500]])
    landmarks = {"a": marks, "b": marks @ linear.T + [5.0, 6.0]}
    with pytest.raises(ValueError, match="upside down"):
        st.pp.align(both, library_key="slide", landmarks=landmarks, method="affine")


def test_one_section_maps_onto_itself_with_a_warning(tissue: ad.AnnData) -> None:
    with pytest.warns(UserWarning, match="the column that names them as `library_key=`"):
        st.pp.align(tissue)
    np.testing.assert_array_equal(tissue.obsm["spatial_aligned"], tissue.obsm["spatial"])


_MARKS = [[0.0, 0], [1, 0], [0, 1]]


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"library_key": "nowhere"}, KeyError, "nowhere"),
        ({"reference": "c"}, KeyError, "not a section"),
        ({"method": "elastic"}, ValueError, "choose one of"),
        ({"landmarks": [1, 2]}, TypeError, "must map"),
        ({"landmarks": {"a": _MARKS}}, KeyError, "'b'"),
        ({"landmarks": {"a": _MARKS, "b": _MARKS[:2]}}, ValueError, "same ones"),
        ({"landmarks": {"a": [[0, 0]], "b": [[0, 0]]}}, ValueError, "at least 2"),
        ({"landmarks": {"a": [[0, 0, 1]], "b": [[0, 0, 1]]}}, ValueError, "expected"),
        ({"landmarks": {"a": [[0, 0], [1, 1], [2, 2]], "b": _MARKS}, "method": "affine"}, ValueError, "not on a line"),
        ({"use_rep": "nowhere"}, KeyError, "nowhere"),
        ({"library_key": "lonely"}, ValueError, "too few"),
    ],
)
def test_wrong_arguments_raise_and_change_nothing(kwargs: dict, error: type, message: str, tissue: ad.AnnData) -> None:
    both = _with_copy(tissue, _linear(10, 1.0), (0.0, 0.0))
    both.obs["lonely"] = ["x"] + ["y"] * (both.n_obs - 1)
    before = both.copy()
    with pytest.raises(error, match=message):
        st.pp.align(both, **{"library_key": "slide", **kwargs})
    assert_same(before, both)


def test_coordinates_too_far_from_zero_raise(tissue: ad.AnnData) -> None:
    both = _with_copy(tissue, _linear(37, 0.9), (4000.0, -700.0), seed=1)
    both.obsm["spatial"] = both.obsm["spatial"] + 1e18
    with pytest.raises(ValueError, match="too far from 0"):
        st.pp.align(both, library_key="slide")


def _agreement(both: ad.AnnData, key: str) -> float:
    """Mean correlation of log expression between each spot and the nearest one of the other section."""
    out = st.pp.normalize(both, copy=True)
    x = out.X[:, out.var["highly_variable"].to_numpy()].toarray()
    one = (both.obs["slide"] == "a").to_numpy()
    _, nearest = cKDTree(both.obsm[key][one]).query(both.obsm[key][~one])
    a, b = x[one] - x[one].mean(axis=0), x[~one] - x[~one].mean(axis=0)
    a = a[nearest]
    return float(((a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).mean())


def test_real_replicates_agree_better_after_alignment(real_section: Callable[[str], ad.AnnData]) -> None:
    sections = {name: real_section(f"st_mouse_olfactory_bulb_MOB{i}") for i, name in enumerate("ab", start=1)}
    both = ad.concat(sections, label="slide", index_unique="-")
    st.pp.align(both, library_key="slide")
    before, after = _agreement(both, "spatial"), _agreement(both, "spatial_aligned")
    assert after > before + 0.2
    assert both.uns["align"]["score"]["b"]["overlap"] > 0.9
