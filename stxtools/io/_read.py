"""Reading a section from a file or a vendor's folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from stxtools._checks import check_int

from ._spatialdata import from_spatialdata
from ._vendors import VENDORS

if TYPE_CHECKING:
    from anndata import AnnData


def read(path: str | os.PathLike[str], *, bin_size: int = 8) -> AnnData:
    """Read a section: ``.h5ad``, AnnData or SpatialData zarr, or the output folder of a platform.

    A folder is recognised by its files: Space Ranger (Visium, Visium HD), Xenium, MERSCOPE or CosMx. Vendors' folders
    are read with spatialdata-io: ``pip install "stxtools[io]"``.

    Positions are pixels of the full-resolution image for Visium and Visium HD, whose ``uns["spatial"]`` has images and
    scale factors. They are microns for Xenium and MERSCOPE, and for CosMx where ``fov_positions_file`` has millimetres;
    ``uns["spatial"][library]["metadata"]["unit"]`` says so.

    Parameters
    ----------
    path
        File or folder. Space Ranger's is the run or its ``outs``.
    bin_size
        Side of the bins of Visium HD, in microns.

    Returns
    -------
    AnnData with counts as sparse ``X``, ``obsm["spatial"]``, and ``uns["spatial"]`` with the name of the section.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is none of these, or cannot be read.
    ImportError
        If it is a vendor's folder and spatialdata-io is not installed.

    Examples
    --------
    >>> import stxtools as st
    >>> adata = st.io.read("V1_Breast_Cancer/outs")  # doctest: +SKIP
    """
    path = Path(path).expanduser()
    check_int("bin_size", bin_size, minimum=1)
    if not path.exists():
        raise FileNotFoundError(f"There is no file {str(path)!r}.")
    if path.is_file():
        return _read_file(path)
    if any((path / name).exists() for name in ("zarr.json", ".zgroup", ".zattrs")):
        return _read_zarr(path)
    folder = path / "outs" if (path / "outs").is_dir() else path
    for vendor in VENDORS:
        if vendor.is_in(folder):
            return vendor.read(folder, bin_size)
    raise ValueError(
        f"{str(path)!r} is neither .h5ad nor .zarr, nor the output folder of Space Ranger "
        "(filtered_feature_bc_matrix.h5 and spatial/, or binned_outputs/), Xenium (experiment.xenium), MERSCOPE "
        "(cell_by_gene.csv) or CosMx (*_exprMat_file.csv). Write it as .h5ad with anndata first."
    )


def _read_file(path: Path) -> AnnData:
    import anndata

    if path.suffix != ".h5ad":
        hint = " Name the folder that it lies in." if path.suffix in {".h5", ".xenium", ".csv"} else ""
        raise ValueError(f"{str(path)!r} is neither .h5ad nor .zarr, nor a folder of a platform.{hint}")
    try:
        return anndata.read_h5ad(path)
    except PermissionError:
        raise
    except Exception as err:  # h5py and anndata raise many kinds for a file that is damaged
        raise ValueError(f"{str(path)!r} cannot be read as AnnData; is it complete? ({err})") from err


def _read_zarr(path: Path) -> AnnData:
    import anndata
    import zarr

    try:
        if "spatialdata_attrs" not in zarr.open_group(path, mode="r").attrs:
            return anndata.read_zarr(path)
        from spatialdata import read_zarr

        sdata = read_zarr(path)
    except PermissionError:
        raise
    except Exception as err:  # zarr and anndata raise many kinds for a store that is damaged
        raise ValueError(f"{str(path)!r} cannot be read as AnnData or SpatialData; is it complete? ({err})") from err
    return from_spatialdata(sdata)
