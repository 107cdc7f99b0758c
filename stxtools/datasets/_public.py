"""The two public data sets on which the method was described."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from .. import _keys
from .._settings import settings
from ._download import RemoteFile, extract, fetch

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


def visium_mouse_brain(*, known_hash: Mapping[str, str] | None = None, show_progress: bool | None = None) -> AnnData:
    """Read a coronal section of an adult mouse brain (10x Genomics Visium, fresh frozen, H&E).

    ``V1_Adult_Mouse_Brain``, Space Ranger 1.1.0. The count matrix and the ``spatial`` folder are downloaded from
    10x Genomics into ``settings.datasetdir / "visium_mouse_brain"`` at the first call, and read with
    :func:`squidpy.read.visium`. Files that you put there yourself are used as they are.

    The publisher gives no SHA-256 checksums. Those checked here are the ones that public projects list for the two
    files; should 10x Genomics replace a file, pass the new checksum.

    Parameters
    ----------
    known_hash
        Checksums that you trust instead, as ``{file name: "sha256:..."}`` (``"md5:..."`` works too).
    show_progress
        Whether to show a progress bar.

    Returns
    -------
    AnnData of counts (CSR, float32; gene symbols made unique) with ``obs["in_tissue"]``, ``obs["array_row"]``,
    ``obs["array_col"]``, ``obsm["spatial"]`` (float64, pixels of the full-resolution image) and the images and scale
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


def merfish_breast_cancer(*, known_hash: Mapping[str, str] | None = None, show_progress: bool | None = None) -> AnnData:
    """Read a human breast cancer section (Vizgen MERSCOPE, FFPE, immuno-oncology panel).

    ``HumanBreastCancerPatient1`` of Vizgen's MERFISH FFPE Human Immuno-oncology data release. Its tables
    ``cell_by_gene.csv`` and ``cell_metadata.csv`` belong in ``settings.datasetdir / "merfish_breast_cancer"``
    and are read with :func:`squidpy.read.vizgen`, which holds the matrix dense while it reads.

    Vizgen's storage answers registered users only, so the download tried here is expected to be refused: the error
    then says where to register and where to put the files. The publisher gives no checksums: that of the first copy
    is recorded beside each file (``*.sha256``) and checked at every later call.

    Parameters
    ----------
    known_hash
        Checksums that you trust, as ``{file name: "sha256:..."}`` (``"md5:..."`` works too).
    show_progress
        Whether to show a progress bar.

    Returns
    -------
    AnnData of counts (CSR, float32) with the cell table in ``obs``, ``obsm["spatial"]`` (float64, µm) and the
    blank barcodes, which measure false positives, in ``obsm["blank_genes"]`` (DataFrame).

    Raises
    ------
    ConnectionError
        If a download fails or is refused; nothing is left behind.
    ValueError
        If a file does not have its checksum.

    Examples
    --------
    >>> import stxtools as st
    >>> adata = st.datasets.merfish_breast_cancer()  # doctest: +SKIP
    """
    import squidpy as sq

    folder = settings.datasetdir / "merfish_breast_cancer"
    files = tuple(RemoteFile(name, f"{_VIZGEN_URL}/{name}") for name in _VIZGEN_FILES)
    fetch(files, folder, help_text=_VIZGEN_HELP, known_hash=known_hash, show_progress=show_progress)
    adata = sq.read.vizgen(folder, counts_file=_VIZGEN_FILES[0], meta_file=_VIZGEN_FILES[1], library_id=_VIZGEN_LIBRARY)
    adata.obsm[_keys.SPATIAL] = np.asarray(adata.obsm[_keys.SPATIAL], dtype=np.float64)
    return adata
