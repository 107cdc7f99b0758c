"""Reading a section, or several that are joined, and checking them before anything that takes long."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from stxtools import _keys, io
from stxtools._ownership import check_free
from stxtools._settings import settings
from stxtools._validate import (
    Labels,
    categories,
    check_adata,
    check_in,
    check_int,
    check_seed,
    check_writable,
    label_classes,
    listing,
)
from stxtools.io._read import section_name

from .options import Options, UsageError

if TYPE_CHECKING:
    from anndata import AnnData

LIBRARY_KEY = "library"
Read = tuple["AnnData", str | None, list[str]]
_LEAST = 3  # observations of a class, on average


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


def check_numbers(options: Options) -> None:
    """Check what can be checked without a file."""
    check_seed(options.seed)
    if options.n_segments is not None:
        check_int("n_segments", options.n_segments, minimum=1)
    if options.max_memory is not None:
        try:
            settings.max_memory = options.max_memory
        except TypeError as err:
            raise UsageError(f"--max-memory is a positive number of GB, not {options.max_memory!r}.") from err
    for name in ("model", "pretrained"):
        path = getattr(options, name)
        if path is not None and not Path(path).expanduser().is_file():
            raise UsageError(f"There is no model file {path!r} (--{name}).")
    if options.save_model is not None and Path(options.save_model).parent.resolve() != Path(options.out).resolve():
        check_writable(options.save_model)  # the folder of the results will be made
    if (options.accelerator, options.devices) not in (("auto", 1), ("cpu", 1)):
        _check_devices(options)


def _check_devices(options: Options) -> None:
    from stxtools.nn._training import check_devices

    check_devices(options.accelerator, options.devices)


def check_against(adata: AnnData, options: Options, groupby: str, library_key: str | bool | None) -> None:
    """Check names of columns, keys and groups as the calls that come later do."""
    from stxtools._data.covariates import covariate_columns, covariate_names
    from stxtools._data.sections import Geometry
    from stxtools.tl._biomarkers._design import chosen_groups
    from stxtools.tl._segment import MIN_OBS, check_mode

    check_adata(adata, min_obs=MIN_OBS)
    _check_slots(adata)
    inputs = {name: getattr(options, name) for name in ("model", "pretrained", "use_rep")}
    labels = None
    if options.labels_key is not None:
        labels = Labels(*label_classes(adata, options.labels_key, "labels_key"))
        _groups(adata, options.labels_key, "labels_key")
    check_mode(
        adata.n_obs, _keys.SEGMENT, options.n_segments, options.labels_key, labels,
        {**inputs, "save_model": None, "params": None},
    )  # fmt: skip
    sections = Geometry(adata, options.spatial_key, library_key, raster=False).libs
    if options.layer is not None:
        check_in(adata, "layers", options.layer, "layer")
    if options.use_rep not in (None, "X"):
        check_in(adata, "obsm", str(options.use_rep), "use_rep")
    if options.image_key is not None:
        _check_images(adata, options.image_key, sections.names)
    if groupby == _keys.SEGMENT:
        if options.reference != "rest" and options.labels_key is None and options.model is None:
            raise UsageError(f"--reference={options.reference}: the segments have no names yet; give --groupby, too.")
    else:
        names = _groups(adata, groupby, "groupby")
        chosen_groups("all", options.reference, names, groupby)
    covariate_columns(adata, covariate_names(list(options.covariates)), groupby)


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
    segment = _keys.SEGMENT
    slots: dict[str, dict[str, list[str]]] = {
        "tl.segment": {
            "obs": [segment, _keys.mask_id(segment), _keys.confidence(segment)],
            "obsm": [_keys.proba(segment), _keys.X_UNET], "uns": [segment],
        },
        "tl.region_graph": {"obs": [_keys.REGION_ID], "uns": [_keys.REGIONS]},
        "tl.embed": {"obs": [_keys.ATTENTION], "obsm": [_keys.X_GNN], "uns": [_keys.EMBED]},
        "tl.biomarkers": {"var": [_keys.BIOMARKER_SCORE], "uns": [_keys.BIOMARKERS, _keys.twin(_keys.BIOMARKERS)]},
    }  # fmt: skip
    for call, keys in slots.items():
        try:
            check_free(adata, call, **keys)
        except ValueError as err:
            found = str(err).split(": it would be lost")[0]
            raise UsageError(f"{found}: it would be lost. Rename or delete it, and save the file again.") from err


def _check_images(adata: AnnData, image_key: str, sections: list[str]) -> None:
    spatial: Any = adata.uns.get(_keys.SPATIAL, {})
    for name in sections:
        there = spatial.get(name, {}).get(_keys.IMAGES, {})
        if image_key not in there:
            raise KeyError(f"`image_key={image_key!r}`: section {name!r} has the images {listing(there)}.")
