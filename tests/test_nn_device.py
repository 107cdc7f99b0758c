"""Training steps stay on one device without synchronisation, checked without a GPU.

torch's meta device replaces the GPU. It has shapes and no values, so reading a value (``.item()``, ``.cpu()``, a
boolean mask), which would synchronise CUDA, raises an error. :class:`OneDevice` refuses operations that mix it with
the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, TensorDataset

from stxtools.nn import (
    SCHEMES,
    Augmentation,
    ContrastivePretraining,
    DistillationTask,
    EmbeddingTask,
    GraphTask,
    GraphTensors,
    MaskedPretraining,
    PixelRaster,
    PyramidMLP,
    RandomViews,
    RegionGNN,
    SegmentationNet,
    SegmentationTask,
    Target,
    Task,
    TissueModule,
    TissueTask,
    Training,
    UNet,
    UNetPretraining,
    task_weighting,
    validation_loader,
)
from stxtools.nn._training import _setup_loader, _SingleDevice

CARD = torch.device("meta")
CHANNELS, CLASSES = 3, 4


class OneDevice(TorchDispatchMode):
    """Refuse operations on tensors of two devices; single numbers may come from the CPU, and copies to the card."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        tensors = [t for t in tree_leaves((args, kwargs or {})) if isinstance(t, Tensor)]
        devices = {t.device.type for t in tensors if t.ndim}
        to_card = func is torch.ops.aten.copy_.default and tensors[0].device == CARD
        if len(devices) > 1 and not to_card:
            raise RuntimeError(f"{func} mixes {' and '.join(sorted(devices))}")
        return func(*args, **(kwargs or {}))


def train_one_step(task: Task, batches: Iterator[Any]) -> None:
    """Run a training step as Lightning would on the card."""
    task.to(CARD)
    with OneDevice():
        task.setup(CARD)
        optimizer = torch.optim.AdamW(task.parameters())
        batch = next(batches)
        loss = task(batch)
        assert loss is not None
        assert loss.device == CARD
        loss.backward()
        nn.utils.clip_grad_norm_(task.parameters(), 5.0)
        optimizer.step()
        task.after_step()
    assert all(p.grad is None or p.grad.device == CARD for p in task.parameters())


def batches_on_card(loader: DataLoader[Any] | None) -> Iterator[Any]:
    """Return the batches as training on a card gets them."""
    assert loader is not None
    card = _SingleDevice(CARD)
    return map(card.to_device, _setup_loader(card, loader))


def rasters(side: int) -> list[PixelRaster]:
    flat = torch.nonzero(torch.rand(side * side, generator=torch.Generator().manual_seed(0)) < 0.8)[:, 0]
    n = len(flat)
    return [
        PixelRaster((side, side), flat, torch.randn(n, CHANNELS), torch.rand(n, CLASSES), torch.ones(n), torch.ones(n))
    ]


def views(side: int, pairs: bool = False) -> Iterator[Any]:
    return batches_on_card(DataLoader(RandomViews(rasters(side), 32, 2, Augmentation(), 0, pairs), batch_size=2))


@pytest.mark.parametrize("side", [40, 300], ids=["small section", "section read in windows"])
@pytest.mark.parametrize("kind", ["segmentation", "masked", "contrastive"])
def test_pixel_networks_train_on_one_device(kind: str, side: int) -> None:
    unet, how = UNet(CHANNELS, width=8), Training()
    task: Task = {
        "segmentation": lambda: SegmentationTask(SegmentationNet(unet, CLASSES), how),
        "masked": lambda: MaskedPretraining(unet, CHANNELS, how),
        "contrastive": lambda: ContrastivePretraining(unet, CHANNELS, how),
    }[kind]()
    train_one_step(task, views(side, pairs=kind == "contrastive"))


def test_validation_of_pixels_stays_on_one_device() -> None:
    task = SegmentationTask(SegmentationNet(UNet(CHANNELS, width=8), CLASSES), Training()).to(CARD)
    with OneDevice(), torch.no_grad():
        assert task(next(batches_on_card(validation_loader(rasters(40)))), held_out=True).device == CARD


def test_student_trains_on_one_device() -> None:
    net = PyramidMLP(CHANNELS, [2, CLASSES], width=16, sigmas=(0.0, 1.0))
    pixels = TensorDataset(torch.randn(5, CHANNELS * 2), torch.rand(5, 2 + CLASSES))
    train_one_step(DistillationTask(net, Training()), batches_on_card(DataLoader(pixels, batch_size=5)))


def graph() -> GraphTensors:
    regions, n, side = 6, 30, 8
    around = torch.arange(regions)
    edges = torch.stack([around, around.roll(1)])
    region = torch.arange(n) % regions
    targets, of_obs = (
        {name: Target(torch.rand(rows, k), torch.ones(rows), torch.ones(rows)) for name, k in (("t", 2), ("v", 1))}
        for rows in (regions, n)
    )
    return GraphTensors(
        torch.randn(regions, 5), torch.cat([edges, edges.flip(0)], dim=1), torch.randn(CHANNELS, side, side),
        torch.ones(1, side, side), torch.arange(n), region, torch.randn(n, 7), targets, of_obs,
    )  # fmt: skip


def tissue(conv: str) -> TissueModule:
    unet = UNet(CHANNELS, width=8, depth=1)
    gnn = RegionGNN(5 + 16 + 8, hidden=8, out_channels=8, conv=conv, heads=2)  # type: ignore[arg-type]
    return TissueModule(5, gnn, 8, unet, {"t": 2, "v": 1}, n_features=7, width=16)


def steps_on_card(task: GraphTask) -> Iterator[Any]:
    return batches_on_card(task.loaders(0)[0])


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("conv", ["gatv2", "sum"])
def test_tissue_net_trains_on_one_device(conv: str, scheme: str) -> None:
    weighting = task_weighting(scheme, {"t": 1.0, "v": 1.0}, ["v"])
    task = TissueTask(tissue(conv), [graph()], Training(), weighting)
    train_one_step(task, steps_on_card(task))
    with OneDevice(), torch.no_grad():
        task((0, 1), held_out=True)


@pytest.mark.parametrize("conv", ["gatv2", "sum"])
def test_embedding_trains_on_one_device(conv: str) -> None:
    gnn = RegionGNN(5, hidden=8, out_channels=8, conv=conv, heads=2)  # type: ignore[arg-type]
    g = graph()
    module = TissueModule(5, gnn, 8, None, {})
    task = EmbeddingTask(module, [GraphTensors(g.nodes, g.edges)], Training(), 0.2)
    train_one_step(task, steps_on_card(task))


def test_unet_of_the_tissue_net_is_pretrained_on_one_device() -> None:
    task = UNetPretraining(UNet(CHANNELS, width=8, depth=1), CHANNELS, [graph()], Training())
    train_one_step(task, steps_on_card(task))


@pytest.mark.parametrize(
    "fault",
    [
        lambda x: x.sum().item(),
        lambda x: x.cpu(),
        lambda x: x[x > 0],
        lambda x: x + torch.zeros(3),
        lambda x: x[torch.arange(2)],
        lambda x: torch.nonzero(x),
        lambda x: torch.bincount(x.long()),
    ],
    ids=["item", "cpu", "mask", "mixed", "cpu index", "nonzero", "bincount"],
)
def test_meta_device_detects_synchronisation_and_mixed_devices(fault: Any) -> None:
    with OneDevice(), pytest.raises((RuntimeError, NotImplementedError)):
        fault(torch.zeros(3, device=CARD))
