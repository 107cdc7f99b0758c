"""Annotations of a pathologist as a column of labels, and a column of labels as annotations for QuPath."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import shapely
from anndata import AnnData
from geopandas import GeoDataFrame

from stxtools import _keys
from stxtools._api import public
from stxtools._checks import check_number, check_path, check_writable, listing
from stxtools._colors import colors_for, colors_slot, stored_colors
from stxtools._data.sections import Geometry
from stxtools._files import readable, write_text
from stxtools._slots import Slots, categorical, free_key, provenance
from stxtools._spatial.points import typical_spacing
from stxtools._types import Floats, Ints
from stxtools._validate import (
    Libraries,
    categories,
    check_adata,
    check_class_names,
    coordinates,
    libraries,
    spatial_entry,
)
from stxtools._warn import warn

_MIN_SCALE = 1e-9
_UNREADABLE = "has an annotation that cannot be read; draw it again"


@public
def read_annotations(
    adata: AnnData, path: str | os.PathLike[str], *, key_added: str | None = None, library: str | None = None,
    scale: float | None = None, spatial_key: str = _keys.SPATIAL, library_key: str | bool | None = None,
) -> None:  # fmt: skip
    """Read annotations from QuPath, Xenium Explorer or Loupe Browser as labels of the observations.

    - QuPath (GeoJSON): annotations with a class or, without one, a name. Lines (scribbles) and points label the spots
      that they touch. Detections, cells and classes that QuPath ignores (``Ignore*``, ``Region*``) give no label.
    - Xenium Explorer (CSV): coordinates of selections in microns, or their cell ids.
    - Loupe Browser (CSV): barcodes and one category.

    An observation gets the label of the shape that contains its centre; of overlapping shapes, the smallest counts.

    Parameters
    ----------
    path
        Annotation file: ``.geojson`` or ``.json`` (QuPath), or ``.csv``.
    library
        Section that was annotated, if there are several; labels of the other sections are kept.
    scale
        Pixels of the annotated image per unit of ``obsm[spatial_key]``: 1 (the default) for the full-resolution image
        of Visium, ``tissue_hires_scalef`` for the hires image. For positions in microns and QuPath, the default is
        1 / ``pixel_size`` in ``uns["spatial"][library]["metadata"]``, which is right for the images of Xenium.
        For an image that is also rotated or shifted, such as an H&E registered to Xenium, put the pixels of the
        observations into ``obsm``, and name them with ``spatial_key``.

    Returns
    -------
    None. Sets the following fields:

    %(slots)s

    Examples
    --------
    >>> st.io.read_annotations(adata, "slide.geojson")  # doctest: +SKIP
    >>> st.tl.segment(adata, labels_key="annotation")  # doctest: +SKIP
    """
    check_adata(adata, unique_vars=False)
    key = free_key(adata, "io.read_annotations", key_added, "annotation", obs=[""], uns=[""])
    scale = None if scale is None else check_number("scale", scale, minimum=_MIN_SCALE)
    libs, section, rows = _section_rows(adata, library, library_key)
    path = check_path("path", path)
    annotations = _read_file(path)
    if isinstance(annotations, GeoDataFrame):
        file_format = "xenium" if path.suffix.lower() == ".csv" else "geojson"
        xy = coordinates(adata, spatial_key, libs)[rows]
        if scale is None:
            scale = 1.0 if file_format == "xenium" else _pixels_per_unit(adata, libs.names[section])
        diameter = spatial_entry(adata, libs.names[section])[_keys.SCALEFACTORS].get(_keys.SPOT_DIAMETER)
        radius = float(typical_spacing(xy) if diameter is None else diameter) / 2
        labels = _labels_by_position(annotations, xy * scale, radius * scale, path)
    else:
        file_format = "csv"
        labels = _labels_by_identifier(annotations["name"], adata.obs_names[rows], path)
    names = list(dict.fromkeys(annotations["name"].dropna()))
    check_class_names(names, key)
    codes = np.full(adata.n_obs, -1, dtype=np.int64)
    if library is not None and key in adata.obs:  # the labels of the other sections
        stored, stored_names = categories(adata, key, "key_added", min_classes=0)
        names = list(dict.fromkeys([*stored_names, *names]))
        codes = np.where(libs.codes == section, -1, stored)
    codes[rows] = pd.Index(names).get_indexer(labels)
    colored = annotations.reindex(columns=["name", "color"]).dropna().drop_duplicates("name").drop_duplicates("color")
    file_colors = dict(zip(colored["name"], colored["color"], strict=True))
    params = provenance(
        path=path.name, format=file_format, library=library, library_key=library_key, spatial_key=spatial_key,
        scale=scale,
    )  # fmt: skip
    colors = colors_for(names, file_colors, stored_colors(adata, key))
    Slots(
        "io.read_annotations", obs={key: categorical(codes, names)},
        uns={key: {"params": params}, _keys.colors(key): colors_slot(colors)},
    ).write(adata)  # fmt: skip


@public
def write_annotations(
    adata: AnnData, key: str, path: str | os.PathLike[str], *, library: str | None = None, scale: float | None = None,
    spatial_key: str = _keys.SPATIAL, library_key: str | bool | None = None,
) -> None:  # fmt: skip
    """Write the regions of a categorical column as GeoJSON annotations for QuPath.

    Each connected region becomes one annotation with the name and colour of its category.
    :func:`read_annotations` restores the column.

    Parameters
    ----------
    key
        Categorical column of ``obs``, such as ``"segment"``.
    path
        File to write, ``.geojson``. In QuPath, choose "File", "Import objects from file".
    library
        Section to write, if there are several.
    scale
        Pixels of the image per unit of ``obsm[spatial_key]``, with the default of :func:`read_annotations`.

    Returns
    -------
    None.

    Examples
    --------
    >>> st.io.write_annotations(adata, "segment", "segments.geojson")  # doctest: +SKIP
    """
    from matplotlib.colors import is_color_like, to_rgb

    check_adata(adata, unique_vars=False)
    codes, names = categories(adata, key, "key")
    scale = None if scale is None else check_number("scale", scale, minimum=_MIN_SCALE)
    check_writable(path)
    libs, section, rows = _section_rows(adata, library, library_key)
    scale = _pixels_per_unit(adata, libs.names[section]) if scale is None else scale
    if (codes[rows] < 0).all():
        raise ValueError(f"No observation of section {libs.names[section]!r} has a category in `adata.obs[{key!r}]`.")
    colors = colors_for(names, {name: c for name, c in stored_colors(adata, key).items() if is_color_like(c)})
    rgb = {name: [round(255 * part) for part in to_rgb(color)] for name, color in colors.items()}
    outlines = Geometry(adata, spatial_key, library_key).outlines(section, codes)
    classes = [{"name": names[code], "color": rgb[names[code]]} for code in outlines]
    columns = {"objectType": "annotation", "name": [names[code] for code in outlines], "classification": classes}
    frame = GeoDataFrame(columns | {"isLocked": False}, geometry=list(outlines.values()))
    frame.geometry = frame.scale(scale, scale, origin=(0, 0))
    write_text(path, frame.explode().to_json(drop_id=True, ensure_ascii=False))


def _section_rows(adata: AnnData, library: str | None, library_key: str | bool | None) -> tuple[Libraries, int, Ints]:
    """Return the sections, and the number and the observations of ``library``, or of the only one."""
    libs = libraries(adata, library_key)
    if library is None:
        if len(libs) > 1:
            raise ValueError(
                f"There are {len(libs)} sections ({listing(libs.names)}); pass that of the file as `library=`."
            )
        return libs, 0, np.arange(adata.n_obs)
    if library not in libs.names:
        hint = "" if library_key is not None else " Name the obs column of sections with `library_key=`."
        raise KeyError(f"`library={library!r}` is not a section; it must be one of {listing(libs.names)}.{hint}")
    section = libs.names.index(library)
    return libs, section, np.flatnonzero(libs.codes == section)


def _pixels_per_unit(adata: AnnData, library: str) -> float:
    """Return the pixels of the full-resolution image per unit of the positions, which may be microns."""
    metadata = spatial_entry(adata, library)["metadata"]
    if metadata.get("unit") != "micron":
        return 1.0
    if "pixel_size" not in metadata:
        raise ValueError(
            f"The positions of section {library!r} are microns and the outlines of QuPath pixels: pass `scale=`, the "
            "number of pixels per micron."
        )
    return 1 / float(metadata["pixel_size"])


def _read_file(path: Path) -> pd.DataFrame:
    """Return the column ``name`` of shapes (a GeoDataFrame, with ``color`` if known) or by identifier."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {str(path)!r}.")
    with readable(path, "is not UTF-8 text; in Excel save it as 'CSV UTF-8'"):
        text = path.read_text(encoding="utf-8-sig")
    if path.suffix.lower() in {".geojson", ".json"}:
        return _parse_geojson(text, path)
    if path.suffix.lower() == ".csv":
        return _parse_csv(text, path)
    raise ValueError(f"{str(path)!r} is neither .geojson, .json (QuPath) nor .csv (Xenium Explorer, Loupe Browser).")


def _parse_geojson(text: str, path: Path) -> GeoDataFrame:
    with readable(path, "is not valid GeoJSON"):
        content = json.loads(text)
    # QuPath writes a collection, a list of features, or one feature
    features = content.get("features", [content]) if isinstance(content, dict) else content
    if not isinstance(features, list) or not all(isinstance(f, dict) and "geometry" in f for f in features):
        raise ValueError(f"{str(path)!r} holds no GeoJSON features.")
    with readable(path, _UNREADABLE), np.errstate(invalid="ignore"):
        kept = [f for f in features if f["geometry"] is not None and _is_annotation(f)]
        rows = [f | {"properties": _name_and_color(f.get("properties") or {})} for f in kept]
        shapes = GeoDataFrame.from_features([f for f in rows if f["properties"]["name"]])  # no CRS: pixels
    if not shapes.empty:
        shapes["name"] = shapes["name"].mask(shapes["name"].str.endswith("*"))  # which classes QuPath ignores
    if shapes.empty or shapes["name"].isna().all():
        raise ValueError(
            f"{str(path)!r} holds {len(features)} features, none of them an annotation with a class or a name (names "
            "that end in * give no label); set the class of the annotations in QuPath."
        )
    return shapes


def _is_annotation(feature: dict[str, Any]) -> bool:
    kind = (feature.get("properties") or {}).get("objectType")
    if kind is None:  # before version 0.3 the kind was the identifier; other programs write none
        kind = str(feature.get("id", ""))
        return not kind.startswith("Path") or kind == "PathAnnotationObject"
    return kind == "annotation"


def _name_and_color(properties: dict[str, Any]) -> dict[str, str | None]:
    name, color = properties.get("classification"), properties.get("color")
    if isinstance(name, dict):
        color = name.get("color", color)
        name = name.get("name") or ": ".join(map(str, name.get("names") or ()))  # a list from version 0.4 on
    if isinstance(color, list) and len(color) >= 3 and all(isinstance(c, int) and 0 <= c <= 255 for c in color):
        color = f"#{bytes(color[:3]).hex()}"
    else:
        color = None
    return {"name": str(name or properties.get("name") or ""), "color": color}


def _parse_csv(text: str, path: Path) -> pd.DataFrame:
    lines = text.splitlines()
    comments = [line for line in lines if line.startswith("#")]
    body = "\n".join(line for line in lines if not line.startswith("#"))
    # as text: beside an empty cell pandas would make cluster 1 to "1.0", and 01 to "1"
    table = pd.read_csv(io.StringIO(body), dtype=str) if body.strip() else pd.DataFrame()
    title = next((c.partition(":")[2].strip() for c in comments if c.lower().startswith("#selection name")), path.stem)
    columns = list(table.columns)
    if {"X", "Y"} <= set(columns):
        parts = dict(list(table.groupby("Selection", sort=False))) if "Selection" in table else {title: table}
        with readable(path, _UNREADABLE), np.errstate(invalid="ignore"):
            polygons = [shapely.Polygon(part[["X", "Y"]].to_numpy(dtype=float)) for part in parts.values()]
        return GeoDataFrame({"name": [str(name) for name in parts]}, geometry=polygons)
    identifiers = next((c for c in columns if str(c).lower() in {"barcode", "cell id", "cell_id"}), None)
    if identifiers is None:
        raise ValueError(
            f"{str(path)!r} has the columns {listing(columns)}; expected X and Y (a selection of Xenium Explorer), "
            "or Barcode and a category (Loupe Browser)."
        )
    if "Selection" in columns:
        names = table["Selection"]
    elif comments:  # the cells of one selection
        names = pd.Series(title, index=table.index)
    elif identifiers == columns[0] and len(columns) == 2:  # Loupe Browser
        names = table[columns[1]]
    else:
        raise ValueError(f"{str(path)!r} has the columns {listing(columns)}; keep {identifiers!r} and one category.")
    return pd.DataFrame({"name": names.to_numpy(dtype=object)}, index=table[identifiers]).dropna()


def _labels_by_position(shapes: GeoDataFrame, xy: Floats, radius: float, path: Path) -> pd.Series:
    """Return the name of the smallest shape that contains each observation, or is within ``radius`` of it (lines)."""
    if not np.isfinite(shapes.get_coordinates()).all(axis=None):
        raise ValueError(f"{str(path)!r} {_UNREADABLE}: a coordinate is missing or infinite.")
    geometry = shapes.geometry.where(shapes.area > 0, shapes.buffer(radius)).make_valid()
    labels, several = np.full(len(xy), None, dtype=object), np.zeros(len(xy), dtype=bool)
    by_x = np.argsort(xy[:, 0], kind="stable")
    xs = xy[by_x, 0]
    for index in np.argsort(-geometry.area.to_numpy(), kind="stable"):  # the smallest last
        shape, name = geometry.iloc[index], shapes["name"].iloc[index]
        shapely.prepare(shape)  # without, as in geopandas.sjoin, the test of large outlines takes 70 times as long
        start, end = np.searchsorted(xs, [shape.bounds[0], np.nextafter(shape.bounds[2], np.inf)])
        inside = by_x[start:end][shapely.intersects_xy(shape, xy[by_x[start:end]])]
        several[inside] |= pd.notna(labels[inside]) & (labels[inside] != name)
        labels[inside] = name
    seen = np.r_[xy.min(axis=0) - radius, xy.max(axis=0) + radius]
    shapes_at, observations_at = (
        f"x {x0:.4g} to {x1:.4g}, y {y0:.4g} to {y1:.4g}" for x0, y0, x1, y1 in (geometry.total_bounds, seen)
    )
    ranges = (
        f"shapes lie at {shapes_at}, the observations (times `scale`) at {observations_at}. Check `scale`, and that y "
        "points down."
    )
    if pd.isna(labels).all():
        raise ValueError(f"No observation lies in a shape of {str(path)!r} that has a class or a name: {ranges}")
    covered = geometry.intersection(shapely.box(*seen)).area.sum() / geometry.area.sum()
    if covered < 0.3:
        warn(f"Only {covered:.0%} of the area of the shapes in {str(path)!r} lies over the observations: {ranges}")
    if several.any():
        warn(f"{several.sum()} observations lie in shapes with different names; the smallest shape counts.")
    return pd.Series(labels)


def _labels_by_identifier(names: pd.Series, observations: pd.Index, path: Path) -> pd.Series:
    """Return the name of each observation; barcodes of joined sections may have a suffix."""
    identifiers = observations.astype(str)
    if not names.index.isin(identifiers).any():
        identifiers = identifiers.str.replace(r"^([ACGT]+-\d+).*", r"\1", regex=True)
    labels = names[~names.index.duplicated(keep="last")].reindex(identifiers)
    if labels.isna().all() or not identifiers.is_unique:
        raise ValueError(
            f"None of the {len(names)} identifiers in {str(path)!r} ({listing(names.index[:3])}) names an observation; "
            f"`obs_names` are such as {listing(observations[:3])}. For one of several sections pass `library=`."
        )
    return labels
