"""Public data: annotated sections from ``settings.datasetdir``, and what is downloaded into it."""

from __future__ import annotations

import json
import re
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import fill, indent
from typing import Any, TypeVar

import anndata
import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from stxtools import _keys
from stxtools._checks import check_names
from stxtools._docs import PARAMETERS, WIDTH
from stxtools._progress import is_shown
from stxtools._settings import settings

F = TypeVar("F", bound=Callable[..., Any])
_LONGEST = 100  # letters of a section's name
_LABELS = ("annotation", "Annotation")
_COUNTS = ("count", "counts")  # layers, as the two data sets call them

# of each loader: what it reads, its publication, what it returns, texts of the parameters, and sections or ``samples``;
# of sections their ``source`` and names without extension (``pattern``, or ``files`` of some samples); of downloads
# their ``url``, ``files`` with checksums (or the ``file`` of a sample), and ``help`` where a download fails
REGISTRY: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("_registry.json").read_text("utf-8"))

_DOC = """\
Read {about}

{publication}
{parameters}
Returns
-------
{holds}

Raises
------
{raises}

Examples
--------
>>> import stxtools as st
{example}
"""
_ABSENT = """\
FileNotFoundError
    If the section is not in ``settings.datasetdir``; the message says where it comes from."""
_FAILED = """\
ConnectionError
    A download fails; nothing is left behind, and the message says how to do it by hand.
ValueError
    A file is not what it should be."""


def described(loader: F) -> F:
    """Write a loader's docstring from its row of the table."""
    name, entry = loader.__name__, REGISTRY[loader.__name__]
    shown = {"show_progress": PARAMETERS["show_progress"]} if "url" in entry else {}
    parameters = entry.get("parameters", {}) | shown
    texts = [f"{k}\n{indent(fill(v, WIDTH - 4), '    ')}\n" for k, v in parameters.items()]
    calls = entry.get("example", [f"adata = st.datasets.{name}()"])
    loader.__doc__ = _DOC.format(
        about=entry["about"],
        publication=fill(f"{entry['publication']}.", WIDTH),
        parameters="\nParameters\n----------\n" + "".join(texts) if texts else "",
        holds=fill(entry["holds"], WIDTH),
        raises=_FAILED if "url" in entry else _ABSENT,
        example="\n".join(f">>> {call}  # doctest: +SKIP" for call in calls),
    )
    return loader


# --- sections that lie in the folder ---------------------------------------------------------------------------------


def _section(name: str, sample: str = "") -> AnnData:
    """Read one section, or say where it was looked for and where it comes from."""
    entry = REGISTRY[name]
    if not isinstance(sample, str):
        raise TypeError(f"`sample` must be a string such as {entry['samples'][0]!r}, not {sample!r}.")
    if any(c in sample for c in "/\\\0") or len(sample) > _LONGEST:
        raise ValueError(f"`sample={sample!r}` is the name of a section, not a path.")
    file = entry.get("files", {}).get(sample, entry["pattern"].format(sample=sample))
    path = settings.datasetdir / f"{file}.h5ad"
    if not path.is_file():
        known = f" Sections known: {', '.join(entry['samples'])}." if sample else ""
        raise FileNotFoundError(
            f"{path.name} is not in {path.parent}.{known} Set `stxtools.settings.datasetdir` or the environment "
            f"variable STXTOOLS_DATASETDIR to the folder that holds it, or make it from the public data: "
            f"{entry['source']} ({entry['publication']})."
        )
    try:
        return anndata.read_h5ad(path)
    except (OSError, KeyError, ValueError, TypeError) as err:
        raise OSError(
            f"The file {str(path)!r} cannot be read as a section ({type(err).__name__}: {err}). It is incomplete or "
            f"another one: make it again from {entry['source']}."
        ) from err


@described
def dlpfc(sample: str = "151673") -> AnnData:
    return _section("dlpfc", sample)


@described
def her2st(sample: str = "A1") -> AnnData:
    return _section("her2st", sample)


@described
def xenium_breast_idc() -> AnnData:
    return _section("xenium_breast_idc")


@described
def starmap_mpfc(sample: str = "BZ5") -> AnnData:
    return _section("starmap_mpfc", sample)


@described
def osmfish_sscortex() -> AnnData:
    adata = _section("osmfish_sscortex")
    return adata[~adata.obs["is_duplicate"].to_numpy(dtype=bool)].copy()


@described
def merfish_hypothalamus() -> AnnData:
    return _section("merfish_hypothalamus")


@described
def xenium_mouse_brain() -> AnnData:
    return _section("xenium_mouse_brain")


@described
def mouse_olfactory_bulb(sample: str = "MOB1") -> AnnData:
    return _section("mouse_olfactory_bulb", sample)


# --- what is downloaded ----------------------------------------------------------------------------------------------


@described
def hallmark_gene_sets(*, show_progress: bool | None = None) -> pd.DataFrame:
    [path] = _fetch("hallmark_gene_sets", settings.datasetdir / "gene_sets", show_progress)
    sets = [line.split("\t") for line in path.read_text().splitlines()]
    rows = [(name.removeprefix("HALLMARK_"), gene) for name, _, *genes in sets for gene in genes]
    return pd.DataFrame(rows, columns=["source", "target"])


@described
def visium_mouse_brain(*, show_progress: bool | None = None) -> AnnData:
    import squidpy as sq

    folder = settings.datasetdir / "visium_mouse_brain"
    counts, archive = _fetch("visium_mouse_brain", folder, show_progress)
    _extract(archive, "spatial")
    adata = sq.read.visium(folder, counts_file=counts.name, library_id="V1_Adult_Mouse_Brain")
    adata.var_names_make_unique()
    adata.obsm[_keys.SPATIAL] = np.asarray(adata.obsm[_keys.SPATIAL], dtype=np.float64)
    return adata


@described
def merfish_breast_cancer(*, show_progress: bool | None = None) -> AnnData:
    import squidpy as sq

    folder, library = settings.datasetdir / "merfish_breast_cancer", "HumanBreastCancerPatient1"
    counts, meta = _fetch("merfish_breast_cancer", folder, show_progress)
    try:
        adata = sq.read.vizgen(folder, counts_file=counts.name, meta_file=meta.name, library_id=library)
        adata.obsm[_keys.SPATIAL] = np.asarray(adata.obsm[_keys.SPATIAL], dtype=np.float64)
        _check_cells(adata)
    except (KeyError, ValueError, TypeError, OSError) as err:
        raise ValueError(
            f"The files {counts.name} and {meta.name} in {folder} are not the tables of {library} ({err}). "
            f"Delete them. {REGISTRY['merfish_breast_cancer']['help']}"
        ) from err
    return adata


@described
def mosta(samples: str | Sequence[str] = "E9.5_E1S1", *, show_progress: bool | None = None) -> AnnData:
    return _series("mosta", samples, show_progress)


@described
def axolotl_regeneration(samples: str | Sequence[str] = "2DPI_1", *, show_progress: bool | None = None) -> AnnData:
    return _series("axolotl_regeneration", samples, show_progress)


def _series(series: str, samples: str | Sequence[str], show_progress: bool | None) -> AnnData:
    """Read sections of a series, whose names have a ``pattern`` with groups for time and animal."""
    source, names = REGISTRY[series], check_names("samples", samples, "a section")
    wrong = [name for name in names if not re.fullmatch(source["pattern"], name)]
    if wrong or not names or len(set(names)) < len(names):
        raise ValueError(
            f"`samples={samples!r}`: name each section once, as in {source['samples'][0]!r}; see {source['page']}."
        )
    files = [source["file"].format(name) for name in names]
    parts = []
    for name, path in zip(names, _fetch(series, settings.datasetdir / series, show_progress, files), strict=True):
        try:
            time, subject = re.findall(source["pattern"], name)[0]
            parts.append(_common(name, time, subject, anndata.read_h5ad(path)))
        except (OSError, KeyError, ValueError, TypeError) as err:
            raise ValueError(
                f"The file {path.name} in {path.parent} is not a section of this series ({err}). Delete it. "
                f"{source['help']}"
            ) from err
    out = parts[0] if len(parts) == 1 else anndata.concat(parts, join="inner", merge="same")
    for column in ("annotation", "section", "subject"):  # what is joined has lost its categories
        if column in out.obs:
            out.obs[column] = out.obs[column].astype("category")
    return out


def _common(name: str, time: str, subject: str, adata: AnnData) -> AnnData:
    """Counts, labels and positions of one file under common names."""
    layer, label = (next((k for k in known if k in there), "") for known, there in
                    ((_COUNTS, adata.layers), (_LABELS, adata.obs)))  # fmt: skip
    if not layer or not label or _keys.SPATIAL not in adata.obsm:
        raise KeyError(f"it lacks counts (layers {_COUNTS}), labels (obs {_LABELS}) or obsm['spatial']")
    counts = sparse.csr_matrix(adata.layers[layer], dtype=np.float32)
    out = AnnData(counts, obs=adata.obs[[label]].set_axis(["annotation"], axis=1), var=adata.var[[]].copy())
    out.var_names_make_unique()
    out.obs_names = [f"{name}_{i}" for i in adata.obs_names]
    out.obs = out.obs.assign(time=float(time), section=name, **({"subject": subject} if subject else {}))
    out.obs["annotation"] = out.obs["annotation"].astype(str)
    out.obsm[_keys.SPATIAL] = np.asarray(adata.obsm[_keys.SPATIAL], dtype=np.float64)[:, :2]
    _check_cells(out)
    return out


# --- files: fetched once, complete or not at all ----------------------------------------------------------------------


def _fetch(name: str, folder: Path, show_progress: bool | None, files: Sequence[str] | None = None) -> list[Path]:
    """Return the files of a source in ``folder``, downloading those that are not there; check those with a hash."""
    import pooch

    source, shown, paths = REGISTRY[name], is_shown(show_progress), []
    for file, known in (source["files"] if files is None else dict.fromkeys(files)).items():
        path, url = folder / file, f"{source['url']}/{file}"
        paths.append(path)
        if path.exists():
            if known is not None and not pooch.hashes.hash_matches(str(path), known):
                raise ValueError(f"{path} has not the checksum {known}: it is incomplete or another version. Delete it "
                                 "and call again.")  # fmt: skip
            continue
        try:
            # pooch writes to a temporary file and moves it into place when it is complete and its checksum is right
            pooch.retrieve(url, known, fname=file, path=folder, progressbar=shown)
        except (OSError, ValueError) as err:
            kind = ValueError if isinstance(err, ValueError) and not isinstance(err, OSError) else ConnectionError
            raise kind(
                f"Could not download {url} ({type(err).__name__}: {err}). Nothing was kept. {source['help']} "
                f"Then save the file as {path} and call again."
            ) from err
    return paths


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
