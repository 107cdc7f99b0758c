"""The scale of expression is recognised from its values, in memory and out of core alike."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from conftest import assert_same
from scipy import sparse

import stxtools as st

HOW = {"show_progress": False, "accelerator": "cpu"}


def _scaled(adata: ad.AnnData, *, raw: str | None = None) -> ad.AnnData:
    """What scanpy's tutorials do, with counts or log values kept in ``raw``."""
    if raw == "counts":
        adata.raw = adata.copy()
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    if raw == "log":
        adata.raw = adata.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sc.pp.scale(adata)
    if raw == "scaled":
        adata.raw = adata.copy()
    return adata


def _expression_read(adata: ad.AnnData) -> tuple[ad.AnnData, dict[str, str]]:
    """Return the normalised expression that `tl.region_graph` reads, and its params."""
    adata.obs["one"] = pd.Categorical(["x"] * adata.n_obs)
    st.tl.region_graph(adata, "one", max_size=1)
    regions = adata.uns["regions"]
    return regions[adata.obs["region_id"].astype(str)], regions.uns["params"]


CALLS = {
    "normalize": lambda a: st.pp.normalize(a),
    "split_counts": lambda a: st.pp.split_counts(a),
    "align": lambda a: st.pp.align(a, library_key="library"),
    "segment": lambda a: st.tl.segment(a, 2, **HOW),
    "biomarkers": lambda a: st.tl.biomarkers(a, "band", n_null=50, show_progress=False),
    "evaluate": lambda a: st.tl.evaluate(a, ["lda"], region_key="band", n_seeds=1, n_folds=2, show_progress=False),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("raw", [None, "scaled"])
def test_scaled_values_without_counts_raise(make_section, name, raw):
    adata = _scaled(make_section(rows=8, cols=8, libraries=2 if name == "align" else 1), raw=raw)
    before = adata.copy()
    with pytest.raises(ValueError, match=r"negative values.*layers\['counts'\]"):
        CALLS[name](adata)
    assert_same(before, adata)


def test_scaled_values_are_read_only_as_use_rep(make_section, quick_unet):
    adata = _scaled(make_section(rows=8, cols=8))
    st.tl.segment(adata, labels_key="band", use_rep="X", params=quick_unet, key_added="by_x", **HOW)
    assert "expression_scale" not in adata.uns["by_x"]["params"]
    sc.pp.pca(adata, n_comps=5)
    st.tl.segment(adata, labels_key="band", params=quick_unet, **HOW)
    assert "expression_scale" not in adata.uns["segment"]["params"]
    adata.layers["scaled"] = adata.X
    adata.layers["counts"] = make_section(rows=8, cols=8).X
    with pytest.raises(ValueError, match="only the named layer"):
        st.tl.biomarkers(adata, "band", layer="scaled")


@pytest.mark.parametrize("raw", ["counts", "log"])
def test_raw_is_read_where_x_is_scaled(make_section, raw):
    plain, adata = make_section(rows=8, cols=8), _scaled(make_section(rows=8, cols=8), raw=raw)
    if raw == "log":
        sc.pp.normalize_total(plain)
        sc.pp.log1p(plain)
    with pytest.warns(UserWarning, match=r"`adata\.raw` is read instead"):
        st.tl.biomarkers(adata, "band", n_null=50, show_progress=False)
    st.tl.biomarkers(plain, "band", n_null=50, show_progress=False)
    pd.testing.assert_frame_equal(adata.uns["biomarkers"], plain.uns["biomarkers"])
    params = adata.uns["biomarkers_params"]
    assert params["expression_source"] == "raw.X"
    assert params["expression_scale"] == raw


def test_raw_is_read_for_the_genes_of_the_anndata(make_section):
    adata = _scaled(make_section(rows=8, cols=8), raw="counts")[:, 3:20].copy()
    with pytest.warns(UserWarning, match="raw"):
        found, _ = _expression_read(adata)
    expected, _ = _expression_read(make_section(rows=8, cols=8)[:, 3:20].copy())
    np.testing.assert_allclose(found.X.toarray(), expected.X.toarray())
    adata.var_names = ["other", *adata.var_names[1:]]
    with pytest.raises(ValueError, match="lacks 1 of the 17 genes"):
        st.tl.biomarkers(adata, "band", n_null=50, show_progress=False)


def test_evaluation_adds_noise_to_raw_where_x_is_scaled(make_section):
    adata = _scaled(make_section(rows=8, cols=8), raw="counts")
    how = {"region_key": "band", "n_seeds": 1, "n_folds": 2, "noise": [0.0, 0.1], "show_progress": False}
    with pytest.warns(UserWarning, match="raw"):
        st.tl.evaluate(adata, ["lda"], **how)
    plain = make_section(rows=8, cols=8)
    st.tl.evaluate(plain, ["lda"], **how)
    columns = ["accuracy", "auroc"]
    pd.testing.assert_frame_equal(adata.uns["evaluation"][columns], plain.uns["evaluation"][columns])


def test_counts_layer_is_read_without_a_warning(make_section):
    adata = make_section(rows=8, cols=8)
    adata.layers["counts"] = adata.X.copy()
    adata = _scaled(adata)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        _, params = _expression_read(adata)
    assert (params["expression_scale"], params["expression_source"]) == ("counts", "layers['counts']")


def _with_values(adata: ad.AnnData, change: Callable[[np.ndarray], np.ndarray]) -> ad.AnnData:
    adata.X.data = change(adata.X.data).astype(np.float32)
    return adata


def _logged(adata: ad.AnnData, target_sum: float | None = None) -> ad.AnnData:
    sc.pp.normalize_total(adata, target_sum=target_sum)
    return _with_values(adata, np.log1p) if target_sum is None else adata


# how counts are changed, and the scale that is recognised
SCALES: dict[str, tuple[Callable[[ad.AnnData], ad.AnnData], str]] = {
    "counts": (lambda a: a, "counts"),
    "multiples of a constant": (lambda a: _with_values(a, lambda x: x * 7.3), "linear"),
    "one depth": (lambda a: _logged(a, target_sum=20), "linear"),
    "logarithms": (_logged, "log"),
    "one last value, outside any sample": (lambda a: _with_values(a, lambda x: np.r_[x[:-1], x[-1] + 0.5]), "log"),
}


@pytest.mark.parametrize("kind", SCALES)
@pytest.mark.parametrize("marked", [False, True])
def test_scale_follows_the_values_and_a_contradicting_log1p_entry_warns(make_section, tmp_path, kind, marked):
    change, scale = SCALES[kind]
    adata = change(make_section(rows=8, cols=8))
    if marked:
        adata.uns["log1p"] = {"kept": 1}
    adata.write_h5ad(tmp_path / "x.h5ad")
    backed = ad.read_h5ad(tmp_path / "x.h5ad", backed="r")
    for read in (adata, backed):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            st.tl.region_graph(read, "band")
        assert read.uns["regions"].uns["params"]["expression_scale"] == scale
        warned = [w.filename for w in caught if "log1p" in str(w.message)]
        assert warned == ([__file__] if marked and scale != "log" else [])


def test_empty_matrix_with_a_log1p_entry_does_not_warn(make_section):
    adata = make_section(rows=8, cols=8)
    adata.X = sparse.csr_matrix(adata.shape, dtype=np.float32)
    adata.uns["log1p"] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        _, params = _expression_read(adata)
    assert params["expression_scale"] == "counts"


def test_normalize_treats_counts_with_a_log1p_entry_as_counts(make_section):
    adata, plain = make_section(), make_section()
    adata.uns["log1p"] = {}
    with pytest.warns(UserWarning, match="taken as counts"):
        st.pp.normalize(adata)
    st.pp.normalize(plain)
    np.testing.assert_array_equal(adata.X.toarray(), plain.X.toarray())


def test_params_name_source_and_scale_of_expression(make_section, quick_unet, quick_net, tmp_path):
    adata = make_section()
    net = tmp_path / "n.stx"
    st.pp.split_counts(adata)
    st.pp.add_noise(adata, 0.1)
    st.tl.segment(adata, 3, params=quick_unet, save_model=tmp_path / "m.stx", key_added="saved", **HOW)
    st.tl.segment(adata, model=tmp_path / "m.stx", key_added="applied", **HOW)
    st.tl.region_graph(adata, "saved", max_size=20)
    st.tl.embed(adata, params=quick_net, **HOW)
    st.tl.multitask(adata, None, "band", params=quick_net, save_model=net, **HOW)
    st.tl.attention_fidelity(adata, net, max_regions=2, show_progress=False)
    st.tl.pretrain(adata, save_model=tmp_path / "p.stx", params=quick_unet, **HOW)
    st.tl.distill(adata, net, save_model=tmp_path / "s.stx", params={"epochs": 2}, **HOW)
    st.tl.biomarkers(adata, "band", n_null=50, show_progress=False)
    st.tl.evaluate(adata, ["lda"], region_key="band", n_seeds=1, n_folds=2, show_progress=False)
    st.pp.normalize(adata)
    uns = adata.uns
    records = {key: uns[key]["params"] for key in ("split", "noise", "saved", "applied", "embed", "multitask")}
    records |= {key: uns[key]["params"] for key in ("attention_fidelity", "pretrain", "distill", "normalize")}
    records |= {key: uns[f"{key}_params"] for key in ("biomarkers", "evaluation")}
    for key, params in (records | {"regions": uns["regions"].uns["params"]}).items():
        assert (params["expression_source"], params["expression_scale"]) == ("X", "counts"), key


def test_multitask_with_scaled_x_trains_on_the_representation(make_section, quick_net):
    adata = make_section(rows=10, cols=10)
    adata.obsm["X_pca"] = np.random.default_rng(0).normal(size=(adata.n_obs, 4)).astype("f4")
    adata.X = np.random.default_rng(1).normal(size=adata.shape).astype("f4")
    st.tl.region_graph(adata, "band", max_size=10)
    assert adata.uns["regions"].uns["params"]["expression_scale"] == "scaled"
    with pytest.warns(UserWarning, match="representation alone"):
        st.tl.multitask(adata, None, "band", params=quick_net, **HOW)
    assert "expression_scale" not in adata.uns["multitask"]["params"]


def test_scaled_cortex_section_with_raw_yields_markers_of_white_matter(real_section):
    adata = real_section("dlpfc_151675")
    adata = adata[:, np.asarray(adata.X.sum(axis=0)).ravel() > 300].copy()
    bare, kept = _scaled(adata.copy()), _scaled(adata, raw="log")
    with pytest.raises(ValueError, match="negative values"):
        st.tl.biomarkers(bare, "layer", show_progress=False)
    with pytest.warns(UserWarning, match="raw"):
        st.tl.biomarkers(kept, "layer", groups=["WM"], n_null=100, show_progress=False)
    assert {"MBP", "PLP1", "GFAP"} <= set(st.get.biomarkers(kept, group="WM")["names"].head(10))


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [(lambda x, dtype=dtype: x.astype(dtype), TypeError, "real numbers") for dtype in ("complex64", "object", "U3")]
    + [(lambda x: np.ma.masked_less(x, 1), ValueError, "masked")],
)
def test_masked_values_and_those_that_are_no_real_numbers_raise(make_section, change, error, match):
    adata = make_section(rows=8, cols=8)
    adata.layers["odd"] = change(adata.X.toarray())
    with pytest.raises(error, match=match):
        st.tl.biomarkers(adata, "band", layer="odd")
    with pytest.raises(error, match=match):
        st.tl.segment(adata, 2, layer="odd", **HOW)


def test_duplicate_entries_of_a_sparse_matrix_are_summed(make_section):
    adata = make_section(rows=8, cols=8)
    whole = adata.X.tocsr()
    ends, half = 2 * whole.indptr, np.floor(whole.data / 2)
    data, genes = np.stack([half, whole.data - half], axis=1).ravel(), np.repeat(whole.indices, 2)
    parts = adata.copy()
    parts.X = sparse.csr_matrix((data, genes, ends), whole.shape)
    for one in (adata, parts):
        st.pp.normalize(one)
    np.testing.assert_array_equal(parts.X.toarray(), adata.X.toarray())
    np.testing.assert_array_equal(parts.obsm["X_pca"], adata.obsm["X_pca"])
    assert parts.layers["counts"].nnz == 2 * whole.nnz  # as it was given


def test_use_rep_x_of_a_backed_file_equals_that_in_memory(make_section, quick_unet, tmp_path):
    adata = make_section(rows=8, cols=8)
    adata.write_h5ad(tmp_path / "a.h5ad")
    stored = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    for one in (adata, stored):
        st.tl.segment(one, 3, use_rep="X", params=quick_unet, **HOW)
    pd.testing.assert_frame_equal(stored.obsm["segment_proba"], adata.obsm["segment_proba"])
    adata.obsm["names"] = np.array([["a", "b"]] * adata.n_obs)
    with pytest.raises(TypeError, match="`use_rep='names'` does not hold numbers"):
        st.tl.segment(adata, 3, use_rep="names", key_added="again", params=quick_unet, **HOW)
