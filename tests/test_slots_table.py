"""The documented slots are the written slots, checked by running each call."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata.tests.helpers import assert_equal
from conftest import assert_same, read_back
from scipy import sparse

import stxtools as st
from stxtools import _keys
from stxtools._docs import SLOTS, SlotRow

FILES = tempfile.TemporaryDirectory()  # of models and annotations
LIBRARIES = ("section_1", "section_2")
NAMES = {"library": "{library}", "biomarker_key": "disease", "region_key": "band"}
DICTS = {row.key for row in SLOTS if row.where.endswith("uns")}  # not looked into any deeper


def _read_annotations(adata: ad.AnnData) -> None:
    corners = [[-50, -50], [800, -50], [800, 800], [-50, 800], [-50, -50]]
    feature = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [corners]}}
    path = Path(FILES.name, "slide.geojson")
    path.write_text(json.dumps(feature | {"properties": {"name": "Tumour"}}))
    st.io.read_annotations(adata, path)


def _network(adata: ad.AnnData) -> str:
    """Save a network that was trained on the section."""
    path = f"{FILES.name}/net.stx"
    st.tl.multitask(adata, None, "band", params={"epochs": 2}, save_model=path, copy=True)
    return path


# in the order in which a user calls them; each works on the output of those before it
CALLS: dict[str, Callable[[ad.AnnData], Any]] = {
    "pp.rasterize": lambda a: st.pp.rasterize(a),
    "pp.normalize": lambda a: st.pp.normalize(a, n_comps=5),
    "pp.align": lambda a: st.pp.align(a, library_key="library"),
    "pp.add_noise": lambda a: st.pp.add_noise(a, 0.1),
    "pp.split_counts": lambda a: st.pp.split_counts(a),
    "io.read_annotations": _read_annotations,
    "tl.pretrain": lambda a: st.tl.pretrain(
        a, save_model=f"{FILES.name}/start.stx", params={"width": 4, "pretrain_epochs": 1}
    ),
    "tl.segment": lambda a: st.tl.segment(a, n_segments=3, params={"pretrain_epochs": 1, "epochs": 2}),
    "tl.suggest_labels": lambda a: st.tl.suggest_labels(a, 3),
    "tl.region_graph": lambda a: st.tl.region_graph(a),
    "tl.embed": lambda a: st.tl.embed(a, params={"epochs": 2}),
    "tl.biomarkers": lambda a: st.tl.biomarkers(a, "disease"),
    "tl.compare": lambda a: st.tl.compare(a, "disease", "disease", groupby="band", library_key="disease"),
    "tl.track": lambda a: st.tl.track(a, "library_time"),
    "tl.trends": lambda a: st.tl.trends(
        a, "disease_time", subject_key="disease", groupby="band", library_key="disease"
    ),
    "tl.describe": lambda a: st.tl.describe(
        a, "disease", resource=pd.DataFrame({"ligand": ["gene1"], "receptor": ["gene2"]})
    ),
    "tl.targets": lambda a: st.tl.targets(a, pd.DataFrame({"gene_name": ["gene1"], "drug_name": ["A"]})),
    "tl.multitask": lambda a: st.tl.multitask(a, "disease", "band", params={"epochs": 2}),
    "tl.attention_fidelity": lambda a: st.tl.attention_fidelity(a, _network(a), max_regions=4),
    "tl.distill": lambda a: st.tl.distill(a, _network(a), save_model=f"{FILES.name}/student.stx", params={"epochs": 2}),
    "tl.evaluate": lambda a: st.tl.evaluate(a, ["lda"], region_key="band", n_seeds=1, max_folds=2),
    "tl.tune": lambda a: st.tl.tune(
        a, "unet", region_key="band", n_folds=2, max_folds=1, space={"width": [4]}, search="grid", params={"epochs": 1}
    ),
}
ON_TWO = ("pp.align", "tl.track")  # of two sections, with their regions
# palettes may be stored beside any categorical, as scanpy does
IGNORED = "_colors"


def _section(library: int = 0) -> ad.AnnData:
    rng = np.random.default_rng(library)
    row, col = (a.ravel() for a in np.mgrid[:18, :16])
    band = np.minimum(row // 6, 2)
    disease = (col >= 8).astype(int)
    rate = np.ones((len(row), 24))
    for k in range(3):
        rate[:, k * 6 : (k + 1) * 6] += 5.0 * (band == k)[:, None]
    rate[:, 18:20] += 4.0 * disease[:, None]
    adata = ad.AnnData(sparse.csr_matrix(rng.poisson(rate).astype(np.float32)))
    adata.var_names = [f"gene{i}" for i in range(adata.n_vars)]
    adata.obs_names = [f"{LIBRARIES[library]}_spot{i}" for i in range(adata.n_obs)]
    adata.obs["band"] = pd.Categorical(np.array(["a", "b", "c"], dtype=object)[band])
    adata.obs["disease"] = pd.Categorical(np.array(["healthy", "tumour"], dtype=object)[disease])
    adata.obs["library_time"] = float(library)
    adata.obs["disease_time"] = disease.astype(float)
    adata.obs["array_row"], adata.obs["array_col"] = row, 2 * col + row % 2
    adata.obsm["spatial"] = np.c_[(2 * col + row % 2) * 50.0, row * 50.0 * np.sqrt(3)]
    adata.uns["spatial"] = {LIBRARIES[library]: {"images": {}, "scalefactors": {"spot_diameter_fullres": 55.0}}}
    return adata


def _two_sections() -> ad.AnnData:
    adata = ad.concat([_section(0), _section(1)], label="library", keys=LIBRARIES)
    st.tl.region_graph(adata, "band", max_size=20, library_key="library")
    return adata


def _walk(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and path not in DICTS:
        for key, inner in value.items():
            yield from _walk(inner, f"{path}/{'{library}' if key in LIBRARIES else key}")
    else:
        yield path, value


def _slots(adata: ad.AnnData, prefix: str = "") -> dict[tuple[str, str], Any]:
    """Return every slot of an AnnData, and of the regions inside it, by (where, key)."""
    found: dict[tuple[str, str], Any] = {(f"{prefix}X", ""): adata.X}
    for name in ("obs", "var", "obsm", "varm", "obsp", "layers"):
        for key in (k for k in getattr(adata, name) if k is not None):  # anndata 0.13 lists X as a layer
            found[f"{prefix}{name}", key] = getattr(adata, name)[key]
    for key, value in adata.uns.items():
        if isinstance(value, ad.AnnData):
            found[f"{prefix}uns", key] = value
            found.update(_slots(value, "regions."))
        else:
            found.update({(f"{prefix}uns", path): inner for path, inner in _walk(value, key)})
    listed = {(row.where, row.key) for row in SLOTS}
    return {slot: value for slot, value in found.items() if not slot[1].endswith(IGNORED) or slot in listed}


def _same(a: Any, b: Any) -> bool:
    if sparse.issparse(a) and sparse.issparse(b):
        return a.shape == b.shape and a.dtype == b.dtype and (a != b).nnz == 0
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, pd.DataFrame | pd.Series):
        return a.equals(b)
    return type(a) is type(b)


@pytest.fixture(scope="module")
def written() -> dict[str, tuple[ad.AnnData, set[tuple[str, str]]]]:
    """Return, per call, the AnnData after it and the slots that it added or replaced."""
    section = _section()
    steps = {}
    for call, run in CALLS.items():
        adata = _two_sections() if call in ON_TWO else section
        before = _slots(adata.copy())
        run(adata)
        after = _slots(adata)
        fresh = {slot for slot in after if slot not in before or not _same(before[slot], after[slot])}
        steps[call] = (adata.copy(), fresh)
    return steps


def _rows(call: str) -> list[SlotRow]:
    return [row for row in SLOTS if row.call == call]


def test_table_lists_every_call_and_no_slot_twice() -> None:
    assert {row.call for row in SLOTS} == set(CALLS)
    assert len({(row.call, row.where, row.key) for row in SLOTS}) == len(SLOTS)


@pytest.mark.parametrize("call", CALLS)
def test_call_writes_exactly_the_documented_slots(call: str, written: dict[str, Any]) -> None:
    _, fresh = written[call]
    may = {(row.where, row.key.format(**NAMES)) for row in _rows(call)}
    must = {(row.where, row.key.format(**NAMES)) for row in _rows(call) if row.always}
    assert fresh - may == set(), "written but not in the table"
    assert must - fresh == set(), "in the table but not written"


TYPES = {"DataFrame": pd.DataFrame, "AnnData": ad.AnnData, "dict": Mapping, "str": str}


def _has_type(value: Any, name: str) -> bool:
    kind, _, dtype = name.partition(" ")
    if kind in TYPES:
        return isinstance(value, TYPES[kind])
    if kind == "category":
        return isinstance(value.dtype, pd.CategoricalDtype)
    if kind == "csr":
        return sparse.issparse(value) and value.format == "csr" and (not dtype or value.dtype == dtype)
    if kind in {"int", "float"}:
        return np.asarray(value).dtype.kind == kind[0]
    return np.asarray(value).dtype == np.dtype(kind)


@pytest.mark.parametrize("call", CALLS)
def test_slots_have_the_documented_types_and_shapes(call: str, written: dict[str, Any]) -> None:
    adata, _ = written[call]
    slots = _slots(adata)
    lengths = {"n_obs": adata.n_obs, "n_vars": adata.n_vars, "n_segments": 3}
    if _keys.REGIONS in adata.uns:
        lengths["n_regions"] = adata.uns[_keys.REGIONS].n_obs
    for row in _rows(call):
        value = slots.get((row.where, row.key.format(**NAMES)))
        if value is None and not row.always:
            continue
        assert row.type == "as X was" or _has_type(value, row.type), f"{row.code} is {type(value)}, not {row.type}"
        if row.shape != "-":
            names = row.shape.split(" x ")
            assert len(np.shape(value)) == len(names), f"{row.code} has shape {np.shape(value)}, not {row.shape}"
            for name, length in zip(names, np.shape(value), strict=True):
                wanted = int(name) if name.isdigit() else lengths.get(name, length)
                assert length == wanted, f"{row.code} has shape {np.shape(value)}, not {row.shape}"


@pytest.mark.parametrize("call", [*ON_TWO, list(CALLS)[-1]])  # the last holds the slots of all others
def test_slots_survive_files(call: str, written: dict[str, Any], tmp_path: Path) -> None:
    adata, _ = written[call]
    for back in read_back(adata, tmp_path):
        assert_same(adata, back)


@pytest.fixture(scope="module")
def written_to_spatialdata() -> dict[str, ad.AnnData]:
    """Return, per call, the AnnData of a SpatialData with positions in its circles only."""
    section, steps = st.io.to_spatialdata(_section()), {}
    for call, run in CALLS.items():
        sdata = st.io.to_spatialdata(_two_sections()) if call in ON_TWO else section
        sdata["table"].obsm.pop("spatial", None)
        run(sdata)
        assert "spatial" not in sdata["table"].obsm
        steps[call] = st.io.from_spatialdata(sdata)
    return steps


def _without_times(value: Any) -> Any:
    """Drop the times of training, which differ from run to run."""
    if isinstance(value, pd.DataFrame):
        return value.drop(columns="seconds", errors="ignore")
    return {key: _without_times(inner) for key, inner in value.items()} if isinstance(value, Mapping) else value


@pytest.mark.parametrize("call", CALLS)
def test_call_writes_the_same_to_spatialdata(
    call: str, written: dict[str, Any], written_to_spatialdata: dict[str, ad.AnnData]
) -> None:
    ours, theirs = written[call][0].copy(), written_to_spatialdata[call]
    ours.uns, theirs.uns = _without_times(ours.uns), _without_times(theirs.uns)
    assert_equal(ours, theirs)


def test_row_code_is_valid_python_access() -> None:
    assert SlotRow("tl.segment", "obs", "segment", "", "", "").code == 'obs["segment"]'
    assert SlotRow("tl.segment", "uns", "a/b", "", "", "").code == 'uns["a"]["b"]'
    assert SlotRow("tl.embed", "regions.obsp", "attention", "", "", "").code == 'uns["regions"].obsp["attention"]'
    assert SlotRow("tl.region_graph", "regions.X", "", "", "", "").code == 'uns["regions"].X'
