"""A student predicts nearly what its teacher, the whole framework, does; it is saved and applied to rasters."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anndata as ad
import numpy as np
import pytest
import torch
from scipy import sparse

import stxtools as st
from stxtools.models import GeneProjection, TissueStudent
from stxtools.models.tissuenet.genes import SmoothedGenes, pooling
from stxtools.models.tissuenet.readout import with_readout
from stxtools.nn._student import JointNet, PyramidMLP
from stxtools.nn._tiles import PixelRaster, predict_pixels
from stxtools.nn._unet import SegmentationNet


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


@pytest.fixture
def framework(line: ad.AnnData, quick_net: dict[str, Any], tmp_path: Path) -> Path:
    line.obs["side"] = np.where(line.obsm["spatial"][:, 0] < np.median(line.obsm["spatial"][:, 0]), "left", "right")
    path = tmp_path / "framework.stx"
    st.tl.multitask(line, "side", "band", params=quick_net | {"epochs": 15}, save_model=path)
    return path


def test_student_of_the_framework_needs_no_region_graph(line: ad.AnnData, framework: Path, tmp_path: Path) -> None:
    path = tmp_path / "student.stx"
    st.tl.distill(line, framework, save_model=path, params={"epochs": 30, "patience": 30})
    assert set(line.uns["distill"]["agreement"]) == {"biomarker", "classification"}
    assert line.uns["distill"]["agreement"]["classification"] > 0.8
    by_teacher = st.tl.multitask(line, "side", "band", model=framework, copy=True)
    bare = ad.AnnData(line.X, obs=line.obs[["library"]], var=line.var[[]], obsm={"spatial": line.obsm["spatial"]})
    found = st.tl.multitask(bare, "side", "band", model=path, library_key="library", copy=True)
    assert found is not None
    assert by_teacher is not None
    assert not set(bare.obs) - {"library"}
    assert set(found.obs) == {"library", "side_pred", "band_pred"}
    for key, n_classes in (("side", 2), ("band", 3)):
        assert found.obsm[f"{key}_proba"].shape == (line.n_obs, n_classes)
        np.testing.assert_allclose(found.obsm[f"{key}_proba"].sum(axis=1), 1, atol=1e-5)
    same = found.obs["band_pred"].astype(str) == by_teacher.obs["band_pred"].astype(str)
    assert same.mean() > 0.9
    one = st.tl.multitask(bare, None, "band", model=TissueStudent.load(path), library_key="library", copy=True)
    assert one is not None
    assert "side_pred" not in one.obs
    np.testing.assert_array_equal(one.obsm["band_proba"], found.obsm["band_proba"])
    found.write_h5ad(tmp_path / "x.h5ad")
    back = ad.read_h5ad(tmp_path / "x.h5ad")
    assert back.uns["multitask"]["params"]["model"] == "student"
    backed = ad.read_h5ad(tmp_path / "x.h5ad", backed="r")
    backed.obs["library"] = backed.obs["library"].astype("category")
    st.tl.multitask(backed, "side", "band", model=path, library_key="library", key_added="again")
    np.testing.assert_array_equal(backed.obsm["band_proba"], found.obsm["band_proba"])


def test_same_seed_same_student_of_the_framework(line: ad.AnnData, framework: Path, tmp_path: Path) -> None:
    for i in (0, 1):
        st.tl.distill(line, framework, save_model=tmp_path / f"{i}.stx", params={"epochs": 2}, random_state=3)
    assert (tmp_path / "0.stx").read_bytes() == (tmp_path / "1.stx").read_bytes()


def test_what_a_student_of_the_framework_refuses(
    line: ad.AnnData, framework: Path, quick_net: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "student.stx"
    with pytest.raises(ValueError, match="divided otherwise"):
        st.tl.distill(line, framework, save_model=path, library_key="band")
    bare = line.copy()
    del bare.uns["regions"]
    with pytest.raises(KeyError, match="region_graph"):
        st.tl.distill(bare, framework, save_model=path)
    assert not path.exists()
    st.tl.distill(line, framework, save_model=path, library_key="library", params={"epochs": 1})
    for model in (path, TissueStudent.load(path)):
        with pytest.raises(ValueError, match=r"st\.tl\.multitask"):
            st.tl.segment(line, model=model, library_key="library", key_added="x")
    with pytest.raises(ValueError, match="Name `biomarker_key`"):
        st.tl.multitask(line, model=path)
    with pytest.raises(ValueError, match="divided otherwise"):
        st.tl.multitask(line, "side", "band", model=framework, library_key="band")
    genes = tmp_path / "genes.stx"
    st.tl.multitask(line, expression=["gene3"], params=quick_net, save_model=genes)
    with pytest.raises(ValueError, match="predicts no classes"):
        st.tl.distill(line, genes, save_model=tmp_path / "none.stx")
    only = tmp_path / "only.stx"
    st.tl.multitask(line, None, "band", params=quick_net, save_model=only)
    st.tl.distill(line, only, save_model=path, params={"epochs": 1})
    with pytest.raises(ValueError, match="drop biomarker_key"):
        st.tl.multitask(line, "side", "band", model=path)


def test_errors_name_what_helps(line: ad.AnnData, framework: Path, quick_unet: dict[str, Any], tmp_path: Path) -> None:
    before, path = set(line.uns), tmp_path / "s.stx"
    with pytest.raises(FileNotFoundError, match="no model file"):
        st.tl.distill(line, tmp_path / "none.stx", save_model=path)
    with pytest.raises(FileNotFoundError, match="create it first"):
        st.tl.distill(line, framework, save_model=tmp_path / "no" / "s.stx")
    with pytest.raises(TypeError, match=r"a path or a stxtools\.models\.TissueNet, not int"):
        st.tl.distill(line, 5, save_model=path)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not trained"):
        TissueStudent().save(path)
    other = line.copy()
    other.var_names = [f"x{i}" for i in range(other.n_vars)]
    with pytest.raises(ValueError, match="of the model's"):
        st.tl.distill(other, framework, save_model=path)
    unet = tmp_path / "unet.stx"
    st.tl.segment(other, labels_key="band", library_key="library", params=quick_unet, save_model=unet, key_added="u")
    with pytest.raises(ValueError, match=r"a Segmenter, not a TissueNet"):
        st.tl.distill(line, unet, save_model=path)
    assert set(line.uns) == before
    assert not path.exists()
    st.tl.distill(line, framework, save_model=path, params={"epochs": 1})
    with pytest.raises(ValueError, match="holds a TissueStudent"):
        st.tl.distill(line, path, save_model=tmp_path / "again.stx")


def test_axes_of_the_predictions_are_those_of_the_genes() -> None:
    rng = np.random.default_rng(0)
    xy = rng.uniform(0, 40, (1600, 2))
    logged = sparse.csr_matrix(rng.poisson(1.0, (1600, 25)).astype(np.float32))
    weight = rng.standard_normal(25)
    names = [f"g{i}" for i in range(25)]
    smoothed = SmoothedGenes((7, 19)).fit([(logged, xy)], rng)
    # what is said of an observation hangs on one direction of the genes around it
    answer = (pooling(xy, 19) @ logged) @ weight
    answers = np.stack([answer, -answer], axis=1)
    answers[::7] = np.nan
    old = np.linalg.qr(rng.standard_normal((25, 3)))[0]
    before = GeneProjection(names, np.zeros(25), old, 1.0, np.ones(3))
    section = SimpleNamespace(genes=logged, section=SimpleNamespace(xy=xy))
    after = with_readout(before, names, smoothed, [section], [answers], rng)  # type: ignore[list-item]
    np.testing.assert_array_equal(after.components[:, :3], old)
    gram = after.components.T @ after.components
    np.testing.assert_allclose(gram, np.eye(len(gram)), atol=1e-9)
    lacking = weight - old @ (old.T @ weight)
    seen = after.components[:, 3:].T @ (lacking / np.linalg.norm(lacking))
    assert np.linalg.norm(seen) > 0.95


def test_loadings_carry_scores_back_to_the_genes() -> None:
    rng = np.random.default_rng(1)
    parts = [(sparse.csr_matrix(rng.poisson(1.0, (n, 12)).astype(np.float32)), rng.uniform(0, 20, (n, 2)))
             for n in (300, 260)]  # fmt: skip
    for sections in (parts[:1], [parts[0], parts[0]]):  # several sections are scaled one by one
        smoothed = SmoothedGenes((7, 19)).fit(sections, np.random.default_rng(0))
        coefficients = rng.standard_normal((smoothed.axes.shape[1], 2))
        logged, xy = sections[0]
        direct = smoothed.transform(logged, xy) @ coefficients
        near, far = smoothed.loadings(coefficients, sections)
        carried = pooling(xy, 7) @ (logged @ near) + pooling(xy, 19) @ (logged @ far)
        np.testing.assert_allclose(direct - direct.mean(axis=0), carried - carried.mean(axis=0), atol=1e-3)
    rows = np.array([4, 9, 250])
    np.testing.assert_allclose(smoothed.transform(logged, xy, rows), smoothed.transform(logged, xy)[rows], atol=1e-5)


def test_softmax_of_a_joint_network_is_that_of_each_task() -> None:
    torch.manual_seed(0)
    net = JointNet(PyramidMLP(3, width=8, sigmas=(0.0, 1.0)), [2, 4]).eval()
    x, occupied = torch.randn(1, 3, 9, 8), torch.ones(1, 1, 9, 8)
    raw = net.head(net.unet(x, occupied))
    both = net(x, occupied)[0].softmax(dim=1) * 2
    assert torch.allclose(both[:, :2], raw[:, :2].softmax(dim=1), atol=1e-6)
    assert torch.allclose(both[:, 2:], raw[:, 2:].softmax(dim=1), atol=1e-6)
