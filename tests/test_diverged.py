"""Diverged training raises an error for every model; nothing is written or saved."""

from __future__ import annotations

import pytest
from conftest import assert_same

import stxtools as st

HOW = {"show_progress": False, "accelerator": "cpu"}


@pytest.mark.parametrize("lr", [1e30, 1e3])
@pytest.mark.parametrize("pretrain", ["masked", "none"])
def test_segment(make_section, quick_unet, tmp_path, lr, pretrain):
    adata = make_section()
    before = adata.copy()
    with pytest.raises(ValueError, match=r"training diverged.*smaller learning rate"):
        st.tl.segment(
            adata, 3, params={**quick_unet, "lr": lr, "pretrain": pretrain}, save_model=tmp_path / "m.stx", **HOW
        )
    assert_same(adata, before)
    assert not list(tmp_path.iterdir())


def test_pretrain(make_section, quick_unet, tmp_path):
    adata = make_section()
    with pytest.raises(ValueError, match="diverged"):
        st.tl.pretrain(adata, params={**quick_unet, "lr": 1e30}, save_model=tmp_path / "p.stx", **HOW)
    assert not list(tmp_path.iterdir())


def test_distill(line, quick_net, tmp_path):
    st.tl.multitask(line, region_key="band", params=quick_net, save_model=tmp_path / "n.stx", **HOW)
    before = line.copy()
    with pytest.raises(ValueError, match="diverged"):
        st.tl.distill(line, tmp_path / "n.stx", params={"lr": 1e30, "epochs": 2}, save_model=tmp_path / "s.stx", **HOW)
    assert_same(line, before)
    assert [p.name for p in tmp_path.iterdir()] == ["n.stx"]


def test_embed_and_multitask(line, quick_net, tmp_path):
    before = line.copy()
    with pytest.raises(ValueError, match="diverged"):
        st.tl.embed(line, params={**quick_net, "lr": 1e30}, **HOW)
    with pytest.raises(ValueError, match="diverged"):
        st.tl.multitask(line, region_key="band", params={**quick_net, "lr": 1e30}, save_model=tmp_path / "n.stx", **HOW)
    assert_same(line, before)
    assert not list(tmp_path.iterdir())
