"""Label images of observations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stxtools._spatial.mask import REACH_SCATTERED, Frame, render_mask, tissue_frame


def _square(rows: int, cols: int, s: float, shift: float = 0.0) -> np.ndarray:
    r, c = (a.ravel() for a in np.mgrid[:rows, :cols])
    return np.c_[c, r] * s + shift


def _pixels(xy: np.ndarray, frame: Frame) -> tuple[np.ndarray, ...]:
    column, row = np.rint((xy - np.array(frame.origin)) * frame.scale).astype(int).T
    return row, column


@pytest.mark.parametrize("shift", [0.0, 3000.0, 1e6, -1e4])
def test_mask_holds_the_value_at_every_observation_for_any_offset(shift: float) -> None:
    xy = _square(12, 9, 137.0, shift)
    values = np.arange(1, len(xy) + 1)
    frame = tissue_frame(xy, 137.0)
    mask = render_mask(xy, values, 137.0, frame)
    assert mask.dtype == np.uint32
    assert frame.scale == pytest.approx(4 / 137)
    np.testing.assert_array_equal(mask[_pixels(xy, frame)], values)
    assert (mask > 0).mean() > 0.8, "the image is where the tissue is"
    assert mask[0, 0] == 0


def test_pixels_have_the_value_of_the_nearest_observation() -> None:
    rng = np.random.default_rng(0)
    xy, values = rng.uniform(-20, 30, (60, 2)), rng.integers(1, 4, 60)
    frame = tissue_frame(xy, 5.0, margin=REACH_SCATTERED)
    mask = render_mask(xy, values, 5.0, frame, reach=REACH_SCATTERED)
    y, x = np.mgrid[: mask.shape[0], : mask.shape[1]] / frame.scale
    distance = np.hypot(x[..., None] + frame.origin[0] - xy[:, 0], y[..., None] + frame.origin[1] - xy[:, 1])
    expected = np.where(distance.min(axis=-1) < 7.5, values[distance.argmin(axis=-1)], 0)
    np.testing.assert_array_equal(mask, expected)


@settings(max_examples=30, deadline=None)
@given(far=st.floats(-1e5, 1e5), spacing=st.floats(0.01, 500), max_side=st.integers(32, 300), n=st.integers(1, 30))
def test_mask_size_is_bounded_and_covers_every_observation(far: float, spacing: float, max_side: int, n: int) -> None:
    xy = np.random.default_rng(n).uniform(0, 20 * spacing, (n, 2)) + np.array([far, 0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stxtools._spatial.mask._MAX_SIDE", max_side)
        frame = tissue_frame(xy, spacing)
    mask = render_mask(xy, np.ones(n, dtype=int), spacing, frame)
    assert max(mask.shape) <= max_side
    assert (mask[_pixels(xy, frame)] == 1).all()


def test_mask_does_not_depend_on_the_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    xy = _square(10, 10, 10.0)
    values, frame = np.arange(1, 101), tissue_frame(xy, 10.0)
    whole = render_mask(xy, values, 10.0, frame)
    monkeypatch.setattr("stxtools._spatial.mask._BLOCK", 100)
    np.testing.assert_array_equal(whole, render_mask(xy, values, 10.0, frame))


def test_mask_has_the_shape_and_scale_of_a_given_image() -> None:
    xy = _square(5, 5, 20.0, 100.0)
    mask = render_mask(xy, np.ones(25, dtype=int), 20.0, Frame((60, 40), 0.1))
    assert mask.shape == (60, 40)
    assert mask[14, 14] == 1
    assert mask[:8].max() == 0
