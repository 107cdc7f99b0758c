"""Conversion of an AnnData with results to SpatialData, and back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from stxtools import _keys
from stxtools._data.sections import Geometry
from stxtools._docs import complete_docstring
from stxtools._on_spatialdata import ATTRS, GLOBAL, is_spatialdata, set_spatial, spatial_of, table_of
from stxtools._validate import check_adata, params_of, spatial_entry, stored_library_key

if TYPE_CHECKING:
    from spatialdata import SpatialData

REGION_KEY, INSTANCE_KEY = "annotated_element", "annotated_instance"
OBSERVATIONS = "observations"


@complete_docstring
def to_spatialdata(
    adata: AnnData, library_key: str | bool | None = None, *, spatial_key: str = _keys.SPATIAL
) -> SpatialData:
    """Convert AnnData with its results to SpatialData, for spatialdata-plot, napari or Vitessce.

    All elements are in the coordinate system ``"global"``, in the units of ``obsm[spatial_key]``. With several sections
    each one also has its own coordinate system, and the names of elements end in ``_{section}``.

    Parameters
    ----------
    adata
        Annotated data matrix.
    library_key
        Column of ``obs`` with the section of each observation; by default the one that the results were computed with.
        ``False``: all observations are one section.

    Returns
    -------
    SpatialData with

    - tables ``"table"``, a copy of the AnnData, and ``"regions"``, the regions of :func:`stxtools.tl.region_graph`
    - shapes ``"observations"``: circles, annotated by ``"table"``
    - labels ``"segment"``: the mask of :func:`stxtools.tl.segment`, and one for each other ``key_added``
    - shapes ``"segment_regions"``: outlines of the regions with the column ``segment``, annotated by ``"regions"``
    - images ``"{library}_{name}"``: those in ``uns["spatial"]``

    Examples
    --------
    >>> adata = st.datasets.synthetic_tissue(n_obs=400)
    >>> sdata = st.io.to_spatialdata(adata, "section")
    >>> sdata.write("section.zarr")  # doctest: +SKIP
    """
    check_adata(adata, unique_vars=False)
    from spatialdata import SpatialData

    keys = [key for key, entry in adata.uns.items() if isinstance(entry, Mapping) and _keys.MASKS in entry]
    regions = adata.uns.get(_keys.REGIONS)
    if library_key is None:
        recorded = (stored_library_key(params_of(adata.uns.get(key))) for key in (*keys, _keys.REGIONS))
        library_key = next((found for found in recorded if found is not None), None)
    elements = _Elements(Geometry(adata, spatial_key, library_key))
    table = adata.copy()
    table.uns.pop(ATTRS, None)
    elements.add_images(table)
    elements.add_observations(table)
    for key in keys:
        elements.add_masks(key, adata.uns[key][_keys.MASKS])
    if isinstance(regions, AnnData):
        elements.add_regions(regions, adata.obs[_keys.region_id(_keys.REGIONS)])
    return SpatialData.init_from_elements(elements.by_name)


@complete_docstring
def from_spatialdata(sdata: SpatialData, table_key: str = "table", *, coordinate_system: str | None = None) -> AnnData:
    """Convert a table of SpatialData to AnnData, with spatial coordinates and images.

    The output of :func:`to_spatialdata` is converted back without loss, also after writing it to zarr.

    Parameters
    ----------
    sdata
        SpatialData, for example from spatialdata-io or sopa.
    table_key
        Name of the table.
    coordinate_system
        Coordinate system in which to take the centroids of the annotated elements. By default, coordinates are
        ``obsm["spatial"]`` of the table or, without these, the centroids in ``"global"``.

    Returns
    -------
    AnnData: a copy of the table with ``obsm["spatial"]``, and ``uns["spatial"]`` with the RGB images that overlap the
    annotated elements, resampled to their axes and at most 2048 pixels per side.

    Examples
    --------
    >>> sdata = st.io.to_spatialdata(st.datasets.synthetic_tissue(n_obs=400), "section")
    >>> adata = st.io.from_spatialdata(sdata)
    """
    if not is_spatialdata(sdata):
        raise TypeError(f"`sdata` must be spatialdata.SpatialData, not {type(sdata).__name__}.")
    adata = table_of(sdata, table_key).copy()
    set_spatial(adata, *spatial_of(adata, sdata, coordinate_system))
    attrs = adata.uns.pop(ATTRS, {})
    if attrs.get("region_key") == REGION_KEY:
        adata.obs = adata.obs.drop(columns=[REGION_KEY, INSTANCE_KEY])
    return adata


class _Elements:
    """Elements of SpatialData, built from the slots of an AnnData."""

    def __init__(self, geometry: Geometry) -> None:
        from spatialdata import models

        self.geometry, self.models = geometry, models
        self.by_name: dict[str, Any] = {}

    def _add(
        self, name: str, model: Any, data: Any, library: str, scale: float = 1.0, origin: Any = None, **options: Any
    ) -> None:
        """Add an element with ``scale`` pixels per unit; ``origin`` is the centre of the first pixel."""
        from spatialdata.transformations import Identity, Scale, Sequence, Translation

        transformation: Any = Identity()
        if origin is not None:  # SpatialData counts from the corner of a pixel
            corner = np.asarray(origin, dtype=float) - 0.5 / scale
            transformation = Sequence([Scale([1 / scale] * 2, axes=("x", "y")), Translation(corner, axes=("x", "y"))])
        systems = [GLOBAL] if len(self.geometry.libs) == 1 else [GLOBAL, library]
        self._put(name, model.parse(data, transformations=dict.fromkeys(systems, transformation), **options))

    def _put(self, name: str, element: Any) -> None:
        if name in self.by_name:
            raise ValueError(f"Two elements would have the name {name!r}; rename the result or section of that name.")
        self.by_name[name] = element

    def _add_table(self, name: str, table: AnnData, element: Any, instance: Any) -> None:
        table.obs[REGION_KEY] = pd.Categorical(element)
        table.obs[INSTANCE_KEY] = instance
        regions = list(table.obs[REGION_KEY].cat.categories)
        keys = {"region_key": REGION_KEY, "instance_key": INSTANCE_KEY}
        self._put(name, self.models.TableModel.parse(table, region=regions, **keys))

    def _name(self, name: str, library: str) -> str:
        return name if len(self.geometry.libs) == 1 else f"{name}_{_clean(library)}"

    def add_images(self, table: AnnData) -> None:
        """Move images from ``uns["spatial"]`` into elements, whose names replace them."""
        spatial = table.uns.get(_keys.SPATIAL)
        for library in spatial if isinstance(spatial, Mapping) else ():
            entry: Any = spatial_entry(table, library)
            for name, image in list(entry[_keys.IMAGES].items()):
                scale = float(entry[_keys.SCALEFACTORS].get(f"tissue_{name}_scalef", 0))
                if scale > 0 and np.ndim(image) in (2, 3):
                    pixels = np.asarray(image)
                    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
                    entry[_keys.IMAGES][name] = element = _clean(f"{library}_{name}")
                    self._add(
                        element, self.models.Image2DModel, pixels, library, scale, (0.0, 0.0), dims=("y", "x", "c")
                    )

    def add_observations(self, table: AnnData) -> None:
        """Add circles, and the table that annotates them."""
        element = np.empty(table.n_obs, dtype=object)
        geometry = self.geometry
        for library, rows, spacing in zip(geometry.libs.names, geometry.parts, geometry.spacings, strict=True):
            diameter = float(spatial_entry(table, library)[_keys.SCALEFACTORS].get(_keys.SPOT_DIAMETER, spacing))
            element[rows] = name = self._name(OBSERVATIONS, library)
            circles = {"geometry": 0, "radius": diameter / 2, "index": pd.Index(rows)}
            self._add(name, self.models.ShapesModel, geometry.xy[rows], library, **circles)
        self._add_table("table", table, element, np.arange(table.n_obs))

    def add_masks(self, key: str, masks: Mapping[str, Any]) -> None:
        """Add the masks of a segmentation as labels."""
        present = [library for library in masks if library in self.geometry.libs.names]
        one = len(present or masks) == len(self.geometry.libs) == 1
        for library in present or masks:  # without sections that were removed after the segmentation
            mask, name = masks[library], _clean(key) if one else f"{_clean(key)}_{_clean(library)}"
            image, scale = np.asarray(mask["image"]), float(mask["scale"])
            self._add(name, self.models.Labels2DModel, image, library, scale, mask["origin"], dims=("y", "x"))

    def add_regions(self, regions: AnnData, region: pd.Series) -> None:
        """Add the outlines of regions, and the table that annotates them."""
        from geopandas import GeoDataFrame

        codes = regions.obs_names.get_indexer(pd.Index(region.astype(object)))
        element = np.empty(regions.n_obs, dtype=object)
        for index, library in enumerate(self.geometry.libs.names):
            outlines = self.geometry.outlines(index, codes)
            if not outlines:
                continue
            rows = list(outlines)
            element[rows] = name = self._name(f"{_keys.SEGMENT}_regions", library)
            segment = regions.obs[["segment"]].iloc[rows].astype("category")
            self._add(name, self.models.ShapesModel, GeoDataFrame(segment, geometry=list(outlines.values())), library)
        present = pd.notna(element)  # the observations of the others were removed
        regions = regions[present].copy()
        self._add_table("regions", regions, element[present], regions.obs_names.to_numpy())


def _clean(name: str) -> str:
    """Return a name that SpatialData allows."""
    return re.sub(r"[^\w.-]", "_", name).lstrip("_") or "_"
