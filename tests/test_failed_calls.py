"""Interrupted and diverged calls leave the AnnData as it was and no file."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from conftest import assert_same
from scipy.spatial import cKDTree

import stxtools as st

QUICK = {"width": 4, "epochs": 2, "pretrain_epochs": 1, "steps_per_epoch": 2, "sigmas": (0.0,)}
NET = {"hidden": 8, "out_channels": 8, "heads": 2, "epochs": 2, "unet_width": 4}


def _interrupt(*args: Any, **kwargs: Any) -> Any:
    raise KeyboardInterrupt


_BAR = "stxtools._progress.Stage.update"

# the function that is interrupted, and the call; _BAR is updated by every training loop
STEPS: dict[str, tuple[str, Callable[[ad.AnnData], Any]]] = {
    "normalize": ("stxtools.pp._normalize._pca", lambda a: st.pp.normalize(a, n_comps=3)),
    "segment, pseudo-labels": (_BAR, lambda a: st.tl.segment(a, 3, params=QUICK)),
    "segment, training": (_BAR, lambda a: st.tl.segment(a, labels_key="band", params=QUICK)),
    "segment, prediction": (
        "stxtools.models.segmenter.model.predict_pixels", lambda a: st.tl.segment(a, labels_key="band", params=QUICK)
    ),
    "segment, mask": (
        "stxtools.tl._segment.render_mask", lambda a: st.tl.segment(a, labels_key="band", params=QUICK)
    ),
    "region_graph": ("stxtools.tl._region_graph.contact_lengths", lambda a: st.tl.region_graph(a, "band")),
    "embed": (_BAR, lambda a: st.tl.embed(a, params=NET)),
    "multitask": (_BAR, lambda a: st.tl.multitask(a, "side", "band", params=NET)),
    "biomarkers": ("stxtools.stats._null_model.fft.irfft2", lambda a: st.tl.biomarkers(a, "band", n_null=50)),
}  # fmt: skip


@pytest.fixture
def section(make_section: Callable[..., ad.AnnData]) -> ad.AnnData:
    adata = make_section("hex", rows=16, cols=14)
    adata.obs["side"] = pd.Categorical(np.where(adata.obsm["spatial"][:, 0] > 700, "left", "right"))
    st.tl.region_graph(adata, "band", max_size=20)
    adata.uns["kept"] = {"inner": np.arange(3)}
    return adata


@pytest.mark.parametrize("step", STEPS)
def test_interrupt_changes_neither_anndata_nor_signal_handler(
    section: ad.AnnData, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    target, call = STEPS[step]
    monkeypatch.setattr(target, _interrupt)
    before = section.copy()
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        call(section)
    assert_same(before, section)
    assert signal.getsignal(signal.SIGINT) is handler


def test_interrupted_search_of_neighbours_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that go on write into memory that is freed, which crashes Python; scipy's own do."""
    at_work: list[int] = []

    class Tree(cKDTree):  # type: ignore[misc]
        def query(self, *args: Any, workers: int = 1, **kwargs: Any) -> Any:
            assert workers == 1
            at_work.append(threading.get_ident())
            third = len(at_work) == 3  # all threads have started
            time.sleep(0.1)
            if third:
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            return super().query(*args, **kwargs)

    monkeypatch.setattr("stxtools._spatial.points.cKDTree", Tree)
    xy = np.random.default_rng(0).random((30_000, 2))
    adata, running = ad.AnnData(np.zeros((len(xy), 1), np.float32), obsm={"spatial": xy}), threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        st.pp.rasterize(adata)
    assert at_work
    assert threading.main_thread().ident not in at_work
    assert threading.active_count() == running
    assert not adata.uns


def test_interrupted_distillation_leaves_no_file(
    section: ad.AnnData, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    st.tl.multitask(section, None, "band", params=NET, save_model=tmp_path / "teacher.stx")
    before = section.copy()
    monkeypatch.setattr("safetensors.numpy.save", _interrupt)
    with pytest.raises(KeyboardInterrupt):
        st.tl.distill(section, tmp_path / "teacher.stx", save_model=tmp_path / "student.stx", params={"epochs": 1})
    assert [p.name for p in tmp_path.iterdir()] == ["teacher.stx"]
    assert_same(before, section)


def test_interrupt_between_two_slots_undoes_the_first(section: ad.AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slots are written one after the other; an interrupt between two of them is undone."""
    before, writes = section.copy(), []
    original = type(section.obsm).__setitem__

    def second_time(self: Any, key: str, value: Any) -> None:
        writes.append(key)
        if len(writes) == 2:
            raise KeyboardInterrupt
        original(self, key, value)

    monkeypatch.setattr(type(section.obsm), "__setitem__", second_time)
    with pytest.raises(KeyboardInterrupt):
        st.tl.segment(section, labels_key="band", params=QUICK)
    monkeypatch.undo()
    assert len(writes) >= 2
    assert_same(before, section)


HOW = {"show_progress": False, "accelerator": "cpu"}
KEY = HOW | {"library_key": "library"}
# the AnnData, its U-Net or network parameters with a learning rate that diverges, and where the model is saved
DIVERGING = {
    "segment, pretrained": lambda a, unet, net, save: st.tl.segment(a, 3, params=unet, save_model=save, **KEY),
    "segment": lambda a, unet, net, save: st.tl.segment(
        a, 3, params=unet | {"pretrain": "none"}, save_model=save, **KEY
    ),
    "pretrain": lambda a, unet, net, save: st.tl.pretrain(a, params=unet, save_model=save, **KEY),
    "embed": lambda a, unet, net, save: st.tl.embed(a, params=net, **HOW),
    "multitask": lambda a, unet, net, save: st.tl.multitask(a, None, "band", params=net, save_model=save, **HOW),
    "distill": lambda a, unet, net, save: st.tl.distill(
        a, save.parent / "teacher", params={"lr": net["lr"], "epochs": 2}, save_model=save, **HOW
    ),
}


@pytest.mark.parametrize(
    ("call", "lr"), [(call, 1e30) for call in DIVERGING] + [("segment", 1e3), ("segment, pretrained", 1e3)]
)
def test_diverged_training_raises_and_writes_nothing(line, quick_unet, quick_net, tmp_path, call, lr):
    if call == "distill":
        st.tl.multitask(line, None, "band", params=quick_net, save_model=tmp_path / "teacher", **HOW)
    before, files = line.copy(), list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"training diverged.*smaller learning rate"):
        DIVERGING[call](line, quick_unet | {"lr": lr}, quick_net | {"lr": lr}, tmp_path / "model")
    assert_same(line, before)
    assert list(tmp_path.iterdir()) == files
