"""Reading a section from a file, or from a vendor's folder with spatialdata-io."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata
import h5py
import numpy as np
import pandas as pd
import zarr
from anndata import AnnData
from scipy import sparse

from stxtools import _keys
from stxtools._checks import check_int, check_path, listing
from stxtools._docs import filled
from stxtools._files import readable

from ._spatialdata import from_spatialdata

if TYPE_CHECKING:
    from spatialdata import SpatialData

_MATRIX = "filtered_feature_bc_matrix.h5"
_COSMX_CONTROLS = r"NegPrb|Negative\d|SystemControl|FalseCode"
_ELEMENT = "section"  # a name that SpatialData allows, whatever the section is called


@filled
def read(path: str | os.PathLike[str], *, bin_size: int = 8) -> AnnData:
    """Read a section from ``.h5ad``, zarr (AnnData or SpatialData) or the output folder of a platform.

    Folders of Space Ranger (Visium, Visium HD), Xenium, MERSCOPE and CosMx are recognised by their files, and read with
    spatialdata-io: ``pip install "stxtools[io]"``.

    Coordinates of Visium and Visium HD are pixels of the full-resolution image, and ``uns["spatial"]`` has images and
    scale factors. Coordinates of Xenium and MERSCOPE are microns, as are those of CosMx if ``fov_positions_file`` has
    millimetres; ``uns["spatial"][library]["metadata"]["unit"]`` is then ``"micron"``. Control probes are removed from
    the genes; those of MERSCOPE and CosMx are stored in ``obsm["blank"]``.

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
            hint = " Name the folder that it lies in." if path.suffix in {".h5", ".xenium", ".csv"} else ""
            raise ValueError(f"{str(path)!r} is neither .h5ad nor .zarr, nor a folder of a platform.{hint}")
        with readable(path, "cannot be read as AnnData; is it complete?"):
            return anndata.read_h5ad(path)
    if any((path / name).exists() for name in ("zarr.json", ".zgroup", ".zattrs")):
        return _read_zarr(path)
    folder = path / "outs" if (path / "outs").is_dir() else path
    if bins := re.search(r"^(.+)/binned_outputs(?:/square_(\d+)um)?$", path.resolve().as_posix()):
        return _read_visium_hd(Path(bins[1]), int(bins[2] or bin_size))
    for file, reader in _VENDORS.items():
        if _visible(folder, file):
            return reader(folder, bin_size)
    inside = [str(d.relative_to(path)) for d in sorted([*path.glob("*/"), *path.glob("*/*/")])
              if any(_visible(d, file) for file in _VENDORS)]  # fmt: skip
    packed = _visible(folder, "*.csv.gz")
    mend = "Unpack its .csv.gz files first." if packed else "Write it as .h5ad with anndata first."
    raise ValueError(
        f"{str(path)!r} is neither .h5ad nor .zarr, nor the output folder of Space Ranger "
        "(filtered_feature_bc_matrix.h5 and spatial/, or binned_outputs/), Xenium (experiment.xenium), MERSCOPE "
        "(cell_by_gene.csv) or CosMx (*_exprMat_file.csv). "
        + (f"Read a folder inside it: {listing(inside)}." if inside else mend)
    )


def section_name(path: Path) -> str:
    """Return the name of a section by its path, without ``outs`` and the suffix."""
    path = path.expanduser().resolve()
    name = path.parent.name if path.name == "outs" else path.name
    return name.removesuffix(".h5ad").removesuffix(".zarr")


def _visible(folder: Path, pattern: str) -> list[Path]:
    """Return the files of a pattern without those that macOS hides beside them (``._NAME``)."""
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))


def _only(folder: Path, pattern: str) -> Path:
    found = _visible(folder, pattern)
    if len(found) > 1:
        names = listing([path.name for path in found])
        raise ValueError(f"{str(folder)!r} holds several sections ({names}); give each a folder of its own.")
    return found[0]


def _call_reader(reader: str, folder: Path, **arguments: Any) -> SpatialData:
    """Call a reader; its warnings are about what is skipped on purpose, such as the full-resolution image."""
    try:
        import spatialdata_io
    except ImportError as err:
        raise ImportError(f'Reading {str(folder)!r} needs spatialdata-io: pip install "stxtools[io]".') from err
    problem = f"cannot be read as the output of {reader}; is it complete?"
    if any(folder.rglob("._*")):
        problem += " It holds hidden files of macOS, which may be in the way; delete them: find . -name '._*' -delete"
    with readable(folder, problem), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        sdata = getattr(spatialdata_io, reader)(folder, **arguments)
        if not sdata.tables:
            raise ValueError("there is no table of cells and genes")
        return sdata


def _to_anndata(
    sdata: SpatialData, library: str, table_key: str = "table", drop: Sequence[str] = (), **entry: Any
) -> AnnData:
    """Return the table in scanpy's layout: sparse counts, scale factors and metadata in ``uns["spatial"][library]``."""
    adata = from_spatialdata(sdata, table_key)
    if not sparse.issparse(adata.X):
        adata.X = sparse.csr_matrix(np.asarray(adata.X, dtype=np.float32))
    adata.var_names_make_unique()
    adata.obs = adata.obs.drop(columns=list(drop))
    adata.obsm[_keys.SPATIAL] = np.asarray(adata.obsm[_keys.SPATIAL], dtype=np.float64)
    stored: dict[str, Any] = next(iter(adata.uns.get(_keys.SPATIAL, {}).values()), {})
    merged = stored | {key: {**stored.get(key, {}), **entry.get(key, {})} for key in (_keys.SCALEFACTORS, "metadata")}
    library = re.sub(r"[/\\]", "_", library)  # which h5ad and zarr cannot store in a key
    adata.uns[_keys.SPATIAL] = {library: {key: value for key, value in merged.items() if value}}
    return adata


def _read_visium(folder: Path, _: int) -> AnnData:
    matrix, factors = _only(folder, f"*{_MATRIX}"), _scale_factors(folder)
    sdata = _call_reader("visium", folder, dataset_id=_ELEMENT, counts_file=matrix.name)
    with h5py.File(matrix) as file:
        named = [name.decode() if isinstance(name, bytes) else str(name) for name in file.attrs.get("library_ids", [])]
    library = named[0] if named else section_name(folder)
    return _to_anndata(sdata, library, drop=["region", "spot_id"], scalefactors=factors)


def _read_visium_hd(folder: Path, bin_size: int) -> AnnData:
    bins = folder / "binned_outputs" if (folder / "binned_outputs").is_dir() else folder
    sizes = sorted(int(m[1]) for path in bins.iterdir() if (m := re.fullmatch(r"square_(\d+)um", path.name)))
    if bin_size not in sizes:
        raise ValueError(f"`bin_size={bin_size}`: {str(folder)!r} has bins of {', '.join(map(str, sizes))} microns.")
    name = f"square_{bin_size:03d}um"
    sdata = _call_reader(
        "visium_hd", folder, dataset_id=_ELEMENT, bin_size=bin_size, bins_as_squares=False,
        load_segmentations_only=False,
    )  # fmt: skip
    factors = _scale_factors(bins / name)
    return _to_anndata(sdata, section_name(folder), name, ["region", "location_id"], scalefactors=factors)


def _scale_factors(folder: Path) -> dict[str, Any]:
    path = folder / "spatial" / "scalefactors_json.json"
    with readable(path, "cannot be read; is Space Ranger's folder complete?"):
        return dict(json.loads(path.read_text()))


def _read_xenium(folder: Path, _: int) -> AnnData:
    elements = ("cells_boundaries", "nucleus_boundaries", "cells_labels", "nucleus_labels", "transcripts")
    images = ("morphology_mip", "morphology_focus", "aligned_images")
    sdata = _call_reader("xenium", folder, cells_as_circles=True, **dict.fromkeys([*elements, *images], False))
    specs = json.loads((folder / "experiment.xenium").read_text())
    metadata = {key: specs[key] for key in ("run_name", "region_name", "pixel_size") if specs.get(key)}
    library = str(specs.get("region_name") or section_name(folder))
    return _to_anndata(sdata, library, drop=["region"], metadata=metadata | {"unit": "micron", "platform": "Xenium"})


def _read_merscope(folder: Path, _: int) -> AnnData:
    sdata = _call_reader("merscope", folder, transcripts=False, cells_boundaries=False, mosaic_images=False)
    columns = ["region", "slide", "dataset_id", "cells_region"]
    metadata = {"unit": "micron", "platform": "MERSCOPE"}
    return _to_anndata(sdata, section_name(folder), drop=columns, metadata=metadata)


def _read_cosmx(folder: Path, _: int) -> AnnData:
    matrix = _only(folder, "*_exprMat_file.csv")
    library = matrix.name.removesuffix("_exprMat_file.csv")
    sdata = _call_reader("cosmx", folder, dataset_id=library, transcripts=False)
    table = sdata["table"]
    fovs = pd.read_csv(folder / f"{library}_fov_positions_file.csv")
    metadata: dict[str, Any] = {"unit": "pixel", "platform": "CosMx"}
    spans = [fovs.reindex(columns=[f"x_global_{u}", f"y_global_{u}"]).to_numpy(dtype=float) for u in ("px", "mm")]
    span = np.ptp(spans, axis=1).max(axis=1)  # of the longer side: fields may lie in one row or column
    if np.isfinite(span).all() and span[0] > 0:  # fields of view have a position in millimetres and in pixels
        metadata |= {"unit": "micron", "pixel_size": float(1000 * span[1] / span[0])}
    table.obsm[_keys.SPATIAL] = table.obsm.pop("global") * metadata.get("pixel_size", 1.0)
    adata = _to_anndata(sdata, library, metadata=metadata)
    control = adata.var_names.str.match(_COSMX_CONTROLS)
    adata.obsm["blank"] = adata[:, control].to_df()  # the name that spatialdata-io gives MERSCOPE's
    return adata[:, ~control].copy()


_VENDORS = {  # files by which a folder is recognised, in this order, and its reader
    "experiment.xenium": _read_xenium,
    "binned_outputs": _read_visium_hd,
    "*feature_slice.h5": _read_visium_hd,
    f"*{_MATRIX}": _read_visium,
    "cell_by_gene.csv": _read_merscope,
    "*_exprMat_file.csv": _read_cosmx,
}


def _read_zarr(path: Path) -> AnnData:
    with readable(path, "cannot be read as AnnData or SpatialData; is it complete?"):
        if "spatialdata_attrs" not in zarr.open_group(path, mode="r").attrs:
            return anndata.read_zarr(path)
        from spatialdata import read_zarr

        sdata = read_zarr(path)
    return from_spatialdata(sdata)
