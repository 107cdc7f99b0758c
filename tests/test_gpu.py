"""Results, reproducibility and training on a CUDA device; skipped without one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score

import stxtools as st
from stxtools.nn import PixelRaster, SegmentationNet, UNet, predict_pixels

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture
def section(make_section: Callable[..., ad.AnnData]) -> ad.AnnData:
    return make_section("hex", rows=40, cols=36)


def test_saved_model_segments_equally_on_cpu_and_gpu(
    section: ad.AnnData, quick_unet: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "model.stx"
    st.tl.segment(section, labels_key="band", params=quick_unet, accelerator="cpu", save_model=path)
    st.tl.segment(section, model=path, accelerator="cpu", key_added="on_cpu")
    st.tl.segment(section, model=path, accelerator="gpu", key_added="on_gpu")
    assert adjusted_rand_score(section.obs["on_cpu"], section.obs["on_gpu"]) >= 0.99
    np.testing.assert_allclose(section.obsm["on_cpu_proba"], section.obsm["on_gpu_proba"], atol=5e-3)


@pytest.mark.slow
def test_saved_model_segments_cortex_equally_on_cpu_and_gpu(
    real_section: Callable[[str], ad.AnnData], tmp_path: Path
) -> None:
    adata, path = real_section("dlpfc_151673"), tmp_path / "model.stx"
    st.tl.segment(adata, 7, accelerator="gpu", save_model=path)
    st.tl.segment(adata, model=path, accelerator="cpu", key_added="on_cpu")
    st.tl.segment(adata, model=path, accelerator="gpu", key_added="on_gpu")
    assert adjusted_rand_score(adata.obs["on_cpu"], adata.obs["on_gpu"]) >= 0.99


def test_training_on_gpu_matches_cpu_and_is_repeatable(section: ad.AnnData, quick_unet: dict[str, Any]) -> None:
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.max_memory_allocated()
    runs = [
        st.tl.segment(section, labels_key="band", params=quick_unet, accelerator="gpu", copy=True) for _ in range(2)
    ]
    assert torch.cuda.max_memory_allocated() > before
    first, second = (r for r in runs if r is not None)
    st.tl.segment(section, labels_key="band", params=quick_unet, accelerator="cpu", key_added="on_cpu")
    found = {name: adjusted_rand_score(section.obs["band"], labels) for name, labels in (
        ("gpu", first.obs["segment"]), ("cpu", section.obs["on_cpu"])
    )}  # fmt: skip
    assert found["gpu"] >= found["cpu"] - 0.1, found
    assert adjusted_rand_score(first.obs["segment"], second.obs["segment"]) >= 0.99


def test_deterministic_training_on_gpu_repeats_to_the_bit(section: ad.AnnData, quick_unet: dict[str, Any]) -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        runs = [
            st.tl.segment(section, labels_key="band", params=quick_unet, accelerator="gpu", copy=True) for _ in range(2)
        ]
    finally:
        torch.use_deterministic_algorithms(False)
    first, second = (r for r in runs if r is not None)
    np.testing.assert_array_equal(first.obsm["X_unet"], second.obsm["X_unet"])


def test_tiled_prediction_on_gpu_equals_untiled_on_cpu() -> None:
    torch.manual_seed(0)
    net = SegmentationNet(UNet(6, width=8, depth=2), 4).eval()
    flat = torch.nonzero(torch.rand(150 * 131) < 0.8)[:, 0]
    raster = PixelRaster((150, 131), flat, torch.randn(len(flat), 6))
    whole, _ = predict_pixels(net, raster, torch.device("cpu"), side=512)
    tiled, _ = predict_pixels(net, raster, torch.device("cuda"), side=32)
    assert (whole - tiled).abs().max() < 5e-3  # tf32 in convolutions
    assert (whole.argmax(dim=1) == tiled.argmax(dim=1)).float().mean() > 0.999


def test_unet_on_gpu_equals_cpu_but_for_tf32() -> None:
    torch.manual_seed(0)
    net, x, occupied = (
        UNet(3, width=8, depth=2, dropout=0.0).eval(),
        torch.randn(1, 3, 40, 40),
        torch.ones(1, 1, 40, 40),
    )
    with torch.no_grad():
        expected = net(x, occupied)
        net = net.cuda()
        rounded = net(x.cuda(), occupied.cuda()).cpu()
        with torch.backends.cudnn.flags(allow_tf32=False):
            out = net(x.cuda(), occupied.cuda()).cpu()
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(rounded, expected, atol=1e-2, rtol=1e-2)  # tf32 keeps ten bits


def test_embed_and_multitask_train_on_gpu(section: ad.AnnData) -> None:
    net = {"hidden": 8, "out_channels": 8, "heads": 2, "epochs": 3, "unet_width": 4}
    section.obs["side"] = np.where(section.obsm["spatial"][:, 0] > 1800, "left", "right")
    st.tl.region_graph(section, "band", max_size=20)
    st.tl.embed(section, params=net, accelerator="gpu")
    assert np.isfinite(section.uns["regions"].obsm["X_gnn"]).all()
    st.tl.multitask(section, "side", "band", params=net, accelerator="gpu")
    assert section.obs["side_pred"].notna().any()


def test_distill_trains_a_student_on_gpu(section: ad.AnnData, quick_net: dict[str, Any], tmp_path: Path) -> None:
    st.tl.region_graph(section, "band", max_size=20)
    st.tl.multitask(section, None, "band", params=quick_net, accelerator="gpu", save_model=tmp_path / "t.stx")
    st.tl.distill(section, tmp_path / "t.stx", save_model=tmp_path / "s.stx", accelerator="gpu", params={"epochs": 5})
    st.tl.multitask(section, None, "band", model=tmp_path / "s.stx", accelerator="gpu", key_added="student")
    assert section.uns["distill"]["agreement"]["classification"] > 0.5
