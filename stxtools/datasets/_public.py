"""Public data: annotated sections in ``settings.datasetdir``, and data sets that are downloaded into it."""

from __future__ import annotations

import json
import re
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
from anndata import AnnData
from jinja2 import Template
from scipy import sparse

from stxtools import _keys
from stxtools._checks import check_names, unstorable
from stxtools._docs import PARAMETERS, WIDTH, F
from stxtools._files import readable
from stxtools._progress import is_shown
from stxtools._settings import settings

# ``about``, ``publication``, ``holds``, ``parameters`` and ``example`` fill a loader's docstring. Sections in the
# folder have a ``source``, a file name (``pattern``, or ``files`` of some samples) and known ``samples``. Downloads
# have a ``url``, ``files`` with checksums (series: ``file``, ``layer``, ``label``), and ``help`` where one fails.
REGISTRY: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("_registry.json").read_text("utf-8"))

_DOCSTRING = Template(Path(__file__).with_name("_loader.txt").read_text("utf-8"), trim_blocks=True)


def with_docstring(loader: F) -> F:
    """Write a loader's docstring from its entry in the registry."""
    loader.__doc__ = _DOCSTRING.render(
        REGISTRY[loader.__name__], name=loader.__name__, width=WIDTH, show_progress=PARAMETERS["show_progress"]
    )
    return loader


# --- sections in the folder ---------------------------------------------------------------------------------------


@with_docstring
def dlpfc(sample: str = "151673") -> AnnData:
    return _section("dlpfc", sample)


@with_docstring
def her2st(sample: str = "A1") -> AnnData:
    return _section("her2st", sample)


@with_docstring
def xenium_breast_idc() -> AnnData:
    return _section("xenium_breast_idc")


@with_docstring
def starmap_mpfc(sample: str = "BZ5") -> AnnData:
    return _section("starmap_mpfc", sample)


@with_docstring
def osmfish_sscortex() -> AnnData:
    adata = _section("osmfish_sscortex")
    return adata[~adata.obs["is_duplicate"].to_numpy(dtype=bool)].copy()


@with_docstring
def merfish_hypothalamus() -> AnnData:
    return _section("merfish_hypothalamus")


@with_docstring
def xenium_mouse_brain() -> AnnData:
    return _section("xenium_mouse_brain")


@with_docstring
def mouse_olfactory_bulb(sample: str = "MOB1") -> AnnData:
    return _section("mouse_olfactory_bulb", sample)


def _section(name: str, sample: str = "") -> AnnData:
    """Read one section from the folder."""
    entry = REGISTRY[name]
    if not isinstance(sample, str):
        raise TypeError(f"`sample` must be a string such as {entry['samples'][0]!r}, not {sample!r}.")
    if sample and (reason := unstorable(sample)):
        raise ValueError(f"`sample={sample!r}` must be the name of a section, not a path; it {reason}.")
    file = entry.get("files", {}).get(sample, entry["pattern"].format(sample=sample))
    path = settings.datasetdir / f"{file}.h5ad"
    if not path.is_file():
        known = f" Known sections: {', '.join(entry['samples'])}." if sample else ""
        raise FileNotFoundError(
            f"{path.name} is not in {path.parent}.{known} Set `stxtools.settings.datasetdir` or the environment "
            f"variable STXTOOLS_DATASETDIR to the folder that holds it, or make it from the public data: "
            f"{entry['source']} ({entry['publication']})."
        )
    with readable(path, f"cannot be read as a section; make it again from {entry['source']}"):
        return anndata.read_h5ad(path)


# --- downloads -------------------------------------------------------------------------------------------------------


@with_docstring
def hallmark_gene_sets(*, show_progress: bool | None = None) -> pd.DataFrame:
    [path] = _fetch("hallmark_gene_sets", settings.datasetdir / "gene_sets", show_progress)
    sets = [line.split("\t") for line in path.read_text().splitlines()]
    rows = [(name.removeprefix("HALLMARK_"), gene) for name, _, *genes in sets for gene in genes]
    return pd.DataFrame(rows, columns=["source", "target"])


@with_docstring
def visium_mouse_brain(*, show_progress: bool | None = None) -> AnnData:
    import squidpy as sq

    folder = settings.datasetdir / "visium_mouse_brain"
    counts, archive = _fetch("visium_mouse_brain", folder, show_progress)
    _extract(archive, "spatial")
    adata = sq.read.visium(folder, counts_file=counts.name, library_id="V1_Adult_Mouse_Brain")
    adata.var_names_make_unique()
    adata.obsm[_keys.SPATIAL] = np.asarray(adata.obsm[_keys.SPATIAL], dtype=np.float64)
    return adata


@with_docstring
def merfish_breast_cancer(*, show_progress: bool | None = None) -> AnnData:
    import squidpy as sq

    folder, library = settings.datasetdir / "merfish_breast_cancer", "HumanBreastCancerPatient1"
    counts, meta = _fetch("merfish_breast_cancer", folder, show_progress)
    problem = f"has files {counts.name} and {meta.name} other than those of {library}; delete them."
    with readable(folder, f"{problem} {REGISTRY['merfish_breast_cancer']['help']}"):
        adata = sq.read.vizgen(folder, counts_file=counts.name, meta_file=meta.name, library_id=library)
        adata.obsm[_keys.SPATIAL] = np.asarray(adata.obsm[_keys.SPATIAL], dtype=np.float64)
        _check_cells(adata)
    return adata


@with_docstring
def mosta(samples: str | Sequence[str] = "E9.5_E1S1", *, show_progress: bool | None = None) -> AnnData:
    return _series("mosta", samples, show_progress)


@with_docstring
def axolotl_regeneration(samples: str | Sequence[str] = "2DPI_1", *, show_progress: bool | None = None) -> AnnData:
    return _series("axolotl_regeneration", samples, show_progress)


def _series(series: str, samples: str | Sequence[str], show_progress: bool | None) -> AnnData:
    """Read sections of a series and join them; the ``pattern`` of their names has groups for time and animal."""
    source, names = REGISTRY[series], check_names("samples", samples, "a section")
    matches = [match for name in names if (match := re.fullmatch(source["pattern"], name))]
    if not names or len({match[0] for match in matches}) < len(names):
        raise ValueError(
            f"`samples={samples!r}`: name each section once, as in {source['samples'][0]!r}; see {source['page']}."
        )
    files: dict[str, str | None] = {source["file"].format(name): None for name in names}
    parts = []
    for match, path in zip(matches, _fetch(series, settings.datasetdir / series, show_progress, files), strict=True):
        with readable(path, f"is not a section of this series; delete it. {source['help']}"):
            parts.append(_stereo_seq(path, source, *match.group(0, 1, 2)))
    out = anndata.concat(parts, join="inner", merge="same")
    out.obs = out.obs.astype(dict.fromkeys(out.obs.columns.drop("time"), "category"))
    return out


def _stereo_seq(path: Path, source: dict[str, Any], name: str, time: str, subject: str) -> AnnData:
    """Read counts, labels and positions of a file, under common names."""
    adata = anndata.read_h5ad(path)
    obs = pd.DataFrame({"annotation": adata.obs[source["label"]].astype(str), "time": float(time), "section": name})
    obs = obs.assign(subject=subject) if subject else obs
    obs.index = [f"{name}_{i}" for i in obs.index]
    positions = np.asarray(adata.obsm[_keys.SPATIAL], dtype=np.float64)[:, :2]
    counts = sparse.csr_matrix(adata.layers[source["layer"]], dtype=np.float32)
    out = AnnData(counts, obs=obs, var=adata.var[[]].copy(), obsm={_keys.SPATIAL: positions})
    out.var_names_make_unique()
    _check_cells(out)
    return out


def _fetch(
    name: str, folder: Path, show_progress: bool | None, files: dict[str, str | None] | None = None
) -> list[Path]:
    """Return the files of a source in ``folder``; those that are absent or have another checksum are downloaded."""
    import pooch
    from requests import RequestException

    source, paths = REGISTRY[name], []
    for file, known_hash in (files or source["files"]).items():
        url, progressbar = f"{source['url']}/{file}", is_shown(show_progress)
        try:
            # pooch writes to a temporary file and moves it into place when it is complete and its checksum is right
            paths.append(Path(pooch.retrieve(url, known_hash, fname=file, path=folder, progressbar=progressbar)))
        except (RequestException, ValueError) as err:  # a full disk, too, is an OSError
            kind = ConnectionError if isinstance(err, OSError) else ValueError
            raise kind(
                f"Could not download {url} ({type(err).__name__}: {err}). Nothing was kept. {source['help']} "
                f"Then save the file as {folder / file} and call again."
            ) from err
    return paths


def _extract(archive: Path, member: str) -> None:
    """Unpack the folder ``member`` of a tar archive beside it, completely or not at all."""
    target = archive.parent / member
    if target.is_dir():
        return
    with (
        readable(archive, "cannot be unpacked; delete it and call again"),
        tarfile.open(archive) as tar,
        tempfile.TemporaryDirectory(dir=archive.parent) as scratch,
    ):
        tar.extractall(scratch, filter="data")
        (Path(scratch) / member).rename(target)


def _check_cells(adata: AnnData) -> None:
    """Check a table without a known checksum: counts and positions of different cells."""
    values = adata.X.data if sparse.issparse(adata.X) else np.asarray(adata.X)
    if 0 in adata.shape:
        raise ValueError(f"it has {adata.n_obs} cells and {adata.n_vars} genes")
    if not np.isfinite(values).all() or (values < 0).any() or (values != np.floor(values)).any():
        raise ValueError("the matrix holds values other than counts")
    if not np.isfinite(adata.obsm[_keys.SPATIAL]).all():
        raise ValueError("some cells have no position")
    if not adata.obs_names.is_unique or not adata.var_names.is_unique:
        raise ValueError("names of cells or genes are not unique")
