"""Public series in time, measured with Stereo-seq: one h5ad a section, as STOmicsDB serves them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from stxtools import _keys
from stxtools._checks import check_names
from stxtools._docs import documented
from stxtools._settings import settings

from ._download import RemoteFile, check_cells, fetch

if TYPE_CHECKING:
    from anndata import AnnData

_STOMICS_URL = "https://ftp.cngb.org/pub/SciRAID/stomics"
_LABELS = ("annotation", "Annotation")
_COUNTS = ("count", "counts")  # layers, as the two data sets call them


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


@documented
def mosta(
    samples: str | Sequence[str] = "E9.5_E1S1", *,
    known_hash: Mapping[str, str] | None = None, show_progress: bool | None = None,
) -> AnnData:  # fmt: skip
    """Read sections of mouse embryos from E9.5 to E16.5 (Stereo-seq, bins of 50).

    MOSTA, Chen et al. 2022, Cell 185:1777, doi:10.1016/j.cell.2022.04.003. The files are downloaded from STOmicsDB
    (STDS0000058) into ``settings.datasetdir / "mosta"`` at the first call. No checksums are published: the first copy
    is taken unchecked, with a warning; its own checksum is recorded beside it and checked at every later call.

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

    Raises
    ------
    ConnectionError
        If a download fails; nothing is left behind, and the message says how to do it by hand.
    ValueError
        If a section is no name, a file has not its checksum or is not such a section.

    Examples
    --------
    >>> import stxtools as st
    >>> adata = st.datasets.mosta(["E9.5_E1S1", "E10.5_E1S1"])  # doctest: +SKIP
    """
    return _read(_MOSTA, samples, known_hash, show_progress)


@documented
def axolotl_regeneration(
    samples: str | Sequence[str] = "2DPI_1", *,
    known_hash: Mapping[str, str] | None = None, show_progress: bool | None = None,
) -> AnnData:  # fmt: skip
    """Read sections of the axolotl telencephalon 2 to 60 days after an injury (Stereo-seq, single cells).

    ARTISTA, Wei et al. 2022, Science 377:eabp9444, doi:10.1126/science.abp9444. Downloaded from STOmicsDB (STDS0000056)
    into ``settings.datasetdir / "axolotl_regeneration"`` and checked as :func:`mosta` does.

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

    Raises
    ------
    ConnectionError, ValueError
        As :func:`mosta`.

    Examples
    --------
    >>> import stxtools as st
    >>> adata = st.datasets.axolotl_regeneration(["2DPI_1", "5DPI_1"])  # doctest: +SKIP
    """
    return _read(_ARTISTA, samples, known_hash, show_progress)


def _read(
    series: _Series, samples: str | Sequence[str], known_hash: Mapping[str, str] | None, show_progress: bool | None
) -> AnnData:
    import anndata

    names = check_names("samples", samples, "a section")
    wrong = [name for name in names if not series.name.fullmatch(name)]
    if wrong or not names or len(set(names)) < len(names):
        raise ValueError(f"`samples={samples!r}`: name each section once, as in {series.example!r}; see {series.page}.")
    folder = settings.datasetdir / series.folder
    files = tuple(
        RemoteFile(series.file.format(n), f"{_STOMICS_URL}/{series.accession}/stomics/{series.file.format(n)}")
        for n in names
    )
    help_text = f"Check the connection and the name of the section at {series.page}, or download the file there."
    fetch(files, folder, help_text=help_text, known_hash=known_hash, show_progress=show_progress)
    parts = []
    for name, file in zip(names, files, strict=True):
        try:
            parts.append(_section(series, name, anndata.read_h5ad(folder / file.name)))
        except (OSError, KeyError, ValueError, TypeError) as err:
            raise ValueError(
                f"The file {file.name} in {folder} is not a section of this series ({err}). Delete it and "
                f"{file.name}.sha256 beside it. {help_text}"
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
    check_cells(counts, out.obsm[_keys.SPATIAL])
    return out
