"""Tiles give what the whole raster gives; windows are cut from occupied pixels only."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stxtools import settings
from stxtools.nn._augment import Augmentation
from stxtools.nn._tiles import LARGEST_TILE, PixelRaster, predict_pixels, tile_margin, tile_side
from stxtools.nn._unet import SegmentationNet, UNet
from stxtools.nn._views import WHOLE, RandomViews, view_loader, whole_loader


def _raster(shape: tuple[int, int], channels: int, share: float, seed: int = 0) -> PixelRaster:
    generator = torch.Generator().manual_seed(seed)
    flat = torch.nonzero(torch.rand(shape[0] * shape[1], generator=generator) < share)[:, 0]
    return PixelRaster(shape, flat, torch.randn((len(flat), channels), generator=generator))


def _net(depth: int, kernel_size: int = 3, sigmas: tuple[float, ...] = (0.0, 1.0, 2.0)) -> SegmentationNet:
    torch.manual_seed(depth)
    return SegmentationNet(UNet(4, width=6, depth=depth, kernel_size=kernel_size, sigmas=sigmas), 5).eval()


def _untiled(net: SegmentationNet, raster: PixelRaster) -> tuple[torch.Tensor, torch.Tensor]:
    """The whole raster made by hand and sent through the network at once."""
    x = torch.zeros(raster.x.shape[1], raster.shape[0] * raster.shape[1])
    occupied = torch.zeros(1, raster.shape[0] * raster.shape[1])
    x[:, raster.flat], occupied[:, raster.flat] = raster.x.T, 1.0
    with torch.no_grad():
        logits, features = net(x.reshape(1, -1, *raster.shape), occupied.reshape(1, 1, *raster.shape))
    flat = raster.flat
    return logits[0].flatten(1)[:, flat].softmax(dim=0).T, features[0].flatten(1)[:, flat].T


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
@pytest.mark.parametrize("shape", [(97, 131), (150, 61), (33, 210)])
def test_tiled_equals_untiled(depth: int, shape: tuple[int, int]) -> None:
    net, raster = _net(depth), _raster(shape, 4, 0.8)
    proba, features = predict_pixels(net, raster, torch.device("cpu"), side=32)
    expected, expected_features = _untiled(net, raster)
    assert torch.allclose(proba, expected, atol=1e-5)
    # where hardly anything lies, the norm over channels divides the rounding of the convolutions by a small number
    assert torch.allclose(features, expected_features, atol=2e-4)
    assert torch.equal(proba.argmax(dim=1), expected.argmax(dim=1))


@pytest.mark.parametrize(("kernel_size", "sigmas"), [(5, (0.0,)), (7, (0.0, 3.0)), (3, (1.5,))])
def test_tiled_equals_untiled_for_other_filters_and_empty_tiles(kernel_size: int, sigmas: tuple[float, ...]) -> None:
    net, raster = _net(2, kernel_size, sigmas), _raster((140, 150), 4, 0.6)
    keep = (raster.flat // 150 < 60) | (raster.flat % 150 > 120)  # a hole of several tiles
    raster = PixelRaster(raster.shape, raster.flat[keep], raster.x[keep])
    proba, _ = predict_pixels(net, raster, torch.device("cpu"), side=16)
    assert torch.allclose(proba, _untiled(net, raster)[0], atol=1e-5)


def test_less_context_than_the_receptive_field_shows() -> None:
    net, raster = _net(2), _raster((96, 96), 4, 0.9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stxtools.nn._tiles.tile_margin", lambda unet: 4)
        proba, _ = predict_pixels(net, raster, torch.device("cpu"), side=32)
    assert (proba - _untiled(net, raster)[0]).abs().max() > 1e-4


def test_receptive_field_is_an_upper_bound_of_the_reach() -> None:
    for depth in (0, 1, 2, 3):
        net, raster = _net(depth), _raster((161, 161), 4, 1.0)
        changed = PixelRaster(raster.shape, raster.flat, raster.x.clone())
        changed.x[80 * 161 + 80] += 100.0
        difference = (_untiled(net, raster)[1] - _untiled(net, changed)[1]).abs().amax(dim=1)
        row, col = changed.pixels[difference > 1e-5].T
        reach = int(torch.maximum((row - 80).abs(), (col - 80).abs()).max())
        assert 0 < reach <= net.unet.receptive_field


def test_window_is_the_slice_of_the_whole_raster_padded_with_nothing() -> None:
    raster = _raster((23, 31), 3, 0.5)
    raster.target = torch.rand(len(raster.flat), 2)
    raster.weight = torch.rand(len(raster.flat))
    whole = raster.whole()
    padded = torch.nn.functional.pad(whole.x, (40, 40, 40, 40))
    for top, left, height, width in [(0, 0, 23, 31), (5, 7, 9, 11), (-4, 20, 12, 30), (18, -9, 20, 15), (30, 40, 4, 4)]:
        window = raster.window(top, left, height, width)
        assert torch.equal(window.x, padded[:, top + 40 : top + 40 + height, left + 40 : left + 40 + width])
        assert window.occupied.shape == (1, height, width)
        assert window.target is not None
        assert window.target.shape == (2, height, width)
        assert window.val_weight is None
    assert whole.weight is not None
    assert whole.weight.flatten()[raster.flat].tolist() == raster.weight.tolist()


def test_views_of_a_large_section_are_those_of_its_window() -> None:
    """A view cut from a window differs from one cut from the dense raster by rounding alone."""
    raster = _raster((400, 380), 3, 0.9)
    views = RandomViews([raster], 32, 6, Augmentation(), seed=3)
    near = [views[i] for i in range(6)]
    views.reach = 10_000  # the window is now the whole raster
    for got, expected in zip(near, (views[i] for i in range(6)), strict=True):
        agree = got["present"] == expected["present"]
        assert agree.float().mean() > 0.999  # a weight can lie on the threshold
        both = (agree & (got["present"] > 0)).expand_as(got["clean"])
        assert torch.allclose(got["clean"][both], expected["clean"][both], atol=2e-3)


def test_validation_of_a_large_section_reads_a_bounded_number_of_pixels() -> None:
    raster = _raster((600, 500), 2, 0.9)
    raster.target = torch.ones(len(raster.flat), 1)
    raster.weight = torch.ones(len(raster.flat))
    raster.val_weight = (torch.arange(len(raster.flat)) % 10 == 0).float()
    loader = whole_loader([raster])
    assert loader is not None
    batches = list(loader)
    assert sum(b[0].shape[-1] * b[0].shape[-2] for b in batches) <= WHOLE
    assert all(float(b[3].sum()) > 0 for b in batches)
    small = _raster((60, 50), 2, 0.9)
    small.target, small.weight = torch.ones(len(small.flat), 1), torch.ones(len(small.flat))
    small.val_weight = torch.ones(len(small.flat))
    whole = list(whole_loader([small]) or [])
    assert [b[0].shape[-2:] for b in whole] == [(60, 50)]


def test_memory_setting_bounds_the_tile() -> None:
    unet = UNet(20, width=24, depth=2)
    before = settings.max_memory
    try:
        settings.max_memory = 64
        assert tile_side(unet, 20) == LARGEST_TILE
        settings.max_memory = 0.1
        small = tile_side(unet, 20)
        assert small < LARGEST_TILE
        assert small % unet.stride == 0
        settings.max_memory = 1e-6
        assert tile_side(unet, 20) >= unet.stride
        with pytest.raises(TypeError, match="positive number of GB"):
            settings.max_memory = 0
    finally:
        settings.max_memory = before
    assert tile_margin(unet) >= unet.receptive_field


def test_tiles_must_begin_on_the_stride_and_hold_something() -> None:
    net = _net(2)
    with pytest.raises(ValueError, match="multiple of the U-Net's stride, 4"):
        predict_pixels(net, _raster((50, 50), 4, 1.0), torch.device("cpu"), side=30)
    empty = PixelRaster((8, 8), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    with pytest.raises(ValueError, match="no occupied pixel"):
        predict_pixels(net, empty, torch.device("cpu"), side=4)


def test_views_do_not_depend_on_the_order_in_which_they_are_drawn() -> None:
    raster = _raster((90, 70), 2, 0.7)
    raster.target, raster.weight = torch.rand(len(raster.flat), 3), torch.ones(len(raster.flat))
    loader = view_loader([raster], size=32, steps=2, batch_size=2, how=Augmentation(), seed=1)
    first = list(loader)
    dataset = loader.dataset
    again = [dataset[i] for i in (3, 2, 1, 0)]
    assert torch.equal(first[1]["x"][1], again[0]["x"])
    assert torch.equal(first[0]["target"][0], again[3]["target"])
    assert np.isfinite(first[0]["weight"].numpy()).all()
