"""Ctrl-C in any long step leaves the AnnData as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import stxtools as st

QUICK = {"width": 4, "epochs": 2, "pretrain_epochs": 1, "steps_per_epoch": 2, "sigmas": (0.0,)}
NET = {"hidden": 8, "out_channels": 8, "heads": 2, "epochs": 2, "unet_width": 4}


def _snapshot(adata: ad.AnnData) -> dict[str, Any]:
    """Copies of everything an AnnData holds, the keys of ``uns`` down to the last level."""

    def walk(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: walk(inner) for key, inner in value.items()}
        return value.copy() if hasattr(value, "copy") else value

    found: dict[str, Any] = {"X": adata.X.copy(), "obs": adata.obs.copy(), "var": adata.var.copy()}
    for name in ("obsm", "varm", "obsp", "layers", "uns"):
        found[name] = {key: walk(value) for key, value in dict(getattr(adata, name)).items() if key is not None}
    return found


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, (pd.DataFrame, pd.Series)):
        return a.equals(b)
    if sparse.issparse(a):
        return a.shape == b.shape and (a != b).nnz == 0
    if isinstance(a, ad.AnnData):
        return isinstance(b, ad.AnnData) and _same(_snapshot(a), _snapshot(b))
    return bool(np.array_equal(a, b))


def _interrupt(*args: Any, **kwargs: Any) -> Any:
    raise KeyboardInterrupt


_BAR = "stxtools._progress.Stage.update"

# what is interrupted, in which call; the bar of the training loop, of the teachers, of the genes, or the last step
STEPS: dict[str, tuple[str, Callable[[ad.AnnData], Any]]] = {
    "normalize": ("stxtools.pp._normalize._pca", lambda a: st.pp.normalize(a, n_comps=3)),
    "segment, teachers": (_BAR, lambda a: st.tl.segment(a, 3, params=QUICK)),
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
def test_interrupted_call_changes_nothing(section: ad.AnnData, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    target, call = STEPS[step]
    monkeypatch.setattr(target, _interrupt)
    before = _snapshot(section)
    with pytest.raises(KeyboardInterrupt):
        call(section)
    assert _same(before, _snapshot(section))


def test_interrupted_distillation_leaves_no_file(
    section: ad.AnnData, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    st.tl.multitask(section, None, "band", params=NET, save_model=tmp_path / "teacher.stx")
    before = _snapshot(section)
    monkeypatch.setattr("safetensors.numpy.save", _interrupt)
    with pytest.raises(KeyboardInterrupt):
        st.tl.distill(section, tmp_path / "teacher.stx", save_model=tmp_path / "student.stx", params={"epochs": 1})
    assert [p.name for p in tmp_path.iterdir()] == ["teacher.stx"]
    assert _same(before, _snapshot(section))


def test_interrupt_while_writing_puts_everything_back(section: ad.AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slots are written one after the other; an interrupt between two of them is undone."""
    before, writes = _snapshot(section), []
    original = type(section.obsm).__setitem__

    def third_time(self: Any, key: str, value: Any) -> None:
        writes.append(key)
        if len(writes) == 2:
            raise KeyboardInterrupt
        original(self, key, value)

    monkeypatch.setattr(type(section.obsm), "__setitem__", third_time)
    with pytest.raises(KeyboardInterrupt):
        st.tl.segment(section, labels_key="band", params=QUICK)
    monkeypatch.undo()
    assert len(writes) >= 2
    assert _same(before, _snapshot(section))
