"""Unusual data and wrong arguments: a clear error and an unchanged AnnData, or a result that can be stored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from conftest import assert_same
from scipy import sparse

import stxtools as st

QUIET = {"show_progress": False, "accelerator": "cpu"}


@pytest.fixture
def section(make_section: Callable[..., ad.AnnData]) -> ad.AnnData:
    return make_section(rows=8, cols=8, n_vars=12)


CALLS: dict[str, Callable[[ad.AnnData], Any]] = {
    "rasterize": lambda a: st.pp.rasterize(a),
    "segment": lambda a: st.tl.segment(a, 2, **QUIET),
    "labels": lambda a: st.tl.segment(a, labels_key="band", **QUIET),
    "region_graph": lambda a: st.tl.region_graph(a, "band"),
    "biomarkers": lambda a: st.tl.biomarkers(a, "band", n_null=50, show_progress=False),
}


def _no_spatial(adata: ad.AnnData) -> ad.AnnData:
    del adata.obsm["spatial"]
    return adata


def _nan(adata: ad.AnnData) -> ad.AnnData:
    adata.obsm["spatial"][3, 1] = np.nan
    return adata


def _words(adata: ad.AnnData) -> ad.AnnData:
    adata.obsm["spatial"] = np.array([["left", "top"]] * adata.n_obs)
    return adata


def _one_column(adata: ad.AnnData) -> ad.AnnData:
    adata.obsm["spatial"] = adata.obsm["spatial"][:, :1]
    return adata


def _same_names(adata: ad.AnnData) -> ad.AnnData:
    adata.obs_names = pd.Index([adata.obs_names[0], *adata.obs_names[:-1]])
    return adata


def _slash(adata: ad.AnnData) -> ad.AnnData:
    adata.uns["spatial"] = {"Region 1/2": {}}
    return adata


DATA: dict[str, tuple[Callable[[ad.AnnData], ad.AnnData], type, str]] = {
    "no coordinates": (_no_spatial, KeyError, "Put the x, y position"),
    "NaN coordinates": (_nan, ValueError, "drop them"),
    "coordinates are words": (_words, TypeError, "not real numbers"),
    "one coordinate": (_one_column, ValueError, "expected"),
    "empty": (lambda a: a[:0].copy(), ValueError, "0 observation"),
    "no genes": (lambda a: a[:, :0].copy(), ValueError, "0 genes"),
    "duplicate names": (_same_names, ValueError, "obs_names_make_unique"),
    "slash in the section's name": (_slash, ValueError, r"contains '/'.*Rename it"),
}


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("data", DATA)
def test_data_that_cannot_be_used(data: str, call: str, section: ad.AnnData) -> None:
    spoil, error, message = DATA[data]
    adata = spoil(section)
    before = adata.copy()
    with pytest.raises(error, match=message):
        CALLS[call](adata)
    assert_same(before, adata)


@pytest.mark.parametrize("axis", ["obs", "var"])
@pytest.mark.parametrize("call", CALLS)
def test_names_that_are_numbers(axis: str, call: str, section: ad.AnnData) -> None:
    """As after this call; with tables beside them anndata would write a file that it cannot read."""
    getattr(section, axis).reset_index(drop=True, inplace=True)
    obs = section.obs.copy()
    with pytest.raises(TypeError, match=rf"adata\.{axis}_names\.astype\(str\)"):
        CALLS[call](section)
    pd.testing.assert_frame_equal(section.obs, obs)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"n_segments": 0}, ValueError, r"at least 1\.$"),
        ({"n_segments": "3"}, TypeError, "integer"),
        ({"n_segments": 65}, ValueError, "more than the 64 observations"),
        ({"labels_key": "nowhere"}, KeyError, "it has 'band'"),
        ({"labels_key": "library"}, ValueError, "needs 2"),
        ({"n_segments": 4, "labels_key": "band"}, ValueError, "has 3 classes"),
        ({"use_rep": "nowhere"}, KeyError, "'spatial'"),
        ({"layer": "nowhere"}, KeyError, "is not in `adata.layers`"),
        ({"library_key": 5}, TypeError, "string"),
        ({"params": {"widht": 8}}, ValueError, "Unknown field"),
        ({"params": {"lr": 0}}, ValueError, "`lr=0` is out of range: it must be greater than 0"),
        ({"random_state": -1}, ValueError, "at least 0"),
        ({"random_state": None}, TypeError, "integer"),
        ({"key_added": "a/b"}, ValueError, "'/'"),
        ({"model": "nowhere.stx"}, FileNotFoundError, "no model file"),
        ({"model": 5}, TypeError, "path"),
        ({"accelerator": True}, TypeError, "`accelerator` must be a str"),
        ({"accelerator": pd.Series(["cpu"])}, TypeError, "`accelerator` must be a str"),
        ({"use_rep": pd.NA}, TypeError, "`use_rep` must be"),
    ],
)
def test_wrong_arguments_of_segment(kwargs: dict[str, Any], error: type, message: str, section: ad.AnnData) -> None:
    before = section.copy()
    with pytest.raises(error, match=message):
        st.tl.segment(section, **QUIET | kwargs)
    assert_same(before, section)


@pytest.mark.parametrize(
    ("values", "error"),
    [([None, "b"], "missing values"), (["a/b", "c"], "'/'")],
    ids=["missing", "slash"],
)
@pytest.mark.parametrize("call", ["rasterize", "segment", "region_graph", "biomarkers"])
def test_section_names_that_cannot_be_used(values: list[Any], error: str, call: str, section: ad.AnnData) -> None:
    section.obs["slide"] = pd.Categorical(np.where(np.arange(section.n_obs) < 32, *values))
    before = section.copy()
    calls: dict[str, Callable[[], Any]] = {
        "rasterize": lambda: st.pp.rasterize(section, library_key="slide"),
        "segment": lambda: st.tl.segment(section, 2, library_key="slide", **QUIET),
        "region_graph": lambda: st.tl.region_graph(section, "band", library_key="slide"),
        "biomarkers": lambda: st.tl.biomarkers(section, "band", library_key="slide", show_progress=False),
    }
    with pytest.raises(ValueError, match=error):
        calls[call]()
    assert_same(before, section)


LABELS: dict[str, Callable[[np.ndarray], Any]] = {
    "integers": lambda code: code,
    "integer categories": pd.Categorical,
    "integers with gaps": lambda code: pd.array(np.where(code == 2, None, code), dtype="Int64"),
    "booleans": lambda code: code == 0,
    "unused categories": lambda code: pd.Categorical.from_codes(code + 1, ["never", "a", "b", "c", "nor this"]),
    "ordered": lambda code: pd.Categorical.from_codes(code, ["z", "y", "x"], ordered=True),
}


@pytest.mark.parametrize("kind", LABELS)
def test_any_kind_of_class_makes_regions_that_can_be_stored(kind: str, section: ad.AnnData, tmp_path: Path) -> None:
    code = section.obs["band"].cat.codes.to_numpy().astype(np.int64)
    section.obs["label"] = LABELS[kind](code)
    st.tl.region_graph(section, "label")
    known = section.obs["label"].notna().to_numpy()
    region = section.obs["region_id"]
    assert region.notna().to_numpy().tolist() == known.tolist()
    # no region holds two classes, and its class carries the label's own name
    home = section.uns["regions"].obs["segment"].astype(str).reindex(region[known].astype(str)).to_numpy()
    assert home.tolist() == section.obs["label"][known].astype(str).tolist()
    section.write_h5ad(tmp_path / "a.h5ad")
    section.write_zarr(tmp_path / "a.zarr")
    assert_same(section.uns["regions"], ad.read_h5ad(tmp_path / "a.h5ad").uns["regions"])
    assert_same(section.uns["regions"], ad.read_zarr(tmp_path / "a.zarr").uns["regions"])


@pytest.mark.parametrize("form", ["dense", "float64", "int64", "uint16", "csc"])
def test_form_of_the_matrix_does_not_matter(form: str, section: ad.AnnData) -> None:
    other = section.copy()
    forms: dict[str, Callable[[Any], Any]] = {
        "dense": lambda x: x.toarray(), "float64": lambda x: x.astype(np.float64),
        "int64": lambda x: x.astype(np.int64), "uint16": lambda x: x.astype(np.uint16), "csc": sparse.csc_matrix,
    }  # fmt: skip
    other.X = forms[form](section.X)
    for adata in (section, other):
        st.tl.biomarkers(adata, "band", n_null=50, show_progress=False)
        st.tl.region_graph(adata, "band")
    pd.testing.assert_frame_equal(section.uns["biomarkers"], other.uns["biomarkers"])
    np.testing.assert_allclose(section.uns["regions"].X.toarray(), other.uns["regions"].X.toarray(), rtol=1e-6)


def test_integers_of_numpy_do_what_those_of_python_do(section: ad.AnnData, quick_unet: dict[str, Any]) -> None:
    how = {"params": quick_unet | {"epochs": 1}, "copy": True, **QUIET}
    plain = st.tl.segment(section, 2, random_state=1, devices=1, **how)
    found = st.tl.segment(section, np.int64(2), random_state=np.uint32(1), devices=np.int64(1), **how)
    np.testing.assert_array_equal(found.obsm["X_unet"], plain.obsm["X_unet"])


def test_coordinates_may_be_a_table_or_have_a_third_column(section: ad.AnnData) -> None:
    wanted = st.pp.rasterize(section, copy=True).obsm["raster"]
    for xyz in (
        pd.DataFrame(section.obsm["spatial"], index=section.obs_names, columns=["x", "y"]),
        np.c_[section.obsm["spatial"], np.full(section.n_obs, np.nan)],
    ):
        adata = section.copy()
        adata.obsm["spatial"] = xyz
        np.testing.assert_array_equal(st.pp.rasterize(adata, copy=True).obsm["raster"], wanted)


def test_view_is_written_as_its_own_and_the_parent_stays(make_section: Callable[..., ad.AnnData]) -> None:
    parent = make_section(rows=8, cols=8, n_vars=12)
    before = parent.copy()
    view = parent[parent.obs["band"] != "a"]
    st.tl.region_graph(view, "band")
    assert not view.is_view
    assert set(view.obs["region_id"].cat.categories) == set(view.uns["regions"].obs_names)
    assert_same(before, parent)


def test_view_stays_a_view_after_an_error(section: ad.AnnData) -> None:
    view = section[:40]
    with pytest.raises(KeyError, match="nowhere"):
        st.tl.region_graph(view, "nowhere")
    assert view.is_view


@pytest.mark.parametrize("call", ["segment", "region_graph", "attention", "biomarkers", "history"])
def test_plots_say_which_call_is_missing(call: str, section: ad.AnnData) -> None:
    before = section.copy()
    with pytest.raises(KeyError, match=r"st\.tl\."):
        getattr(st.pl, call)(section)
    assert_same(before, section)


@pytest.mark.parametrize("call", ["describe", "biomarkers"])
def test_calls_on_segments_say_which_call_is_missing(call: str, section: ad.AnnData) -> None:
    with pytest.raises(KeyError, match=r"`groupby='segment'` is not in .* Run `st\.tl\.segment\(adata\)` first"):
        getattr(st.tl, call)(section, "segment")


def test_error_on_many_groups_names_some_of_them(section: ad.AnnData) -> None:
    section.obs["barcode"] = section.obs_names
    with pytest.raises(ValueError, match=r"Group\(s\) 'l0_o0', .* \.\.\. \(64 in all\)"):
        st.tl.biomarkers(section, "barcode", show_progress=False)


@pytest.mark.parametrize("call", ["biomarkers", "regions", "segments"])
def test_tables_say_which_call_is_missing(call: str, section: ad.AnnData) -> None:
    with pytest.raises(KeyError, match=r"st\.tl\."):
        getattr(st.get, call)(section)


def test_a_library_of_a_single_spot_is_a_region_of_its_own(section: ad.AnnData) -> None:
    section.obs["slide"] = np.where(np.arange(section.n_obs) == 7, "solo", "main")
    st.tl.region_graph(section, "band", library_key="slide")
    regions = section.uns["regions"]
    alone = regions.obs_names == section.obs["region_id"].iloc[7]
    assert regions.obs.loc[alone, "n_obs"].tolist() == [1]
    assert regions.obsp["spatial_connectivities"][alone].nnz == 0


def test_cells_without_any_count_are_kept(section: ad.AnnData) -> None:
    counts = section.X.tolil()
    counts[[0, 5]] = 0
    section.X = counts.tocsr()
    st.tl.region_graph(section, "band")
    assert section.obs["region_id"].notna().all()
    assert np.isfinite(section.uns["regions"].X.data).all()


def test_what_a_foreign_raster_lacks_is_made_again(section: ad.AnnData) -> None:
    st.pp.rasterize(section)
    (name,) = (key for key in section.uns["raster"] if key != "params")
    st.tl.region_graph(section, "band")
    wanted = section.obs["region_id"].copy()
    del section.uns["raster"][name]["shape"]
    st.tl.region_graph(section, "band")
    pd.testing.assert_series_equal(section.obs["region_id"], wanted)


def test_names_and_numbers_that_are_neither_are_named(section: ad.AnnData, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="`use_rep` must be a string"):
        st.tl.pretrain(section, save_model=tmp_path / "m.stx", use_rep=np.array([1, 2]), **QUIET)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="`genes` must be how many"):
        st.tl.evaluate(section, ["lda"], region_key="band", genes=1.5, show_progress=False)  # type: ignore[arg-type]
    (tmp_path / "other.parquet").write_text("no parquet")
    section.uns["biomarkers"] = pd.DataFrame({"group": ["a"], "names": [section.var_names[0]]})
    with pytest.raises(ValueError, match="no parquet file"):
        st.tl.targets(section, tmp_path / "other.parquet")


def test_a_copy_of_what_lies_in_a_file_is_refused_by_name(section: ad.AnnData, tmp_path: Path) -> None:
    section.write_h5ad(tmp_path / "a.h5ad")
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    with pytest.raises(ValueError, match=r"pass `adata.to_memory\(\)`"):
        st.tl.region_graph(backed, "band", copy=True)


@pytest.mark.parametrize("path", [None, 5, b"x", ["a"]])
def test_what_is_no_path_is_named(path: Any, section: ad.AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    before = section.copy()
    with pytest.raises(TypeError, match="`path` must be a path"):
        st.io.read(path)
    with pytest.raises(TypeError, match="`path` must be a path"):
        st.io.read_annotations(section, path)
    assert_same(before, section)
    with monkeypatch.context() as patch, pytest.raises(TypeError, match=r"settings\.datasetdir must be the path"):
        patch.setattr(st.settings, "datasetdir", path)
