"""Sections that are read from the folder of data sets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from conftest import DATA
from scipy import sparse

import stxtools as st


@pytest.fixture
def datasetdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "data"
    monkeypatch.setattr(st.settings, "datasetdir", folder)
    return folder


@pytest.mark.parametrize(
    ("call", "file"),
    [
        (lambda: st.datasets.dlpfc(), "dlpfc_151673.h5ad"),
        (lambda: st.datasets.dlpfc("151508"), "dlpfc_151508_pcs.h5ad"),
        (lambda: st.datasets.her2st("C1"), "her2st_C1.h5ad"),
        (lambda: st.datasets.xenium_breast_idc(), "xenium_breast_idc.h5ad"),
        (lambda: st.datasets.starmap_mpfc(), "starmap_mpfc_BZ5.h5ad"),
        (lambda: st.datasets.osmfish_sscortex(), "osmfish_mouse_sscortex.h5ad"),
        (lambda: st.datasets.merfish_hypothalamus(), "merfish_hypothalamus.h5ad"),
        (lambda: st.datasets.xenium_mouse_brain(), "xenium_mouse_brain_subset.h5ad"),
        (lambda: st.datasets.mouse_olfactory_bulb("MOB2"), "st_mouse_olfactory_bulb_MOB2.h5ad"),
    ],
)
def test_sections_are_read_from_datasetdir(call: Callable[[], ad.AnnData], file: str, datasetdir: Path) -> None:
    with pytest.raises(FileNotFoundError, match="STXTOOLS_DATASETDIR") as caught:
        call()
    assert str(datasetdir) in str(caught.value)
    assert file in str(caught.value)
    assert "GitHub" in str(caught.value)
    datasetdir.mkdir()
    made = ad.AnnData(
        sparse.csr_matrix(np.eye(3, dtype=np.float32)),
        obs=pd.DataFrame({"is_duplicate": [False, False, True]}, index=list("abc")),
    )
    made.write_h5ad(datasetdir / file)
    assert call().n_obs == (2 if "osmfish" in file else 3)


def test_unknown_sample_raises_and_unlisted_files_are_read(datasetdir: Path) -> None:
    with pytest.raises(FileNotFoundError, match="151508, 151670, 151673, 151675"):
        st.datasets.dlpfc("999")
    with pytest.raises(TypeError, match="'151508'"):
        st.datasets.dlpfc(151673)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not a path"):
        st.datasets.her2st("../secret")
    # a section of the same kind that is not listed is read under its name
    datasetdir.mkdir()
    ad.AnnData(np.ones((2, 2), dtype=np.float32)).write_h5ad(datasetdir / "dlpfc_151674.h5ad")
    assert st.datasets.dlpfc("151674").n_obs == 2


def test_osmfish_duplicates_are_removed(
    real_section: Callable[[str], ad.AnnData], monkeypatch: pytest.MonkeyPatch
) -> None:
    full = real_section("osmfish_mouse_sscortex")
    monkeypatch.setattr(st.settings, "datasetdir", DATA)
    adata = st.datasets.osmfish_sscortex()
    assert adata.n_obs == full.n_obs - int(full.obs["is_duplicate"].sum())
    assert not adata.is_view
    everything = np.column_stack([adata.X.toarray(), adata.obsm["spatial"]])
    assert len(np.unique(everything, axis=0)) == adata.n_obs
