"""Annotations of QuPath, Xenium Explorer and Loupe Browser: labels against manual results, and round trips."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import is_color_like

import stxtools as st

SIDE = 10  # spots at (10 * column, 10 * row), 4 wide


def _grid() -> ad.AnnData:
    row, col = (a.ravel() for a in np.mgrid[:SIDE, :SIDE])
    adata = ad.AnnData(np.ones((SIDE * SIDE, 2), dtype=np.float32))
    adata.obs_names = [f"{c}-{r}" for r, c in zip(row, col, strict=True)]
    adata.obsm["spatial"] = np.c_[col, row] * 10.0
    adata.uns["spatial"] = {"slide": {"images": {}, "scalefactors": {"spot_diameter_fullres": 4.0}}}
    return adata


def _feature(kind: str, coordinates: Any, properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "Feature", "geometry": {"type": kind, "coordinates": coordinates}, "properties": properties} | more


def _box(x0: float, y0: float, x1: float, y1: float) -> list[list[float]]:
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]


def _class(name: str, color: list[int] | None = None) -> dict[str, Any]:
    return {"objectType": "annotation", "classification": {"name": name} | ({"color": color} if color else {})}


def _text(kind: str, coordinates: Any, name: str = "Tumor") -> str:
    return json.dumps(_feature(kind, coordinates, _class(name)))


FEATURES = [
    # 5 x 5 spots (0..4), less those in the hole (2, 2)
    _feature("Polygon", [_box(-5, -5, 45, 45), _box(15, 15, 25, 25)], _class("Drüsengewebe", [255, 0, 16])),
    # smaller, over column 4 of it: rows 0 and 1 of columns 4 to 6
    _feature("Polygon", [_box(35, -5, 65, 15)], {"objectType": "annotation", "classification": "Fett"}),
    _feature("MultiPolygon", [[_box(75, 75, 85, 85)], [_box(-5, 85, 5, 95)]], _class("Nekrose")),
    # a scribble along y = 61.5: half a spot is 2, so row 6 is touched, from column 2 to 4
    _feature("LineString", [[20, 61.5], [40, 61.5]], _class("Übergang", [1, 2])),
    _feature("LineString", [[20, 52.5], [40, 52.5]], _class("zu weit")),  # 2.5 from row 5
    _feature("MultiPoint", [[91, 0], [90, 31.5]], {"objectType": "annotation", "name": "Gefäß"}),
    _feature("Polygon", [_box(-5, -5, 95, 95)], {"objectType": "detection", "classification": {"name": "Zelle"}}),
    _feature("Polygon", [_box(-5, -5, 95, 95)], {"classification": {"name": "Zelle"}}, id="PathCellObject"),
    _feature("Polygon", [_box(-5, -5, 95, 95)], {"objectType": "annotation"}),  # without a class or a name
]


def _expected_labels() -> dict[str, str]:
    labels = {f"{c}-{r}": "Drüsengewebe" for c in range(5) for r in range(5) if (c, r) != (2, 2)}
    labels |= {f"{c}-{r}": "Fett" for c in (4, 5, 6) for r in (0, 1)}
    labels |= {"8-8": "Nekrose", "0-9": "Nekrose"}
    labels |= {f"{c}-6": "Übergang" for c in (2, 3, 4)}
    return labels | {"9-0": "Gefäß", "9-3": "Gefäß"}


def _labels(adata: ad.AnnData, key: str = "annotation") -> dict[str, str]:
    return adata.obs[key].dropna().astype(str).to_dict()


def _write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path


@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize("collection", [True, False])
def test_qupath_geojson_labels_the_spots_in_its_shapes(tmp_path: Path, scale: float, collection: bool) -> None:
    features = json.loads(json.dumps(FEATURES), parse_float=float)
    for feature in features:
        feature["geometry"]["coordinates"] = _scaled(feature["geometry"]["coordinates"], scale)
    content = {"type": "FeatureCollection", "features": features} if collection else features
    adata = _grid()
    with pytest.warns(UserWarning, match="^2 observations lie in shapes with different names"):
        st.io.read_annotations(adata, _write(tmp_path / "Präparat.geojson", content), scale=scale)
    assert _labels(adata) == _expected_labels()
    assert isinstance(adata.obs["annotation"].dtype, pd.CategoricalDtype)
    names = list(adata.obs["annotation"].cat.categories)
    assert adata.uns["annotation_colors"][names.index("Drüsengewebe")] == "#ff0010"
    assert all(map(is_color_like, adata.uns["annotation_colors"]))  # QuPath's, or where it has none scanpy's
    adata.write_h5ad(tmp_path / "labels.h5ad")
    pd.testing.assert_frame_equal(ad.read_h5ad(tmp_path / "labels.h5ad").obs, adata.obs)


def _scaled(value: Any, scale: float) -> Any:
    return [_scaled(v, scale) for v in value] if isinstance(value, list) else value * scale


@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize("kind", ["lattice", "turned", "doubled", "cells"])
def test_written_annotations_are_read_back_equal(tmp_path: Path, scale: float, kind: str) -> None:
    rng = np.random.default_rng(0)
    adata = ad.AnnData(np.ones((400, 2), dtype=np.float32)) if kind == "cells" else _grid()
    if kind == "turned":
        adata.obsm["spatial"] = adata.obsm["spatial"] @ [[np.cos(0.3), np.sin(0.3)], [-np.sin(0.3), np.cos(0.3)]]
    if kind == "cells":
        adata.obsm["spatial"] = rng.uniform(0, 1000, (400, 2))
    given = rng.choice(np.array(["Tumor", "Stroma", "Fett", None], dtype=object), adata.n_obs)
    if kind == "doubled":
        given[::10], adata.obsm["spatial"][::10] = given[1::10], adata.obsm["spatial"][1::10] + [[0], [1e-13]] * 5
    adata.obs["truth"] = pd.Categorical(given, ["Tumor", "Stroma", "Fett"])
    adata.uns["truth_colors"] = ["#aa0000", "#00bb00", "#0000cc"]
    st.io.write_annotations(adata, "truth", tmp_path / "truth.geojson", scale=scale)
    st.io.read_annotations(adata, tmp_path / "truth.geojson", scale=scale)
    assert list(adata.obs["annotation"].cat.categories) == ["Tumor", "Stroma", "Fett"]
    assert adata.obs["annotation"].equals(adata.obs["truth"].rename("annotation"))
    assert list(adata.uns["annotation_colors"]) == adata.uns["truth_colors"]
    features = json.loads((tmp_path / "truth.geojson").read_text(encoding="utf-8"))["features"]
    assert {f["properties"]["objectType"] for f in features} == {"annotation"}
    colors = {tuple(f["properties"]["classification"]["color"]) for f in features}
    assert colors == {(170, 0, 0), (0, 187, 0), (0, 0, 204)}


def test_outlines_on_a_xenium_image_need_no_scale(tmp_path: Path) -> None:
    adata = _grid()
    adata.uns["spatial"]["slide"]["metadata"] = {"unit": "micron", "pixel_size": 0.2125, "platform": "Xenium"}
    adata.obs["truth"] = pd.Categorical([None, "Tumor", "Stroma", "Stroma"] * (adata.n_obs // 4))
    slide = tmp_path / "slide.geojson"
    st.io.write_annotations(adata, "truth", slide, scale=1 / 0.2125)
    st.io.read_annotations(adata, slide)
    assert _labels(adata) == _labels(adata, "truth")
    assert adata.uns["annotation"]["params"]["scale"] == pytest.approx(1 / 0.2125)
    st.io.write_annotations(adata, "truth", tmp_path / "again.geojson")
    assert (tmp_path / "again.geojson").read_text() == slide.read_text()
    (tmp_path / "explorer.csv").write_text("#Selection name: A\nX,Y\n-5,-5\n5,-5\n5,5\n-5,5\n")  # microns
    st.io.read_annotations(adata, tmp_path / "explorer.csv", key_added="explorer")
    assert _labels(adata, "explorer") == {"0-0": "A"}
    del adata.uns["spatial"]["slide"]["metadata"]["pixel_size"]
    with pytest.raises(ValueError, match=r"are microns .* pass `scale=`"):
        st.io.read_annotations(adata, slide)


def test_shapes_far_larger_than_the_section_are_reported(tmp_path: Path) -> None:
    adata = _grid()
    slide = _write(tmp_path / "a.geojson", _feature("Polygon", [_box(-5, -5, 445, 445)], _class("Tumor")))
    with pytest.warns(UserWarning, match=r"Only 4% of the area .* lies over the observations.*Check `scale`"):
        st.io.read_annotations(adata, slide)


def test_classes_that_qupath_ignores_give_no_label(tmp_path: Path) -> None:
    adata = _grid()
    whole, fold = _class("Region*"), _class("Ignore*")
    features = [_feature("Polygon", [_box(-5, -5, 95, 95)], whole), _feature("Polygon", [_box(-5, -5, 25, 5)], fold)]
    with pytest.raises(ValueError, match=r"none of them .* with a class .* end in \* give no label"):
        st.io.read_annotations(adata, _write(tmp_path / "none.geojson", features))
    features.append(_feature("Polygon", [_box(-5, -5, 45, 5)], _class("Tumor")))
    with pytest.warns(UserWarning, match="^3 observations lie in shapes with different names"):
        st.io.read_annotations(adata, _write(tmp_path / "some.geojson", features))
    assert _labels(adata) == {"3-0": "Tumor", "4-0": "Tumor"}


def test_equal_colors_of_two_classes_are_told_apart(tmp_path: Path) -> None:
    adata = _grid()
    features = [
        _feature("Polygon", [_box(x - 5, -5, x + 5, 5)], _class(n, [200, 0, 0])) for n, x in (("a", 0), ("b", 10))
    ]
    st.io.read_annotations(adata, _write(tmp_path / "a.geojson", features))
    assert adata.uns["annotation_colors"][0] == "#c80000"
    assert adata.uns["annotation_colors"][1] != "#c80000"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("#Selection name: Läsion\n#Area (µm^2): 400.0\nX,Y\n-5,-5\n15,-5\n15,5\n-5,5\n-5,-5\n",
         {"0-0": "Läsion", "1-0": "Läsion"}),
        ("#Selection names: A, B\n#Areas (µm^2): 1,1\nSelection,X,Y\nA,-5,-5\nA,5,-5\nA,5,5\nB,15,-5\nB,25,-5\nB,25,5",
         {"0-0": "A", "2-0": "B"}),
        ("#Selection name: Rand\n#Area (µm^2): 9\nCell ID,Cluster\n3-3,1\n4-4,2\n", {"3-3": "Rand", "4-4": "Rand"}),
        ("Barcode,Pathologie\n0-0,Tumor\n1-0,\n2-0,Stroma\nnowhere-1,Stroma\n", {"0-0": "Tumor", "2-0": "Stroma"}),
        ("Barcode,Cluster\n0-0,1\n1-0,\n2-0,02\n", {"0-0": "1", "2-0": "02"}),  # numbers beside an empty cell
    ],
)  # fmt: skip
def test_csv_of_xenium_explorer_and_loupe_browser_is_read(tmp_path: Path, text: str, expected: dict[str, str]) -> None:
    (tmp_path / "export.csv").write_text(text, encoding="utf-8")
    adata = _grid()
    st.io.read_annotations(adata, tmp_path / "export.csv", key_added="labels")
    assert _labels(adata, "labels") == expected


def test_library_reads_and_writes_one_of_two_sections(tmp_path: Path) -> None:
    both = ad.concat({"one": _grid(), "two": _grid()}, label="section", index_unique=" ")
    both.obsm["spatial"] = np.c_[both.obsm["spatial"], np.repeat([0.0, 10.0], SIDE**2)]  # a stack: z of each section
    slide = _write(tmp_path / "a.geojson", _feature("Polygon", [_box(-5, -5, 15, 5)], _class("Tumor")))
    with pytest.raises(ValueError, match=r"2 sections .*library="):
        st.io.read_annotations(both, slide, library_key="section")
    st.io.read_annotations(both, slide, library_key="section", library="two")
    assert _labels(both) == {"0-0 two": "Tumor", "1-0 two": "Tumor"}
    slide = _write(tmp_path / "b.geojson", _feature("Polygon", [_box(-5, -5, 5, 5)], _class("Stroma")))
    st.io.read_annotations(both, slide, library_key="section", library="one")
    assert _labels(both) == {"0-0 one": "Stroma", "0-0 two": "Tumor", "1-0 two": "Tumor"}
    st.io.write_annotations(both, "annotation", tmp_path / "c.geojson", library_key="section", library="two")
    st.io.read_annotations(both, tmp_path / "c.geojson", key_added="again", library_key="section", library="two")
    assert _labels(both, "again") == {"0-0 two": "Tumor", "1-0 two": "Tumor"}
    with pytest.raises(ValueError, match="section 'one' has a category"):
        st.io.write_annotations(both, "again", tmp_path / "d.geojson", library_key="section", library="one")


def test_barcodes_with_a_suffix_of_joined_sections_are_matched(tmp_path: Path) -> None:
    adata = _grid()
    adata.obs_names = [f"{name}-1-slide" for name in ("A" * (i + 1) + "C" for i in range(adata.n_obs))]
    (tmp_path / "loupe.csv").write_text("Barcode,Graph\nAC-1,Tumor\nAAAC-1,Fett\n")
    st.io.read_annotations(adata, tmp_path / "loupe.csv")
    assert _labels(adata) == {"AC-1-slide": "Tumor", "AAAC-1-slide": "Fett"}


@pytest.mark.parametrize(
    ("name", "text", "error", "match"),
    [
        ("a.geojson", "{", ValueError, "is not valid GeoJSON"),
        ("a.geojson", '{"type": "FeatureCollection", "features": []}', ValueError, "none of them an annotation"),
        ("a.geojson", _text("Polygon", [[[0, 0], [1, 1]]]), ValueError, "annotation that cannot be read"),
        ("a.geojson", _text("Ellipse", [[0, 0]]), ValueError, "annotation that cannot be read"),
        ("a.geojson", _text("Point", [0, 0], "a\0b"), ValueError, "contain NUL"),
        ("a.csv", "X,Y\n0,0\n1,1\n", ValueError, "a.csv' has an annotation that cannot be read"),
        ("a.csv", "X,Y\n0,0\n30,\n30,30\n0,30\n", ValueError, "a coordinate is missing"),
        ("a.geojson", _text("Polygon", [[[0, 0], [30, float("nan")], [30, 30], [0, 0]]]), ValueError, "missing or inf"),
        ("a.csv", "Barcode,Graph\nnowhere,1\n", ValueError, r"None of the 1 identifiers.*'nowhere'"),
        ("a.csv", "Barcode,Graph,Other\n0-0,1,2\n", ValueError, "one category"),
        ("a.csv", "gene,value\n0-0,1\n", ValueError, "expected X and Y"),
        ("a.csv", "X,Y\n1000,1000\n1001,1000\n1000,1001\n", ValueError, r"x 1000 to 1001.*Check `scale`"),
        ("a.csv", "Barcode,Graph\n0-0,Gef\udce4ß\n", ValueError, "not UTF-8"),
        ("a.txt", "", ValueError, "neither .geojson"),
        ("absent.csv", None, FileNotFoundError, "no file"),
    ],
)
def test_unreadable_annotations_raise_and_change_nothing(
    tmp_path: Path, name: str, text: str | None, error: type[Exception], match: str
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text, encoding="utf-8", errors="surrogateescape")
    adata = _grid()
    with pytest.raises(error, match=match):
        st.io.read_annotations(adata, tmp_path / name)
    assert "annotation" not in adata.obs
    assert set(adata.uns) == {"spatial"}


def test_column_of_the_user_is_not_overwritten(tmp_path: Path) -> None:
    adata = _grid()
    adata.obs["annotation"] = "mine"
    slide = _write(tmp_path / "a.geojson", _feature("Polygon", [_box(-5, -5, 15, 5)], _class("Tumor")))
    with pytest.raises(ValueError, match="no record says that"):
        st.io.read_annotations(adata, slide)
    st.io.read_annotations(adata, slide, key_added="pathologist")
    st.io.read_annotations(adata, slide, key_added="pathologist")  # its own it replaces
    assert _labels(adata, "pathologist") == {"0-0": "Tumor", "1-0": "Tumor"}
