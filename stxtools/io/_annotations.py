"""Annotations of a pathologist as a column of labels, and labels or segments as annotations that QuPath opens."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import shapely
from anndata import AnnData
from geopandas import GeoDataFrame
from numpy.typing import NDArray
from PIL import ImageColor

from stxtools import _keys
from stxtools._checks import check_number, check_path, check_writable, listing
from stxtools._colors import colors_for, colors_slot, stored_colors
from stxtools._data.sections import Geometry
from stxtools._docs import documented
from stxtools._files import write_text
from stxtools._slots import Slots, categorical, check_free, provenance
from stxtools._spatial.points import typical_spacing
from stxtools._types import Floats, Ints
from stxtools._validate import (
    Libraries,
    categories,
    check_adata,
    check_class_names,
    check_key_added,
    coordinates,
    libraries,
    spatial_entry,
)
from stxtools._warn import warn

_LEAST_SCALE = 1e-9


@documented
def read_annotations(
    adata: AnnData, path: str | os.PathLike[str], *, key_added: str = "annotation", library: str | None = None,
    scale: float = 1.0, spatial_key: str = _keys.SPATIAL, library_key: str | bool | None = None,
) -> None:  # fmt: skip
    """Read annotations of QuPath, Xenium Explorer or Loupe Browser as labels of the observations.

    - QuPath, GeoJSON: annotations with a class, or else a name. Lines (scribbles) and points label the spots that they
      touch; detections and cells are left out.
    - Xenium Explorer, CSV: the coordinates of selections (in microns), or their cells.
    - Loupe Browser, CSV: barcodes and a category.

    An observation belongs to a shape that its centre lies in; where shapes overlap, to the smallest.

    Parameters
    ----------
    path
        The file.
    key_added
        Name of the column.
    library
        The section that the file is of, where there are several; labels of the others stay.
    scale
        Pixels of the file per unit of ``obsm[spatial_key]``: 1 for an annotated full-resolution image of Visium,
        ``tissue_hires_scalef`` for the small one, 1 / 0.2125 for QuPath on a Xenium image with positions in microns.
    %(parameters)s

    Returns
    -------
    None. Sets:

    %(slots)s

    Examples
    --------
    >>> st.io.read_annotations(adata, "slide.geojson")  # doctest: +SKIP
    >>> st.tl.segment(adata, labels_key="annotation")  # doctest: +SKIP
    """
    check_adata(adata, unique_vars=False)
    key = check_key_added(key_added, "annotation")
    check_free(adata, "io.read_annotations", obs=[key], uns=[key])
    scale = check_number("scale", scale, minimum=_LEAST_SCALE)
    libs, rows = rows_of(adata, library, library_key)
    path = check_path("path", path)
    found = read_file(path)
    kind = "csv"
    if "geometry" in found:
        kind = "xenium" if path.suffix.lower() == ".csv" else "geojson"
        xy = coordinates(adata, spatial_key, libs)[rows]
        factors = spatial_entry(adata, libs.names[libs.codes[rows[0]]])[_keys.SCALEFACTORS]
        diameter = factors.get(_keys.SPOT_DIAMETER)  # of a spot where it is known, else between observations
        radius = float(typical_spacing(xy) if diameter is None else diameter) / 2
        labels = _by_place(found, xy * scale, radius * scale, path)
    else:
        labels = _by_identifier(found["name"], adata.obs_names[rows], path)
    names = list(dict.fromkeys(found["name"]))
    check_class_names(names, key)
    codes = np.full(adata.n_obs, -1, dtype=np.int64)
    if library is not None and key in adata.obs:  # the labels of the other sections
        before, known = categories(adata, key, "key_added", min_classes=0)
        names = list(dict.fromkeys([*known, *names]))
        codes = np.where(libs.codes == libs.codes[rows[0]], -1, before)
    codes[rows] = pd.Index(names).get_indexer(pd.Index(labels, dtype=object))
    colored = found.reindex(columns=["name", "color"]).dropna().drop_duplicates("name")
    given = dict(zip(colored["name"], colored["color"], strict=True))
    params = provenance(
        path=path.name, format=kind, library=library, library_key=library_key, spatial_key=spatial_key, scale=scale
    )  # fmt: skip
    colors = colors_for(names, given, stored_colors(adata, key))
    Slots(
        "io.read_annotations", obs={key: categorical(codes, names)},
        uns={key: {"params": params}, _keys.colors(key): colors_slot(colors)},
    ).write(adata)  # fmt: skip


@documented
def write_annotations(
    adata: AnnData, key: str, path: str | os.PathLike[str], *, library: str | None = None, scale: float = 1.0,
    spatial_key: str = _keys.SPATIAL, library_key: str | bool | None = None,
) -> None:  # fmt: skip
    """Write the regions of a column as GeoJSON, which QuPath opens: one annotation per connected region.

    Annotations have the names and colours of the categories. :func:`read_annotations` gives the column back.

    Parameters
    ----------
    key
        Categorical column of ``obs``, such as ``"segment"``.
    path
        The file to write, ``.geojson``. In QuPath: File, Import objects from file.
    library
        The section to write, where there are several.
    scale
        Pixels of the image per unit of ``obsm[spatial_key]``, as in :func:`read_annotations`.
    %(parameters)s

    Returns
    -------
    None.

    Examples
    --------
    >>> st.io.write_annotations(adata, "segment", "segments.geojson")  # doctest: +SKIP
    """
    check_adata(adata, unique_vars=False)
    codes, names = categories(adata, key, "key")
    scale = check_number("scale", scale, minimum=_LEAST_SCALE)
    check_writable(path)
    libs, rows = rows_of(adata, library, library_key)
    where, index = Geometry(adata, spatial_key, library_key), int(libs.codes[rows[0]])
    if (codes[rows] < 0).all():
        raise ValueError(f"No observation of section {libs.names[index]!r} has a category in `adata.obs[{key!r}]`.")
    colors = colors_for(names, stored_colors(adata, key))
    outlines = where.outlines(index, codes)
    classes = [{"name": names[code], "color": ImageColor.getrgb(colors[names[code]])[:3]} for code in outlines]
    columns = {"objectType": "annotation", "name": [known["name"] for known in classes], "classification": classes}
    frame = GeoDataFrame(columns | {"isLocked": False}, geometry=list(outlines.values()))
    frame.geometry = frame.scale(scale, scale, origin=(0, 0))
    write_text(path, frame.explode().to_json(drop_id=True, ensure_ascii=False))


def read_file(path: Path) -> pd.DataFrame:
    """Return ``name`` of the file's shapes (with ``geometry``, and ``color`` if any), or of observations."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {str(path)!r}.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as err:
        raise ValueError(f"{str(path)!r} is not UTF-8 text; in Excel save it as 'CSV UTF-8'.") from err
    if path.suffix.lower() in {".geojson", ".json"}:
        return _geojson(text, path)
    if path.suffix.lower() == ".csv":
        return _csv(text, path)
    raise ValueError(f"{str(path)!r} is neither .geojson, .json (QuPath) nor .csv (Xenium Explorer, Loupe Browser).")


def _geojson(text: str, path: Path) -> pd.DataFrame:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as err:
        raise ValueError(f"{str(path)!r} is no GeoJSON: {err}.") from err
    # QuPath writes a collection, a list of features, or one feature
    features = found.get("features", [found]) if isinstance(found, dict) else found
    if not isinstance(features, list) or not all(isinstance(f, dict) and "geometry" in f for f in features):
        raise ValueError(f"{str(path)!r} holds no GeoJSON features.")
    with _readable(path):
        kept = [f for f in features if f["geometry"] is not None and _is_annotation(f)]
        named = [(f, name, color) for f in kept for name, color in [_name_and_color(f.get("properties") or {})] if name]
    if not named:
        raise ValueError(
            f"{str(path)!r} holds {len(features)} features, none of them an annotation with a class or a name; set the "
            "class of the annotations in QuPath."
        )
    rows = [f | {"properties": {"name": name, "color": color}} for f, name, color in named]
    with _readable(path):
        return GeoDataFrame.from_features(rows)  # without a CRS: these are pixels


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Name the file whose shape is none: shapely and geopandas raise many kinds of errors then."""
    try:
        yield
    except Exception as err:
        raise ValueError(f"{str(path)!r} has an annotation that cannot be read ({err}); draw it again.") from err


def _is_annotation(feature: dict[str, Any]) -> bool:
    kind = (feature.get("properties") or {}).get("objectType")
    if kind is None:  # before version 0.3 the kind was the identifier; other programs name none
        kind = str(feature.get("id", ""))
        return not kind.startswith("Path") or kind == "PathAnnotationObject"
    return kind == "annotation"


def _name_and_color(properties: dict[str, Any]) -> tuple[str, str | None]:
    known, color = properties.get("classification"), properties.get("color")
    if isinstance(known, dict):
        color = known.get("color", color)
        known = known.get("name") or ": ".join(map(str, known.get("names") or ()))  # a list from version 0.4 on
    hexadecimal = None
    if isinstance(color, list) and len(color) >= 3 and all(isinstance(c, int) and 0 <= c <= 255 for c in color):
        hexadecimal = "#" + "".join(f"{c:02x}" for c in color[:3])
    return str(known or properties.get("name") or ""), hexadecimal


def _csv(text: str, path: Path) -> pd.DataFrame:
    comments = [line for line in text.splitlines() if line.startswith("#")]
    body = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    # as text: beside an empty cell pandas would make cluster 1 to "1.0", and 01 to "1"
    table = pd.read_csv(io.StringIO(body), dtype=str) if body.strip() else pd.DataFrame()
    title = next((c.partition(":")[2].strip() for c in comments if c.lower().startswith("#selection name")), path.stem)
    columns = list(table.columns)
    if {"X", "Y"} <= set(columns):
        parts = dict(list(table.groupby("Selection", sort=False))) if "Selection" in table else {title: table}
        with _readable(path):
            shapes = [shapely.Polygon(part[["X", "Y"]].to_numpy(dtype=float)) for part in parts.values()]
        return pd.DataFrame({"name": [str(name) for name in parts], "geometry": shapes})
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
        raise ValueError(
            f"{str(path)!r} has the columns {listing(columns)}; keep {identifiers!r} and the one category."
        )
    return pd.DataFrame({"name": names.to_numpy(dtype=object)}, index=table[identifiers]).dropna()


def rows_of(adata: AnnData, library: str | None, library_key: str | bool | None) -> tuple[Libraries, Ints]:
    """Return the sections and the observations of ``library``, or all where there is one section."""
    libs = libraries(adata, library_key)
    if library is None:
        if len(libs) > 1:
            raise ValueError(
                f"There are {len(libs)} sections ({listing(libs.names)}); name the file's with `library=`."
            )
        return libs, np.arange(adata.n_obs)
    if library not in libs.names:
        hint = "" if library_key is not None else " Name the obs column of sections with `library_key=`."
        raise KeyError(f"`library={library!r}` is no section; there: {listing(libs.names)}.{hint}")
    return libs, np.flatnonzero(libs.codes == libs.names.index(library))


def _by_identifier(names: pd.Series, observations: pd.Index, path: Path) -> NDArray[np.object_]:
    """Return the name of each observation; barcodes of joined sections may have something behind."""
    known = pd.Index(observations.astype(str))
    if not names.index.isin(known).any():
        barcodes = known.str.extract(r"^([ACGT]+-\d+)", expand=False)
        known = pd.Index(barcodes.fillna("")) if barcodes.notna().any() else known
    at = known.get_indexer_for(names.index) if known.is_unique else np.array([-1])
    if (at < 0).all():
        raise ValueError(
            f"None of the {len(names)} identifiers in {str(path)!r} ({listing(names.index[:3])}) names an observation; "
            f"`obs_names` are such as {listing(observations[:3])}. For one of several sections pass `library=`."
        )
    out = np.full(len(known), None, dtype=object)
    out[at[at >= 0]] = names.to_numpy()[at >= 0]
    return out


def _by_place(shapes: pd.DataFrame, xy: Floats, radius: float, path: Path) -> NDArray[np.object_]:
    """Return the name of the smallest shape that each observation lies in."""
    geometry = np.array(shapes["geometry"], dtype=object)
    flat = shapely.area(geometry) == 0  # lines and points
    geometry = shapely.make_valid(np.where(flat, shapely.buffer(geometry, radius), geometry))
    which, at = shapely.STRtree(shapely.points(xy)).query(geometry, predicate="intersects")
    if at.size == 0:
        low, high = shapely.total_bounds(geometry).reshape(2, 2)
        raise ValueError(
            f"No observation lies in a shape of {str(path)!r}: these lie at x {low[0]:.4g} to {high[0]:.4g}, y "
            f"{low[1]:.4g} to {high[1]:.4g}, the observations (times `scale`) at x {xy[:, 0].min():.4g} to "
            f"{xy[:, 0].max():.4g}, y {xy[:, 1].min():.4g} to {xy[:, 1].max():.4g}. Is `scale` right?"
        )
    order = np.argsort(-shapely.area(geometry)[which], kind="stable")  # the smallest is the last to write
    names = shapes["name"].to_numpy(dtype=object)
    out = np.full(len(xy), None, dtype=object)
    out[at[order]] = names[which[order]]
    several = int((pd.DataFrame({"at": at, "name": names[which]}).groupby("at")["name"].nunique() > 1).sum())
    if several:
        warn(f"{several} observations lie in shapes of several names; each has that of the smallest shape.")
    return out
