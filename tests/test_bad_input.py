"""Unusual data and wrong arguments: a clear error and an unchanged AnnData, or a result that can be stored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from conftest import assert_same, read_back
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


def _at(change: Callable[[np.ndarray], Any]) -> Callable[[ad.AnnData], ad.AnnData]:
    """Replace the coordinates."""

    def changed(adata: ad.AnnData) -> ad.AnnData:
        adata.obsm["spatial"] = change(adata.obsm["spatial"])
        return adata

    return changed


def _same_names(adata: ad.AnnData) -> ad.AnnData:
    adata.obs_names = pd.Index([adata.obs_names[0], *adata.obs_names[:-1]])
    return adata


def _slash(adata: ad.AnnData) -> ad.AnnData:
    adata.uns["spatial"] = {"Region 1/2": {}}
    return adata


DATA: dict[str, tuple[Callable[[ad.AnnData], ad.AnnData], type, str]] = {
    "no coordinates": (lambda a: ad.AnnData(a.X, a.obs, a.var), KeyError, "Put the x, y position"),
    "NaN coordinates": (_at(lambda xy: np.where(xy == xy[3], np.nan, xy)), ValueError, "drop them"),
    "masked coordinates": (_at(lambda xy: np.ma.masked_less(xy, 60)), ValueError, "spatial"),
    "huge coordinates": (_at(lambda xy: xy * 1e120), ValueError, "spatial"),
    "coordinates are words": (_at(lambda xy: np.full(xy.shape, "left")), TypeError, "not real numbers"),
    "coordinates are text": (_at(lambda xy: xy.astype("U8")), TypeError, "not real numbers"),
    "coordinates are complex": (_at(lambda xy: xy + 1j), TypeError, "not real numbers"),
    "coordinates are dates": (_at(lambda xy: xy.astype("datetime64[s]")), TypeError, "not real numbers"),
    "one coordinate": (_at(lambda xy: xy[:, :1]), ValueError, "expected"),
    "empty": (lambda a: a[:0].copy(), ValueError, "0 observation"),
    "no genes": (lambda a: a[:, :0].copy(), ValueError, "0 genes"),
    "duplicate names": (_same_names, ValueError, "obs_names_make_unique"),
    "slash in the section's name": (_slash, ValueError, r"contains '/'.*Rename it"),
}


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("data", DATA)
def test_unusable_data_raises_and_changes_nothing(data: str, call: str, section: ad.AnnData) -> None:
    spoil, error, message = DATA[data]
    adata = spoil(section)
    before = adata.copy()
    with pytest.raises(error, match=message):
        CALLS[call](adata)
    assert_same(before, adata)


@pytest.mark.parametrize("call", ["labels", "region_graph", "biomarkers"])
def test_missing_values_that_became_text(call: str, section: ad.AnnData) -> None:
    band = section.obs["band"].astype(object)
    section.obs["band"] = band.where(np.arange(section.n_obs) % 4 > 0, "nan")
    with pytest.warns(UserWarning, match=r"class 'nan'.*stands for missing values: `adata.obs\['band'\] = ") as caught:
        CALLS[call](section)
    exec(str(caught[0].message).split("`")[-2], {"adata": section})
    assert section.obs["band"].isna().sum() == section.n_obs / 4


@pytest.mark.parametrize("name", ["", "Unlabelled", "unknown "])
def test_unlabelled_as_a_class_is_reported(name: str, section: ad.AnnData) -> None:
    band = section.obs["band"].astype(object)
    section.obs["band"] = band.where(np.arange(section.n_obs) % 4 > 0, name)
    with pytest.warns(UserWarning, match=f"class {name!r}, which counts as any other class"):
        CALLS["labels"](section)


@pytest.mark.parametrize("axis", ["obs", "var"])
@pytest.mark.parametrize("call", CALLS)
def test_names_that_are_integers_raise(axis: str, call: str, section: ad.AnnData) -> None:
    """As after ``reset_index``: with tables in ``obsm``, anndata would write a file that it cannot read."""
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
        ({"labels_key": "bnad"}, KeyError, "Did you mean 'band'"),
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
        ({"n_segments": 2, "accelerator": "tpu"}, ValueError, "cannot be used on this machine"),
    ],
)
def test_wrong_arguments_of_segment_raise(
    kwargs: dict[str, Any], error: type, message: str, section: ad.AnnData
) -> None:
    before = section.copy()
    with pytest.raises(error, match=message):
        st.tl.segment(section, **QUIET | kwargs)
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
def test_regions_of_any_label_dtype_survive_files(kind: str, section: ad.AnnData, tmp_path: Path) -> None:
    code = section.obs["band"].cat.codes.to_numpy().astype(np.int64)
    section.obs["label"] = LABELS[kind](code)
    st.tl.region_graph(section, "label")
    known = section.obs["label"].notna().to_numpy()
    region = section.obs["region_id"]
    assert region.notna().to_numpy().tolist() == known.tolist()
    # no region holds two classes, and its class carries the label's own name
    home = section.uns["regions"].obs["segment"].astype(str).reindex(region[known].astype(str)).to_numpy()
    assert home.tolist() == section.obs["label"][known].astype(str).tolist()
    for read in read_back(section, tmp_path):
        assert_same(section.uns["regions"], read.uns["regions"])


FORMS: dict[str, Callable[[np.ndarray], Any]] = {
    dtype: lambda x, dtype=dtype: x.astype(dtype)
    for dtype in ("float16", "float32", "longdouble", "bool", "uint8", "int64")
} | {
    f"{form.__name__} of {dtype.__name__}": lambda x, form=form, dtype=dtype: form(x.astype(dtype))
    for form in (sparse.csr_matrix, sparse.csc_matrix)
    for dtype in (np.float64, np.uint16)
}


@pytest.mark.parametrize("form", FORMS)
def test_matrix_format_and_dtype_change_no_result(form: str, section: ad.AnnData) -> None:
    values = section.X.toarray() > 1 if form == "bool" else section.X.toarray()
    section.X = sparse.csr_matrix(values.astype(np.float32))
    other = section.copy()
    other.X = FORMS[form](values)
    for adata in (section, other):
        st.tl.biomarkers(adata, "band", n_null=50, show_progress=False)
        st.tl.region_graph(adata, "band")
    pd.testing.assert_frame_equal(section.uns["biomarkers"], other.uns["biomarkers"])
    np.testing.assert_allclose(section.uns["regions"].X.toarray(), other.uns["regions"].X.toarray(), rtol=1e-6)


def test_numpy_integers_equal_python_integers_as_arguments(section: ad.AnnData, quick_unet: dict[str, Any]) -> None:
    how = {"params": quick_unet | {"epochs": 1}, "copy": True, **QUIET}
    plain = st.tl.segment(section, 2, random_state=1, devices=1, **how)
    found = st.tl.segment(section, np.int64(2), random_state=np.uint32(1), devices=np.int64(1), **how)
    np.testing.assert_array_equal(found.obsm["X_unet"], plain.obsm["X_unet"])


def test_coordinates_may_be_a_dataframe_or_have_a_third_column(section: ad.AnnData) -> None:
    wanted = st.pp.rasterize(section, copy=True).obsm["raster"]
    for xyz in (
        pd.DataFrame(section.obsm["spatial"], index=section.obs_names, columns=["x", "y"]),
        np.c_[section.obsm["spatial"], np.full(section.n_obs, np.nan)],
    ):
        adata = section.copy()
        adata.obsm["spatial"] = xyz
        np.testing.assert_array_equal(st.pp.rasterize(adata, copy=True).obsm["raster"], wanted)


def test_call_on_a_view_leaves_the_parent_unchanged(section: ad.AnnData) -> None:
    before = section.copy()
    view = section[section.obs["band"] != "a"]
    st.tl.region_graph(view, "band")
    assert not view.is_view
    assert set(view.obs["region_id"].cat.categories) == set(view.uns["regions"].obs_names)
    assert_same(before, section)


def test_view_stays_a_view_after_an_error(section: ad.AnnData) -> None:
    view = section[:40]
    with pytest.raises(KeyError, match="nowhere"):
        st.tl.region_graph(view, "nowhere")
    assert view.is_view


MISSING: list[tuple[str, dict[str, str], str]] = [
    ("pl.segment", {}, "segment"), ("pl.segment", {"key": "disease_pred"}, "multitask"),
    ("pl.region_graph", {}, "region_graph"), ("pl.attention", {}, "region_graph"), ("pl.biomarkers", {}, "biomarkers"),
    ("pl.targets", {}, "biomarkers"), ("pl.history", {}, "segment"), ("pl.history", {"key": "embed"}, "embed"),
    ("pl.attention_fidelity", {}, "attention_fidelity"), ("get.biomarkers", {}, "biomarkers"),
    ("get.regions", {}, "region_graph"), ("get.segments", {}, "segment"), ("get.probabilities", {}, "segment"),
    ("tl.describe", {"groupby": "segment"}, "segment"), ("tl.biomarkers", {"groupby": "segment"}, "segment"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "kwargs", "maker"), MISSING)
def test_missing_results_name_the_call_that_makes_them(
    name: str, kwargs: dict[str, str], maker: str, section: ad.AnnData
) -> None:
    before = section.copy()
    namespace, call = name.split(".")
    with pytest.raises(KeyError, match=rf"st\.tl\.{maker}\("):
        getattr(getattr(st, namespace), call)(section, **kwargs)
    assert_same(before, section)


def test_error_about_many_groups_names_only_some(section: ad.AnnData) -> None:
    section.obs["barcode"] = section.obs_names
    with pytest.raises(ValueError, match=r"Group\(s\) 'l0_o0', .* \.\.\. \(64 in all\)"):
        st.tl.biomarkers(section, "barcode", show_progress=False)


def test_section_of_one_spot_is_one_region(section: ad.AnnData) -> None:
    section.obs["slide"] = np.where(np.arange(section.n_obs) == 7, "solo", "main")
    st.tl.region_graph(section, "band", library_key="slide")
    regions = section.uns["regions"]
    alone = regions.obs_names == section.obs["region_id"].iloc[7]
    assert regions.obs.loc[alone, "n_obs"].tolist() == [1]
    assert regions.obsp["spatial_connectivities"][alone].nnz == 0


def test_region_graph_keeps_cells_without_counts(section: ad.AnnData) -> None:
    counts = section.X.tolil()
    counts[[0, 5]] = 0
    section.X = counts.tocsr()
    st.tl.region_graph(section, "band")
    assert section.obs["region_id"].notna().all()
    assert np.isfinite(section.uns["regions"].X.data).all()


def test_arguments_of_a_wrong_type_raise(section: ad.AnnData, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="`use_rep` must be a string"):
        st.tl.pretrain(section, save_model=tmp_path / "m.stx", use_rep=np.array([1, 2]), **QUIET)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="`genes` must be how many"):
        st.tl.evaluate(section, ["lda"], region_key="band", genes=1.5, show_progress=False)  # type: ignore[arg-type]
    (tmp_path / "other.parquet").write_text("no parquet")
    section.uns["biomarkers"] = pd.DataFrame({"group": ["a"], "names": [section.var_names[0]]})
    with pytest.raises(ValueError, match="not a parquet file"):
        st.tl.targets(section, tmp_path / "other.parquet")


def test_copy_of_a_backed_anndata_raises(section: ad.AnnData, tmp_path: Path) -> None:
    section.write_h5ad(tmp_path / "a.h5ad")
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    with pytest.raises(ValueError, match=r"pass `adata.to_memory\(\)`"):
        st.tl.region_graph(backed, "band", copy=True)


@pytest.mark.parametrize("path", [None, 5, b"x", ["a"]])
def test_paths_of_a_wrong_type_raise(path: Any, section: ad.AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    before = section.copy()
    with pytest.raises(TypeError, match="`path` must be a path"):
        st.io.read(path)
    with pytest.raises(TypeError, match="`path` must be a path"):
        st.io.read_annotations(section, path)
    assert_same(before, section)
    with monkeypatch.context() as patch, pytest.raises(TypeError, match=r"settings\.datasetdir must be the path"):
        patch.setattr(st.settings, "datasetdir", path)
