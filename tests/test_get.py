"""Tidy tables from the slots."""

from __future__ import annotations

from collections.abc import Callable

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import stxtools as st


@pytest.fixture
def adata() -> ad.AnnData:
    rng = np.random.default_rng(0)
    adata = ad.AnnData(sparse.csr_matrix(rng.poisson(1.0, (10, 4)).astype(np.float32)))
    adata.obs["segment"] = pd.Categorical(["a"] * 4 + ["b"] * 5 + [None], categories=["a", "b", "never"])
    adata.obs["segment_confidence"] = np.linspace(0.1, 1.0, 10, dtype=np.float32)
    adata.obs["sample"] = pd.Categorical(["s1"] * 6 + ["s2"] * 4)
    regions = ad.AnnData(np.zeros((3, 4), dtype=np.float32))
    regions.obs_names = ["r0", "r1", "r2"]
    regions.obs["segment"] = pd.Categorical(["a", "b", "b"])
    regions.obs["library"] = pd.Categorical(["s1", "s1", "s2"])
    regions.obs["n_obs"] = [4, 2, 3]
    regions.obs["area"] = [40.0, 20.0, 30.0]
    regions.obsm["spatial"] = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    contact = sparse.csr_matrix(np.array([[0, 2.5, 0], [2.5, 0, 0], [0, 0, 0]]))
    regions.obsp["contact_length"] = contact
    regions.obsp["spatial_connectivities"] = (contact > 0).astype(float)
    adata.uns["regions"] = regions
    return adata


def test_regions_returns_a_table_of_its_own(adata: ad.AnnData) -> None:
    regions = adata.uns["regions"]
    regions.obs["attention"] = [0.1, 0.2, 0.0]
    regions.obsp["spatial_connectivities"] = regions.obsp["spatial_connectivities"] + sparse.eye(3, format="csr")
    table = st.get.regions(adata)
    columns = ["segment", "library", "n_obs", "area", "x", "y", "degree", "contact_length", "attention"]
    assert list(table.columns) == columns
    assert list(table.index) == ["r0", "r1", "r2"]
    assert table.index.name == "region"
    assert table["degree"].tolist() == [1, 1, 0]  # a region is not its own neighbour
    assert table["contact_length"].tolist() == [2.5, 2.5, 0.0]
    assert table["attention"].tolist() == [0.1, 0.2, 0.0]
    assert table.loc["r2", ["x", "y"]].tolist() == [5.0, 6.0]
    table["area"] = 0.0
    assert regions.obs["area"].tolist() == [40.0, 20.0, 30.0]
    adata.uns["table"] = pd.DataFrame({"a": [1]})
    with pytest.raises(TypeError, match="DataFrame"):
        st.get.regions(adata, "table")


def test_segments_counts_observations_and_averages_confidence(adata: ad.AnnData) -> None:
    table = st.get.segments(adata)
    assert table["segment"].tolist() == ["a", "b", "never"]
    assert table["n_obs"].tolist() == [4, 5, 0]
    np.testing.assert_allclose(table["share"], [4 / 9, 5 / 9, 0])
    confidence = adata.obs["segment_confidence"].to_numpy()
    np.testing.assert_allclose(table["confidence"][:2], [confidence[:4].mean(), confidence[4:9].mean()], rtol=1e-6)
    assert np.isnan(table["confidence"][2])


def test_segments_per_section_have_shares_of_each_section(adata: ad.AnnData) -> None:
    table = st.get.segments(adata, library_key="sample").set_index(["library", "segment"])
    assert table.loc[("s1", "a"), "n_obs"] == 4
    assert table.loc[("s1", "b"), "n_obs"] == 2
    assert table.loc[("s2", "a"), "n_obs"] == 0
    assert table["share"].groupby(level="library").sum().tolist() == [1.0, 1.0]


def test_segments_of_any_categorical_column(make_section: Callable[..., ad.AnnData]) -> None:
    section = make_section()
    table = st.get.segments(section, key="band")
    assert table["n_obs"].sum() == section.n_obs
    assert "confidence" not in table
    section.obs["score"] = np.linspace(0, 1, section.n_obs)
    with pytest.raises(TypeError, match="floating-point numbers; `key` needs classes"):
        st.get.segments(section, key="score")


def test_key_of_another_call_names_the_slots_that_hold_the_table(adata: ad.AnnData) -> None:
    kinds: dict[str, object] = {"group": "a", "kind": "share", "compartment": "a", "names": "a"}
    numbers = ("logfoldchanges", "scores", "pvals", "pvals_adj", "ci_low", "ci_high")
    table = pd.DataFrame([kinds | dict.fromkeys(numbers, 0.5)])
    adata.uns["compare"] = table.assign(n_group=3, n_reference=3)
    adata.uns["by_state"] = table.drop(columns=["kind", "compartment"]).assign(n_libraries=2)
    adata.uns["time"] = {"links": pd.DataFrame({"event": ["none"]})}
    adata.obsm["layer_proba"] = pd.DataFrame({"a": np.ones(10)}, index=adata.obs_names)
    found: list[tuple[Callable[..., object], str, str]] = [
        (st.get.biomarkers, "compare", r"\['compare'\]` holds no biomarker table; 'by_state' does\. Run"),
        (st.get.compare, "by_state", r"\['by_state'\]` holds no comparison of conditions; 'compare' does\."),
        (st.get.trends, "compare", r"holds no trends\. Run `st\.tl\.trends"),
        (st.get.track, "regions", r"holds no tracked compartments; 'time' does\."),
        (st.get.regions, "nope", r"\['nope'\]` is missing; .* or name another `key`: 'regions'"),
        (st.get.probabilities, "segment", r"\['segment_proba'\]` is missing; keys with probabilities: 'layer'\."),
    ]
    for call, key, words in found:
        with pytest.raises(KeyError, match=words):
            call(adata, key=key)
    with pytest.raises(TypeError, match="`key` must be a string"):
        st.get.probabilities(adata, key=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"has 'a'\. Of two groups only the second"):
        st.get.biomarkers(adata, "b", key="by_state")
    adata.uns["by_state"] = pd.concat([adata.uns["by_state"], adata.uns["by_state"].assign(group="c")])
    with pytest.raises(ValueError, match=r"has 'a', 'c'\.$"):
        st.get.biomarkers(adata, "b", key="by_state")
