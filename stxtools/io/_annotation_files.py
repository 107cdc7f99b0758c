"""The files that pathologists' programs write: shapes with names and colours, or names of observations."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from stxtools._checks import listing


@dataclass
class Shapes:
    """Shapes in the coordinates of the file, their names, and colours of some of the names."""

    geometry: list[Any] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    colors: dict[str, str] = field(default_factory=dict)
    format: str = "geojson"


@dataclass
class Named:
    """Names by identifier of the observation (barcode, cell)."""

    names: pd.Series
    format: str = "csv"


def read_file(path: Path) -> Shapes | Named:
    """Read QuPath's GeoJSON, or the CSV of Xenium Explorer or Loupe Browser.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is of another kind, or names nothing.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {str(path)!r}.")
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix.lower() in {".geojson", ".json"}:
        return _geojson(text, path)
    if path.suffix.lower() == ".csv":
        return _csv(text, path)
    raise ValueError(f"{str(path)!r} is neither .geojson, .json (QuPath) nor .csv (Xenium Explorer, Loupe Browser).")


def _geojson(text: str, path: Path) -> Shapes:
    from geopandas import GeoDataFrame

    try:
        found = json.loads(text)
    except json.JSONDecodeError as err:
        raise ValueError(f"{str(path)!r} is no GeoJSON: {err}.") from err
    # QuPath writes a collection, a list of features, or one feature
    features = found.get("features", [found]) if isinstance(found, dict) else found
    if not isinstance(features, list) or not all(isinstance(f, dict) and "geometry" in f for f in features):
        raise ValueError(f"{str(path)!r} holds no GeoJSON features.")
    out = Shapes()
    kept = [f for f in features if f["geometry"] is not None and _is_annotation(f)]
    for feature in kept:
        name, color = _name_and_color(feature.get("properties") or {})
        out.names.append(name)
        if name and color:
            out.colors.setdefault(name, color)
    if kept:  # without a CRS: these are pixels
        out.geometry = list(GeoDataFrame.from_features([{**f, "properties": {}} for f in kept]).geometry)
    named = [i for i, name in enumerate(out.names) if name]
    if not named:
        raise ValueError(
            f"{str(path)!r} holds {len(features)} features, none of them an annotation with a class or a name; set the "
            "class of the annotations in QuPath."
        )
    out.geometry, out.names = [out.geometry[i] for i in named], [out.names[i] for i in named]
    return out


def _is_annotation(feature: dict[str, Any]) -> bool:
    kind = (feature.get("properties") or {}).get("objectType")
    if kind is None:  # before version 0.3 the kind was the identifier; other programs name none
        kind = str(feature.get("id", ""))
        return not kind.startswith("Path") or kind == "PathAnnotationObject"
    return kind == "annotation"


def _name_and_color(properties: dict[str, Any]) -> tuple[str, str | None]:
    known, color = properties.get("classification"), properties.get("color")
    if isinstance(known, dict):
        color = known.get("color", known.get("colorRGB", color))
        known = known.get("name") or ": ".join(known.get("names") or ())  # a list from version 0.4 on
    if isinstance(color, int):  # Java's signed alpha, red, green, blue
        color = [color >> 16 & 255, color >> 8 & 255, color & 255]
    hexadecimal = "#" + "".join(f"{int(c):02x}" for c in color[:3]) if isinstance(color, list) else None
    return str(known or properties.get("name") or ""), hexadecimal


def _csv(text: str, path: Path) -> Shapes | Named:
    comments = [line for line in text.splitlines() if line.startswith("#")]
    body = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    table = pd.read_csv(io.StringIO(body)) if body.strip() else pd.DataFrame()
    title = next((c.partition(":")[2].strip() for c in comments if c.lower().startswith("#selection name")), path.stem)
    columns = list(table.columns)
    if {"X", "Y"} <= set(columns):
        return _selections(table, title)
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
    names = names.where(names.isna(), names.astype(str))
    return Named(pd.Series(names.to_numpy(dtype=object), index=table[identifiers].astype(str)).dropna())


def _selections(table: pd.DataFrame, title: str) -> Shapes:
    from shapely import Polygon

    groups = table.groupby("Selection", sort=False) if "Selection" in table else [(title, table)]
    out = Shapes(format="xenium")
    for name, part in groups:
        out.names.append(str(name))
        out.geometry.append(Polygon(part[["X", "Y"]].to_numpy(dtype=float)))
    return out
