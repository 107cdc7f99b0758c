"""U-Net, message passing, losses and augmentation against hand-computed or independent results."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch.nn import functional as F

from stxtools.nn._augment import Augmentation, affine_grid, block_mask, resample
from stxtools.nn._gnn import RegionGNN, SumConv
from stxtools.nn._layers import ChannelNorm, GaussianPyramid
from stxtools.nn._recipe import Training, seeded
from stxtools.nn._segmentation import nt_xent, soft_cross_entropy
from stxtools.nn._tiles import PixelRaster
from stxtools.nn._tissue import share_cross_entropy
from stxtools.nn._training import Task, run_training
from stxtools.nn._unet import SegmentationNet, UNet
from stxtools.nn._views import RandomViews, usual_epochs


def unet(**kwargs) -> UNet:
    with seeded(0):
        return UNet(3, **({"width": 8, "depth": 2, "dropout": 0.0} | kwargs)).eval()


@pytest.mark.parametrize("shape", [(1, 1), (7, 13), (32, 20)])
@pytest.mark.parametrize("kernel_size", [3, 5])
def test_unet_keeps_the_raster_s_shape(shape, kernel_size):
    out = unet(kernel_size=kernel_size)(torch.randn(2, 3, *shape), torch.ones(2, 1, *shape))
    assert out.shape == (2, 8, *shape)
    assert torch.isfinite(out).all()


def test_unet_receptive_field_is_an_upper_bound_and_output_is_local():
    net = unet()
    x, occupied = torch.randn(1, 3, 160, 8), torch.ones(1, 1, 160, 8)
    with torch.no_grad():
        before = net(x, occupied)
        x[0, :, 150] += 10
        changed = (net(x, occupied) - before).abs().amax(dim=(0, 1, 3)) > 1e-7
    rows = torch.nonzero(changed).ravel()
    assert 150 - int(rows.min()) <= net.receptive_field
    assert int(rows.max()) >= 150
    assert 150 - int(rows.min()) > 4  # it does look around


def test_a_tile_with_margin_equals_the_full_raster():
    net = unet()
    x, occupied = torch.randn(1, 3, 200, 16), (torch.rand(1, 1, 200, 16) > 0.2).float()
    margin = -(-net.receptive_field // net.stride) * net.stride
    with torch.no_grad():
        full = net(x, occupied)[:, :, 80:120]
        tile = net(x[:, :, 80 - margin : 120 + margin], occupied[:, :, 80 - margin : 120 + margin])
    torch.testing.assert_close(tile[:, :, margin : margin + 40], full, atol=1e-5, rtol=1e-5)


def test_unet_refuses_even_filters():
    with pytest.raises(ValueError, match="odd"):
        UNet(3, kernel_size=4)


def test_he_and_xavier_initialisation():
    with seeded(0):
        net = SegmentationNet(UNet(20, width=32, depth=1), 5)
    conv = net.unet.down[0].body[0]
    assert float(conv.weight.std()) == pytest.approx(math.sqrt(2 / (32 * 9)), rel=0.05)
    bound = math.sqrt(6 / (32 + 5))
    assert float(net.head.weight.abs().max()) <= bound
    assert float(conv.bias.abs().max()) == 0


def test_channel_norm_is_layer_norm_per_pixel():
    x = torch.randn(2, 6, 4, 5)
    expected = F.layer_norm(x.permute(0, 2, 3, 1), (6,)).permute(0, 3, 1, 2)
    torch.testing.assert_close(ChannelNorm(6)(x), expected)


def test_gaussian_pyramid_is_a_mean_over_occupied_pixels():
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


def test_identity_view_and_quarter_turn():
    values, weight = torch.randn(2, 6, 6), torch.ones(1, 6, 6)
    still = Augmentation(rotation=0, scaling=0, reflect=False, drop=0)
    grid = affine_grid((6, 6), 6, (2.5, 2.5), torch.Generator().manual_seed(0), still)
    out, known = resample(values, weight, grid)
    torch.testing.assert_close(out, values, atol=1e-5, rtol=1e-5)
    assert bool((known > 0.99).all())


def test_rotation_keeps_a_radial_picture():
    at = torch.linspace(-1, 1, 33)
    radius = (at[:, None] ** 2 + at[None] ** 2)[None]
    grid = affine_grid((33, 33), 21, (16, 16), torch.Generator().manual_seed(3), Augmentation(180, 0, True, 0))
    out, _ = resample(radius, torch.ones(1, 33, 33), grid)
    torch.testing.assert_close(out, radius[:, 6:27, 6:27], atol=5e-3, rtol=0)


def test_resampling_does_not_mix_in_empty_pixels():
    values, weight = torch.full((1, 10, 10), 5.0), (torch.rand(1, 10, 10) > 0.5).float()
    grid = affine_grid((10, 10), 10, (4.5, 4.5), torch.Generator().manual_seed(1), Augmentation())
    out, known = resample(values, weight, grid)
    assert known.sum() > 0
    torch.testing.assert_close(out[known > 0], torch.full_like(out[known > 0], 5.0))


def test_block_mask_hides_the_share_asked_for():
    mask = block_mask((400, 400), 0.3, 4, torch.Generator().manual_seed(0))
    assert mask.float().mean() == pytest.approx(0.3, abs=0.02)
    assert torch.equal(mask[:4, :4], mask[:1, :1].expand(4, 4))


def test_views_depend_on_seed_epoch_and_index_alone():
    section = PixelRaster((12, 12), torch.arange(144), torch.randn(144, 2))
    a, b = (RandomViews([section], 12, 4, Augmentation(), seed=5) for _ in range(2))
    assert torch.equal(a[2]["x"], b[2]["x"])
    b.set_epoch(1)
    assert not torch.equal(a[2]["x"], b[2]["x"])


def test_nt_xent_against_a_direct_computation():
    z = torch.randn(6, 4, dtype=torch.float64)
    unit = (z / z.norm(dim=1, keepdim=True)).numpy()
    similarity = np.exp(unit @ unit.T / 0.5)
    expected = np.mean(
        [-np.log(similarity[i, (i + 3) % 6] / (similarity[i].sum() - similarity[i, i])) for i in range(6)]
    )
    assert float(nt_xent(z, 0.5)) == pytest.approx(expected)


def test_cross_entropies_against_torch():
    logits, y = torch.randn(2, 4, 3, 3), torch.randint(4, (2, 3, 3))
    target = F.one_hot(y, 4).permute(0, 3, 1, 2).float()
    weight = torch.ones(2, 1, 3, 3)
    assert float(soft_cross_entropy(logits, target, weight)) == pytest.approx(
        float(F.cross_entropy(logits, y)), rel=1e-5
    )
    weight[0] = 0
    assert float(soft_cross_entropy(logits, target, weight)) == pytest.approx(
        float(F.cross_entropy(logits[1:], y[1:])), rel=1e-5
    )
    flat, labels = torch.randn(5, 3), torch.randint(3, (5,))
    share = share_cross_entropy(flat, F.one_hot(labels, 3).float(), torch.ones(5))
    assert float(share) == pytest.approx(float(F.cross_entropy(flat, labels)), rel=1e-5)


def test_sum_convolution_by_hand():
    conv = SumConv(2, 3)
    h, edges = torch.randn(4, 2), torch.tensor([[0, 1, 2, 3], [1, 0, 1, 2]])
    transformed = h @ conv.weight.weight.T
    expected = (
        torch.stack([transformed[1], transformed[0] + transformed[2], transformed[3], torch.zeros(3)]) + conv.bias
    )
    torch.testing.assert_close(conv(h, edges), expected)


@pytest.mark.parametrize("conv", ["gatv2", "sum"])
def test_attention_is_a_distribution_over_what_a_region_receives(conv):
    edges = torch.tensor([[0, 1, 1, 2, 2, 3], [1, 0, 2, 1, 3, 2]])
    gnn = RegionGNN(5, hidden=8, out_channels=8, heads=2, conv=conv).eval()
    h, at, weight = gnn(torch.randn(4, 5), edges)
    assert h.shape == (4, 8)
    assert bool(((weight >= 0) & (weight <= 1)).all())
    total = torch.zeros(4).index_add(0, at[1], weight)
    torch.testing.assert_close(total, torch.ones(4))


def test_message_passing_reaches_as_far_as_there_are_layers():
    edges = torch.tensor([[0, 1, 1, 2, 2, 3], [1, 0, 2, 1, 3, 2]])  # a path 0-1-2-3
    gnn = RegionGNN(3, hidden=8, out_channels=4, heads=2, layers=2).eval()
    h = torch.randn(4, 3)
    before = gnn(h, edges)[0]
    h[3] += 5
    moved = (gnn(h, edges)[0] - before).abs().sum(dim=1) > 1e-6
    assert moved.tolist() == [False, True, True, True]


class _Quadratic(Task):
    def __init__(self, training: Training) -> None:
        super().__init__(training)
        self.at = torch.nn.Parameter(torch.tensor([3.0]))

    def training_step(self, batch, batch_idx):
        return self.record((self.at**2).sum())


def test_training_stops_early_keeps_the_best_and_leaves_the_generator_alone():
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


def test_interrupting_a_training_raises_keyboard_interrupt_and_restores_the_handler():
    import signal

    class Interrupted(_Quadratic):
        def training_step(self, batch, batch_idx):
            raise KeyboardInterrupt

    handler = signal.getsignal(signal.SIGINT)
    loader = torch.utils.data.DataLoader(torch.zeros(4, 1))
    with pytest.raises(KeyboardInterrupt):
        run_training(Interrupted(Training()), loader, None, random_state=0, accelerator="cpu", show_progress=False)
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_unet_on_cuda_agrees_with_the_cpu():
    net, x, occupied = unet(), torch.randn(1, 3, 40, 40), torch.ones(1, 1, 40, 40)
    with torch.no_grad():
        expected = net(x, occupied)
        out = net.cuda()(x.cuda(), occupied.cuda()).cpu()
    torch.testing.assert_close(out, expected, atol=1e-3, rtol=1e-3)


def test_large_tissue_is_trained_for_longer():
    def raster(side: int) -> PixelRaster:
        return PixelRaster((side, side), torch.arange(side * side), torch.zeros(side * side, 1))

    assert usual_epochs([raster(32)] * 4, 32) < usual_epochs([raster(32)] * 5, 32)  # five views of 32 x 32 pixels
    assert usual_epochs([raster(64)], 32) < usual_epochs([raster(80)], 32)
