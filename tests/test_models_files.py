"""Model files: complete writes, round trips, and errors for damaged content."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as hs
from safetensors import safe_open
from safetensors.numpy import save_file

import stxtools as st
from stxtools.models._storage import _checksum, write_model

KINDS = {
    "segmenter": st.models.Segmenter,
    "pretrained": st.models.Segmenter,
    "net": st.models.TissueNet,
    "net_student": st.models.TissueStudent,
}
QUICK = {"epochs": 1, "pretrain_epochs": 1, "steps_per_epoch": 1}
HEAD = "stxtools-model"
OTHER = "written by another version of stxtools"


N_OBS = 157  # no other length in a model is a prime of this size
SAVED: list[Any] = []  # the models, as they were saved


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One small model of each kind."""
    at = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patched:
        for kind in {*KINDS.values()}:
            patched.setattr(kind, "save", lambda m, path, save=kind.save: (SAVED.append(m), save(m, path)))
        _train(at)
    yield at
    SAVED.clear()


def _train(at: Path) -> None:
    adata = st.datasets.synthetic_tissue(n_obs=N_OBS, n_vars=60)
    quiet: dict[str, Any] = {"show_progress": False, "accelerator": "cpu"}
    st.tl.segment(adata, n_segments=2, save_model=at / "segmenter", params=QUICK, **quiet)
    st.tl.pretrain(adata, save_model=at / "pretrained", params={"pretrain_epochs": 1, "steps_per_epoch": 1}, **quiet)
    st.tl.region_graph(adata, "compartment", max_size=20)
    params = {"epochs": 1, "pretrain_epochs": 1, "unet_width": 4, "hidden": 8, "out_channels": 8, "heads": 2}
    st.tl.multitask(adata, "disease", "compartment", save_model=at / "net", params=params, **quiet)
    st.tl.distill(adata, at / "net", save_model=at / "net_student", params={"epochs": 1}, **quiet)


def _header_and_arrays(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    with safe_open(str(path), framework="numpy") as file:
        return json.loads(file.metadata()[HEAD]), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118


def _write(path: Path, header: Any, arrays: dict[str, np.ndarray]) -> None:
    """Write what is given; a checksum in it stays as it is."""
    text = header if isinstance(header, str) else json.dumps(header)
    save_file(arrays, str(path), metadata={HEAD: text})


def _load_raises(kind: str, path: Path, match: str = "damaged") -> str:
    with pytest.raises(ValueError, match=match) as info:
        KINDS[kind].load(path)
    assert str(path) in str(info.value)
    assert "again" in str(info.value)  # how to mend it
    return str(info.value)


@pytest.mark.parametrize("kind", KINDS)
def test_loaded_model_is_saved_to_the_same_bytes(folder: Path, tmp_path: Path, kind: str) -> None:
    state = torch.random.get_rng_state()
    model = KINDS[kind].load(folder / kind)
    assert torch.equal(state, torch.random.get_rng_state())
    model.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (folder / kind).read_bytes()
    anyone = st.models.load(folder / kind)
    assert type(anyone) is KINDS[kind]
    anyone.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (folder / kind).read_bytes()
    header, arrays = _header_and_arrays(folder / kind)
    _write(tmp_path / "unsigned", {k: v for k, v in header.items() if k != "checksum"}, arrays)
    assert "checksum" in _load_raises(kind, tmp_path / "unsigned")


def _shapes(value: Any, seen: set[int]) -> Iterator[tuple[int, ...]]:
    """Shapes of all arrays, tensors and sparse matrices that an object leads to."""
    if id(value) in seen or isinstance(value, (type, str)):
        return
    seen.add(id(value))
    if hasattr(value, "shape"):
        yield tuple(value.shape)
    parts = list(value.values()) if isinstance(value, dict) else list(value) if isinstance(value, (list, tuple)) else []
    for part in [*parts, *getattr(value, "__dict__", {}).values()]:
        yield from _shapes(part, seen)


def test_fitted_models_hold_no_training_data(folder: Path) -> None:
    assert {type(m) for m in SAVED} == {*KINDS.values()}
    for model in SAVED:
        found = list(_shapes(model, set()))
        assert len(found) > 5
        assert not [shape for shape in found if N_OBS in shape], type(model)


@pytest.mark.parametrize("kind", KINDS)
def test_changed_array_or_config_fails_the_checksum(folder: Path, tmp_path: Path, kind: str) -> None:
    header, arrays = _header_and_arrays(folder / kind)
    for name, value in arrays.items():
        other = value.copy()
        other.flat[0] = 1 - other.flat[0]
        for changed in ({}, {name: other}):
            rest = {k: v for k, v in arrays.items() if k != name}
            _write(tmp_path / "bad", header, rest | changed)
            assert "checksum" in _load_raises(kind, tmp_path / "bad"), name
    for key in header["config"]:
        for config in ({key: 17}, {}):
            rest = {k: v for k, v in header["config"].items() if k != key}
            _write(tmp_path / "bad", header | {"config": rest | config}, arrays)
            assert "checksum" in _load_raises(kind, tmp_path / "bad"), key


@pytest.mark.parametrize("kind", KINDS)
def test_missing_weight_or_config_entry_is_named(folder: Path, tmp_path: Path, kind: str) -> None:
    """Whole files of another state of the package."""
    header, arrays = _header_and_arrays(folder / kind)
    weight = next(name for name in arrays if name.startswith("net."))
    write_model(tmp_path / "bad", header["kind"], header["config"], {k: v for k, v in arrays.items() if k != weight})
    assert weight.removeprefix("net.").removeprefix("unet.") in _load_raises(kind, tmp_path / "bad", OTHER)
    config = {k: v for k, v in header["config"].items() if k != "use_rep"}
    write_model(tmp_path / "bad", header["kind"], config, arrays)
    assert "use_rep" in _load_raises(kind, tmp_path / "bad", OTHER)


WRONG = (None, -1, 10**9, "x", [], {}, True, float("nan"), [1.5, 2.5], {"__array__": "nope"}, {"__kind__": "Trees"})


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from _leaves(value[key], (*path, key))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=hs.sampled_from([*KINDS]), at=hs.integers(0, 10**6), wrong=hs.sampled_from(WRONG))
def test_any_other_description_loads_or_is_refused(
    folder: Path, tmp_path: Path, kind: str, at: int, wrong: object
) -> None:
    """Whatever a file with a valid checksum says, no other error comes, and the file is named."""
    header, arrays = _header_and_arrays(folder / kind)
    paths = list(_leaves(header["config"]))
    *outer, last = paths[at % len(paths)]
    inner = header["config"]
    for key in outer:
        inner = inner[key]
    inner[last] = wrong
    write_model(tmp_path / "bad", header["kind"], header["config"], arrays)
    said = f"{tmp_path / 'bad'} again"
    try:
        st.models.load(tmp_path / "bad")
    except ValueError as err:
        said = str(err)
    assert str(tmp_path / "bad") in said
    assert "again" in said


@pytest.mark.parametrize(
    ("path", "wrong", "words"),
    [
        (("params",), None, "'NoneType'"),
        (("scaling",), None, "scaling is 'None', not FeatureScaling"),
        (("scaling", "scale"), -1, "FeatureScaling.scale is '-1', not Floats32"),
        (("projection", "genes"), ["a"], "GeneProjection.mean has the shape"),
        (("projection", "target_sum"), True, "target_sum is 'True', not float"),
        (("classes", 0), -1, r"classes is .*, not list\[str\]"),
        (("temperature",), [1.5, 1.5], r"temperature is '\[1.5, 1.5\]', not float"),
        (("by_genes",), "x", "by_genes is 'x', not GeneClassifier"),
        (("image_key",), 7, "image_key is '7'"),
    ],
)
def test_value_of_a_wrong_type_is_named(folder: Path, tmp_path: Path, path: Any, wrong: object, words: str) -> None:
    header, arrays = _header_and_arrays(folder / "segmenter")
    inner = header["config"]
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = wrong
    write_model(tmp_path / "bad", header["kind"], header["config"], arrays)
    with pytest.raises(ValueError, match=words):
        st.models.load(tmp_path / "bad")


def test_arrays_of_another_type_or_shape_are_refused(folder: Path, tmp_path: Path) -> None:
    """Each would raise, or compute nonsense, only when the model is applied."""
    for kind in KINDS:
        header, arrays = _header_and_arrays(folder / kind)
        weight = next(name for name in arrays if name.startswith("net."))
        for name in (weight, "scaling.scale", "projection.components"):
            value = arrays[name]
            for other in (value.astype(np.int8), value.reshape(-1)[:-1], np.full_like(value, np.nan)):
                changed = arrays | {name: other}
                content = header | {"checksum": None}
                content["checksum"] = _checksum({k: v for k, v in content.items() if k != "checksum"}, changed)
                _write(tmp_path / "bad", content, changed)
                _load_raises(kind, tmp_path / "bad", "damaged|another version")


def test_model_of_sections_that_share_a_centre_in_part_is_saved(folder: Path, tmp_path: Path) -> None:
    """Sections with a centre of their own have no error: NaN."""
    model = st.models.Segmenter.load(folder / "segmenter")
    n = model.n_features
    parts = {"own": np.zeros((3, n), np.float32), "shared": np.zeros((3, n), np.float32), "axes": np.eye(n)[:, :2]}
    model.scaling = replace(model.scaling, error=np.array([0.1, 0.1, np.nan]), **parts)
    model.save(tmp_path / "m")
    assert np.isnan(st.models.load(tmp_path / "m").scaling.error[2])


def test_trees_whose_nodes_form_a_circle_are_refused(folder: Path, tmp_path: Path) -> None:
    header, arrays = _header_and_arrays(folder / "net")
    nodes: dict[str, np.ndarray] = {
        "child": np.array([[1, 2], [1, 1], [2, 2]], np.int32), "feature": np.zeros(3, np.int32),
        "threshold": np.array([0, np.inf, np.inf]), "share": np.full((3, 2), 0.5, np.float32),
        "roots": np.zeros(1, np.int64),
    }  # fmt: skip
    stack = header["config"]["ensembles"]["biomarker"]["unlabelled"]
    stack["trees"] = {"__kind__": "Trees", **{name: {"__array__": f"trees.{name}"} for name in nodes}}

    def write() -> None:
        content = arrays | {f"trees.{name}": value for name, value in nodes.items()}
        write_model(tmp_path / "bad", header["kind"], header["config"], content)

    write()
    assert st.models.load(tmp_path / "bad").ensembles["biomarker"].unlabelled.trees(np.ones((4, 1))).shape == (4, 2)
    nodes["child"][2] = 0  # back to the root: a walk would never end
    write()
    assert "order of walks" in _load_raises("net", tmp_path / "bad", OTHER)


def test_removed_parameter_in_an_older_file_is_ignored(folder: Path, tmp_path: Path) -> None:
    header, arrays = _header_and_arrays(folder / "net")
    config = header["config"] | {"params": header["config"]["params"] | {"objective": "masked"}}
    write_model(tmp_path / "older", header["kind"], config, arrays)
    assert st.models.load(tmp_path / "older").params == st.models.load(folder / "net").params


def test_older_name_of_the_members_for_unlabelled_sections_is_read(folder: Path, tmp_path: Path) -> None:
    header, arrays = _header_and_arrays(folder / "net")
    for ensemble in header["config"]["ensembles"].values():
        ensemble["elsewhere"] = ensemble.pop("unlabelled")
    write_model(tmp_path / "older", header["kind"], header["config"], arrays)
    expected, read = (
        st.models.load(path).ensembles["biomarker"].unlabelled for path in (folder / "net", tmp_path / "older")
    )
    assert read.weights == expected.weights


def test_sizes_that_do_not_match_the_arrays_raise_before_allocation(folder: Path, tmp_path: Path) -> None:
    """Sizes of the description are compared with what is there before anything is allocated."""
    for kind, sizes in (("segmenter", ("width", "kernel_size")), ("net", ("hidden", "layers", "unet_width"))):
        header, arrays = _header_and_arrays(folder / kind)
        for name in sizes:
            for size in (4096 if name != "layers" else 64, 63, 10**9, 10**400):
                changed = json.loads(json.dumps(header))
                changed["config"]["params"][name] = size
                write_model(tmp_path / "bad", header["kind"], changed["config"], arrays)
                _load_raises(kind, tmp_path / "bad", OTHER)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_or_truncated_bytes_raise(folder: Path, tmp_path: Path, kind: str) -> None:
    """A file that was cut or in which single bytes differ is refused: the checksum covers all values."""
    content, path, rng = (folder / kind).read_bytes(), tmp_path / "bad", np.random.default_rng(0)
    for length in (0, 1, 7, 8, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        _load_raises(kind, path)
    for at in (*range(9), *rng.integers(len(content), size=30)):
        changed = bytearray(content)
        changed[at] ^= int(1 << rng.integers(8))
        path.write_bytes(bytes(changed))
        with pytest.raises(ValueError, match="bad"):
            KINDS[kind].load(path)
    path.write_bytes(content + b"more")
    _load_raises(kind, path)


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "[]", "null", '{"format": 1}', "1" * 5000, "\ud83d"])
def test_header_that_is_not_a_description_raises(folder: Path, tmp_path: Path, text: str) -> None:
    _write(tmp_path / "bad", text.encode("utf-8", "replace").decode(), _header_and_arrays(folder / "segmenter")[1])
    _load_raises("segmenter", tmp_path / "bad")
    with pytest.raises(ValueError, match="damaged"):
        st.tl.segment(st.datasets.synthetic_tissue(n_obs=60), model=tmp_path / "bad")


@pytest.mark.parametrize("load", [st.models.load, st.models.Segmenter.load])
def test_files_of_other_kinds_and_versions_raise(folder: Path, tmp_path: Path, load: Callable[[Any], Any]) -> None:
    save_file({"a": np.zeros(2)}, str(tmp_path / "other"))
    with pytest.raises(ValueError, match="not a model file written by stxtools"):
        load(tmp_path / "other")
    header, arrays = _header_and_arrays(folder / "segmenter")
    _write(tmp_path / "newer", header | {"version": 99}, arrays)
    with pytest.raises(ValueError, match="newer stxtools"):
        load(tmp_path / "newer")
    _write(tmp_path / "older", header | {"version": 1}, arrays)
    with pytest.raises(ValueError, match=r"an older stxtools .* train the model again"):
        load(tmp_path / "older")
    write_model(tmp_path / "unknown", "Student", header["config"], arrays)
    with pytest.raises(ValueError, match="holds a Student, which this version of stxtools does not have"):
        load(tmp_path / "unknown")
    (tmp_path / "text").write_text("{}")
    with pytest.raises(ValueError, match="not a model file written by stxtools"):
        load(tmp_path / "text")
    for missing in (tmp_path / "nothing", tmp_path, "a\0b", "x" * 5000):
        with pytest.raises(FileNotFoundError, match="no model file"):
            load(missing)
    with pytest.raises(TypeError, match="path"):
        load(None)


def test_model_of_another_class_raises_and_names_its_call(folder: Path) -> None:
    adata = st.datasets.synthetic_tissue(n_obs=60, n_vars=30)
    wrong: dict[str, Callable[[Any], Any]] = {
        "net": lambda m: st.tl.segment(adata, model=m),
        "net_student": lambda m: st.tl.distill(adata, m, save_model=folder / "no"),
        "segmenter": lambda m: st.tl.multitask(adata, "disease", "compartment", model=m),
        "pretrained": lambda m: st.tl.attention_fidelity(adata, m),
    }
    calls = {"net": "multitask", "net_student": "multitask", "segmenter": "segment", "pretrained": "segment"}
    for kind, call in wrong.items():
        if kind == "pretrained":
            st.tl.region_graph(adata, "compartment")
        for model, verb in ((folder / kind, "holds"), (KINDS[kind].load(folder / kind), "is")):
            says = f"{verb} a {KINDS[kind].__name__}, not a .* apply it with .st.tl.{calls[kind]}"
            with pytest.raises(ValueError, match=says):
                call(model)
    with pytest.raises(ValueError, match="holds a TissueStudent, not a TissueNet"):
        st.models.TissueNet.load(folder / "net_student")
    with pytest.raises(TypeError, match=r"`model` must be a path or a stxtools\.models\.Segmenter, not int"):
        st.tl.segment(adata, model=5)  # type: ignore[arg-type]
    assert not (folder / "no").exists()


def test_file_permissions_follow_the_umask(folder: Path, tmp_path: Path) -> None:
    model = st.models.Segmenter.load(folder / "segmenter")
    for mask, mode in ((0o022, 0o644), (0o002, 0o664), (0o077, 0o600)):
        old = os.umask(mask)
        try:
            model.save(tmp_path / "m")
        finally:
            os.umask(old)
        assert (tmp_path / "m").stat().st_mode & 0o777 == mode


def test_concurrent_writers_leave_one_complete_file(folder: Path, tmp_path: Path) -> None:
    models = [st.models.Segmenter.load(folder / "segmenter") for _ in range(4)]
    path = tmp_path / "m.stx"

    def write(model: Any) -> None:
        for _ in range(10):
            model.save(path)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, models))
    assert [p.name for p in tmp_path.iterdir()] == ["m.stx"]
    assert path.read_bytes() == (folder / "segmenter").read_bytes()


def test_full_disk_raises_and_keeps_the_old_file(folder: Path, tmp_path: Path) -> None:
    model, path = st.models.Segmenter.load(folder / "segmenter"), tmp_path / "m.stx"
    model.save(path)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # a write beyond it fails, as on a full disk
    try:
        with pytest.raises(OSError, match=r"cannot be written .*m\.stx"):
            model.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.stx"]


def test_symbolic_link_is_written_through(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "m.stx")
    st.models.Segmenter.load(folder / "segmenter").save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "m.stx").is_file()


def test_model_with_nan_weights_is_not_saved(folder: Path, tmp_path: Path) -> None:
    model = st.models.Segmenter.load(folder / "segmenter")
    assert model.net is not None
    with torch.no_grad():
        model.net.head.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="diverged"):
        model.save(tmp_path / "m")
    assert list(tmp_path.iterdir()) == []
