"""The scale of expression is recognised from its values, in memory and out of core alike."""

from __future__ import annotations

import warnings

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


def _read(adata: ad.AnnData, layer: str | None = None) -> tuple[ad.AnnData, dict[str, str]]:
    """The mean expression of each observation's own region, and what the call says that it read."""
    adata.obs["one"] = pd.Categorical(["x"] * adata.n_obs)
    st.tl.region_graph(adata, "one", max_size=1, layer=layer)
    regions = adata.uns["regions"]
    return regions[adata.obs["region_id"].astype(str)], regions.uns["params"]


READING = {
    "normalize": lambda a: st.pp.normalize(a),
    "split_counts": lambda a: st.pp.split_counts(a),
    "align": lambda a: st.pp.align(a, library_key="library"),
    "segment": lambda a: st.tl.segment(a, 2, **HOW),
    "biomarkers": lambda a: st.tl.biomarkers(a, "band", n_null=50, show_progress=False),
    "evaluate": lambda a: st.tl.evaluate(a, ["lda"], region_key="band", n_seeds=1, n_folds=2, show_progress=False),
}


@pytest.mark.parametrize("name", READING)
@pytest.mark.parametrize("raw", [None, "scaled"])
def test_scaled_values_alone_are_refused(make_section, name, raw):
    adata = _scaled(make_section(rows=8, cols=8, libraries=2 if name == "align" else 1), raw=raw)
    before = adata.copy()
    with pytest.raises(ValueError, match=r"negative values.*layers\['counts'\]"):
        READING[name](adata)
    assert_same(before, adata)


def test_scaled_values_are_read_by_name_only(make_section, quick_unet):
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


def test_raw_is_read_for_the_genes_there_are(make_section):
    adata = _scaled(make_section(rows=8, cols=8), raw="counts")[:, 3:20].copy()
    with pytest.warns(UserWarning, match="raw"):
        found, _ = _read(adata)
    expected, _ = _read(make_section(rows=8, cols=8)[:, 3:20].copy())
    np.testing.assert_allclose(found.X.toarray(), expected.X.toarray())
    adata.var_names = ["other", *adata.var_names[1:]]
    with pytest.raises(ValueError, match="lacks 1 of the 17 genes"):
        st.tl.biomarkers(adata, "band", n_null=50, show_progress=False)


def test_evaluation_puts_noise_on_what_it_reads(make_section):
    adata = _scaled(make_section(rows=8, cols=8), raw="counts")
    how = {"region_key": "band", "n_seeds": 1, "n_folds": 2, "noise": [0.0, 0.1], "show_progress": False}
    with pytest.warns(UserWarning, match="raw"):
        st.tl.evaluate(adata, ["lda"], **how)
    plain = make_section(rows=8, cols=8)
    st.tl.evaluate(plain, ["lda"], **how)
    columns = ["accuracy", "auroc"]
    pd.testing.assert_frame_equal(adata.uns["evaluation"][columns], plain.uns["evaluation"][columns])


def test_counts_layer_comes_first_and_without_a_warning(make_section):
    adata = make_section(rows=8, cols=8)
    adata.layers["counts"] = adata.X.copy()
    adata = _scaled(adata)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        _, params = _read(adata)
    assert (params["expression_scale"], params["expression_source"]) == ("counts", "layers['counts']")


def _linear(adata: ad.AnnData) -> ad.AnnData:
    adata.X = adata.X * np.float32(7.3)
    return adata


def _one_depth(adata: ad.AnnData) -> ad.AnnData:
    sc.pp.normalize_total(adata, target_sum=20)
    return adata


def _log(adata: ad.AnnData) -> ad.AnnData:
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    adata.uns.pop("log1p")
    return adata


def _late(adata: ad.AnnData) -> ad.AnnData:
    """Only the last value says that these are no counts: no sample finds it."""
    adata.X.data[-1] += 0.5
    return adata


KINDS = {"counts": lambda a: a, "linear": _linear, "one depth": _one_depth, "log": _log, "late": _late}
SCALES = {"counts": "counts", "linear": "linear", "one depth": "linear", "log": "log", "late": "log"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("marked", [False, True])
def test_values_decide_and_a_marker_that_contradicts_them_warns(make_section, tmp_path, kind, marked):
    adata = KINDS[kind](make_section(rows=8, cols=8))
    if marked:
        adata.uns["log1p"] = {"kept": 1}
    adata.write_h5ad(tmp_path / "x.h5ad")
    backed = ad.read_h5ad(tmp_path / "x.h5ad", backed="r")
    for read in (adata, backed):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            st.tl.region_graph(read, "band")
        assert read.uns["regions"].uns["params"]["expression_scale"] == SCALES[kind]
        told = [str(w.message) for w in caught if "log1p" in str(w.message)]
        assert bool(told) == (marked and SCALES[kind] != "log")
        assert all(w.filename == __file__ for w in caught if "log1p" in str(w.message))


def test_an_empty_matrix_contradicts_nothing(make_section):
    adata = make_section(rows=8, cols=8)
    adata.X = sparse.csr_matrix(adata.shape, dtype=np.float32)
    adata.uns["log1p"] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        _, params = _read(adata)
    assert params["expression_scale"] == "counts"


def test_marked_counts_are_normalised(make_section):
    adata, plain = make_section(), make_section()
    adata.uns["log1p"] = {}
    with pytest.warns(UserWarning, match="taken as counts"):
        st.pp.normalize(adata)
    st.pp.normalize(plain)
    np.testing.assert_array_equal(adata.X.toarray(), plain.X.toarray())


def test_params_say_what_was_read(make_section, quick_unet, quick_net, tmp_path):
    line = make_section()

    def check(params, source="X", scale="counts"):
        assert params["expression_source"] == source
        assert params["expression_scale"] == scale

    st.pp.split_counts(line)
    check(line.uns["split"]["params"])
    st.pp.add_noise(line, 0.1)
    check(line.uns["noise"]["params"])
    st.tl.segment(line, 3, params=quick_unet, save_model=tmp_path / "m.stx", key_added="saved", **HOW)
    check(line.uns["saved"]["params"])
    st.tl.segment(line, model=tmp_path / "m.stx", key_added="again", **HOW)
    check(line.uns["again"]["params"])
    st.tl.region_graph(line, "saved", max_size=20)
    check(line.uns["regions"].uns["params"])
    st.tl.embed(line, params=quick_net, **HOW)
    check(line.uns["embed"]["params"])
    st.tl.multitask(line, None, "band", params=quick_net, save_model=tmp_path / "n.stx", **HOW)
    check(line.uns["multitask"]["params"])
    st.tl.attention_fidelity(line, tmp_path / "n.stx", max_regions=2, show_progress=False)
    check(line.uns["attention_fidelity"]["params"])
    st.tl.pretrain(line, save_model=tmp_path / "p.stx", params=quick_unet, **HOW)
    check(line.uns["pretrain"]["params"])
    st.tl.distill(line, tmp_path / "n.stx", save_model=tmp_path / "s.stx", params={"epochs": 2}, **HOW)
    check(line.uns["distill"]["params"])
    st.tl.biomarkers(line, "band", n_null=50, show_progress=False)
    check(line.uns["biomarkers_params"])
    st.tl.evaluate(line, ["lda"], region_key="band", n_seeds=1, n_folds=2, show_progress=False)
    check(line.uns["evaluation_params"])
    st.pp.normalize(line)
    check(line.uns["normalize"]["params"])


def test_a_representation_without_expression_still_trains(make_section, quick_net):
    adata = make_section(rows=10, cols=10)
    adata.obsm["X_pca"] = np.random.default_rng(0).normal(size=(adata.n_obs, 4)).astype("f4")
    adata.X = np.random.default_rng(1).normal(size=adata.shape).astype("f4")
    st.tl.region_graph(adata, "band", max_size=10)
    assert adata.uns["regions"].uns["params"]["expression_scale"] == "scaled"
    with pytest.warns(UserWarning, match="representation alone"):
        st.tl.multitask(adata, None, "band", params=quick_net, **HOW)
    assert "expression_scale" not in adata.uns["multitask"]["params"]


def test_white_matter_of_a_scaled_cortex_section(real_section):
    adata = real_section("dlpfc_151675")
    adata = adata[:, np.asarray(adata.X.sum(axis=0)).ravel() > 300].copy()
    bare, kept = _scaled(adata.copy()), _scaled(adata, raw="log")
    with pytest.raises(ValueError, match="negative values"):
        st.tl.biomarkers(bare, "layer", show_progress=False)
    with pytest.warns(UserWarning, match="raw"):
        st.tl.biomarkers(kept, "layer", groups=["WM"], n_null=100, show_progress=False)
    assert {"MBP", "PLP1", "GFAP"} <= set(st.get.biomarkers(kept, group="WM")["names"].head(10))


@pytest.mark.parametrize("dtype", ["float16", "longdouble", "bool", "uint8", "int64"])
def test_kinds_of_numbers(make_section, dtype):
    adata = make_section(rows=8, cols=8)
    adata.X = adata.X.toarray().astype(dtype)
    st.tl.biomarkers(adata, "band", n_null=50, show_progress=False)
    assert adata.uns["biomarkers_params"]["expression_scale"] == "counts"


@pytest.mark.parametrize("dtype", ["complex64", "object", "U3"])
def test_kinds_of_what_is_no_real_number(make_section, dtype):
    adata = make_section(rows=8, cols=8)
    adata.layers["odd"] = adata.X.toarray().astype(dtype)
    with pytest.raises(TypeError, match="real numbers"):
        st.tl.biomarkers(adata, "band", layer="odd")
    with pytest.raises(TypeError, match="real numbers"):
        st.tl.segment(adata, 2, layer="odd", **HOW)


def test_masked_values_are_not_read(make_section):
    adata = make_section(rows=8, cols=8)
    values = np.ma.masked_less(adata.X.toarray(), 1)
    adata.layers["masked"] = values
    with pytest.raises(ValueError, match="masked"):
        _read(adata, "masked")


def test_a_value_stored_in_parts_is_their_sum(make_section):
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


def test_a_file_can_be_read_as_features(make_section, quick_unet, tmp_path):
    adata = make_section(rows=8, cols=8)
    adata.write_h5ad(tmp_path / "a.h5ad")
    stored = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    for one in (adata, stored):
        st.tl.segment(one, 3, use_rep="X", params=quick_unet, **HOW)
    pd.testing.assert_frame_equal(stored.obsm["segment_proba"], adata.obsm["segment_proba"])
    adata.obsm["names"] = np.array([["a", "b"]] * adata.n_obs)
    with pytest.raises(TypeError, match="`use_rep='names'` does not hold numbers"):
        st.tl.segment(adata, 3, use_rep="names", key_added="again", params=quick_unet, **HOW)
