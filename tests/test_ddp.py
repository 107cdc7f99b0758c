"""Training in two processes (Lightning DDP, gloo) equals training in one."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from multiprocessing import active_children
from pathlib import Path
from threading import Thread

import anndata as ad
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import stxtools as st
from stxtools import settings
from stxtools.nn import Task, Training, run_training

PARAMS = {"width": 8, "depth": 1, "sigmas": (0.0, 1.0), "dropout": 0.0, "pretrain": "none", "epochs": 14, "lr": 5e-3}
HOW = {"accelerator": "cpu", "show_progress": False}


def _trained(adata: ad.AnnData, devices: int) -> tuple[np.ndarray, ad.AnnData]:
    """Every step sees four views, whether one process draws them or two draw two each."""
    params = PARAMS | {"steps_per_epoch": 8 * devices, "batch_size": 4 // devices, "patience": 14, "view_size": 24}
    out = st.tl.segment(adata, labels_key="few", params=params, devices=devices, copy=True, **HOW)
    return out.uns["segment"]["history"]["val_loss"].to_numpy(), out


@pytest.mark.slow
def test_two_processes_reach_the_loss_of_one_process(make_section) -> None:
    adata = make_section("square", rows=48, cols=40)
    adata.obs["few"] = adata.obs["band"].where(np.arange(adata.n_obs) % 10 == 0)
    before = settings.trainer
    loss_of_one, one = _trained(adata, 1)
    try:
        settings.trainer = {"strategy": "ddp_spawn"}
        loss_of_two, two = _trained(adata, 2)
        with pytest.raises(ValueError, match=r"diverged \(.*went from \d"):  # the children's first loss came back
            st.tl.segment(adata, labels_key="few", params=PARAMS | {"lr": 1e3, "epochs": 2}, devices=2, **HOW)
    finally:
        settings.trainer = before
    assert len(loss_of_two) == len(loss_of_one) == 14
    assert max(loss_of_one[-1], loss_of_two[-1]) < 0.5 * min(loss_of_one[0], loss_of_two[0])
    assert loss_of_two[-1] == pytest.approx(loss_of_one[-1], abs=0.08)
    assert (one.obs["segment"] == two.obs["segment"]).mean() > 0.95  # the children's weights came back


def test_wrong_trainer_settings_raise(make_section) -> None:
    with pytest.raises(ValueError, match=r"\['devices'\]: the calls set them"):
        settings.trainer = {"devices": 2}
    with pytest.raises(TypeError, match="must map argument names"):
        settings.trainer = "ddp"  # type: ignore[assignment]
    assert settings.trainer == {}
    try:
        settings.trainer = {"strategy": "no such strategy"}
        with pytest.raises(ValueError, match="no such strategy"):
            st.tl.segment(make_section(), labels_key="band", params=PARAMS, **HOW)
        settings.trainer = {"precision": "bf16-true"}
        with pytest.raises(ValueError, match=r"precision='bf16-true'.*'bf16-mixed'"):
            st.tl.segment(make_section(), labels_key="band", params=PARAMS, **HOW)
    finally:
        settings.trainer = {}


class _FailingOrSlowTask(Task):
    """A task that fails in the second of two processes, or takes a minute there."""

    def __init__(self, started: Path, *, fails: bool) -> None:
        super().__init__(Training(max_epochs=1))
        self.net, self.started, self.fails = torch.nn.Linear(2, 1), started, fails

    def loss(self, batch: list[torch.Tensor]) -> torch.Tensor:
        if torch.distributed.get_rank() == 1:
            self.started.touch()
            if self.fails:
                raise ValueError("there is no loss here")
            time.sleep(60)
        return self.net(batch[0]).sum()


def _interrupt_after(started: Path) -> None:
    while not started.exists():
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.slow
@pytest.mark.parametrize("fails", [True, False])
def test_error_or_interrupt_ends_all_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    monkeypatch.setattr(settings, "trainer", {"strategy": "ddp_spawn"})
    started, before = tmp_path / "started", set(active_children())
    task, loader = _FailingOrSlowTask(started, fails=fails), DataLoader(TensorDataset(torch.zeros(8, 2)), batch_size=2)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    if not fails:
        Thread(target=_interrupt_after, args=(started,), daemon=True).start()
    try:
        with pytest.raises(BaseException, match="ValueError: there is no loss here" if fails else "^$"):
            run_training(task, loader, None, devices=2, **HOW)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert time.time() - started.stat().st_mtime < 20
    assert set(active_children()) <= before
    assert "MASTER_PORT" not in os.environ


_SCRIPT = """
import sys
import stxtools as st

if __name__ == "__main__":
    adata = st.datasets.synthetic_tissue(n_obs=150, random_state=0, show_progress=False)
    st.settings.trainer = {"strategy": "ddp", "num_nodes": 2}
    st.tl.segment(adata, n_segments=3, accelerator="cpu", devices=1, show_progress=False, params={"epochs": 1})
    adata.write_h5ad(sys.argv[1])
"""


def _slurm_environment(rank: int) -> dict[str, str]:
    """What ``srun`` sets for a task on each of two nodes."""
    nodes = {"SLURM_NNODES": "2", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1", "SLURM_NODELIST": "127.0.0.1"}
    task = {"SLURM_PROCID": str(rank), "SLURM_NODEID": str(rank), "SLURM_LOCALID": "0"}
    return {"SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "train", **nodes, **task}


@pytest.mark.slow
def test_two_nodes_end_with_the_same_segments(tmp_path: Path) -> None:
    """Two nodes that run the user's script; here both are this machine."""
    script = tmp_path / "train.py"
    script.write_text(_SCRIPT)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    nodes = [
        subprocess.Popen([sys.executable, script, tmp_path / f"{rank}.h5ad"], env=env | _slurm_environment(rank))
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
