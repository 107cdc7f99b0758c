"""Tuning: search spaces, results, studies shared by several processes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import optuna
import pandas as pd
import pytest
from conftest import QUICK_NET, QUICK_UNET, assert_same, read_back

import stxtools as st

FIXED = {k: v for k, v in QUICK_UNET.items() if k not in ("width", "sigmas")} | {"epochs": 2, "pretrain": "none"}
NET = QUICK_NET | {"epochs": 2}


@pytest.fixture
def adata(generated: Callable[..., ad.AnnData]) -> ad.AnnData:
    return generated(150, 12, difficulty=0.2, random_state=1)


def _unet(adata: ad.AnnData, **how: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {"region_key": "compartment", "params": FIXED, "space": {"width": [4, 8]}}
    settings |= {"n_folds": 2, "max_folds": 1, "accelerator": "cpu"}
    st.tl.tune(adata, "unet", **settings | how)
    return adata.uns["tune"]


def test_best_trial_survives_files_and_is_accepted_as_params(adata: ad.AnnData, tmp_path: Path) -> None:
    level = optuna.logging.get_verbosity()
    found = _unet(adata, search="grid")
    assert optuna.logging.get_verbosity() == level
    trials = found["trials"]
    assert sorted(trials["width"]) == [4, 8]
    best = trials.loc[trials["value"].idxmax()]
    assert found["best_value"] == best["value"]
    assert found["best_params"]["width"] == best["width"]
    np.testing.assert_allclose(trials["value"], trials["value_region"])
    for back in read_back(adata, tmp_path):
        assert_same(dict(back.uns["tune"]), dict(found))
        assert st.models.Segmenter(back.uns["tune"]["best_params"]).params.width == best["width"]


def test_folds_that_test_a_single_class_do_not_count(adata: ad.AnnData) -> None:
    x, y = (np.argsort(np.argsort(values)) / adata.n_obs for values in adata.obsm["spatial"].T)
    adata.obs["corner"] = pd.Categorical(np.where((x < 0.35) == (y < 0.35), "in", "out"))
    adata.obs.loc[(x > 0.35) & (y > 0.35), "corner"] = "out"
    adata.obs.loc[(x > 0.75) & (y > 0.75), "corner"] = "in"
    st.tl.evaluate(adata, ["nearest_label"], region_key="corner", n_folds=8, n_seeds=1, accelerator="cpu")
    assert 0 < adata.uns["evaluation"]["auroc"].isna().sum() < 8
    how: dict[str, Any] = {"region_key": "corner", "n_folds": 8, "n_trials": 2, "search": "grid"}
    trials = _unet(adata, **how, max_folds=None)["trials"]  # the same folds
    assert trials["state"].eq("COMPLETE").all()
    assert trials["n_folds"].eq(8).all()
    assert trials["value"].between(0, 1).all()
    adata.obs["half"] = pd.Categorical(np.where(x < 0.5, "left", "right"))
    adata.obs.loc[x < 0.5, "corner"] = "out"
    with pytest.raises(ValueError, match=r"Every fold tests a single class of `adata\.obs\['corner'\]`"):
        _unet(adata, **how, scheme="library", library_key="half")


def test_same_seed_gives_the_same_trials(adata: ad.AnnData) -> None:
    how: dict[str, Any] = {"space": {"width": [4, 8], "lr": [1e-3, 3e-3, 1e-2]}, "n_trials": 2}
    pd.testing.assert_frame_equal(*(_unet(adata, **how)["trials"].drop(columns="seconds") for _ in range(2)))


def test_grid_of_task_weights_is_searched_and_drawn(adata: ad.AnnData) -> None:
    st.tl.tune(
        adata, "weights", region_key="compartment", biomarker_key="disease", n_folds=2, max_folds=1,
        space={"alpha": [0.5, 1.0], "beta": [0.5, 2.0]}, params=NET, stages={"segment": {"params": QUICK_UNET}},
        prune=False, accelerator="cpu",
    )  # fmt: skip
    found = adata.uns["tune"]
    assert set(zip(found["trials"]["alpha"], found["trials"]["beta"], strict=True)) == {
        (0.5, 0.5), (0.5, 2.0), (1.0, 0.5), (1.0, 2.0)
    }  # fmt: skip
    np.testing.assert_allclose(
        found["trials"]["value"], found["trials"][["value_biomarker", "value_region"]].mean(axis=1)
    )
    assert st.models.TissueNet(found["best_params"]).params.alpha in (0.5, 1.0)
    ax = st.pl.sensitivity(adata)
    shown = sorted(float(t.get_text()) for t in ax.texts)
    np.testing.assert_allclose(shown, sorted(found["trials"]["value"].round(3)), atol=1e-9)
    frame = ax.patches[0]
    best = found["trials"].loc[found["trials"]["value"].idxmax()]
    assert frame.get_x() == [0.5, 1.0].index(best["alpha"])
    assert frame.get_y() == [2.0, 0.5].index(best["beta"])
    with pytest.raises(KeyError, match="lr"):
        st.pl.sensitivity(adata, "lr")
    assert found["trials"]["value_sd"].isna().all()  # one fold has no spread
    found["trials"]["value_sd"] = [0.1, 0.2, 0.3, 0.4]
    spread = sorted(zip(found["trials"]["value"].map("{:.3f}".format), found["trials"]["value_sd"], strict=True))
    texts = [t.get_text().split("\n± ") for t in st.pl.sensitivity(adata).texts]
    assert sorted((value, float(sd)) for value, sd in texts) == spread  # values may be equal


def test_storage_resumes_studies_of_the_same_data_and_settings(adata: ad.AnnData, tmp_path: Path) -> None:
    how: dict[str, Any] = {"params": FIXED | {"width": 4}, "storage": f"sqlite:///{tmp_path / 'tune.db'}"}
    how["search"] = "random"
    first = _unet(adata, space={"weight_decay": [0.0]}, n_trials=2, **how)
    assert len(first["trials"]) == 2
    more = _unet(adata, space={"weight_decay": [0.0]}, n_trials=3, **how)
    assert len(more["trials"]) == 3
    pd.testing.assert_frame_equal(more["trials"][:2], first["trials"])
    other = _unet(adata, space={"weight_decay": [0.1]}, n_trials=1, **how)
    assert len(other["trials"]) == 1
    assert other["params"]["study"] != more["params"]["study"] == first["params"]["study"]


def test_trials_below_the_median_are_pruned(adata: ad.AnnData) -> None:
    """The fifth trial, which learns nothing, falls below the median of four on its first fold."""
    storage = optuna.storages.InMemoryStorage()
    how: dict[str, Any] = {"space": {"lr": [1e-2, 1e-12]}, "search": "random", "storage": storage, "max_folds": None}
    how["params"] = {k: v for k, v in FIXED.items() if k != "lr"} | {"width": 4, "epochs": 3}
    _unet(adata, n_trials=1, **how)
    study = optuna.load_study(study_name=adata.uns["tune"]["params"]["study"], storage=storage)
    for lr in (1e-2, 1e-2, 1e-2, 1e-12):
        study.enqueue_trial({"lr": lr})
    found = _unet(adata, n_trials=5, **how)["trials"]
    assert found["state"].tolist() == ["COMPLETE"] * 4 + ["PRUNED"]
    assert found["n_folds"].tolist() == [2] * 4 + [1]


SCRIPT = """
import sys
import stxtools as st
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

adata = st.datasets.synthetic_tissue(150, 12, difficulty=0.2, random_state=1, show_progress=False)
st.tl.tune(
    adata, "unet", region_key="compartment", n_folds=2, max_folds=1, n_trials=3, search="random",
    space={"lr": [1e-3, 3e-3, 1e-2]},
    params={"width": 4, "epochs": 1, "pretrain": "none"}, storage=JournalStorage(JournalFileBackend(sys.argv[1])),
    accelerator="cpu",
)
sys.stdout.write(str(len(adata.uns["tune"]["trials"])))
"""


@pytest.mark.slow
def test_processes_share_a_study(tmp_path: Path) -> None:
    journal = str(tmp_path / "tune.log")
    both = [subprocess.Popen([sys.executable, "-c", SCRIPT, journal], stdout=subprocess.PIPE) for _ in range(2)]
    counts = [int(process.communicate(timeout=300)[0]) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(journal))
    trials = optuna.load_study(study_name=None, storage=storage).trials  # the only one
    assert [t.number for t in trials] == list(range(len(trials)))
    assert 3 <= len(trials) <= 4  # the last two may have begun at the same time
    assert max(counts) == len(trials)


@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ({"space": {"wide": [1]}}, ValueError, "wide"),
        ({"space": {"width": [0]}}, ValueError, "width"),
        ({"space": {"width": []}}, ValueError, "no value"),
        ({"space": {"sigmas": [(0.0,)]}}, TypeError, "sigmas"),
        ({"space": {"epochs": [2]}}, ValueError, "either searched"),
        ({"space": {"width": 8}}, TypeError, "lists of the values"),
        ({"space": {"width": np.array(8)}}, TypeError, "lists of the values"),
        ({"params": 5}, TypeError, "`params` must be a mapping"),
        ({"stages": pd.Series([1])}, TypeError, "`stages` must be a mapping"),
        ({"storage": "nope"}, ValueError, "sqlite:///tune.db"),
        ({"accelerator": ["cpu"]}, TypeError, "`accelerator`"),
        ({"search": "bayes"}, ValueError, "search"),
        ({"scheme": "random"}, ValueError, "scheme"),
        ({"stages": {"segment": {}}}, ValueError, "stages"),
        ({"region_key": "none"}, KeyError, "none"),
    ],
)
def test_wrong_arguments_leave_the_data_unchanged(
    adata: ad.AnnData, how: dict[str, Any], error: type[Exception], words: str
) -> None:
    before = adata.copy()
    with pytest.raises(error, match=words):
        _unet(adata, **how)
    with pytest.raises(ValueError, match="balances two losses"):
        st.tl.tune(adata, "weights", region_key="compartment")
    assert_same(before, adata)
