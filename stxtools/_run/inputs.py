"""Reading a section, or several that are joined."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from stxtools import _keys, io
from stxtools._checks import listing
from stxtools.io._vendors import section_name

if TYPE_CHECKING:
    from anndata import AnnData

LIBRARY_KEY = "library"


Read = tuple["AnnData", str | None, list[str]]


def read_sections(sources: Sequence[str], library_key: str | None, use_rep: str | None) -> Read:
    """Read the files, or generate tissue; return the AnnData, the column that names its sections, and notes.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If a file is neither ``.h5ad`` nor ``.zarr``, or the files do not fit together.
    """
    if not sources:
        from stxtools import datasets

        # one lesion in each section: patients are replicates, and disease and health lie side by side
        tissue = datasets.synthetic_tissue(n_patients=3, sections_per_patient=2, disease="lesion")
        return tissue, library_key or "section", []
    paths = [checked_path(source) for source in sources]
    parts = [io.read(path) for path in paths]
    if len(parts) == 1:
        return parts[0], library_key, []
    return _joined(parts, [section_name(path) for path in paths], library_key or LIBRARY_KEY, use_rep)


def checked_path(source: str) -> Path:
    """Return the path of a file that is there and can be read, or of a folder."""
    path = Path(source).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"There is no file {str(path)!r}.")
    if path.is_file() and path.suffix != ".h5ad":
        raise ValueError(f"{str(path)!r} is neither .h5ad nor .zarr, nor a folder that `st.io.read` knows.")
    return path


def _joined(parts: list[AnnData], stems: list[str], library_key: str, use_rep: str | None) -> Read:
    """Put sections below each other: shared genes, all columns of ``obs``, a column that names the section."""
    import anndata

    if len(set(stems)) < len(stems):
        raise ValueError(f"Two input files have the same name ({listing(stems)}); it names the section. Rename one.")
    for part, stem in zip(parts, stems, strict=True):
        if not part.var_names.is_unique:
            raise ValueError(f"The genes of {stem!r} are not unique; call `var_names_make_unique()` and save it again.")
    named = [library_key in part.obs for part in parts]
    if any(named) and not all(named):
        missing = [s for s, there in zip(stems, named, strict=True) if not there]
        raise ValueError(f"The column {library_key!r} (--library-key) is missing from {listing(missing)}.")
    if not all(named):
        for part, stem in zip(parts, stems, strict=True):
            _name_section(part, stem, library_key)
    names = [set(part.obs[library_key].astype(str)) for part in parts]
    twice = sorted(set.union(*names)) if sum(map(len, names)) > len(set.union(*names)) else []
    if twice:
        raise ValueError(
            f"Sections of several files have the same name in {library_key!r}: {listing(twice)}. Rename them, or name "
            "a column that no file has: it will hold the names of the files."
        )
    shared = set.intersection(*(set(part.var_names) for part in parts))
    if not shared:
        raise ValueError(
            f"The files {listing(stems)} share no gene; do all use the same names (symbols or Ensembl identifiers)?"
        )
    notes = [f"{len(parts)} files joined on the {len(shared):,} genes that all of them have"]
    if use_rep != _keys.X_PCA and any(_keys.X_PCA in part.obsm for part in parts):
        notes.append(f"obsm[{_keys.X_PCA!r}] of the files is dropped: components of one file mean nothing in another")
        for part in parts:
            part.obsm.pop(_keys.X_PCA, None)
    out = anndata.concat(parts, join="inner", merge="same", uns_merge="same", index_unique="-", keys=stems)
    _add_columns(out, parts)
    spatial = {name: entry for part in parts for name, entry in dict(part.uns.get(_keys.SPATIAL, {})).items()}
    if spatial:
        out.uns[_keys.SPATIAL] = spatial
    return out, library_key, notes


def _name_section(part: AnnData, name: str, library_key: str) -> None:
    """Name all observations and the section's images."""
    part.obs[library_key] = pd.Categorical([name] * part.n_obs)
    spatial: Any = part.uns.get(_keys.SPATIAL)
    if hasattr(spatial, "values"):
        entries = list(spatial.values())
        if len(entries) > 1:
            raise ValueError(
                f"{name!r} holds {len(entries)} sections ({listing(spatial)}); name the obs column that tells them "
                "apart with --library-key."
            )
        part.uns[_keys.SPATIAL] = dict.fromkeys([name], *entries) if entries else {}


def _add_columns(out: AnnData, parts: list[AnnData]) -> None:
    """Add the columns of ``obs`` that only some of the sections have, missing elsewhere."""
    for column in dict.fromkeys(c for part in parts for c in part.obs if c not in out.obs):
        pieces = [part.obs[column] if column in part.obs else pd.Series([None] * part.n_obs) for part in parts]
        values = pd.concat([piece.astype(object) for piece in pieces], ignore_index=True)
        there = [part.obs[column] for part in parts if column in part.obs]
        if all(pd.api.types.is_bool_dtype(piece.dtype) for piece in there):
            out.obs[column] = pd.array(values, dtype="boolean")
        elif all(pd.api.types.is_numeric_dtype(piece.dtype) for piece in there):
            out.obs[column] = pd.to_numeric(values).to_numpy(dtype=float)
        else:
            out.obs[column] = pd.Categorical(values.where(values.isna(), values.astype(str)))
