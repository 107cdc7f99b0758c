"""Reading and joining of sections, and checks before the first step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import anndata
import pandas as pd
from anndata import AnnData

from stxtools import _keys, datasets, io
from stxtools._checks import listing
from stxtools._data.chunks import MatrixSummary, to_csr
from stxtools._data.covariates import covariate_columns, covariate_names
from stxtools._docs import SLOTS
from stxtools._slots import check_paths_free
from stxtools._validate import categories
from stxtools.io._read import section_name
from stxtools.tl._biomarkers._design import chosen_groups

from .options import UsageError

_MIN_PER_CLASS = 3  # observations, on average


class Joined(NamedTuple):
    """Sections in one AnnData, the column that names them, and notes for the summary."""

    adata: AnnData
    library_key: str | bool | None
    notes: list[str]


def read_sections(
    sources: Sequence[str], library_key: str | bool | None, use_rep: str | None, layer: str | None = None
) -> Joined:
    """Read the files and join them, or generate tissue."""
    if not sources:
        # one lesion in each section: disease and health lie side by side
        tissue = datasets.synthetic_tissue(n_patients=3, sections_per_patient=2, disease="lesion")
        return Joined(tissue, library_key or "section", [])
    paths = [Path(source).expanduser() for source in sources]
    for path in paths:  # all, before the first is read
        if not path.exists():
            raise FileNotFoundError(f"There is no file {str(path)!r}.")
    parts = [io.read(path) for path in paths]
    if len(parts) == 1:
        return Joined(parts[0], library_key, [])
    names = [section_name(path) for path in paths]
    if layer is None:
        _check_scales(parts, names)
    return _join(parts, names, str(library_key or "library"), use_rep)


def _check_scales(parts: list[AnnData], names: list[str]) -> None:
    """Check that all files hold counts, or all logarithms: joined, the one would be taken for the other."""
    has_counts = all(_keys.COUNTS in part.layers for part in parts)
    stored = [part.layers[_keys.COUNTS] if has_counts else part.X for part in parts]
    named = zip(names, stored, strict=True)
    scales = {name: MatrixSummary.of(to_csr(x)).scale for name, x in named if x is not None}
    if len(set(scales.values())) > 1:
        found = ", ".join(f"{name!r}: {scale}" for name, scale in scales.items())
        raise ValueError(
            f"The files hold expression of different scales in `X` ({found}). Put counts into `layers['counts']` of "
            "each, or name a layer that all have with --layer."
        )


def _join(parts: list[AnnData], names: list[str], library_key: str, use_rep: str | None) -> Joined:
    """Concatenate sections: shared genes, all columns of ``obs``, and a column that names the section."""
    if len(set(names)) < len(names):
        raise ValueError(f"Two input files have the same name ({listing(names)}); it names the section. Rename one.")
    _name_sections(dict(zip(names, parts, strict=True)), library_key)
    shared = set.intersection(*(set(part.var_names) for part in parts))
    if not shared:
        raise ValueError(
            f"The files {listing(names)} share no gene; do all use the same names (symbols or Ensembl identifiers)?"
        )
    notes = [f"{len(parts)} files joined on the {len(shared):,} genes that all of them have"]
    if use_rep != _keys.X_PCA and any(_keys.X_PCA in part.obsm for part in parts):
        notes.append(f"obsm[{_keys.X_PCA!r}] of the files is dropped: components of one file mean nothing in another")
        for part in parts:
            part.obsm.pop(_keys.X_PCA, None)
    for part in parts:  # anndata joins none in `uns`, such as earlier regions
        part.uns = {key: value for key, value in part.uns.items() if not isinstance(value, AnnData)}
    out = anndata.concat(parts, join="inner", merge="same", uns_merge="same", index_unique="-", keys=names)
    _add_partial_columns(out, parts)
    spatial = {name: entry for part in parts for name, entry in dict(part.uns.get(_keys.SPATIAL, {})).items()}
    if spatial:
        out.uns[_keys.SPATIAL] = spatial
    return Joined(out, library_key, notes)


def _add_partial_columns(out: AnnData, parts: list[AnnData]) -> None:
    """Add the columns of ``obs`` that only some of the sections have; they are missing elsewhere."""
    rest = pd.concat([part.obs[[c for c in part.obs if c not in out.obs]] for part in parts])
    for column, values in rest.set_axis(out.obs_names).items():
        known = values.dropna().infer_objects().dtype
        if pd.api.types.is_numeric_dtype(known):
            out.obs[column] = values.astype("boolean" if pd.api.types.is_bool_dtype(known) else float)
        else:
            out.obs[column] = pd.Categorical(values.dropna().astype(str).reindex(values.index))


def _name_sections(parts: dict[str, AnnData], library_key: str) -> None:
    """Name the section of each file, unless the column ``library_key`` does; check that names differ."""
    for name, part in parts.items():
        if not part.var_names.is_unique:
            raise ValueError(f"The genes of {name!r} are not unique; call `var_names_make_unique()` and save it again.")
    without = [name for name, part in parts.items() if library_key not in part.obs]
    if 0 < len(without) < len(parts):
        raise ValueError(f"The column {library_key!r} (--library-key) is missing from {listing(without)}.")
    for name in without:
        _name_section(parts[name], name, library_key)
    sections = [section for part in parts.values() for section in part.obs[library_key].astype(str).unique()]
    if repeated := sorted({section for section in sections if sections.count(section) > 1}):
        raise ValueError(
            f"Sections of several files have the same name in {library_key!r}: {listing(repeated)}. Rename them, or "
            "name a column that no file has: it will hold the names of the files."
        )


def _name_section(part: AnnData, name: str, library_key: str) -> None:
    """Name the section of all observations and of the images."""
    part.obs[library_key] = pd.Categorical([name] * part.n_obs)
    spatial: Any = part.uns.get(_keys.SPATIAL)
    if hasattr(spatial, "values"):
        if len(spatial) > 1:
            raise ValueError(
                f"{name!r} holds {len(spatial)} sections ({listing(spatial)}); name the obs column of the section with "
                "--library-key."
            )
        part.uns[_keys.SPATIAL] = dict(zip([name], spatial.values(), strict=False))


def check_inputs(adata: AnnData, options: Any, groupby: str) -> None:
    """Check what the later steps take; the first step checks its own arguments."""
    for call in ("tl.segment", "tl.region_graph", "tl.embed", "tl.biomarkers"):  # whose slots must be free
        paths = [(row.where, row.key.split("/")[0]) for row in SLOTS if row.call == call and "{" not in row.key]
        try:
            check_paths_free(adata, call, [path for path in paths if hasattr(adata, path[0])])
        except ValueError as err:
            found = str(err).split(": it would be lost")[0]
            raise UsageError(f"{found}: it would be lost. Rename or delete it, and save the file again.") from err
    if (options.accelerator, options.devices) not in (("auto", 1), ("cpu", 1)):
        from stxtools.nn._training import make_fabric

        make_fabric(options.accelerator, options.devices)
    if options.labels_key is not None:
        _classes(adata, options.labels_key, "labels_key")
    if groupby != _keys.SEGMENT:
        chosen_groups("all", options.reference, _classes(adata, groupby, "groupby"), groupby)
    elif options.reference != "rest" and options.labels_key is None and options.model is None:
        raise UsageError(f"--reference={options.reference}: the segments have no names yet; give --groupby, too.")
    if options.subject_key is not None:
        categories(adata, options.subject_key, "subject_key")
    covariate_columns(adata, covariate_names(options.covariates), groupby)


def _classes(adata: AnnData, key: str, param: str) -> list[str]:
    """Return the classes of a column, unless it holds barcodes or counts."""
    codes, names = categories(adata, key, param, min_classes=2)
    n_known = int((codes >= 0).sum())
    if n_known < _MIN_PER_CLASS * len(names):
        raise ValueError(
            f"`{param}={key!r}`: the column has {len(names):,} different values in {n_known:,} observations "
            f"({listing(names, 3)}); it must hold classes."
        )
    return names
