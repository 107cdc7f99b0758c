"""Reading a section, or several that are joined, and checking them before anything that takes long."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anndata
import pandas as pd
from anndata import AnnData

from stxtools import _keys, datasets, io
from stxtools._data.chunks import look_at
from stxtools._data.covariates import covariate_columns, covariate_names
from stxtools._slots import check_paths_free
from stxtools._slots_table import SLOTS
from stxtools._validate import categories, listing
from stxtools.io._read import section_name
from stxtools.tl._biomarkers._design import chosen_groups

from .options import UsageError

LIBRARY_KEY = "library"
Read = tuple["AnnData", str | bool | None, list[str]]
_LEAST = 3  # observations of a class, on average


def read_sections(
    sources: Sequence[str], library_key: str | bool | None, use_rep: str | None, layer: str | None = None
) -> Read:
    """Read the files, or generate tissue; return the AnnData, the column that names its sections, and notes."""
    if not sources:
        # one lesion in each section: patients are replicates, and disease and health lie side by side
        tissue = datasets.synthetic_tissue(n_patients=3, sections_per_patient=2, disease="lesion")
        return tissue, library_key or "section", []
    paths = [Path(source).expanduser() for source in sources]
    absent = [str(path) for path in paths if not path.exists()]
    if absent:  # said before the first of many is read
        raise FileNotFoundError(f"There is no file {absent[0]!r}.")
    parts = [io.read(path) for path in paths]
    if len(parts) == 1:
        return parts[0], library_key, []
    names = [section_name(path) for path in paths]
    if layer is None:
        _check_scales(parts, names)
    return _joined(parts, names, str(library_key or LIBRARY_KEY), use_rep)


def _joined(parts: list[AnnData], stems: list[str], library_key: str, use_rep: str | None) -> Read:
    """Put sections below each other: shared genes, all columns of ``obs``, a column that names the section."""
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
    for part in parts:  # anndata joins none in `uns`, such as earlier regions
        part.uns = {key: value for key, value in part.uns.items() if not isinstance(value, AnnData)}
    out = anndata.concat(parts, join="inner", merge="same", uns_merge="same", index_unique="-", keys=stems)
    # columns that only some of the sections have are missing elsewhere
    rest = pd.concat([part.obs[[c for c in part.obs if c not in out.obs]] for part in parts])
    for column, values in rest.set_axis(out.obs_names).items():
        if pd.api.types.is_numeric_dtype(values.dropna().infer_objects().dtype):  # truth, too
            out.obs[column] = values.astype("boolean" if values.dtype == object else float)
        else:
            out.obs[column] = pd.Categorical(values.dropna().astype(str).reindex(values.index))
    spatial = {name: entry for part in parts for name, entry in dict(part.uns.get(_keys.SPATIAL, {})).items()}
    if spatial:
        out.uns[_keys.SPATIAL] = spatial
    return out, library_key, notes


def _check_scales(parts: list[AnnData], stems: list[str]) -> None:
    """Check that all hold counts, or all logarithms: side by side the one would be taken for the other."""
    counted = all(_keys.COUNTS in part.layers for part in parts)
    stored = [part.layers[_keys.COUNTS] if counted else part.X for part in parts]
    named = zip(stems, stored, strict=True)
    scales = {stem: look_at(x, in_memory=True)[1].scale for stem, x in named if x is not None}
    if len(set(scales.values())) > 1:
        found = ", ".join(f"{stem!r}: {scale}" for stem, scale in scales.items())
        raise ValueError(
            f"The files hold expression of different scales in `X` ({found}). Put counts into `layers['counts']` of "
            "each, or name a layer that all have with --layer."
        )


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


def check_against(adata: AnnData, options: Any, groupby: str) -> None:
    """Check what the later steps take, before the first does anything: that one checks its own arguments."""
    _check_slots(adata)
    if (options.accelerator, options.devices) not in (("auto", 1), ("cpu", 1)):
        from stxtools.nn._training import check_devices

        check_devices(options.accelerator, options.devices)
    if options.labels_key is not None:
        _groups(adata, options.labels_key, "labels_key")
    if groupby != _keys.SEGMENT:
        chosen_groups("all", options.reference, _groups(adata, groupby, "groupby"), groupby)
    elif options.reference != "rest" and options.labels_key is None and options.model is None:
        raise UsageError(f"--reference={options.reference}: the segments have no names yet; give --groupby, too.")
    covariate_columns(adata, covariate_names(options.covariates), groupby)


def _groups(adata: AnnData, key: str, param: str) -> list[str]:
    """Return the classes of a column, checked to be classes: barcodes and counts are not."""
    codes, names = categories(adata, key, param, min_classes=2)
    known = int((codes >= 0).sum())
    if known < _LEAST * len(names):
        raise ValueError(
            f"`{param}={key!r}`: the column has {len(names):,} different values in {known:,} observations "
            f"({listing(names, 3)}); a column of classes is wanted."
        )
    return names


def _check_slots(adata: AnnData) -> None:
    """Check that no step would replace what something else wrote."""
    for call in ("tl.segment", "tl.region_graph", "tl.embed", "tl.biomarkers"):
        paths = [(row.where, row.key.split("/")[0]) for row in SLOTS if row.call == call and "{" not in row.key]
        try:
            check_paths_free(adata, call, [path for path in paths if hasattr(adata, path[0])])
        except ValueError as err:
            found = str(err).split(": it would be lost")[0]
            raise UsageError(f"{found}: it would be lost. Rename or delete it, and save the file again.") from err
