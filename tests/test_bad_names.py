"""Names and numbers that files cannot hold: an error, or a result that can be stored."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from conftest import assert_same

import stxtools as st

QUIET = {"show_progress": False, "accelerator": "cpu"}


BAD_NAMES = [".", "..", "_index", "a\0b", "a/b", "a\\b", ".zattrs", "zarr.json", "\ud800", "x" * 201]


def _renamed(column: pd.Series, old: str, new: str) -> pd.Series:
    """Rename a category; as objects, since pandas 3's strings hold no lone surrogate."""
    names = pd.Index([new if c == old else c for c in column.cat.categories], dtype=object)
    return pd.Series(pd.Categorical.from_codes(column.cat.codes, categories=names), index=column.index)


def _calls(adata: ad.AnnData, name: str, tmp_path) -> list:
    return [
        lambda: st.pp.rasterize(adata, key_added=name),
        lambda: st.pp.add_noise(adata, 0.1, key_added=name),
        lambda: st.pp.split_counts(adata, key_added=name),
        lambda: st.pp.align(adata, library_key="library", key_added=name),
        lambda: st.tl.segment(adata, 2, key_added=name, **QUIET),
        lambda: st.tl.region_graph(adata, "band", key_added=name),
        lambda: st.tl.biomarkers(adata, "band", key_added=name),
        lambda: st.tl.pretrain(adata, save_model=tmp_path / "m.stx", key_added=name, **QUIET),
        lambda: st.tl.evaluate(adata, ["lda"], region_key="band", key_added=name),
    ]


@pytest.mark.parametrize("name", BAD_NAMES, ids=ascii)
def test_key_added_that_files_cannot_hold_raises(make_section, tmp_path, name):
    adata = make_section(rows=6, cols=6)
    before = adata.copy()
    for call in _calls(adata, name, tmp_path):
        with pytest.raises(ValueError, match="key_added"):
            call()
    assert_same(before, adata)


@pytest.mark.parametrize("name", [*BAD_NAMES, None], ids=ascii)
def test_section_names_that_are_missing_or_unusable_in_files_raise(make_section, name):
    adata = make_section(rows=6, cols=6, libraries=2)
    adata.obs["library"] = _renamed(adata.obs["library"], "lib0", name or "")
    if name is None:
        adata.obs["library"] = adata.obs["library"].cat.remove_categories("")
    before, how = adata.copy(), {"library_key": "library"}
    for call in (
        lambda: st.pp.rasterize(adata, **how),
        lambda: st.tl.segment(adata, 2, **how, **QUIET),
        lambda: st.tl.region_graph(adata, "band", **how),
        lambda: st.tl.biomarkers(adata, "band", show_progress=False, **how),
    ):
        with pytest.raises(ValueError, match="missing values" if name is None else "Section names"):
            call()
    assert_same(before, adata)


@pytest.mark.parametrize("name", ["a\0b", "\ud800"], ids=ascii)
def test_class_names_with_nul_or_surrogates_raise(make_section, line, name):
    adata = make_section(rows=6, cols=6)
    for one in (adata, line):
        one.obs["layer"] = _renamed(one.obs["band"], "b", name)
    with pytest.raises(ValueError, match=r"layer.*rename_categories"):
        st.tl.segment(adata, labels_key="layer", **QUIET)
    with pytest.raises(ValueError, match="layer"):
        st.tl.multitask(line, "layer", "band", **QUIET)


@pytest.mark.parametrize("categorical", [True, False])
def test_categories_equal_as_strings_raise(make_section, categorical):
    adata = make_section(rows=6, cols=6)
    mixed = np.array([1, "1"], dtype=object)[np.arange(adata.n_obs) % 2]
    adata.obs["mixed"] = pd.Categorical(mixed) if categorical else pd.Series(mixed, adata.obs_names, dtype=object)
    before = adata.obs["mixed"].copy()
    for call in (
        lambda: st.tl.biomarkers(adata, "mixed"),
        lambda: st.tl.segment(adata, labels_key="mixed", **QUIET),
        lambda: st.pp.rasterize(adata, library_key="mixed"),
    ):
        with pytest.raises(ValueError, match="equal as strings"):
            call()
    pd.testing.assert_series_equal(adata.obs["mixed"], before)


def test_seeds_above_32_bits_raise(make_section):
    adata = make_section(rows=6, cols=6)
    calls = [
        lambda seed: st.pp.normalize(adata, random_state=seed),
        lambda seed: st.pp.split_counts(adata, random_state=seed),
        lambda seed: st.tl.segment(adata, 2, random_state=seed, **QUIET),
        lambda seed: st.tl.biomarkers(adata, "band", random_state=seed),
        lambda seed: st.datasets.synthetic_tissue(n_obs=50, random_state=seed),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"random_state.*at most 4294967295"):
            call(2**32)
    st.pp.split_counts(adata, random_state=2**32 - 1)
    assert adata.uns["split"]["params"]["random_state"] == 2**32 - 1


def test_sizes_out_of_range_raise(make_section):
    adata = make_section(rows=6, cols=6)
    huge = 10**30
    calls = [
        lambda: st.pp.normalize(adata, n_top_genes=huge),
        lambda: st.pp.normalize(adata, n_comps=huge),
        lambda: st.tl.segment(adata, huge, **QUIET),
        lambda: st.tl.segment(adata, 2, params={"width": huge}, **QUIET),
        lambda: st.tl.region_graph(adata, "band", max_size=huge),
        lambda: st.tl.biomarkers(adata, "band", n_null=huge),
        lambda: st.tl.evaluate(adata, ["lda"], region_key="band", n_seeds=huge),
        lambda: st.tl.evaluate(adata, ["lda"], region_key="band", n_folds=huge),
        lambda: st.datasets.synthetic_tissue(n_obs=huge),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"at most|more than"):
            call()
