"""tl.distill: the student predicts nearly what the framework does, without regions; files and errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
from conftest import QUICK_NET

import stxtools as st
from stxtools.models import TissueStudent


@pytest.fixture(scope="module")
def trained(_line: ad.AnnData, tmp_path_factory: pytest.TempPathFactory) -> tuple[ad.AnnData, Path]:
    adata, path = _line.copy(), tmp_path_factory.mktemp("framework") / "framework.stx"
    adata.obs["side"] = np.where(adata.obsm["spatial"][:, 0] < np.median(adata.obsm["spatial"][:, 0]), "left", "right")
    st.tl.multitask(adata, "side", "band", params=QUICK_NET | {"epochs": 15}, save_model=path)
    return adata, path


@pytest.fixture
def line(trained: tuple[ad.AnnData, Path]) -> ad.AnnData:
    return trained[0].copy()


@pytest.fixture
def framework(trained: tuple[ad.AnnData, Path]) -> Path:
    return trained[1]


def test_student_agrees_with_the_framework_without_a_region_graph(
    line: ad.AnnData, framework: Path, tmp_path: Path
) -> None:
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


def test_student_finds_genes_under_other_names(line: ad.AnnData, framework: Path, tmp_path: Path) -> None:
    path, params = tmp_path / "student.stx", {"epochs": 2}
    renamed = line.copy()
    renamed.var["gene_symbols"] = list(line.var_names)
    renamed.var_names = [f"ENSG{i:011d}.1" for i in range(line.n_vars)]
    for adata in (line, renamed):
        st.tl.distill(adata, framework, save_model=path, params=params)
        st.tl.multitask(adata, "side", "band", model=path, library_key="library", key_added="student")
    np.testing.assert_array_equal(renamed.obsm["band_proba"], line.obsm["band_proba"])


def test_same_seed_gives_the_same_student(line: ad.AnnData, framework: Path, tmp_path: Path) -> None:
    for i in (0, 1):
        st.tl.distill(line, framework, save_model=tmp_path / f"{i}.stx", params={"epochs": 2}, random_state=3)
    assert (tmp_path / "0.stx").read_bytes() == (tmp_path / "1.stx").read_bytes()


def test_wrong_tasks_and_libraries_are_reported(
    line: ad.AnnData, framework: Path, quick_net: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "student.stx"
    with pytest.raises(ValueError, match="was made for"):
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
    with pytest.raises(ValueError, match="was made for"):
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


def test_wrong_models_and_paths_leave_the_data_unchanged(
    line: ad.AnnData, framework: Path, quick_unet: dict[str, Any], tmp_path: Path
) -> None:
    before, path, other, unet = set(line.uns), tmp_path / "s.stx", line.copy(), tmp_path / "unet.stx"
    other.var_names = [f"x{i}" for i in range(other.n_vars)]
    st.tl.segment(other, labels_key="band", library_key="library", params=quick_unet, save_model=unet, key_added="u")
    for adata, model, save, error, match in (
        (line, tmp_path / "none.stx", path, FileNotFoundError, "no model file"),
        (line, framework, tmp_path / "no" / "s.stx", FileNotFoundError, "create it first"),
        (line, 5, path, TypeError, r"a path or a stxtools\.models\.TissueNet, not int"),
        (other, framework, path, ValueError, "of the model's"),
        (line, unet, path, ValueError, "a Segmenter, not a TissueNet"),
    ):
        with pytest.raises(error, match=match):
            st.tl.distill(adata, model, save_model=save)
    with pytest.raises(ValueError, match="not trained"):
        TissueStudent().save(path)
    assert set(line.uns) == before
    assert not path.exists()
    st.tl.distill(line, framework, save_model=path, params={"epochs": 1})
    with pytest.raises(ValueError, match="holds a TissueStudent"):
        st.tl.distill(line, path, save_model=tmp_path / "again.stx")
