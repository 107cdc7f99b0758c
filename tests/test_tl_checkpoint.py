"""Checkpoints of tl.evaluate: shared by processes, damaged, with unusual names, after changes of a function."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import stxtools as st


@pytest.fixture
def adata(generated: Callable[..., ad.AnnData]) -> ad.AnnData:
    return generated(150, 12, difficulty=0.3, random_state=1)


def _without_time(table: pd.DataFrame) -> pd.DataFrame:
    return table.drop(columns="seconds")


def _counted(calls: list[int]) -> Any:
    def model(sections: list[Any], labels: list[np.ndarray], n_classes: int, random_state: int) -> list[np.ndarray]:
        calls.append(random_state)
        return [np.full((s.n_obs, n_classes), 1 / n_classes) for s in sections]

    return model


SHARED: dict[str, Any] = {"n_seeds": 2, "n_folds": 3}


@pytest.mark.parametrize("damage", [b"", b'[{"model": "m", "tar', b"5", b"\xff,not a row"])
def test_fold_of_a_damaged_file_is_run_again(adata: ad.AnnData, tmp_path: Path, damage: bytes) -> None:
    path, calls = tmp_path / "run", list[int]()
    how = {"region_key": "compartment", "biomarker_key": "disease", "checkpoint": path} | SHARED
    st.tl.evaluate(adata, {"m": _counted(calls)}, **how)
    expected, before = _without_time(adata.uns["evaluation"]), len(calls)
    assert len(list(path.iterdir())) == 6
    next(path.iterdir()).write_bytes(damage)
    for _ in range(3):
        st.tl.evaluate(adata, {"m": _counted(calls)}, **how)
        pd.testing.assert_frame_equal(_without_time(adata.uns["evaluation"]), expected)
    assert len(calls) - before == 2  # a fold is trained on both targets, and never more than once


def test_interrupted_evaluation_resumes_where_it_stopped(adata: ad.AnnData, tmp_path: Path) -> None:
    path, calls = tmp_path / "run", list[int]()

    def model(sections: list[Any], labels: list[np.ndarray], n_classes: int, random_state: int) -> list[np.ndarray]:
        calls.append(random_state)
        if len(calls) == 4:
            raise KeyboardInterrupt
        rng = np.random.default_rng(random_state)
        return [rng.dirichlet(np.ones(n_classes), size=s.n_obs) for s in sections]

    how: dict[str, Any] = {"region_key": "compartment"} | SHARED
    with pytest.raises(KeyboardInterrupt):
        st.tl.evaluate(adata, {"m": model}, checkpoint=path, **how)
    assert "evaluation" not in adata.uns
    st.tl.evaluate(adata, {"m": model}, checkpoint=path, **how)
    assert len(calls) == 4 + 3  # three were done, one was interrupted
    whole = st.tl.evaluate(adata, {"m": model}, copy=True, **how)
    assert whole is not None
    pd.testing.assert_frame_equal(_without_time(adata.uns["evaluation"]), _without_time(whole.uns["evaluation"]))
    before = len(calls)
    st.tl.evaluate(adata, {"m": model, "l": "nearest_label"}, checkpoint=path, **how)  # another model joins
    assert len(calls) == before
    assert len(adata.uns["evaluation"]) == 12


@pytest.mark.parametrize("change", ["labels", "expression", "folds", "params", "raster"])
def test_checkpoint_of_other_data_or_settings_is_not_read(adata: ad.AnnData, tmp_path: Path, change: str) -> None:
    path = tmp_path / "run"
    how: dict[str, Any] = {"region_key": "compartment", "n_seeds": 1, "checkpoint": path}
    st.tl.evaluate(adata, ["logistic"], **how)
    before = set(path.iterdir())
    if change == "labels":
        adata.obs["compartment"] = adata.obs["compartment"].to_numpy()[::-1]
    elif change == "expression":
        adata.X[0, 0] += 1
    elif change == "folds":
        how["n_folds"] = 4
    elif change == "raster":
        st.pp.rasterize(adata, pixel_size=500.0)
    else:
        how["params"] = {"logistic": {"C": 2.0}}
    st.tl.evaluate(adata, ["logistic"], **how)
    found = adata.uns["evaluation"]
    assert len(set(path.iterdir()) - before) == len(found)
    st.tl.evaluate(adata, ["logistic"], **{**how, "checkpoint": None})
    pd.testing.assert_frame_equal(_without_time(adata.uns["evaluation"]), _without_time(found))


@pytest.mark.parametrize("odd", ["a#b", 'q"q', "x,y", "new\nline", "back\\n", "#", " "])
def test_checkpoint_holds_any_names_of_keys_libraries_and_models(adata: ad.AnnData, tmp_path: Path, odd: str) -> None:
    library = odd.replace("\\", "-")  # no file holds a key with a backslash
    adata.obs[f"key{odd}"] = adata.obs["compartment"]
    adata.obs["library"] = pd.Categorical(np.where(np.arange(adata.n_obs) % 2, library, "two"))
    calls: list[int] = []
    how: dict[str, Any] = {"region_key": f"key{odd}", "checkpoint": tmp_path / "run"} | SHARED
    how |= {"scheme": "library", "library_key": "library"}
    for _ in range(2):
        st.tl.evaluate(adata, {f"m{odd}": _counted(calls)}, **how)
        assert set(adata.uns["evaluation"]["fold"]) == {library, "two"}
        assert set(adata.uns["evaluation"]["model"]) == {f"m{odd}"}
    assert len(calls) == 4


def test_checkpoint_tells_functions_apart_by_their_code(adata: ad.AnnData, tmp_path: Path) -> None:
    def sharp(sections: list[Any], labels: list[np.ndarray], n_classes: int, random_state: int) -> list[np.ndarray]:
        return [np.eye(n_classes)[np.full(s.n_obs, n_classes - 1)] for s in sections]

    calls: list[int] = []
    how = {"region_key": "compartment", "checkpoint": tmp_path / "run"} | SHARED
    st.tl.evaluate(adata, {"m": sharp}, **how)
    first = adata.uns["evaluation"]
    for _ in range(2):
        st.tl.evaluate(adata, {"m": _counted(calls)}, **how)
    assert len(calls) == 6
    assert not first["accuracy"].equals(adata.uns["evaluation"]["accuracy"])
    st.tl.evaluate(adata, {"m": sharp}, **how)  # its rows are still there
    pd.testing.assert_frame_equal(adata.uns["evaluation"], first)
    st.tl.evaluate(adata, {"m": "nearest_label"}, **how)  # another model of that name
    assert not first["accuracy"].equals(adata.uns["evaluation"]["accuracy"])


def test_checkpoint_tells_functions_apart_by_their_bound_arguments(adata: ad.AnnData, tmp_path: Path) -> None:
    def model(*args: Any, layers: Any) -> list[np.ndarray]:
        calls.append(layers)
        return [np.full((s.n_obs, args[2]), 1 / args[2]) for s in args[0]]

    calls: list[Any] = []
    bound = ([[1, 2], [3]], [[1, 2], [4]], {1, 2}, {1, 3}, np.arange(3), np.arange(4))
    for layers in (*bound, *bound):
        how = {"region_key": "compartment", "checkpoint": tmp_path / "run", "n_seeds": 1, "n_folds": 2}
        st.tl.evaluate(adata, {"m": partial(model, layers=layers)}, **how)
    assert len(calls) == 2 * len(bound)


_SHARE = """
import sys
import stxtools as st

adata = st.datasets.synthetic_tissue(150, 12, random_state=1, show_progress=False)
for _ in range(2):
    st.tl.evaluate(adata, ["lda", "nearest_label"], region_key="compartment", n_seeds=2, checkpoint=sys.argv[1],
                   show_progress=False)
sys.stdout.write(str(len(adata.uns["evaluation"])))
"""


@pytest.mark.slow
def test_processes_share_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "run"
    processes = [
        subprocess.Popen([sys.executable, "-c", _SHARE, str(path)], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    assert [p.communicate(timeout=300)[0] for p in processes] == ["20"] * 2
    assert len(list(path.iterdir())) == 20


def test_checkpoint_on_a_full_disk_is_an_os_error(adata: ad.AnnData, tmp_path: Path) -> None:
    path, before = tmp_path / "run", adata.copy()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OSError, match=r"checkpoint.*run"):
            st.tl.evaluate(adata, ["nearest_label"], region_key="compartment", checkpoint=path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(adata.uns) == list(before.uns)
    st.tl.evaluate(adata, ["nearest_label"], region_key="compartment", checkpoint=path)
    assert len(adata.uns["evaluation"]) == 25
