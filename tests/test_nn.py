"""U-Net, message passing, losses and augmentation against hand-computed or independent results."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch.nn import functional as F

from stxtools import settings
from stxtools.nn import (
    LARGEST_TILE,
    MAX_VALIDATION_PIXELS,
    Augmentation,
    ChannelNorm,
    GaussianPyramid,
    PixelRaster,
    PyramidMLP,
    RandomViews,
    SegmentationNet,
    Task,
    Training,
    UNet,
    affine_grid,
    block_mask,
    default_epochs,
    nt_xent,
    predict_pixels,
    resample,
    run_training,
    seeded,
    soft_cross_entropy,
    tile_margin,
    tile_side,
    validation_loader,
)


def unet(**kwargs) -> UNet:
    with seeded(0):
        return UNet(3, **({"width": 8, "depth": 2, "dropout": 0.0} | kwargs)).eval()


@pytest.mark.parametrize("shape", [(1, 1), (7, 13), (32, 20)])
@pytest.mark.parametrize("kernel_size", [3, 5])
def test_unet_keeps_the_shape_of_the_raster(shape, kernel_size):
    out = unet(kernel_size=kernel_size)(torch.randn(2, 3, *shape), torch.ones(2, 1, *shape))
    assert out.shape == (2, 8, *shape)
    assert torch.isfinite(out).all()


def test_unet_starts_with_he_and_its_head_with_xavier_weights():
    with seeded(0):
        net = SegmentationNet(UNet(20, width=32, depth=1), 5)
    conv = net.unet.down[0].body[0]
    assert float(conv.weight.std()) == pytest.approx(math.sqrt(2 / (32 * 9)), rel=0.05)
    bound = math.sqrt(6 / (32 + 5))
    assert 0.9 * bound < float(net.head.weight.abs().max()) <= bound
    assert float(conv.bias.abs().max()) == 0


def test_channel_norm_is_layer_norm_per_pixel():
    x = torch.randn(2, 6, 4, 5)
    expected = F.layer_norm(x.permute(0, 2, 3, 1), (6,)).permute(0, 3, 1, 2)
    torch.testing.assert_close(ChannelNorm(6)(x), expected)


def test_gaussian_pyramid_equals_scipy_over_occupied_pixels():
    rng = np.random.default_rng(0)
    x, occupied = rng.normal(size=(12, 15)), (rng.random((12, 15)) > 0.3).astype(float)
    top = gaussian_filter(x * occupied, 1.5, mode="constant", radius=4)
    expected = top / gaussian_filter(occupied, 1.5, mode="constant", radius=4)
    out = GaussianPyramid([0, 1.5])(
        torch.tensor(x, dtype=torch.float32)[None, None], torch.tensor(occupied, dtype=torch.float32)[None, None]
    )
    np.testing.assert_allclose(out[0, 0], x * occupied, atol=1e-6)
    np.testing.assert_allclose(out[0, 1], expected, atol=1e-5)
    assert torch.allclose(
        GaussianPyramid([2.0])(torch.ones(1, 1, 6, 6), torch.ones(1, 1, 6, 6)), torch.ones(1, 1, 6, 6), atol=1e-5
    )


def test_view_without_augmentation_is_the_raster():
    values, weight = torch.randn(2, 6, 6), torch.ones(1, 6, 6)
    still = Augmentation(rotation=0, scaling=0, reflect=False, drop=0)
    grid = affine_grid((6, 6), 6, (2.5, 2.5), torch.Generator().manual_seed(0), still)
    out, known = resample(values, weight, grid)
    torch.testing.assert_close(out, values, atol=1e-5, rtol=1e-5)
    assert bool((known > 0.99).all())


def test_rotation_keeps_a_radial_image():
    at = torch.linspace(-1, 1, 33)
    radius = (at[:, None] ** 2 + at[None] ** 2)[None]
    grid = affine_grid((33, 33), 21, (16, 16), torch.Generator().manual_seed(3), Augmentation(180, 0, True, 0))
    out, _ = resample(radius, torch.ones(1, 33, 33), grid)
    torch.testing.assert_close(out, radius[:, 6:27, 6:27], atol=5e-3, rtol=0)


def test_resampling_ignores_empty_pixels():
    values, weight = torch.full((1, 10, 10), 5.0), (torch.rand(1, 10, 10) > 0.5).float()
    grid = affine_grid((10, 10), 10, (4.5, 4.5), torch.Generator().manual_seed(1), Augmentation())
    out, known = resample(values, weight, grid)
    assert known.sum() > 0
    torch.testing.assert_close(out[known > 0], torch.full_like(out[known > 0], 5.0))


def test_block_mask_hides_the_requested_share():
    mask = block_mask((400, 400), 0.3, 4, torch.Generator().manual_seed(0))
    assert mask.float().mean() == pytest.approx(0.3, abs=0.02)
    assert torch.equal(mask[:4, :4], mask[:1, :1].expand(4, 4))


def test_nt_xent_equals_its_definition():
    z = torch.randn(6, 4, dtype=torch.float64)
    unit = (z / z.norm(dim=1, keepdim=True)).numpy()
    similarity = np.exp(unit @ unit.T / 0.5)
    expected = np.mean(
        [-np.log(similarity[i, (i + 3) % 6] / (similarity[i].sum() - similarity[i, i])) for i in range(6)]
    )
    assert float(nt_xent(z, 0.5)) == pytest.approx(expected)


def test_soft_cross_entropy_equals_that_of_torch():
    logits, y = torch.randn(2, 4, 3, 3), torch.randint(4, (2, 3, 3))
    target = F.one_hot(y, 4).permute(0, 3, 1, 2).float()
    weight = torch.ones(2, 3, 3)
    torch.testing.assert_close(soft_cross_entropy(logits, target, weight), F.cross_entropy(logits, y))
    flat, labels = logits[:, :, 0, 0], y[:, 0, 0]
    found = soft_cross_entropy(flat, F.one_hot(labels, 4).float(), torch.ones(2))
    torch.testing.assert_close(found, F.cross_entropy(flat, labels))
    weight[0] = 0
    torch.testing.assert_close(soft_cross_entropy(logits, target, weight), F.cross_entropy(logits[1:], y[1:]))


class _Quadratic(Task):
    def __init__(self, training: Training) -> None:
        super().__init__(training)
        self.at = torch.nn.Parameter(torch.tensor([3.0]))

    def training_step(self, batch):
        return (self.at**2).sum()


def test_training_stops_early_keeps_the_best_and_the_random_state():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    task = _Quadratic(Training(max_epochs=500, patience=5, lr=0.3, weight_decay=0.0))
    loader = torch.utils.data.DataLoader(torch.zeros(4, 1))
    history = run_training(task, loader, None, random_state=0, accelerator="cpu", show_progress=False)
    assert torch.equal(torch.rand(3), expected)
    assert 5 < len(history) < 500
    assert min(row["loss"] for row in history) < 0.05
    assert set(history[0]) == {"stage", "epoch", "loss", "val_loss"}


class _Scripted(Task):
    """A task whose validation losses are given, and whose training loss is always lower."""

    def __init__(self, training: Training, losses: list[float]) -> None:
        super().__init__(training)
        self.steps, self.losses = torch.nn.Parameter(torch.zeros(1)), losses

    def training_step(self, batch):
        return (self.steps - self.steps.detach()).sum() - 10

    def loss(self, batch):
        return torch.tensor(self.losses[int(self.epoch)])

    def after_step(self):
        self.epoch = torch.tensor(float(len(self.seen)))
        self.seen.append(self.epoch)


@pytest.mark.parametrize(
    ("losses", "epochs", "best"),
    [
        ([3.0, 2.0, 1.0, 1.5, 1.4, 0.5], 5, 2),  # patience of two ends it before the last
        ([1.0, 0.9995, 0.9990, 0.2], 3, 0),  # falls by less than 1e-3 do not count
        ([3.0, float("nan"), 2.0, 2.5, 2.5], 5, 2),  # the lower training loss does not take its place
    ],
)
def test_early_stopping_keeps_the_weights_of_the_best_validation_loss(losses, epochs, best):
    task = _Scripted(Training(len(losses), 2, min_delta=1e-3), losses)
    task.seen = []
    task.register_buffer("epoch", torch.zeros(()))
    loader = torch.utils.data.DataLoader(torch.zeros(1, 1))
    history = run_training(task, loader, loader, random_state=0, accelerator="cpu", show_progress=False)
    assert len(history) == epochs
    assert int(task.epoch) == best


def test_default_epochs_grow_with_the_tissue():
    def raster(side: int) -> PixelRaster:
        return PixelRaster((side, side), torch.arange(side * side), torch.zeros(side * side, 1))

    assert default_epochs([raster(32)] * 4, 32) < default_epochs([raster(32)] * 5, 32)  # five views of 32 x 32 pixels
    assert default_epochs([raster(64)], 32) < default_epochs([raster(80)], 32)


# ---------------------------------------------------------------- tiles


def _raster(shape: tuple[int, int], channels: int, share: float, seed: int = 0) -> PixelRaster:
    generator = torch.Generator().manual_seed(seed)
    flat = torch.nonzero(torch.rand(shape[0] * shape[1], generator=generator) < share)[:, 0]
    return PixelRaster(shape, flat, torch.randn((len(flat), channels), generator=generator))


def _net(depth: int, kernel_size: int = 3, sigmas: tuple[float, ...] = (0.0, 1.0, 2.0)) -> SegmentationNet:
    torch.manual_seed(depth)
    return SegmentationNet(UNet(4, width=6, depth=depth, kernel_size=kernel_size, sigmas=sigmas), 5).eval()


def _predict_untiled(net: SegmentationNet, raster: PixelRaster) -> tuple[torch.Tensor, torch.Tensor]:
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
def test_tiled_prediction_equals_untiled(depth: int, shape: tuple[int, int]) -> None:
    net, raster = _net(depth), _raster(shape, 4, 0.8)
    proba, features = predict_pixels(net, raster, torch.device("cpu"), side=32)
    expected, expected_features = _predict_untiled(net, raster)
    assert torch.allclose(proba, expected, atol=1e-5)
    # where hardly anything lies, the norm over channels divides the rounding of the convolutions by a small number
    assert torch.allclose(features, expected_features, atol=2e-4)
    assert torch.equal(proba.argmax(dim=1), expected.argmax(dim=1))


@pytest.mark.parametrize(("kernel_size", "sigmas"), [(5, (0.0,)), (7, (0.0, 3.0)), (3, (1.5,))])
def test_tiled_prediction_equals_untiled_with_other_filters_and_empty_tiles(
    kernel_size: int, sigmas: tuple[float, ...]
) -> None:
    net, raster = _net(2, kernel_size, sigmas), _raster((140, 150), 4, 0.6)
    keep = (raster.flat // 150 < 60) | (raster.flat % 150 > 120)  # a hole of several tiles
    raster = PixelRaster(raster.shape, raster.flat[keep], raster.x[keep])
    proba, _ = predict_pixels(net, raster, torch.device("cpu"), side=16)
    assert torch.allclose(proba, _predict_untiled(net, raster)[0], atol=1e-5)


def test_smaller_tile_margin_changes_the_prediction() -> None:
    net, raster = _net(2), _raster((96, 96), 4, 0.9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stxtools.nn._tiles.tile_margin", lambda unet: 4)
        proba, _ = predict_pixels(net, raster, torch.device("cpu"), side=32)
    assert (proba - _predict_untiled(net, raster)[0]).abs().max() > 1e-4


def test_receptive_field_bounds_the_effect_of_a_pixel() -> None:
    for depth in (0, 1, 2, 3):
        net, raster = _net(depth), _raster((161, 161), 4, 1.0)
        changed = PixelRaster(raster.shape, raster.flat, raster.x.clone())
        changed.x[80 * 161 + 80] += 100.0
        difference = (_predict_untiled(net, raster)[1] - _predict_untiled(net, changed)[1]).abs().amax(dim=1)
        at = changed.flat[difference > 1e-5]
        row, col = at // changed.shape[1], at % changed.shape[1]
        reach = int(torch.maximum((row - 80).abs(), (col - 80).abs()).max())
        assert 2**depth < reach <= net.unet.receptive_field


def test_window_equals_a_slice_of_the_zero_padded_raster() -> None:
    raster = _raster((23, 31), 3, 0.5)
    raster.target = torch.rand(len(raster.flat), 2)
    raster.weight = torch.rand(len(raster.flat))
    whole = raster.window(0, 0, *raster.shape)
    padded = torch.nn.functional.pad(whole["x"], (40, 40, 40, 40))
    for top, left, height, width in [(0, 0, 23, 31), (5, 7, 9, 11), (-4, 20, 12, 30), (18, -9, 20, 15), (30, 40, 4, 4)]:
        window = raster.window(top, left, height, width)
        assert torch.equal(window["x"], padded[:, top + 40 : top + 40 + height, left + 40 : left + 40 + width])
        assert window["occupied"].shape == (1, height, width)
        assert window["target"].shape == (2, height, width)
        assert "val_weight" not in window
    assert whole["weight"].flatten()[raster.flat].tolist() == raster.weight.tolist()


def test_views_cut_from_a_window_equal_those_of_the_whole_raster() -> None:
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
    loader = validation_loader([raster])
    assert loader is not None
    batches = list(loader)
    assert sum(b["x"].shape[-1] * b["x"].shape[-2] for b in batches) <= MAX_VALIDATION_PIXELS
    assert all(float(b["weight"].sum()) > 0 for b in batches)
    small = _raster((60, 50), 2, 0.9)
    small.target, small.weight = torch.ones(len(small.flat), 1), torch.ones(len(small.flat))
    small.val_weight = torch.ones(len(small.flat))
    whole = list(validation_loader([small]) or [])
    assert [b["x"].shape[-2:] for b in whole] == [(60, 50)]


def test_max_memory_bounds_the_tile() -> None:
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


def test_tiles_off_the_stride_or_without_pixels_raise() -> None:
    net = _net(2)
    with pytest.raises(ValueError, match="multiple of the U-Net's stride, 4"):
        predict_pixels(net, _raster((50, 50), 4, 1.0), torch.device("cpu"), side=30)
    empty = PixelRaster((8, 8), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    with pytest.raises(ValueError, match="no occupied pixel"):
        predict_pixels(net, empty, torch.device("cpu"), side=4)


def test_views_depend_on_seed_epoch_and_index_alone() -> None:
    raster = _raster((90, 70), 2, 0.7)
    raster.target, raster.weight = torch.rand(len(raster.flat), 3), torch.ones(len(raster.flat))
    loader = torch.utils.data.DataLoader(RandomViews([raster], 32, 4, Augmentation(), 1), batch_size=2)
    first = list(loader)
    dataset = loader.dataset
    again = [dataset[i] for i in (3, 2, 1, 0)]
    assert torch.equal(first[1]["x"][1], again[0]["x"])
    for seed, epoch in ((1, 0), (2, 0), (1, 1)):
        other = RandomViews([raster], 32, 4, Augmentation(), seed)
        other.epoch = epoch
        assert torch.equal(other[0]["x"], again[3]["x"]) == ((seed, epoch) == (1, 0))
    assert torch.equal(first[0]["target"][0], again[3]["target"])
    assert np.isfinite(first[0]["weight"].numpy()).all()


def test_tiled_student_equals_untiled() -> None:
    torch.manual_seed(0)
    net = PyramidMLP(3, [4], width=8, sigmas=(0.0, 2.0, 4.0)).eval()
    flat = torch.nonzero(torch.rand(90 * 77) < 0.7)[:, 0]
    raster = PixelRaster((90, 77), flat, torch.randn(len(flat), 3))
    tiled = predict_pixels(net, raster, torch.device("cpu"), side=20)
    whole = predict_pixels(net, raster, torch.device("cpu"), side=512)
    assert torch.allclose(tiled[0], whole[0], atol=1e-5)
    some = torch.arange(5, len(flat), 300)
    assert torch.allclose(
        predict_pixels(net, raster, torch.device("cpu"), side=20, only=some)[1], whole[1][some], atol=1e-5
    )


def test_student_softmax_is_taken_per_task() -> None:
    torch.manual_seed(0)
    net = PyramidMLP(3, [2, 4], width=8, sigmas=(0.0, 1.0)).eval()
    x, occupied = torch.randn(1, 3, 9, 8), torch.ones(1, 1, 9, 8)
    logits, features = net(x, occupied)
    raw, both = net.head(features), logits.softmax(dim=1) * 2
    assert torch.allclose(both[:, :2], raw[:, :2].softmax(dim=1), atol=1e-6)
    assert torch.allclose(both[:, 2:], raw[:, 2:].softmax(dim=1), atol=1e-6)
