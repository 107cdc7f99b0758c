"""Annotated public sections, read as h5ad from ``settings.datasetdir``: the loaders of ``_sections.json``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from textwrap import fill, indent
from typing import Any, TypeVar

from anndata import AnnData

from stxtools._checks import check_bool
from stxtools._settings import settings

F = TypeVar("F", bound=Callable[..., "AnnData"])

_LONGEST = 100  # letters of a section's name
_WIDTH = 112  # of a line of a docstring
# of each loader: what the section is, its publication, what the AnnData holds, where the files come from (``source``),
# their names without extension (``pattern``, or ``files`` of some samples), samples, and texts of the parameters
_REGISTRY: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("_sections.json").read_text("utf-8"))

_DOC = """\
Read {about}

{publication}
{parameters}
Returns
-------
{holds}

Raises
------
FileNotFoundError
    If the section is not in ``settings.datasetdir``; the message says where it comes from.

Examples
--------
>>> import stxtools as st
>>> adata = st.datasets.{name}()  # doctest: +SKIP
"""


def _documented(loader: F) -> F:
    """Write a loader's docstring from its row of the table."""
    name, entry = loader.__name__, _REGISTRY[loader.__name__]
    texts = [f"{k}\n{indent(fill(v, _WIDTH), '    ')}\n" for k, v in entry.get("parameters", {}).items()]
    loader.__doc__ = _DOC.format(
        name=name,
        about=entry["about"],
        publication=fill(f"{entry['publication']}.", _WIDTH),
        holds=fill(entry["holds"], _WIDTH),
        parameters="\nParameters\n----------\n" + "".join(texts) if texts else "",
    )
    return loader


def _read(name: str, sample: str = "") -> AnnData:
    """Read one section, or say where it was looked for and where it comes from."""
    import anndata

    entry = _REGISTRY[name]
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


@_documented
def dlpfc(sample: str = "151673") -> AnnData:
    return _read("dlpfc", sample)


@_documented
def her2st(sample: str = "A1") -> AnnData:
    return _read("her2st", sample)


@_documented
def xenium_breast_idc() -> AnnData:
    return _read("xenium_breast_idc")


@_documented
def starmap_mpfc(sample: str = "BZ5") -> AnnData:
    return _read("starmap_mpfc", sample)


@_documented
def osmfish_sscortex(*, drop_duplicates: bool = True) -> AnnData:
    drop = check_bool("drop_duplicates", drop_duplicates)
    adata = _read("osmfish_sscortex")
    return adata[~adata.obs["is_duplicate"].to_numpy(dtype=bool)].copy() if drop else adata


@_documented
def merfish_hypothalamus() -> AnnData:
    return _read("merfish_hypothalamus")


@_documented
def xenium_mouse_brain() -> AnnData:
    return _read("xenium_mouse_brain")


@_documented
def mouse_olfactory_bulb(sample: str = "MOB1") -> AnnData:
    return _read("mouse_olfactory_bulb", sample)
