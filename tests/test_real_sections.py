"""The whole pipeline on real tissue: all platforms, several libraries, exact numbers of segments."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
from conftest import QUICK_NET, QUICK_UNET, assert_same
from sklearn.metrics import adjusted_rand_score

import stxtools as st

HOW = {"show_progress": False, "accelerator": "cpu"}
QUICK = QUICK_UNET | {"epochs": 10, "steps_per_epoch": 6}


def her2st(real_section) -> ad.AnnData:
    parts = [real_section(f"her2st_{s}") for s in ("A1", "B1", "C1", "D1")]
    return ad.concat(parts, join="inner", index_unique="-", keys=["A1", "B1", "C1", "D1"])


def params_for(name: str) -> dict[str, object] | None:
    """Few steps suffice for the large sections; four small ones of four donors need the defaults."""
    return None if name == "her2st" else QUICK


def read(real_section, name: str) -> tuple[ad.AnnData, str | None]:
    return (her2st(real_section), "sample") if name == "her2st" else (real_section(name), None)


SECTIONS = [
    "dlpfc_151673",
    "xenium_breast_idc",
    "starmap_mpfc_BZ5",
    "osmfish_mouse_sscortex",
    "merfish_hypothalamus",
    "her2st",
]
GROUPS = {"dlpfc_151673": "layer", "xenium_breast_idc": "is_tumour", "her2st": "is_tumour"}


@pytest.mark.parametrize("name", SECTIONS)
def test_the_line_and_its_files(real_section, name, tmp_path):
    adata, library_key = read(real_section, name)
    x = adata.X.copy()
    st.tl.segment(adata, 5, library_key=library_key, params=params_for(name), **HOW)
    assert adata.obs["segment"].nunique() == 5
    own = {"region"} & set(adata.obs)  # a pathologist's
    before = adata.obs[list(own)].copy()
    st.tl.region_graph(adata)
    assert adata.obs[list(own)].equals(before)
    st.tl.embed(adata, params=QUICK_NET, **HOW)
    column = GROUPS.get(name, "cell_type")
    groups = adata.obs[column].value_counts().index[:3].tolist()  # more would say no more
    st.tl.biomarkers(adata, column, groups=groups, library_key=library_key, show_progress=False)
    assert (x != adata.X).nnz == 0
    regions = adata.uns["regions"]
    coo = regions.obsp["spatial_connectivities"].tocoo()
    library = regions.obs["library"].astype(str).to_numpy()
    assert (library[coo.row] == library[coo.col]).all()
    if library_key is not None:
        assert adata.obs.groupby("region_id", observed=True)[library_key].nunique().max() == 1
    adata.write_h5ad(tmp_path / "a.h5ad")
    assert_same(adata, ad.read_h5ad(tmp_path / "a.h5ad"))


@pytest.mark.parametrize("name", ["merfish_hypothalamus", "her2st"])
def test_two_segments(real_section, name):
    adata, library_key = read(real_section, name)
    st.tl.segment(adata, 2, library_key=library_key, params=params_for(name), **HOW)
    assert adata.obs["segment"].nunique() == 2


@pytest.mark.slow
def test_cortex_layers_from_scribbles(real_section):
    adata = real_section("dlpfc_151673")
    st.tl.segment(adata, labels_key="scribble", **HOW)
    known = (adata.obs["layer"].notna() & adata.obs["scribble"].isna()).to_numpy()
    assert adjusted_rand_score(adata.obs["layer"][known], adata.obs["segment"][known]) > 0.55
    assert np.isfinite(adata.obs["segment_confidence"]).all()
