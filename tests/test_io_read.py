"""Files and vendor folders as AnnData: counts, positions and their unit, images, section names."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
import vendor_folders as folders
from anndata.tests.helpers import assert_equal
from PIL import Image
from scipy import sparse

import stxtools as st


def _read_and_check(folder: Path, names: list[str], xy: np.ndarray, library: str) -> ad.AnnData:
    adata = st.io.read(folder)
    assert list(adata.obs_names) == names
    assert list(adata.var_names) == list(folders.GENES)
    assert sparse.issparse(adata.X)
    np.testing.assert_array_equal(adata.X.toarray(), folders.counts(len(names)))
    np.testing.assert_allclose(adata.obsm["spatial"], xy, rtol=1e-12)
    assert adata.obsm["spatial"].dtype == np.float64
    assert list(adata.uns["spatial"]) == [library]
    assert "spatialdata_attrs" not in adata.uns
    return adata


def _check_image(adata: ad.AnnData, folder: Path) -> None:
    """Scanpy's layout: pixels of the image are positions times the factor."""
    entry = next(iter(adata.uns["spatial"].values()))
    factors = json.loads(next(folder.rglob("scalefactors_json.json")).read_text())
    for name in ("hires", "lowres"):
        stored = np.asarray(Image.open(next(folder.rglob(f"tissue_{name}_image.png"))))
        np.testing.assert_array_equal(entry["images"][name], stored)
        assert entry["scalefactors"][f"tissue_{name}_scalef"] == factors[f"tissue_{name}_scalef"]


@pytest.mark.parametrize("outs", [True, False])
def test_visium_folder_is_read(tmp_path: Path, outs: bool) -> None:
    folder = tmp_path / "run" / "outs" if outs else tmp_path / "run"
    spots = folders.visium(folder)
    xy = spots[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy()
    adata = _read_and_check(tmp_path / "run", list(spots["barcode"]), xy, "V1_Human")
    assert list(adata.obs["array_col"]) == list(spots["array_col"])
    assert adata.uns["spatial"]["V1_Human"]["scalefactors"]["spot_diameter_fullres"] == 55.0
    assert adata.uns["spatial"]["V1_Human"]["metadata"]["chemistry_description"] == "Visium V4 Slide"
    _check_image(adata, folder)
    adata.write_h5ad(tmp_path / "section.h5ad")
    assert_equal(st.io.read(tmp_path / "section.h5ad"), adata)


def test_visium_hd_folder_is_read_at_a_bin_size(tmp_path: Path) -> None:
    bins = folders.visium_hd(tmp_path / "Kolon" / "outs")
    xy = bins[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy()
    adata = _read_and_check(tmp_path / "Kolon", list(bins["barcode"]), xy, "Kolon")
    assert adata.uns["spatial"]["Kolon"]["scalefactors"]["microns_per_pixel"] == 0.5
    _check_image(adata, tmp_path)
    assert st.io.read(tmp_path / "Kolon", bin_size=16).n_obs == 9
    inside = tmp_path / "Kolon" / "outs" / "binned_outputs" / "square_016um"
    of_bins = st.io.read(inside)
    assert st.io.read(inside.parent, bin_size=np.int64(16)).n_obs == 9
    assert of_bins.n_obs == 9
    assert list(of_bins.uns["spatial"]) == ["Kolon"]
    with pytest.raises(ValueError, match=r"bin_size=2.*8, 16"):
        st.io.read(tmp_path / "Kolon", bin_size=2)


def test_xenium_folder_is_read(tmp_path: Path) -> None:
    cells = folders.xenium(tmp_path / "output")
    xy = cells[["x_centroid", "y_centroid"]].to_numpy()
    adata = _read_and_check(tmp_path / "output", list(cells["cell_id"]), xy, "Region_1")
    assert adata.uns["spatial"]["Region_1"]["metadata"]["unit"] == "micron"
    assert adata.uns["spatial"]["Region_1"]["metadata"]["pixel_size"] == 0.2125
    assert list(adata.obs["cell_area"]) == [30.0] * 5


def test_merscope_folder_is_read(tmp_path: Path) -> None:
    cells = folders.merscope(tmp_path / "region_0")
    xy = cells[["center_x", "center_y"]].to_numpy()
    adata = _read_and_check(tmp_path / "region_0", list(cells["EntityID"]), xy, "region_0")
    assert adata.uns["spatial"]["region_0"]["metadata"]["unit"] == "micron"
    adata.write_zarr(tmp_path / "section.zarr")
    assert_equal(st.io.read(tmp_path / "section.zarr"), adata)


@pytest.mark.parametrize(("millimetres", "scale"), [(True, 0.12), (False, 1.0), (None, 1.0)])
def test_cosmx_folder_is_read_in_microns_or_pixels(tmp_path: Path, millimetres: bool | None, scale: float) -> None:
    cells = folders.cosmx(tmp_path / "Lung5", millimetres=bool(millimetres))
    if millimetres is None:  # as in older releases
        (tmp_path / "Lung5" / "Lung_fov_positions_file.csv").unlink()
    names = [f"{cell}_{fov}" for cell, fov in zip(cells["cell_ID"], cells["fov"], strict=True)]
    xy = cells[["CenterX_global_px", "CenterY_global_px"]].to_numpy() * scale
    adata = _read_and_check(tmp_path / "Lung5", names, xy, "Lung")
    assert adata.uns["spatial"]["Lung"]["metadata"]["unit"] == ("micron" if millimetres else "pixel")
    assert adata.obsm["blank"].columns.tolist() == ["NegPrb1", "SystemControl2"]
    assert (adata.obsm["blank"] == [1, 2]).all(axis=None)


def test_spatialdata_zarr_is_read(tmp_path: Path, make_section: Callable[..., ad.AnnData]) -> None:
    adata = make_section("hex", 6, 6)
    st.io.to_spatialdata(adata).write(tmp_path / "section.zarr")
    assert_equal(st.io.read(tmp_path / "section.zarr"), adata)


def test_table_of_a_spatialdata_zarr_is_chosen(tmp_path: Path, make_section: Callable[..., ad.AnnData]) -> None:
    adata = make_section("hex", 6, 6)
    sdata = st.io.to_spatialdata(adata)

    def read(*names: str, **options: Any) -> ad.AnnData:
        tables = {name: sdata["table"][:size].copy() for size, name in enumerate(names, 4)}
        sd.SpatialData(shapes=dict(sdata.shapes), tables=tables).write(tmp_path / names[0], overwrite=True)
        return st.io.read(tmp_path / names[0], **options)

    assert read("cells").n_obs == 4
    assert read("square_002um", "square_016um", bin_size=16).n_obs == 5
    with pytest.raises(ValueError, match=r"tables 'square_002um', 'square_016um'; choose one"):
        st.io.read(tmp_path / "square_002um")


def test_section_name_with_a_slash_is_replaced(tmp_path: Path) -> None:
    folders.xenium(tmp_path / "output")
    path = tmp_path / "output" / "experiment.xenium"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"region_name": "Region 1/2"}))
    adata = st.io.read(tmp_path / "output")
    assert list(adata.uns["spatial"]) == ["Region 1_2"]


def test_hidden_files_of_macos_are_ignored(tmp_path: Path) -> None:
    folders.cosmx(tmp_path / "Lung5")
    (tmp_path / "Lung5" / "._Lung_exprMat_file.csv").write_bytes(b"\0")
    assert list(st.io.read(tmp_path / "Lung5").uns["spatial"]) == ["Lung"]
    folders.visium(tmp_path / "visium")
    for name in ("filtered_feature_bc_matrix.h5", "spatial/tissue_positions.csv", "spatial/tissue_hires_image.png"):
        hidden = tmp_path / "visium" / name
        hidden.with_name(f"._{hidden.name}").write_bytes(b"\0")
    _check_image(st.io.read(tmp_path / "visium"), tmp_path / "visium")


def _edit_csv(path: Path, change: Callable[[pd.DataFrame], pd.DataFrame], **options: Any) -> None:
    change(pd.read_csv(path)).to_csv(path, **{"index": False} | options)


def _space_ranger_1(folder: Path) -> None:
    _edit_csv(folder / "spatial" / "tissue_positions.csv", lambda table: table, header=False)
    (folder / "spatial" / "tissue_positions.csv").rename(folder / "spatial" / "tissue_positions_list.csv")


def _without(*names: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for name in names:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def _cells_as_csv(folder: Path) -> None:
    pd.read_parquet(folder / "cells.parquet").to_csv(folder / "cells.csv.gz", index=False)
    (folder / "cells.parquet").unlink()


def _cell_ids_as_bytes(folder: Path) -> None:
    cells = pd.read_parquet(folder / "cells.parquet")
    cells.assign(cell_id=cells["cell_id"].str.encode("utf-8")).to_parquet(folder / "cells.parquet")


def _merscope_of_the_showcase(folder: Path) -> None:
    _edit_csv(folder / "cell_metadata.csv", lambda table: table[::-1].rename(columns={"EntityID": ""}))
    for name in ("cell_metadata", "cell_by_gene"):
        (folder / f"{name}.csv").rename(folder / f"brain_{name}_S1R1.csv")


def _merscope_of_another_segmentation(folder: Path) -> None:
    (folder / "cell_by_gene_cellpose2.csv").write_text("cell,EPCAM\n1,1\n")
    (folder / "cell_by_gene.csv.gz").write_bytes(b"")


def _flat_files_of_atomx(folder: Path) -> None:
    for name in ("exprMat", "metadata"):
        _edit_csv(folder / f"Lung_{name}_file.csv", lambda t: t.assign(cell=[f"c_{i}" for i in range(len(t))]))
    outside = pd.DataFrame({"fov": [1, 2], "cell_ID": 0}).reindex  # transcripts outside of cells
    _edit_csv(folder / "Lung_exprMat_file.csv", lambda t: pd.concat([outside(columns=t.columns, fill_value=7), t]))
    _without("CellComposite", "CellLabels")(folder)
    for path in folder.glob("*.csv"):
        pd.read_csv(path).to_csv(f"{path}.gz", index=False)
        path.unlink()


@pytest.mark.parametrize(
    ("vendor", "change"),
    [
        ("visium", _space_ranger_1),
        ("visium", _without("spatial/tissue_hires_image.png", "spatial/tissue_lowres_image.png")),
        ("visium_hd", _without("feature_slice.h5")),
        ("xenium", _without("experiment.xenium", "cells.zarr.zip")),
        ("xenium", _cells_as_csv),
        ("xenium", _cell_ids_as_bytes),
        ("merscope", _without("images")),
        ("merscope", _merscope_of_the_showcase),
        ("merscope", _merscope_of_another_segmentation),
        ("cosmx", _flat_files_of_atomx),
    ],
)
def test_older_and_partial_layouts_are_read_alike(tmp_path: Path, vendor: str, change: Callable[[Path], None]) -> None:
    getattr(folders, vendor)(tmp_path / "output")
    whole = st.io.read(tmp_path / "output")
    change(tmp_path / "output")
    adata = st.io.read(tmp_path / "output")
    np.testing.assert_array_equal(adata.X.toarray(), whole.X.toarray())
    np.testing.assert_array_equal(adata.obsm["spatial"], whole.obsm["spatial"])
    assert list(adata.var_names) == list(whole.var_names)
    pd.testing.assert_frame_equal(adata.obs[whole.obs.columns], whole.obs)


@pytest.mark.parametrize("vendor", ["visium", "visium_hd", "xenium"])
def test_proteins_and_control_probes_are_no_genes(tmp_path: Path, vendor: str) -> None:
    getattr(folders, vendor)(tmp_path / "output")
    others = {"CD3E": "Antibody Capture", "NegControlProbe_1": "Negative Control Probe", "a": "Unassigned Codeword"}
    for path in tmp_path.rglob("*_matrix.h5"):
        folders.add_features(path, others)
    adata = st.io.read(tmp_path / "output")
    assert list(adata.var_names) == list(folders.GENES)
    np.testing.assert_array_equal(adata.X.toarray(), folders.counts(adata.n_obs))


def test_large_images_of_visium_hd_fit_their_scale_factors(tmp_path: Path) -> None:
    folders.visium_hd(tmp_path / "Kolon")
    Image.fromarray(np.zeros((3000, 2500, 3), dtype=np.uint8)).save(
        tmp_path / "Kolon" / "spatial" / "tissue_hires_image.png"
    )
    _check_image(st.io.read(tmp_path / "Kolon"), tmp_path)


def test_cells_of_visium_hd_are_read(tmp_path: Path) -> None:
    cells = folders.visium_hd_cells(tmp_path / "Kolon" / "outs")
    folder = tmp_path / "Kolon" / "outs" / "segmented_outputs"
    xy, names = cells[["x", "y"]].to_numpy(), list(cells.index)
    _check_image(_read_and_check(folder, names, xy, "Kolon"), tmp_path)
    folder.rename(tmp_path / "alone")
    _read_and_check(tmp_path / "alone", names, xy, "alone")


def test_cosmx_fields_of_view_in_one_column_have_microns(tmp_path: Path) -> None:
    folders.cosmx(tmp_path)
    path = tmp_path / "Lung_fov_positions_file.csv"
    path.write_text("fov,x_global_px,y_global_px,x_global_mm,y_global_mm\n1,300,0,0.036,0\n2,300,5000,0.036,0.6\n")
    metadata = st.io.read(tmp_path).uns["spatial"]["Lung"]["metadata"]
    assert metadata["unit"] == "micron"
    assert metadata["pixel_size"] == pytest.approx(0.12)


def test_several_sections_in_one_folder_raise(tmp_path: Path) -> None:
    folders.cosmx(tmp_path)
    (tmp_path / "Colon_exprMat_file.csv").write_text("fov,cell_ID\n")
    with pytest.raises(ValueError, match=r"several sections \('Colon_exprMat_file\.csv', 'Lung_exprMat_file\.csv'\)"):
        st.io.read(tmp_path)


def test_the_folder_of_several_runs_is_not_one(tmp_path: Path) -> None:
    folders.visium(tmp_path / "A 1" / "outs")
    folders.merscope(tmp_path / "region_0")
    with pytest.raises(ValueError, match=r"Read what lies inside it: '.*A 1.outs', '.*region_0'\.$"):
        st.io.read(tmp_path)
    folders.xenium(tmp_path / "again" / "outs" / "outs")
    with pytest.raises(ValueError, match=r"Read what lies inside it: 'outs.outs'\.$"):
        st.io.read(tmp_path / "again")


@pytest.mark.parametrize(("vendor", "inside"), [("visium", ""), ("visium_hd", "binned_outputs/square_016um")])
def test_command_line_accepts_vendor_folders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, vendor: str, inside: str
) -> None:
    inputs = []
    for name in ("one", "two"):
        getattr(folders, vendor)(tmp_path / name / "outs")
        inputs.append(str(tmp_path / name / "outs" / inside))
    arguments = ["run", "--input", *inputs, "--out", str(tmp_path / "results"), "--groupby", "nothing"]
    monkeypatch.setattr(sys, "argv", ["stxtools", *arguments])
    with pytest.raises(SystemExit, match=r"^2$"):
        runpy.run_module("stxtools", run_name="__main__")
    assert "array_row, array_col, library" in capsys.readouterr().err.replace("'", "")


@pytest.mark.parametrize(
    ("vendor", "absent", "match"),
    [
        ("xenium", "cells.parquet", r"output of Xenium; is it complete.*cells\.parquet"),
        ("visium", "spatial/scalefactors_json.json", r"output of Space Ranger; is it complete.*scalefactors_json"),
        ("merscope", "cell_metadata.csv", r"output of MERSCOPE; is it complete.*cell_metadata"),
    ],
)
def test_incomplete_vendor_folder_raises(tmp_path: Path, vendor: str, absent: str, match: str) -> None:
    getattr(folders, vendor)(tmp_path / "output")
    (tmp_path / "output" / absent).unlink()
    with pytest.raises(ValueError, match=match):
        st.io.read(tmp_path / "output")


def test_unknown_or_missing_input_raises(tmp_path: Path) -> None:
    for name in ("curio/section.h5ad", "broken.zarr/zarr.json", "output/matrix.h5", "output/tissue.gef"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    with pytest.raises(FileNotFoundError, match="no file"):
        st.io.read(tmp_path / "absent")
    for path, match in (
        ("", "not a valid path"),
        ("a\0b", "not a valid path"),
        (tmp_path, r"Space Ranger .* Xenium .* MERSCOPE .* CosMx"),
        (tmp_path / "curio", r"inside it: 'section\.h5ad'"),
        (tmp_path / "output" / "tissue.gef", r"Write it as \.h5ad"),
        (tmp_path / "broken.zarr", "is it complete"),
        (tmp_path / "output" / "matrix.h5", r"neither \.h5ad nor \.zarr.*folder that it lies in"),
    ):
        with pytest.raises(ValueError, match=match):
            st.io.read(path)
