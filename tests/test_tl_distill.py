"""A student answers nearly as its teacher does, and is saved and applied like it."""

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
from stxtools.models import Segmenter, Student
from stxtools.nn._student import PyramidMLP
from stxtools.nn._tiles import PixelRaster, predict_pixels
from stxtools.nn._unet import SegmentationNet


@pytest.fixture
def section(make_section: Callable[..., ad.AnnData]) -> ad.AnnData:
    return make_section("hex", rows=34, cols=32)


@pytest.fixture
def teacher(section: ad.AnnData, quick_unet: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "teacher.stx"
    st.tl.segment(section, labels_key="band", params=quick_unet, save_model=path)
    return path


def test_student_answers_as_the_teacher_on_new_tissue(
    section: ad.AnnData, teacher: Path, make_section: Callable[..., ad.AnnData], tmp_path: Path
) -> None:
    path = tmp_path / "student.stx"
    assert st.tl.distill(section, teacher, save_model=path, params={"epochs": 30, "patience": 30}) is None
    assert section.uns["distill"]["agreement"] > 0.85
    history = section.uns["distill"]["history"]
    assert history["val_loss"].iloc[-1] < history["val_loss"].iloc[0]
    new = make_section("hex", rows=20, cols=26, seed=7)
    st.tl.segment(new, model=teacher)
    st.tl.segment(new, model=path, key_added="quick")
    agree = (new.obs["segment"].astype(str) == new.obs["quick"].astype(str)).mean()
    assert agree > 0.8  # the teacher is a toy that trained for a second
    truth = new.obs["band"]
    assert adjusted_rand_score(truth, new.obs["quick"]) > adjusted_rand_score(truth, new.obs["segment"]) - 0.1
    assert list(new.obs["quick"].cat.categories) == ["a", "b", "c"]
    np.testing.assert_allclose(new.obsm["quick_proba"].sum(axis=1), 1, atol=1e-5)


def test_same_seed_same_student_and_file_comes_back_equal(section: ad.AnnData, teacher: Path, tmp_path: Path) -> None:
    before = {"obs": list(section.obs.columns), "uns": set(section.uns)}
    copies = [
        st.tl.distill(section, teacher, save_model=tmp_path / f"{i}.stx", random_state=3, copy=True) for i in (0, 1)
    ]
    assert {"obs": list(section.obs.columns), "uns": set(section.uns)} == before
    assert (tmp_path / "0.stx").read_bytes() == (tmp_path / "1.stx").read_bytes()
    first = copies[0]
    assert first is not None
    student = Student.load(tmp_path / "0.stx")
    assert student.classes == ["a", "b", "c"]
    st.tl.segment(first, model=student, key_added="given")
    st.tl.segment(first, model=tmp_path / "0.stx", key_added="read")
    np.testing.assert_array_equal(first.obsm["given_proba"], first.obsm["read_proba"])
    first.write_h5ad(tmp_path / "x.h5ad")
    assert ad.read_h5ad(tmp_path / "x.h5ad").uns["distill"]["agreement"] == first.uns["distill"]["agreement"]


def test_student_in_tiles_equals_the_whole() -> None:
    torch.manual_seed(0)
    net = SegmentationNet(PyramidMLP(3, width=8, sigmas=(0.0, 2.0, 4.0)), 4).eval()  # type: ignore[arg-type]
    flat = torch.nonzero(torch.rand(90 * 77) < 0.7)[:, 0]
    raster = PixelRaster((90, 77), flat, torch.randn(len(flat), 3))
    tiled = predict_pixels(net, raster, torch.device("cpu"), side=20)
    whole = predict_pixels(net, raster, torch.device("cpu"), side=512)
    assert torch.allclose(tiled[0], whole[0], atol=1e-5)
    some = torch.arange(5, len(flat), 300)
    assert torch.allclose(
        predict_pixels(net, raster, torch.device("cpu"), side=20, only=some)[1], whole[1][some], atol=1e-5
    )


def test_errors_name_what_helps(section: ad.AnnData, teacher: Path, tmp_path: Path) -> None:
    before = set(section.uns)
    with pytest.raises(FileNotFoundError, match="no model file"):
        st.tl.distill(section, tmp_path / "none.stx", save_model=tmp_path / "s.stx")
    with pytest.raises(FileNotFoundError, match="create it first"):
        st.tl.distill(section, teacher, save_model=tmp_path / "no" / "s.stx")
    with pytest.raises(NotImplementedError, match="distill"):
        Student().fit([])
    st.tl.distill(section, teacher, save_model=tmp_path / "s.stx", params={"epochs": 1})
    with pytest.raises(ValueError, match="holds a Student"):
        Segmenter.load(tmp_path / "s.stx")
    other = section.copy()
    other.var_names = [f"x{i}" for i in range(other.n_vars)]
    with pytest.raises(ValueError, match="of the model's"):
        st.tl.distill(other, teacher, save_model=tmp_path / "s.stx")
    assert set(other.uns) == before | {"distill"}
