"""The two public data sets on which the method was described."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from stxtools import _keys
from stxtools._docs import documented
from stxtools._settings import settings

from ._download import RemoteFile, check_cells, extract, fetch

if TYPE_CHECKING:
    from anndata import AnnData

_TENX_URL = "https://cf.10xgenomics.com/samples/spatial-exp/1.1.0/V1_Adult_Mouse_Brain"
_TENX_LIBRARY = "V1_Adult_Mouse_Brain"
# 10x Genomics publishes no SHA-256; two public projects that use these files list the same ones.
_TENX_HASHES = {
    "V1_Adult_Mouse_Brain_filtered_feature_bc_matrix.h5": (
        "sha256:eb78379e02dcf48036abf05b67233e73ecb0d880787feb82f76ff16f6ce01eb3"
    ),
    "V1_Adult_Mouse_Brain_spatial.tar.gz": ("sha256:46d6b05ba740f232d6bf4b27b9a8846815851e000985fb878f1364bab04e5bd4"),
}
_TENX_HELP = (
    "Check the connection and try again, or download the file by hand from "
    "https://www.10xgenomics.com/datasets/mouse-brain-section-coronal-1-standard-1-1-0."
)

_VIZGEN_URL = "https://storage.googleapis.com/vz-ffpe-showcase/HumanBreastCancerPatient1"
_VIZGEN_LIBRARY = "HumanBreastCancerPatient1"
_VIZGEN_FILES = ("cell_by_gene.csv", "cell_metadata.csv")
_VIZGEN_HELP = (
    "Vizgen gives access to registered users: register at https://info.vizgen.com/ffpe-showcase and download "
    f"the file of {_VIZGEN_LIBRARY} from https://console.cloud.google.com/storage/browser/vz-ffpe-showcase."
)


@documented
def visium_mouse_brain(*, known_hash: Mapping[str, str] | None = None, show_progress: bool | None = None) -> AnnData:
    """Read a coronal section of an adult mouse brain (10x Genomics Visium, fresh frozen, H&E).

    ``V1_Adult_Mouse_Brain``, Space Ranger 1.1.0, downloaded from 10x Genomics into ``settings.datasetdir /
    "visium_mouse_brain"`` at the first call and read with :func:`squidpy.read.visium`. Files that you put there
    yourself are used as they are. The publisher gives no SHA-256 checksums: those checked are the ones that public
    projects list.

    Parameters
    ----------
    %(parameters)s

    Returns
    -------
    AnnData of counts (CSR, float32; unique gene symbols) with ``obs["in_tissue"]``, ``obs["array_row"]``,
    ``obs["array_col"]``, ``obsm["spatial"]`` (float64, pixels of the full-resolution image) and images and scale
    factors in ``uns["spatial"]["V1_Adult_Mouse_Brain"]``.

    Raises
    ------
    ConnectionError
        If a download fails; nothing is left behind, and the message says how to do it by hand.
    ValueError
        If a file does not have its checksum or cannot be unpacked.

    Examples
    --------
    >>> import stxtools as st
    >>> adata = st.datasets.visium_mouse_brain()  # doctest: +SKIP
    """
    import squidpy as sq

    folder = settings.datasetdir / "visium_mouse_brain"
    files = tuple(RemoteFile(name, f"{_TENX_URL}/{name}", digest) for name, digest in _TENX_HASHES.items())
    fetch(files, folder, help_text=_TENX_HELP, known_hash=known_hash, show_progress=show_progress)
    counts_file, archive = (file.name for file in files)
    extract(folder / archive, "spatial")
    adata = sq.read.visium(folder, counts_file=counts_file, library_id=_TENX_LIBRARY)
    adata.var_names_make_unique()
    adata.obsm[_keys.SPATIAL] = np.asarray(adata.obsm[_keys.SPATIAL], dtype=np.float64)
    return adata


@documented
def merfish_breast_cancer(*, known_hash: Mapping[str, str] | None = None, show_progress: bool | None = None) -> AnnData:
    """Read a human breast cancer section (Vizgen MERSCOPE, FFPE, immuno-oncology panel).

    ``HumanBreastCancerPatient1`` of Vizgen's MERFISH FFPE Human Immuno-oncology release. Its tables
    ``cell_by_gene.csv`` and ``cell_metadata.csv`` belong in ``settings.datasetdir / "merfish_breast_cancer"`` and are
    read with :func:`squidpy.read.vizgen`, which holds the matrix dense while it reads. Vizgen's storage answers
    registered users only: the error of a refused download says where to register. There are no published checksums: the
    first copy of a file is taken unchecked, with a warning; its checksum is recorded beside it and checked at every
    later call.

    Parameters
    ----------
    %(parameters)s

    Returns
    -------
    AnnData of counts (CSR, float32) with the cell table in ``obs``, ``obsm["spatial"]`` (float64, µm) and the blank
    barcodes, which measure false positives, in ``obsm["blank_genes"]`` (DataFrame).

    Raises
    ------
    ConnectionError
        If a download fails or is refused; nothing is left behind.
    ValueError
        If a file does not have its checksum, or the tables do not fit together.

    Examples
    --------
    >>> import stxtools as st
    >>> adata = st.datasets.merfish_breast_cancer()  # doctest: +SKIP
    """
    import squidpy as sq

    folder = settings.datasetdir / "merfish_breast_cancer"
    files = tuple(RemoteFile(name, f"{_VIZGEN_URL}/{name}") for name in _VIZGEN_FILES)
    fetch(files, folder, help_text=_VIZGEN_HELP, known_hash=known_hash, show_progress=show_progress)
    try:
        adata = sq.read.vizgen(
            folder, counts_file=_VIZGEN_FILES[0], meta_file=_VIZGEN_FILES[1], library_id=_VIZGEN_LIBRARY
        )
        adata.obsm[_keys.SPATIAL] = np.asarray(adata.obsm[_keys.SPATIAL], dtype=np.float64)
        _check_table(adata)
    except (KeyError, ValueError, TypeError, OSError) as err:
        raise ValueError(
            f"The files {' and '.join(_VIZGEN_FILES)} in {folder} are not the tables of {_VIZGEN_LIBRARY} ({err}). "
            f"Delete them and the *.sha256 files beside them. {_VIZGEN_HELP}"
        ) from err
    return adata


def _check_table(adata: AnnData) -> None:
    """Check that two tables that nothing else vouches for are counts and positions of the same cells."""
    if adata.n_obs == 0 or adata.n_vars == 0:
        raise ValueError(f"there are {adata.n_obs} cells and {adata.n_vars} genes")
    check_cells(adata.X, adata.obsm[_keys.SPATIAL])
    if not adata.obs_names.is_unique or not adata.var_names.is_unique:
        raise ValueError("a cell or a gene is there twice")
