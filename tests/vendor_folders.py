"""Small folders in the layouts of the vendors."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import shapely
import zarr
from geopandas import GeoDataFrame
from PIL import Image
from scipy import sparse

GENES = ("EPCAM", "VIM", "CD3E")


def counts(n: int) -> np.ndarray:
    """Return counts of ``n`` observations: no two rows are equal."""
    return np.arange(n * len(GENES)).reshape(n, len(GENES)) % 11 + np.arange(n)[:, None]


def write_matrix(
    path: Path, names: list[str], library: str | None = None, *, values: np.ndarray | None = None,
    genes: Sequence[str] = GENES,
) -> None:  # fmt: skip
    """Write 10x Genomics' feature-barcode matrix."""
    matrix = sparse.csc_matrix((counts(len(names)) if values is None else values).T.astype(np.int32))
    with h5py.File(path, "w") as file:
        if library is not None:
            file.attrs["library_ids"] = np.array([library.encode()])
            file.attrs["chemistry_description"] = "Visium V4 Slide"
        group = file.create_group("matrix")
        group["barcodes"] = np.array(names, dtype="S")
        for key in ("data", "indices", "indptr"):
            group[key] = getattr(matrix, key)
        group["shape"] = matrix.shape
        features = group.create_group("features")
        features["name"] = np.array(genes, dtype="S")
        features["id"] = np.array([f"ENSG{i}" for i in range(len(genes))], dtype="S")
        for key, value in (("feature_type", "Gene Expression"), ("genome", "GRCh38")):
            features[key] = np.array([value] * len(genes), dtype="S")
        features["_all_tag_keys"] = np.array(["genome"], dtype="S")


def add_features(path: Path, types: Mapping[str, str]) -> None:
    """Add features of other types than genes to a feature-barcode matrix, each with a count of 1."""
    with h5py.File(path, "r+") as file:
        group = file["matrix"]
        n_genes, n_obs = group["shape"][...]
        values = [group[key][...] for key in ("data", "indices", "indptr")]
        matrix = sparse.csc_matrix(tuple(values), shape=(n_genes, n_obs))
        matrix = sparse.vstack([matrix, np.ones((len(types), n_obs), dtype=np.int32)], format="csc")
        new = {key: getattr(matrix, key) for key in ("data", "indices", "indptr", "shape")}
        columns = {"name": list(types), "id": list(types), "feature_type": list(types.values())}
        for key, column in (columns | {"genome": [""] * len(types)}).items():
            new[f"features/{key}"] = np.concatenate([group[f"features/{key}"][...], np.array(column, dtype="S")])
        for key, value in new.items():
            del group[key]
            group[key] = value


def _write_images(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name, side in (("hires", 40), ("lowres", 12)):
        pixels = np.random.default_rng(side).integers(0, 255, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"tissue_{name}_image.png")


def visium(folder: Path) -> pd.DataFrame:
    """Write Space Ranger's ``outs`` of Visium; return the spots under tissue."""
    _write_images(folder / "spatial")
    spots = pd.DataFrame({"barcode": [f"{'ACGT'[i % 4] * (i + 1)}-1" for i in range(6)]})
    spots["in_tissue"] = [1, 1, 1, 1, 0, 1]
    spots["array_row"], spots["array_col"] = [0, 0, 1, 1, 2, 2], [0, 2, 1, 3, 0, 2]
    spots["pxl_row_in_fullres"], spots["pxl_col_in_fullres"] = 100 + 87 * spots["array_row"], 50 * spots["array_col"]
    spots.to_csv(folder / "spatial" / "tissue_positions.csv", index=False)
    factors = {"tissue_hires_scalef": 0.1, "tissue_lowres_scalef": 0.03}
    factors |= {"spot_diameter_fullres": 55.0, "fiducial_diameter_fullres": 90.0}
    (folder / "spatial" / "scalefactors_json.json").write_text(json.dumps(factors))
    spots = spots[spots["in_tissue"] == 1]
    write_matrix(folder / "filtered_feature_bc_matrix.h5", list(spots["barcode"]), "V1_Human")
    return spots


def visium_hd(folder: Path) -> pd.DataFrame:
    """Write Space Ranger's ``outs`` of Visium HD with bins of 8 and 16 microns; return those of 8."""
    folder.mkdir(parents=True)
    _write_images(folder / "spatial")
    for size in (16, 8):
        spatial = folder / "binned_outputs" / f"square_{size:03d}um" / "spatial"
        spatial.mkdir(parents=True)
        side = 48 // size
        row, col = (a.ravel() for a in np.mgrid[:side, :side])
        bins = pd.DataFrame({"barcode": [f"s_{size:03d}um_{r:05d}_{c:05d}-1" for r, c in zip(row, col, strict=True)]})
        bins["in_tissue"], bins["array_row"], bins["array_col"] = 1, row, col
        bins["pxl_row_in_fullres"], bins["pxl_col_in_fullres"] = (row + 0.5) * size * 2.0, (col + 0.5) * size * 2.0
        bins.to_parquet(spatial / "tissue_positions.parquet")
        factors = {"tissue_hires_scalef": 0.4, "tissue_lowres_scalef": 0.12, "bin_size_um": float(size)}
        factors |= {"spot_diameter_fullres": 2.0 * size, "microns_per_pixel": 0.5}
        (spatial / "scalefactors_json.json").write_text(json.dumps(factors))
        write_matrix(spatial.parent / "filtered_feature_bc_matrix.h5", list(bins["barcode"]))
    with h5py.File(folder / "feature_slice.h5", "w") as file:
        layout = json.dumps({"file_format": "1.0"})
        file.attrs["metadata_json"] = json.dumps({"hd_layout_json": layout})
    return bins


def visium_hd_cells(folder: Path) -> pd.DataFrame:
    """Write Space Ranger 4's ``outs`` of Visium HD with segmented cells; return their centres."""
    visium_hd(folder)
    cells = pd.DataFrame({"x": [12.0, 32.0, 52.0], "y": [7.0, 9.0, 8.0]}, index=[4, 1, 3])
    outlines = [shapely.box(x - 2, y - 1, x + 2, y + 1) for x, y in cells.to_numpy()]
    out = folder / "segmented_outputs"
    shutil.copytree(folder / "binned_outputs" / "square_008um" / "spatial", out / "spatial")
    (out / "spatial" / "tissue_positions.parquet").unlink()
    GeoDataFrame({"cell_id": cells.index}, geometry=outlines).to_file(out / "cell_segmentations.geojson")
    cells.index = [f"cellid_{cell:09d}-1" for cell in cells.index]
    write_matrix(out / "filtered_feature_cell_matrix.h5", list(cells.index))
    return cells


def xenium(folder: Path) -> pd.DataFrame:
    """Write a Xenium output folder of version 3; return the cells."""
    folder.mkdir(parents=True)
    specs = {"run_name": "run", "region_name": "Region_1", "pixel_size": 0.2125}
    specs["analysis_sw_version"] = "xenium-3.0.0.15"
    (folder / "experiment.xenium").write_text(json.dumps(specs))
    # prefixes 1 to 5 in base 16, with the letters from a on for its digits
    cells = pd.DataFrame({"cell_id": [f"aaaaaaa{'abcdef'[i]}-1" for i in range(1, 6)]})
    cells["x_centroid"], cells["y_centroid"] = np.arange(5) * 7.5, np.arange(5) ** 2 * 1.25
    cells["cell_area"] = 30.0
    cells.to_parquet(folder / "cells.parquet")
    write_matrix(folder / "cell_feature_matrix.h5", list(cells["cell_id"]))
    store = zarr.storage.ZipStore(folder / "cells.zarr.zip", mode="w")
    group = zarr.create_group(store, zarr_format=2)
    group["cell_id"] = np.c_[np.arange(1, 6), np.ones(5)].astype(np.uint32)
    names = {"column_names": ["cell_centroid_x", "cell_centroid_y"]}
    group.create_array("cell_summary", data=np.c_[np.arange(5.0), np.arange(5.0)], attributes=names)
    for mask in ("0", "1"):
        group[f"masks/{mask}"] = np.zeros((4, 4), dtype=np.uint32)
        group[f"polygon_sets/{mask}/cell_index"] = np.arange(5, dtype=np.uint32)
    store.close()
    assert zipfile.is_zipfile(folder / "cells.zarr.zip")
    return cells


def merscope(folder: Path) -> pd.DataFrame:
    """Write a MERSCOPE region folder; return the cells."""
    (folder / "images").mkdir(parents=True)
    np.savetxt(folder / "images" / "micron_to_mosaic_pixel_transform.csv", np.diag([9.26, 9.26, 1.0]))
    cells = pd.DataFrame({"EntityID": [str(10**18 + i) for i in range(4)], "fov": 0, "volume": 500.0})
    cells["center_x"], cells["center_y"] = np.arange(4) * 11.0, 100 - np.arange(4) * 3.0
    cells.to_csv(folder / "cell_metadata.csv", index=False)
    table = pd.DataFrame(counts(4), columns=list(GENES), index=pd.Index(cells["EntityID"], name="cell"))
    table.assign(**{"Blank-1": 0}).to_csv(folder / "cell_by_gene.csv")
    return cells


def cosmx(folder: Path, *, millimetres: bool = True) -> pd.DataFrame:
    """Write a CosMx folder with two fields of view; return the cells."""
    for name in ("CellComposite", "CellLabels"):
        (folder / name).mkdir(parents=True)
    cells = pd.DataFrame({"fov": np.repeat([1, 2], 4), "cell_ID": np.tile(np.arange(1, 5), 2)})
    x, y = np.tile([10.0, 90.0, 15.0, 80.0], 2), np.tile([10.0, 20.0, 70.0, 95.0], 2)
    cells["CenterX_local_px"], cells["CenterY_local_px"] = x, y
    cells["CenterX_global_px"], cells["CenterY_global_px"] = x + 5000 * (cells["fov"] - 1), y + 300
    cells.assign(Area=50).to_csv(folder / "Lung_metadata_file.csv", index=False)
    table = pd.DataFrame(counts(8), columns=list(GENES)).assign(NegPrb1=1, SystemControl2=2)
    pd.concat([cells[["fov", "cell_ID"]], table], axis=1).to_csv(folder / "Lung_exprMat_file.csv", index=False)
    fovs = pd.DataFrame({"fov": [1, 2], "x_global_px": [0.0, 5000.0], "y_global_px": [300.0, 300.0]})
    if millimetres:
        fovs["x_global_mm"], fovs["y_global_mm"] = fovs["x_global_px"] * 1.2e-4, fovs["y_global_px"] * 1.2e-4
    fovs.to_csv(folder / "Lung_fov_positions_file.csv", index=False)
    return cells
