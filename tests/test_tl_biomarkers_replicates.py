"""tl.biomarkers on several sections and patients."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from conftest import grid_positions, poisson_section
from scipy import sparse
from test_tl_biomarkers import smooth_section

import stxtools as st


def _with_batch_effects(n: int, n_markers: int, shift: float = 0.0, **kwargs) -> ad.AnnData:
    parts = [smooth_section(s, n_markers, side=18, **kwargs) for s in range(n)]
    rng = np.random.default_rng(9)
    for part in parts:  # a batch effect of every library
        part.X = sparse.csr_matrix(rng.poisson(part.X.toarray() * np.exp(shift * rng.standard_normal(part.n_vars))))
        part.X = part.X.astype(np.float32)
    return ad.concat(parts, merge="same")


def test_libraries_with_both_sides_are_combined_as_blocks():
    adata = _with_batch_effects(4, 5, shift=0.5)
    st.tl.biomarkers(adata, "region", groups=["in"], library_key="library", n_null=80)
    table = st.get.biomarkers(adata, "in", fdr=0.05, sign="up", min_libraries=4)
    assert len({f"g{i}" for i in range(5)} & set(table["names"])) >= 4
    assert table["direction_consistent"].all()
    assert list(adata.uns["biomarkers_params"]["design"]) == ["within"]
    alone = adata[adata.obs["library"] == "lib0"].copy()
    st.tl.biomarkers(alone, "region", groups=["in"], n_null=80)
    few = st.get.biomarkers(alone).set_index("names").loc[[f"g{i}" for i in range(5)], "pvals"].median()
    assert st.get.biomarkers(adata).set_index("names").loc[[f"g{i}" for i in range(5)], "pvals"].median() < few


def _patients(seed: int, n_genes: int = 100) -> ad.AnnData:
    """Two sections of each of three patients, in whom genes differ between halves by amounts of mean 0."""
    rng, xy = np.random.default_rng(seed), grid_positions(14)
    left, base, parts = xy[:, 0] < 7, rng.gamma(2, 3, n_genes), []
    for patient in range(3):
        rate = base * np.exp(np.outer(left, rng.normal(0, 0.5, n_genes)))
        for section in range(2):
            of = {"half": np.where(left, "left", "right"), "patient": f"p{patient}", "section": f"{patient}{section}"}
            parts.append(poisson_section(rate, xy, rng, **of))
    return ad.concat(parts, index_unique="-")


def test_sections_of_a_patient_are_not_replicates():
    adata = _patients(0)
    how = {"groupby": "half", "library_key": "section", "n_null": 50}
    shares = {}
    for key, n in ((None, 6), ("patient", 3)):
        st.tl.biomarkers(adata, subject_key=key, **how)
        table = adata.uns["biomarkers"]
        assert (table["n_libraries"] == n).all()
        shares[key] = (table["pvals"] <= 0.05).mean()
    assert shares[None] > 0.1 > 0.05 >= shares["patient"]
    assert adata.uns["biomarkers_params"]["subject_key"] == "patient"
    assert np.isfinite(table["rank_score"]).all()

    single = adata[adata.obs["section"].isin(["00", "10", "20"])].copy()
    plain = st.tl.biomarkers(single, **how, copy=True).uns["biomarkers"]
    st.tl.biomarkers(single, subject_key="patient", **how)  # each has one section
    pd.testing.assert_frame_equal(single.uns["biomarkers"], plain)
    adata.obs["nobody"] = adata.obs["patient"].where(adata.obs["section"] != "00")
    with pytest.raises(ValueError, match="is missing in all observations of '00'"):
        st.tl.biomarkers(adata, subject_key="nobody", **how)
    adata.obs["one"] = "p"
    with pytest.warns(UserWarning, match="a single subject"):
        st.tl.biomarkers(adata, subject_key="one", **how)
    adata.obs["arm"] = np.where(adata.obs["patient"] == "p0", "a", "b")
    with pytest.raises(ValueError, match=r"st\.tl\.compare"):
        st.tl.biomarkers(adata, "arm", library_key="section", subject_key="patient")


def test_libraries_of_one_condition_each_are_replicates():
    adata = _with_batch_effects(8, 0, shift=0.1, n_vars=40)
    adata.obs["condition"] = np.where(adata.obs["library"].isin([f"lib{i}" for i in range(4)]), "sick", "well")
    dense = adata.X.toarray()
    sick = (adata.obs["condition"] == "sick").to_numpy()
    dense[np.ix_(sick, range(4))] = np.random.default_rng(0).poisson(dense[np.ix_(sick, range(4))] * 8.0)
    adata.X = sparse.csr_matrix(dense.astype(np.float32))
    st.tl.biomarkers(adata, "condition", groups=["sick"], library_key="library")
    assert list(adata.uns["biomarkers_params"]["design"]) == ["between"]
    found = st.get.biomarkers(adata, fdr=0.05, sign="up")
    assert {f"g{i}" for i in range(4)} <= set(found["names"])
    assert len(found) <= 6
    assert (adata.uns["biomarkers"]["n_libraries"] == 8).all()
    both = adata.uns["biomarkers"].set_index("names")
    for alternative, sign in (("greater", 1), ("less", -1)):
        st.tl.biomarkers(adata, "condition", groups=["sick"], library_key="library", alternative=alternative)
        one = adata.uns["biomarkers"].set_index("names").loc[both.index]
        half = both["pvals"] / 2
        np.testing.assert_allclose(one["pvals"], np.where(sign * both["scores"] > 0, half, 1 - half), rtol=1e-9)


def test_too_few_libraries_are_an_error_and_one_library_a_warning():
    adata = _with_batch_effects(3, 0)
    adata.obs["condition"] = np.where(adata.obs["library"] == "lib0", "sick", "well")
    before = adata.uns.copy()
    with pytest.raises(ValueError, match="at least two on each side"):
        st.tl.biomarkers(adata, "condition", library_key="library")
    assert dict(adata.uns) == dict(before)
    adata.obs["island"] = np.where((adata.obs["library"] == "lib1") & (adata.obs["region"] == "in"), "yes", "no")
    with pytest.warns(UserWarning, match="a single library"):
        st.tl.biomarkers(adata, "island", groups=["yes"], library_key="library", n_null=60)
    assert (adata.uns["biomarkers"]["n_libraries"] <= 1).all()
