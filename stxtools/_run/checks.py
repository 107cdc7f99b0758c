"""Checks of what was asked for against what the file holds, before anything that takes long."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from stxtools import _keys
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

from .options import Options, UsageError

if TYPE_CHECKING:
    from anndata import AnnData


_LEAST = 3  # observations of a class, on average


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
    from stxtools.tl._segment import MIN_OBS, _check_mode

    check_adata(adata, min_obs=MIN_OBS)
    _check_slots(adata)
    inputs = {name: getattr(options, name) for name in ("model", "pretrained", "use_rep")}
    labels = None
    if options.labels_key is not None:
        labels = Labels(*label_classes(adata, options.labels_key, "labels_key"))
        _groups(adata, options.labels_key, "labels_key")
    _check_mode(
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
