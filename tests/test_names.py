"""Names and numbers that h5ad and zarr cannot hold are refused before any computation."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from conftest import assert_same

import stxtools as st

BAD_NAMES = [".", "..", "_index", "a\0b", "a/b", "a\\b", ".zattrs", "zarr.json", "\ud800", "x" * 201]
HOW = {"show_progress": False, "accelerator": "cpu"}


def _renamed(column: pd.Series, old: str, new: str) -> pd.Series:
    """Rename a category; as objects, since pandas 3's strings hold no lone surrogate."""
    names = pd.Index([new if c == old else c for c in column.cat.categories], dtype=object)
    return pd.Series(pd.Categorical.from_codes(column.cat.codes, categories=names), index=column.index)


def _keys(adata: ad.AnnData, name: str, tmp_path) -> list:
    return [
        lambda: st.pp.rasterize(adata, key_added=name),
        lambda: st.pp.add_noise(adata, 0.1, key_added=name),
        lambda: st.pp.split_counts(adata, key_added=name),
        lambda: st.pp.align(adata, library_key="library", key_added=name),
        lambda: st.tl.segment(adata, 2, key_added=name, **HOW),
        lambda: st.tl.region_graph(adata, "band", key_added=name),
        lambda: st.tl.biomarkers(adata, "band", key_added=name),
        lambda: st.tl.pretrain(adata, save_model=tmp_path / "m.stx", key_added=name, **HOW),
        lambda: st.tl.evaluate(adata, ["lda"], region_key="band", key_added=name),
    ]


@pytest.mark.parametrize("name", BAD_NAMES, ids=ascii)
def test_keys(make_section, tmp_path, name):
    adata = make_section(rows=6, cols=6)
    before = adata.copy()
    for call in _keys(adata, name, tmp_path):
        with pytest.raises(ValueError, match="key_added"):
            call()
    assert_same(before, adata)


@pytest.mark.parametrize("name", BAD_NAMES, ids=ascii)
def test_libraries(make_section, name):
    adata = make_section(rows=6, cols=6, libraries=2)
    adata.obs["library"] = _renamed(adata.obs["library"], "lib0", name)
    with pytest.raises(ValueError, match="Section names"):
        st.pp.rasterize(adata, library_key="library")


@pytest.mark.parametrize("name", ["a\0b", "\ud800"], ids=ascii)
def test_classes(make_section, line, name):
    adata = make_section(rows=6, cols=6)
    adata.obs["layer"] = _renamed(adata.obs["band"], "b", name)
    with pytest.raises(ValueError, match="layer"):
        st.tl.segment(adata, labels_key="layer", **HOW)
    line.obs["layer"] = _renamed(line.obs["band"], "b", name)
    with pytest.raises(ValueError, match="layer"):
        st.tl.multitask(line, "layer", "band", **HOW)


@pytest.mark.parametrize("categorical", [True, False])
def test_values_that_are_written_alike_are_not_made_one(make_section, categorical):
    adata = make_section(rows=6, cols=6)
    mixed = np.array([1, "1"], dtype=object)[np.arange(adata.n_obs) % 2]
    adata.obs["mixed"] = pd.Categorical(mixed) if categorical else pd.Series(mixed, adata.obs_names, dtype=object)
    before = adata.obs["mixed"].copy()
    with pytest.raises(ValueError, match="equal as strings"):
        st.tl.biomarkers(adata, "mixed")
    with pytest.raises(ValueError, match="equal as strings"):
        st.tl.segment(adata, labels_key="mixed", **HOW)
    with pytest.raises(ValueError, match="equal as strings"):
        st.pp.rasterize(adata, library_key="mixed")
    pd.testing.assert_series_equal(adata.obs["mixed"], before)


def test_seeds_have_an_upper_bound(make_section):
    adata = make_section(rows=6, cols=6)
    calls = [
        lambda seed: st.pp.normalize(adata, random_state=seed),
        lambda seed: st.pp.split_counts(adata, random_state=seed),
        lambda seed: st.tl.segment(adata, 2, random_state=seed, **HOW),
        lambda seed: st.tl.biomarkers(adata, "band", random_state=seed),
        lambda seed: st.datasets.synthetic_tissue(n_obs=50, random_state=seed),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"random_state.*at most 4294967295"):
            call(2**32)
    st.pp.split_counts(adata, random_state=2**32 - 1)
    assert adata.uns["split"]["params"]["random_state"] == 2**32 - 1


def test_sizes_have_an_upper_bound(make_section):
    adata = make_section(rows=6, cols=6)
    huge = 10**30
    calls = [
        lambda: st.pp.normalize(adata, n_top_genes=huge),
        lambda: st.pp.normalize(adata, n_comps=huge),
        lambda: st.tl.segment(adata, huge, **HOW),
        lambda: st.tl.segment(adata, 2, params={"width": huge}, **HOW),
        lambda: st.tl.region_graph(adata, "band", max_size=huge),
        lambda: st.tl.biomarkers(adata, "band", n_null=huge),
        lambda: st.tl.evaluate(adata, ["lda"], region_key="band", n_seeds=huge),
        lambda: st.tl.evaluate(adata, ["lda"], region_key="band", n_folds=huge),
        lambda: st.datasets.synthetic_tissue(n_obs=huge),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"at most|more than"):
            call()
