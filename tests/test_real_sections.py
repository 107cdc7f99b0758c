"""The whole pipeline on real tissue: all platforms, several libraries, exact numbers of segments."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
from conftest import ON_CPU, QUICK_NET, QUICK_UNET, assert_same
from sklearn.metrics import adjusted_rand_score

import stxtools as st

QUICK = QUICK_UNET | {"epochs": 10, "steps_per_epoch": 6}


DONORS = ("A1", "B1", "C1", "D1")
GROUPS = {
    "dlpfc_151673": "layer", "xenium_breast_idc": "is_tumour", "starmap_mpfc_BZ5": "cell_type",
    "osmfish_mouse_sscortex": "cell_type", "merfish_hypothalamus": "cell_type", "her2st": "is_tumour",
}  # fmt: skip


def segmented(real_section, name: str, n_segments: int) -> tuple[ad.AnnData, str | None]:
    """Few steps suffice for the large sections; four small ones of four donors need the defaults."""
    if name == "her2st":
        parts = {donor: real_section(f"her2st_{donor}") for donor in DONORS}
        adata, library_key, params = ad.concat(parts, join="inner", index_unique="-"), "sample", None
    else:
        adata, library_key, params = real_section(name), None, QUICK
    x = adata.X.copy()
    st.tl.segment(adata, n_segments, library_key=library_key, params=params, **ON_CPU)
    assert adata.obs["segment"].nunique() == n_segments
    assert (x != adata.X).nnz == 0
    return adata, library_key


@pytest.mark.parametrize("name", GROUPS)
def test_pipeline_runs_on_every_platform_and_its_files_read_back_equal(real_section, name, tmp_path):
    adata, library_key = segmented(real_section, name, 5)
    x = adata.X.copy()
    columns = list({"region"} & set(adata.obs))  # a pathologist's
    before = adata.obs[columns].copy()
    st.tl.region_graph(adata)
    assert adata.obs[columns].equals(before)
    st.tl.embed(adata, params=QUICK_NET, **ON_CPU)
    groups = adata.obs[GROUPS[name]].value_counts().index[:3].tolist()
    st.tl.biomarkers(adata, GROUPS[name], groups=groups, library_key=library_key, show_progress=False)
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
def test_two_segments_are_found_on_real_sections(real_section, name):
    segmented(real_section, name, 2)


@pytest.mark.slow
def test_scribbles_recover_cortex_layers(real_section):
    adata = real_section("dlpfc_151673")
    st.tl.segment(adata, labels_key="scribble", **ON_CPU)
    known = (adata.obs["layer"].notna() & adata.obs["scribble"].isna()).to_numpy()
    assert adjusted_rand_score(adata.obs["layer"][known], adata.obs["segment"][known]) > 0.55
    assert np.isfinite(adata.obs["segment_confidence"]).all()
