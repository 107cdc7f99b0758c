"""Two processes (Lightning DDP, gloo) learn what one process learns."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from stxtools import settings
from stxtools.nn._augment import Augmentation
from stxtools.nn._recipe import Training
from stxtools.nn._segmentation import SegmentationTask
from stxtools.nn._tiles import PixelRaster, predict_pixels
from stxtools.nn._training import run_training
from stxtools.nn._unet import SegmentationNet, UNet
from stxtools.nn._views import view_loader, whole_loader


def _raster() -> PixelRaster:
    generator = torch.Generator().manual_seed(0)
    flat = torch.arange(48 * 40)
    classes = (flat // 40 >= 24).long()
    raster = PixelRaster((48, 40), flat, torch.randn((len(flat), 3), generator=generator) + 2 * F.one_hot(classes, 3))
    held = torch.rand(len(flat), generator=generator) < 0.1
    raster.target = F.one_hot(classes, 2).float()
    raster.weight, raster.val_weight = (~held).float(), held.float()
    return raster


def _trained(devices: int) -> tuple[list[float], SegmentationNet]:
    """Every step sees four views, whether one process draws them or two draw two each."""
    torch.manual_seed(0)
    net = SegmentationNet(UNet(3, width=8, depth=1, sigmas=(0.0, 1.0), dropout=0.0), 2)
    task = SegmentationTask(net, Training(14, 14, lr=5e-3))
    views = view_loader([_raster()], size=24, steps=8 * devices, batch_size=4 // devices, how=Augmentation(), seed=0)
    history = run_training(task, views, whole_loader([_raster()]), random_state=0, devices=devices, accelerator="cpu")
    return [row["val_loss"] for row in history], net


@pytest.mark.slow
def test_two_processes_reach_the_loss_of_one() -> None:
    before = settings.trainer
    alone, net_alone = _trained(1)
    try:
        settings.trainer = {"strategy": "ddp_spawn"}
        together, net = _trained(2)
    finally:
        settings.trainer = before
    assert len(together) == len(alone) == 14
    assert max(alone[-1], together[-1]) < 0.15 < 0.5 < min(alone[0], together[0])
    assert together[-1] == pytest.approx(alone[-1], abs=0.08)
    raster = _raster()  # the children's weights came back
    answers = [predict_pixels(n, raster, torch.device("cpu"))[0].argmax(dim=1) for n in (net_alone, net)]
    assert (answers[0] == answers[1]).float().mean() > 0.95


def test_trainer_setting_is_checked() -> None:
    with pytest.raises(ValueError, match=r"\['devices'\]: the calls set them"):
        settings.trainer = {"devices": 2}
    with pytest.raises(TypeError, match="mapping"):
        settings.trainer = "ddp"  # type: ignore[assignment]
    assert settings.trainer == {}
    try:
        settings.trainer = {"strategy": "no such strategy"}
        with pytest.raises(ValueError, match="no such strategy"):
            _trained(1)
    finally:
        settings.trainer = {}


_SCRIPT = """
import sys
import stxtools as st

if __name__ == "__main__":
    adata = st.datasets.synthetic_tissue(n_obs=300, random_state=0, show_progress=False)
    st.settings.trainer = {"strategy": "ddp", "num_nodes": 2}
    st.tl.segment(adata, n_segments=3, accelerator="cpu", devices=1, show_progress=False, params={"epochs": 2})
    adata.write_h5ad(sys.argv[1])
"""


@pytest.mark.slow
def test_two_machines_end_with_the_same_segments(tmp_path: Path) -> None:
    """Two nodes that run the user's script; here both are this machine."""
    script = tmp_path / "train.py"
    script.write_text(_SCRIPT)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    nodes = [
        subprocess.Popen([sys.executable, script, tmp_path / f"{rank}.h5ad"], env=env | {"NODE_RANK": str(rank)})
        for rank in range(2)
    ]
    try:
        assert [node.wait(timeout=300) for node in nodes] == [0, 0]
    finally:
        for node in nodes:
            node.kill()
    first, second = (ad.read_h5ad(tmp_path / f"{rank}.h5ad") for rank in range(2))
    assert first.obs["segment"].nunique() == 3
    np.testing.assert_array_equal(first.obsm["segment_proba"], second.obsm["segment_proba"])
