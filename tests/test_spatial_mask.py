"""Label images of observations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stxtools._spatial.mask import REACH_SCATTERED, render_mask


def _square(rows: int, cols: int, s: float, shift: float = 0.0) -> np.ndarray:
    r, c = (a.ravel() for a in np.mgrid[:rows, :cols])
    return np.c_[c, r] * s + shift


def test_every_observation_finds_its_value() -> None:
    xy = _square(12, 9, 137.0, 3000.0)
    values = np.arange(1, len(xy) + 1)
    mask, scale = render_mask(xy, values, 137.0)
    assert mask.dtype == np.uint32
    assert scale == pytest.approx(4 / 137)
    for rounding in (np.floor, np.rint):
        col, row = rounding(xy * scale).astype(int).T
        np.testing.assert_array_equal(mask[row, col], values)
    assert mask[0, 0] == 0
    assert mask[: int(2900 * scale)].max() == 0


def test_nearest_by_brute_force() -> None:
    rng = np.random.default_rng(0)
    xy, values = rng.uniform(0, 50, (60, 2)), rng.integers(1, 4, 60)
    mask, scale = render_mask(xy, values, 5.0, reach=REACH_SCATTERED)
    y, x = np.mgrid[: mask.shape[0], : mask.shape[1]] / scale
    distance = np.hypot(x[..., None] - xy[:, 0], y[..., None] - xy[:, 1])
    expected = np.where(distance.min(axis=-1) < 7.5, values[distance.argmin(axis=-1)], 0)
    np.testing.assert_array_equal(mask, expected)


@settings(max_examples=30, deadline=None)
@given(far=st.floats(0, 1e5), spacing=st.floats(0.01, 500), max_side=st.integers(32, 300), n=st.integers(1, 30))
def test_size_is_bounded_and_nothing_is_outside(far: float, spacing: float, max_side: int, n: int) -> None:
    xy = np.random.default_rng(n).uniform(0, 20 * spacing, (n, 2)) + np.array([far, 0])
    mask, scale = render_mask(xy, np.ones(n, dtype=int), spacing, max_side=max_side)
    assert max(mask.shape) <= max_side
    for rounding in (np.floor, np.rint):
        col, row = rounding(xy * scale).astype(int).T
        assert (mask[row, col] == 1).all()


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    xy = _square(10, 10, 10.0)
    values = np.arange(1, 101)
    whole, _ = render_mask(xy, values, 10.0)
    monkeypatch.setattr("stxtools._spatial.mask._BLOCK", 100)
    tiled, _ = render_mask(xy, values, 10.0)
    np.testing.assert_array_equal(whole, tiled)


def test_covers_the_full_image() -> None:
    xy = _square(5, 5, 20.0, 100.0)
    mask, scale = render_mask(xy, np.ones(25, dtype=int), 20.0, full_shape_px=(600, 400))
    assert mask.shape[0] >= 600 * scale
    assert mask.shape[1] >= 400 * scale


@pytest.mark.parametrize(
    ("xy", "values", "spacing", "message"),
    [
        ([[-1.0, 0]], [1], 1.0, "Shift"),
        ([[1.0, 0]], [-1], 1.0, "negative"),
        ([[1.0, 0]], [1, 2], 1.0, "one value"),
        ([[1.0, 0]], [1], 0.0, "positive"),
    ],
)
def test_errors(xy: list, values: list, spacing: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        render_mask(np.array(xy), np.array(values), spacing)
