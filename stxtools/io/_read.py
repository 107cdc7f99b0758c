"""Reading a section from a file, or from a vendor's folder."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import zarr
from anndata import AnnData
from PIL import Image
from scipy import sparse

from stxtools import _keys
from stxtools._checks import check_int, check_path, listing
from stxtools._docs import complete_docstring
from stxtools._files import readable
from stxtools._types import Array
from stxtools._validate import CONTROLS

from ._spatialdata import from_spatialdata

_MATRIX, _CELL_MATRIX = "*filtered_feature_bc_matrix.h5", "*filtered_feature_cell_matrix.h5"
_PXL_X, _PXL_Y = "pxl_col_in_fullres", "pxl_row_in_fullres"
_POSITIONS = ["barcode", "in_tissue", "array_row", "array_col", _PXL_Y, _PXL_X]
_CHUNK = 2000  # rows of a CSV, which may not fit into memory as a whole


@complete_docstring
def read(path: str | os.PathLike[str], *, bin_size: int = 8) -> AnnData:
    """Read a section from ``.h5ad``, zarr (AnnData or SpatialData) or the output folder of a platform.

    Folders of Space Ranger (Visium, Visium HD), Xenium, MERSCOPE and CosMx are recognised by their files. For the
    segmented cells of Visium HD name the folder ``segmented_outputs``.

    Coordinates of Visium and Visium HD are pixels of the full-resolution image, and ``uns["spatial"]`` has images and
    scale factors. Coordinates of Xenium and MERSCOPE are microns, as are those of CosMx if ``fov_positions_file`` has
    millimetres; ``uns["spatial"][library]["metadata"]["unit"]`` is then ``"micron"``. Genes are read without control
    probes and proteins; the control probes of MERSCOPE and CosMx are stored in ``obsm["blank"]``.

    Parameters
    ----------
    path
        File or folder; for Space Ranger the folder of the run, or its ``outs``.
    bin_size
        Bin size of Visium HD in microns.

    Returns
    -------
    AnnData with sparse counts in ``X``, coordinates in ``obsm["spatial"]``, and the section's entry in
    ``uns["spatial"]``. A ``.h5ad`` or AnnData zarr is returned as stored.

    Examples
    --------
    >>> adata = st.io.read("V1_Breast_Cancer/outs")  # doctest: +SKIP
    """
    path = check_path("path", path)
    bin_size = check_int("bin_size", bin_size, minimum=1)
    if not path.exists():
        raise FileNotFoundError(f"There is no file {str(path)!r}.")
    if path.is_file():
        if path.suffix != ".h5ad":
            packed = path.suffix in {".h5", ".xenium", ".csv"}
            mend = "Name the folder that it lies in." if packed else "Write it as .h5ad with anndata first."
            raise ValueError(f"{str(path)!r} is neither .h5ad nor .zarr, nor a folder of a platform. {mend}")
        with readable(path, "cannot be read as AnnData; is it complete?"):
            return anndata.read_h5ad(path)
    if any((path / name).exists() for name in ("zarr.json", ".zgroup", ".zattrs")):
        return _read_zarr(path, bin_size)
    folder = path / "outs" if (path / "outs").is_dir() else path
    bins = folder if folder.resolve().name == "binned_outputs" else folder / "binned_outputs"
    if bins.is_dir():
        folder = _bins(bins, bin_size)
    for file, (platform, reader) in _VENDORS.items():
        if _visible(folder, file):
            with readable(folder, f"cannot be read as the output of {platform}; is it complete?"):
                adata, library, entry = reader(folder)
            adata.var_names_make_unique()
            library = re.sub(r"[/\\]", "_", library)  # which h5ad and zarr cannot store in a key
            adata.uns[_keys.SPATIAL] = {library: {key: value for key, value in entry.items() if value}}
            return adata
    inside = [str(d.relative_to(path)) for d in sorted([*path.glob("*/"), *path.glob("*/*/"), *path.glob("*.h5ad")])
              if d.suffix == ".h5ad" or any(_visible(d, file) for file in (*_VENDORS, "binned_outputs"))]  # fmt: skip
    raise ValueError(
        f"{str(path)!r} is neither .h5ad nor .zarr, nor the output folder of Space Ranger "
        "(filtered_feature_bc_matrix.h5 and spatial/, or binned_outputs/), Xenium (cell_feature_matrix.h5), MERSCOPE "
        "(cell_by_gene.csv) or CosMx (*_exprMat_file.csv). "
        + (f"Read what lies inside it: {listing(inside)}." if inside else "Write it as .h5ad with anndata first.")
    )


def section_name(path: Path) -> str:
    """Return the name of a section by its path, without folders of Space Ranger and the suffix."""
    path = path.expanduser().resolve()
    while re.fullmatch(r"outs|binned_outputs|segmented_outputs|square_\d+um", path.name):
        path = path.parent
    return path.name.removesuffix(".h5ad").removesuffix(".zarr")


def _visible(folder: Path, *patterns: str) -> list[Path]:
    """Return the files of patterns without those that macOS hides beside them (``._NAME``)."""
    found = (path for pattern in patterns for path in sorted(folder.glob(pattern)))
    return [path for path in found if not path.name.startswith(".")]


def _only(folder: Path, pattern: str) -> Path:
    """Return the file of that name or, if there is none, the one whose name contains it."""
    found = _visible(folder, pattern.replace("*", "")) or _visible(folder, pattern)
    found = [path for path in found if path.suffix != ".gz" or path.with_suffix("") not in found]
    if len(found) > 1:
        names = listing([path.name for path in found])
        raise ValueError(f"{str(folder)!r} holds several sections ({names}); give each a folder of its own.")
    return found[0] if found else _first(folder, pattern)


def _first(folder: Path, *patterns: str) -> Path:
    for path in _visible(folder, *patterns):
        return path
    raise FileNotFoundError(f"There is no {' or '.join(patterns)}.")


def _bins(folder: Path, bin_size: int) -> Path:
    """Return the folder of the bins of a size."""
    sizes = {int(path.name[7:-2]): path for path in sorted(folder.glob("square_*um"))}
    if bin_size not in sizes:
        raise ValueError(f"`bin_size={bin_size}`: {str(folder)!r} has bins of {', '.join(map(str, sizes))} microns.")
    return sizes[bin_size]


def _read_matrix(path: Path) -> AnnData:
    """Read genes of 10x Genomics' feature-barcode matrix: no proteins and no control probes."""
    import scanpy as sc

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*names are not unique", category=UserWarning)
        return sc.read_10x_h5(path)


def _read_csv_matrix(path: Path) -> AnnData:
    """Read a table of cells and genes in parts, and set its control probes apart."""
    header = pd.read_csv(path, nrows=0).columns
    names = list(dict.fromkeys([header[0], *header.intersection(["fov", "cell_ID", "cell"])]))
    cells, counts = [], []
    for part in pd.read_csv(path, dtype=dict.fromkeys(names, str), chunksize=_CHUNK):
        cells.append(_cell_names(part))
        counts.append(sparse.csr_matrix(part.drop(columns=names).to_numpy(dtype=np.float32)))
    matrix, control = sparse.vstack(counts, format="csr"), header.drop(names).str.match(CONTROLS)
    obs, var = pd.DataFrame(index=np.concatenate(cells)), pd.DataFrame(index=header.drop(names))
    adata = AnnData(matrix, obs=obs, var=var)
    adata.obsm["blank"] = adata[:, control].to_df()  # the name that spatialdata-io gives MERSCOPE's
    return adata[:, ~control].copy()


def _cell_names(table: pd.DataFrame) -> Array:
    """Return the first column or, of CosMx, which counts cells within each field of view, both numbers."""
    names = table["cell_ID"] + "_" + table["fov"] if "cell_ID" in table else table.iloc[:, 0]
    return names.to_numpy(dtype=object)


def _place(adata: AnnData, cells: pd.DataFrame, x: str, y: str) -> None:
    """Set positions and ``obs`` by a table that has a row for each observation, in any order."""
    if len(absent := adata.obs_names[~adata.obs_names.isin(cells.index)]):
        raise ValueError(f"{len(absent)} of {adata.n_obs} observations have no position, such as {absent[0]!r}")
    cells = cells.loc[adata.obs_names]
    adata.obsm[_keys.SPATIAL] = cells[[x, y]].to_numpy(dtype=np.float64)
    adata.obs = cells.drop(columns=[x, y]).rename_axis(None)


Read = tuple[AnnData, str, dict[str, Any]]  # with the name of the section and its entry in ``uns["spatial"]``


def _read_space_ranger(folder: Path) -> Read:
    """Read Visium, or the bins of one size or the cells of Visium HD."""
    run = folder.parents[:2] if re.fullmatch(r"segmented_outputs|square_\d+um", folder.name) else ()
    spatial = [at / "spatial" for at in (folder, *run)]
    matrix = _only(folder, _MATRIX if _visible(folder, _MATRIX) else _CELL_MATRIX)
    adata = _read_matrix(matrix)
    _place(adata, _positions(folder), _PXL_X, _PXL_Y)
    factors = json.loads((spatial[0] / "scalefactors_json.json").read_text())
    entry: dict[str, Any] = {"images": {}, "scalefactors": factors}
    for name in ("hires", "lowres"):
        for path in [path for at in spatial for path in _visible(at, f"tissue_{name}_image.*")][:1]:
            with Image.open(path) as image:
                entry["images"][name] = np.asarray(image)
    with h5py.File(matrix) as file:
        named = [_text(name) for name in file.attrs.get("library_ids", [])]
        known = file.attrs.keys() & {"chemistry_description", "software_version"}
        entry["metadata"] = {key: _text(file.attrs[key]) for key in sorted(known)}
    name = section_name(folder)
    return adata, named[0] if named and _visible(spatial[0], "tissue_positions*.csv") else name, entry


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _positions(folder: Path) -> pd.DataFrame:
    """Return the positions of spots, bins or cells by their barcode."""
    if outlines := _visible(folder, "*cell_segmentations.geojson"):
        import geopandas
        import shapely

        cells = geopandas.read_file(outlines[0])
        xy = shapely.get_coordinates(shapely.centroid(cells.geometry.to_numpy()))
        return pd.DataFrame(xy, columns=[_PXL_X, _PXL_Y], index=[f"cellid_{cell:09d}-1" for cell in cells["cell_id"]])
    path = _first(folder / "spatial", "tissue_positions*")
    if path.suffix == ".parquet":
        return pd.read_parquet(path).set_index("barcode")
    has_header = "in_tissue" in pd.read_csv(path, nrows=0).columns  # since Space Ranger 2
    return pd.read_csv(path, names=_POSITIONS, index_col=0, skiprows=int(has_header))


def _read_xenium(folder: Path) -> Read:
    adata = _read_matrix(_only(folder, "*cell_feature_matrix.h5"))
    path = _first(folder, "*cells.parquet", "*cells.csv*")
    cells = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    cells["cell_id"] = cells["cell_id"].map(_text)
    _place(adata, cells.set_index("cell_id", drop=False), "x_centroid", "y_centroid")
    files = _visible(folder, "experiment.xenium")
    specs = json.loads(files[0].read_text()) if files else {}
    metadata = {key: specs[key] for key in ("run_name", "region_name", "pixel_size") if specs.get(key)}
    library = str(specs.get("region_name") or section_name(folder))
    return adata, library, {"metadata": metadata | {"unit": "micron", "platform": "Xenium"}}


def _read_merscope(folder: Path) -> Read:
    adata = _read_csv_matrix(_only(folder, "*cell_by_gene*.csv*"))
    path = _only(folder, "*cell_metadata*.csv*")
    name = pd.read_csv(path, nrows=0).columns[0]
    _place(adata, pd.read_csv(path, dtype={name: str}).set_index(name), "center_x", "center_y")
    return adata, section_name(folder), {"metadata": {"unit": "micron", "platform": "MERSCOPE"}}


def _read_cosmx(folder: Path) -> Read:
    matrix = _only(folder, "*_exprMat_file.csv*")
    library = matrix.name.partition("_exprMat_file.csv")[0]
    cells = pd.read_csv(_first(folder, f"{library}_metadata_file.csv*"), dtype={"fov": str, "cell_ID": str})
    cells = cells.set_index(_cell_names(cells)).astype({"fov": "category"})
    adata = _read_csv_matrix(matrix)
    adata = adata[adata.obs_names.isin(cells.index)].copy()  # without what lies outside of cells
    _place(adata, cells, "CenterX_global_px", "CenterY_global_px")
    metadata: dict[str, Any] = {"unit": "pixel", "platform": "CosMx"}
    files = _visible(folder, f"{library}_fov_positions_file.csv*")  # older releases have none
    fovs = pd.read_csv(files[0]) if files else pd.DataFrame(index=[0])
    spans = [fovs.reindex(columns=[f"x_global_{u}", f"y_global_{u}"]).to_numpy(dtype=float) for u in ("px", "mm")]
    span = np.ptp(spans, axis=1).max(axis=1)  # of the longer side: fields may lie in one row or column
    if np.isfinite(span).all() and span[0] > 0:  # fields of view have a position in millimetres and in pixels
        metadata |= {"unit": "micron", "pixel_size": float(1000 * span[1] / span[0])}
    adata.obsm[_keys.SPATIAL] *= metadata.get("pixel_size", 1.0)
    return adata, library, {"metadata": metadata}


_VENDORS: dict[str, tuple[str, Callable[[Path], Read]]] = {  # by a file that only its folders have
    "experiment.xenium": ("Xenium", _read_xenium),
    "*cell_feature_matrix.h5": ("Xenium", _read_xenium),
    _MATRIX: ("Space Ranger", _read_space_ranger),
    _CELL_MATRIX: ("Space Ranger", _read_space_ranger),
    "*cell_by_gene*.csv*": ("MERSCOPE", _read_merscope),
    "*_exprMat_file.csv*": ("CosMx", _read_cosmx),
}


def _read_zarr(path: Path, bin_size: int) -> AnnData:
    with readable(path, "cannot be read as AnnData or SpatialData; is it complete?"):
        if "spatialdata_attrs" not in zarr.open_group(path, mode="r").attrs:
            return anndata.read_zarr(path)
        from spatialdata import read_zarr

        sdata = read_zarr(path)
    tables = list(sdata.tables)
    known = [name for name in ("table", f"square_{bin_size:03d}um") if name in tables]
    if not known and len(tables) != 1:
        raise ValueError(
            f"{str(path)!r} has the tables {listing(tables)}; choose one with "
            "`st.io.from_spatialdata(spatialdata.read_zarr(path), table_key=...)`."
        )
    return from_spatialdata(sdata, (known or tables)[0])
