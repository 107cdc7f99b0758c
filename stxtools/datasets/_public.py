"""Public data that are downloaded: gene sets, sections on which the method was described, and series in time."""

from __future__ import annotations

import re
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

from stxtools import _keys
from stxtools._checks import check_names
from stxtools._docs import documented
from stxtools._progress import is_shown
from stxtools._settings import settings

if TYPE_CHECKING:
    from anndata import AnnData

_TENX_URL = "https://cf.10xgenomics.com/samples/spatial-exp/1.1.0/V1_Adult_Mouse_Brain"
_TENX_LIBRARY = "V1_Adult_Mouse_Brain"
# 10x Genomics publishes no SHA-256; two public projects that use these files list the same ones.
_TENX_HASHES = {
    f"{_TENX_LIBRARY}_filtered_feature_bc_matrix.h5": (
        "sha256:eb78379e02dcf48036abf05b67233e73ecb0d880787feb82f76ff16f6ce01eb3"
    ),
    f"{_TENX_LIBRARY}_spatial.tar.gz": "sha256:46d6b05ba740f232d6bf4b27b9a8846815851e000985fb878f1364bab04e5bd4",
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
_STOMICS_URL = "https://ftp.cngb.org/pub/SciRAID/stomics"
_LABELS = ("annotation", "Annotation")
_COUNTS = ("count", "counts")  # layers, as the two data sets call them
_HALLMARK = "h.all.v7.0.symbols.gmt"
_HALLMARK_URL = "https://raw.githubusercontent.com/zqfang/GSEApy/8611014ddbde0117dc0d1f0422c9846ac94a6a41/tests/extdata"
_HALLMARK_SHA = "sha256:4803c09aae50bbd96d53fc681bd5545a4c89278993c15145dd7b7c994f893516"  # of the file at that commit
_HALLMARK_HELP = (
    "Check the connection, or download the hallmark sets (symbols, release 7.0) from https://www.gsea-msigdb.org."
)


@documented
def hallmark_gene_sets(*, show_progress: bool | None = None) -> pd.DataFrame:
    """Read the hallmark gene sets, 50 pathways and states of human cells, for :func:`stxtools.tl.describe`.

    MSigDB 7.0 (CC BY 4.0), Liberzon et al. 2015, Cell Systems 1:417, doi:10.1016/j.cels.2015.12.004. Downloaded at the
    first call into ``settings.datasetdir / "gene_sets"`` from the repository of GSEApy at a fixed commit, and checked.

    Parameters
    ----------
    %(parameters)s

    Returns
    -------
    DataFrame with ``source`` (the set) and ``target`` (a gene symbol), decoupler's layout.

    %(download)s

    Examples
    --------
    >>> net = st.datasets.hallmark_gene_sets()  # doctest: +SKIP
    >>> st.tl.describe(adata, "compartment", net=net)  # doctest: +SKIP
    """
    folder = settings.datasetdir / "gene_sets"
    _fetch(
        {_HALLMARK: f"{_HALLMARK_URL}/{_HALLMARK}"}, folder, _HALLMARK_HELP, show_progress, {_HALLMARK: _HALLMARK_SHA}
    )
    sets = [line.split("\t") for line in (folder / _HALLMARK).read_text().splitlines()]
    rows = [(name.removeprefix("HALLMARK_"), gene) for name, _, *genes in sets for gene in genes]
    return pd.DataFrame(rows, columns=["source", "target"])


@documented
def visium_mouse_brain(*, show_progress: bool | None = None) -> AnnData:
    """Read a coronal section of an adult mouse brain (10x Genomics Visium, fresh frozen, H&E).

    ``V1_Adult_Mouse_Brain``, Space Ranger 1.1.0, downloaded from 10x Genomics into ``settings.datasetdir /
    "visium_mouse_brain"`` at the first call and read with :func:`squidpy.read.visium`. The publisher gives no SHA-256
    checksums: those checked are the ones that public projects list.

    Parameters
    ----------
    %(parameters)s

    Returns
    -------
    AnnData of counts (CSR, float32; unique gene symbols) with ``obs["in_tissue"]``, ``obs["array_row"]``,
    ``obs["array_col"]``, ``obsm["spatial"]`` (float64, pixels of the full-resolution image) and images and scale
    factors in ``uns["spatial"]["V1_Adult_Mouse_Brain"]``.

    %(download)s

    Examples
    --------
    >>> adata = st.datasets.visium_mouse_brain()  # doctest: +SKIP
    """
    import squidpy as sq

    folder = settings.datasetdir / "visium_mouse_brain"
    counts_file, archive = _TENX_HASHES
    _fetch({name: f"{_TENX_URL}/{name}" for name in _TENX_HASHES}, folder, _TENX_HELP, show_progress, _TENX_HASHES)
    _extract(folder / archive, "spatial")
    adata = sq.read.visium(folder, counts_file=counts_file, library_id=_TENX_LIBRARY)
    adata.var_names_make_unique()
    adata.obsm[_keys.SPATIAL] = np.asarray(adata.obsm[_keys.SPATIAL], dtype=np.float64)
    return adata


@documented
def merfish_breast_cancer(*, show_progress: bool | None = None) -> AnnData:
    """Read a human breast cancer section (Vizgen MERSCOPE, FFPE, immuno-oncology panel).

    ``HumanBreastCancerPatient1`` of Vizgen's MERFISH FFPE Human Immuno-oncology release. Its tables
    ``cell_by_gene.csv`` and ``cell_metadata.csv`` belong in ``settings.datasetdir / "merfish_breast_cancer"`` and are
    read with :func:`squidpy.read.vizgen`, which holds the matrix dense while it reads. Vizgen's storage answers
    registered users only: the error of a refused download says where to register. Checksums are not published.

    Parameters
    ----------
    %(parameters)s

    Returns
    -------
    AnnData of counts (CSR, float32) with the cell table in ``obs``, ``obsm["spatial"]`` (float64, µm) and the blank
    barcodes, which measure false positives, in ``obsm["blank_genes"]`` (DataFrame).

    %(download)s

    Examples
    --------
    >>> adata = st.datasets.merfish_breast_cancer()  # doctest: +SKIP
    """
    import squidpy as sq

    folder = settings.datasetdir / "merfish_breast_cancer"
    _fetch({name: f"{_VIZGEN_URL}/{name}" for name in _VIZGEN_FILES}, folder, _VIZGEN_HELP, show_progress)
    try:
        adata = sq.read.vizgen(
            folder, counts_file=_VIZGEN_FILES[0], meta_file=_VIZGEN_FILES[1], library_id=_VIZGEN_LIBRARY
        )
        adata.obsm[_keys.SPATIAL] = np.asarray(adata.obsm[_keys.SPATIAL], dtype=np.float64)
        _check_cells(adata)
    except (KeyError, ValueError, TypeError, OSError) as err:
        raise ValueError(
            f"The files {' and '.join(_VIZGEN_FILES)} in {folder} are not the tables of {_VIZGEN_LIBRARY} ({err}). "
            f"Delete them. {_VIZGEN_HELP}"
        ) from err
    return adata


@documented
def mosta(samples: str | Sequence[str] = "E9.5_E1S1", *, show_progress: bool | None = None) -> AnnData:
    """Read sections of mouse embryos from E9.5 to E16.5 (Stereo-seq, bins of 50).

    MOSTA, Chen et al. 2022, Cell 185:1777, doi:10.1016/j.cell.2022.04.003. The files are downloaded from STOmicsDB
    (STDS0000058) into ``settings.datasetdir / "mosta"`` at the first call. Checksums are not published.

    Parameters
    ----------
    samples
        Section or sections: stage, embryo and section, such as ``"E9.5_E1S1"``. Several are joined on the genes that
        all have.
    %(parameters)s

    Returns
    -------
    AnnData of counts (CSR, float32) with ``obs["time"]`` (days), ``obs["subject"]`` (embryo), ``obs["section"]``,
    ``obs["annotation"]`` (the authors' tissues) and ``obsm["spatial"]`` (float64).

    %(download)s

    Examples
    --------
    >>> adata = st.datasets.mosta(["E9.5_E1S1", "E10.5_E1S1"])  # doctest: +SKIP
    """
    return _read(_MOSTA, samples, show_progress)


@documented
def axolotl_regeneration(samples: str | Sequence[str] = "2DPI_1", *, show_progress: bool | None = None) -> AnnData:
    """Read sections of the axolotl telencephalon 2 to 60 days after an injury (Stereo-seq, single cells).

    ARTISTA, Wei et al. 2022, Science 377:eabp9444, doi:10.1126/science.abp9444. Downloaded from STOmicsDB (STDS0000056)
    into ``settings.datasetdir / "axolotl_regeneration"`` at the first call. Checksums are not published.

    Parameters
    ----------
    samples
        Section or sections: days after the injury and number, such as ``"2DPI_1"``. Several are joined on the genes
        that all have.
    %(parameters)s

    Returns
    -------
    AnnData of counts (CSR, float32) with ``obs["time"]`` (days), ``obs["section"]``, ``obs["annotation"]`` (the
    authors' cell types) and ``obsm["spatial"]`` (float64). The files name no animal.

    %(download)s

    Examples
    --------
    >>> adata = st.datasets.axolotl_regeneration(["2DPI_1", "5DPI_1"])  # doctest: +SKIP
    """
    return _read(_ARTISTA, samples, show_progress)


@dataclass(frozen=True)
class _Series:
    """Where the sections of a series are, and the pattern of their names, whose groups are time and animal."""

    folder: str
    accession: str
    file: str
    name: re.Pattern[str]
    example: str
    page: str


_MOSTA = _Series(
    "mosta", "STDS0000058", "{}.MOSTA.h5ad", re.compile(r"(?=E(\d+\.\d))(E\d+\.\d_E\d+)S\d+"), "E9.5_E1S1",
    "https://db.cngb.org/stomics/mosta/download/",
)  # fmt: skip


_ARTISTA = _Series(
    "axolotl_regeneration", "STDS0000056", "{}.h5ad", re.compile(r"(\d+)DPI_\d+()"), "2DPI_1",
    "https://db.cngb.org/stomics/artista/download/",
)  # fmt: skip


def _read(series: _Series, samples: str | Sequence[str], show_progress: bool | None) -> AnnData:
    import anndata

    names = check_names("samples", samples, "a section")
    wrong = [name for name in names if not series.name.fullmatch(name)]
    if wrong or not names or len(set(names)) < len(names):
        raise ValueError(f"`samples={samples!r}`: name each section once, as in {series.example!r}; see {series.page}.")
    folder = settings.datasetdir / series.folder
    files = {name: series.file.format(name) for name in names}
    help_text = f"Check the connection and the name of the section at {series.page}, or download the file there."
    addresses = {file: f"{_STOMICS_URL}/{series.accession}/stomics/{file}" for file in files.values()}
    _fetch(addresses, folder, help_text, show_progress)
    parts = []
    for name, file in files.items():
        try:
            parts.append(_section(series, name, anndata.read_h5ad(folder / file)))
        except (OSError, KeyError, ValueError, TypeError) as err:
            raise ValueError(
                f"The file {file} in {folder} is not a section of this series ({err}). Delete it. {help_text}"
            ) from err
    out = parts[0] if len(parts) == 1 else anndata.concat(parts, join="inner", merge="same")
    for column in ("annotation", "section", "subject"):  # what is joined has lost its categories
        if column in out.obs:
            out.obs[column] = out.obs[column].astype("category")
    return out


def _section(series: _Series, name: str, adata: AnnData) -> AnnData:
    """Counts, labels and positions of one file under common names."""
    from anndata import AnnData as _AnnData

    layer, label = (next((k for k in known if k in there), "") for known, there in
                    ((_COUNTS, adata.layers), (_LABELS, adata.obs)))  # fmt: skip
    if not layer or not label or _keys.SPATIAL not in adata.obsm:
        raise KeyError(f"it lacks counts (layers {_COUNTS}), labels (obs {_LABELS}) or obsm['spatial']")
    counts = sparse.csr_matrix(adata.layers[layer], dtype=np.float32)
    out = _AnnData(counts, obs=adata.obs[[label]].set_axis(["annotation"], axis=1), var=adata.var[[]].copy())
    out.var_names_make_unique()
    out.obs_names = [f"{name}_{i}" for i in adata.obs_names]
    time, subject = series.name.findall(name)[0]
    out.obs = out.obs.assign(time=float(time), section=name, **({"subject": subject} if subject else {}))
    out.obs["annotation"] = out.obs["annotation"].astype(str)
    out.obsm[_keys.SPATIAL] = np.asarray(adata.obsm[_keys.SPATIAL], dtype=np.float64)[:, :2]
    _check_cells(out)
    return out


# --- files: fetched once, complete or not at all ----------------------------------------------------------------------


def _fetch(
    files: Mapping[str, str], folder: Path, help_text: str, show_progress: bool | None,
    hashes: Mapping[str, str] | None = None,
) -> None:  # fmt: skip
    """Put files (name: address) into ``folder``, downloading those that are not there; check those with a hash."""
    import pooch

    shown = is_shown(show_progress)
    for name, url in files.items():
        path, known = folder / name, (hashes or {}).get(name)
        if path.exists():
            if known is not None and not pooch.hashes.hash_matches(str(path), known):
                raise ValueError(f"{path} has not the checksum {known}: it is incomplete or another version. Delete it "
                                 "and call again.")  # fmt: skip
            continue
        try:
            # pooch writes to a temporary file and moves it into place when it is complete and its checksum is right
            pooch.retrieve(url, known, fname=name, path=folder, progressbar=shown)
        except (OSError, ValueError) as err:
            kind = ValueError if isinstance(err, ValueError) and not isinstance(err, OSError) else ConnectionError
            raise kind(
                f"Could not download {url} ({type(err).__name__}: {err}). Nothing was kept. {help_text} "
                f"Then save the file as {path} and call again."
            ) from err


def _extract(archive: Path, member: str) -> None:
    """Unpack the folder ``member`` of a tar archive beside it, completely or not at all, where it is not there."""
    target = archive.parent / member
    if target.is_dir():
        return
    try:
        with tarfile.open(archive) as tar, tempfile.TemporaryDirectory(dir=archive.parent) as scratch:
            tar.extractall(scratch, filter="data")
            (Path(scratch) / member).rename(target)
    except (tarfile.TarError, EOFError, OSError) as err:
        raise ValueError(f"{archive} cannot be unpacked ({err}); delete it and call again.") from err


def _check_cells(adata: AnnData) -> None:
    """Check that a table that nothing else vouches for holds counts and positions of different cells."""
    if adata.n_obs == 0 or adata.n_vars == 0:
        raise ValueError(f"there are {adata.n_obs} cells and {adata.n_vars} genes")
    values = adata.X.data if sparse.issparse(adata.X) else np.asarray(adata.X)
    if not np.isfinite(values).all() or (values < 0).any() or (values != np.floor(values)).any():
        raise ValueError("the matrix holds other values than counts")
    if not np.isfinite(adata.obsm[_keys.SPATIAL]).all():
        raise ValueError("there are cells without a position")
    if not adata.obs_names.is_unique or not adata.var_names.is_unique:
        raise ValueError("a cell or a gene is there twice")
