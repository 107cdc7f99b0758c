"""Calls in several threads equal calls in sequence, and none changes global state."""

from __future__ import annotations

import gc
import logging
import os
import random
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import anndata as ad
import matplotlib as mpl
import numpy as np
import pytest
import torch
from conftest import assert_same
from threadpoolctl import threadpool_info, threadpool_limits

import stxtools as st
from stxtools._progress import progress_bar
from stxtools.nn import seeded

HOW = {"show_progress": False, "accelerator": "cpu"}


def _state() -> dict[str, object]:
    manager = logging.root.manager
    levels = {n: x.level for n, x in manager.loggerDict.items() if isinstance(x, logging.Logger) and x.level}
    return {
        "torch generator": torch.get_rng_state().tolist(),
        "torch threads": torch.get_num_threads(),
        "grad": torch.is_grad_enabled(),
        "dtype": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "numpy generator": [str(v) for v in np.random.get_state()],  # noqa: NPY002
        "numpy errors": np.geterr(),
        "random": random.getstate(),
        "log levels": levels,
        "root handlers": list(logging.root.handlers),
        "rcParams": dict(mpl.rcParams),
        "warnings": list(warnings.filters),
        "interrupt": signal.getsignal(signal.SIGINT),
        "collector": (gc.isenabled(), gc.get_threshold(), gc.get_freeze_count()),
    }


@pytest.fixture
def two_torch_threads():
    """Set two threads: the tests run with one, beside which a call that sets one would not show."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_calls_change_no_state_of_the_process(
    two_torch_threads, make_section, quick_unet, quick_net, tmp_path, monkeypatch
):
    cuda_seeds = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", cuda_seeds.append)  # it waits for the first use of a card
    adata = make_section(libraries=2)
    quick_unet |= {"epochs": 1, "steps_per_epoch": 1}
    quick_net |= {"epochs": 1}
    adata.obs["half"] = np.where(adata.obsm["spatial"][:, 0] > 600, "left", "right")
    how, unet, net = HOW | {"library_key": "library"}, tmp_path / "m.stx", tmp_path / "n.stx"
    calls = {
        "segment": lambda: st.tl.segment(adata, 3, params=quick_unet, save_model=unet, **how),
        "segment with a model": lambda: st.tl.segment(adata, model=unet, key_added="again", **how),
        "pretrain": lambda: st.tl.pretrain(adata, params=quick_unet, save_model=tmp_path / "p.stx", **how),
        "region_graph": lambda: st.tl.region_graph(adata, "segment", library_key="library", max_size=20),
        "embed": lambda: st.tl.embed(adata, params=quick_net, **HOW),
        "multitask": lambda: st.tl.multitask(adata, "half", "band", params=quick_net, save_model=net, **HOW),
        "distill": lambda: st.tl.distill(adata, net, params={"epochs": 1}, save_model=tmp_path / "s.stx", **how),
    }

    def diverging() -> None:
        with pytest.raises(ValueError, match="diverged"):
            st.tl.segment(adata, 3, params=quick_unet | {"lr": 1e30}, **how)

    for name, call in (calls | {"diverging segment": diverging}).items():
        before = _state()
        call()
        after = _state()
        changed = [key for key in before if before[key] != after[key]]
        assert not changed, f"{name} changes {changed}"
        assert not cuda_seeds, f"{name} seeds all cards"


@contextmanager
def _double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "settings",
    [
        torch.no_grad, torch.inference_mode, _double, lambda: torch.device("meta"),
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    ],
    ids=["no_grad", "inference_mode", "float64", "device", "autocast"],
)  # fmt: skip
def test_torch_settings_of_the_caller_change_no_result(settings, line, quick_unet, quick_net, tmp_path) -> None:
    how = HOW | {"library_key": "library"}

    def run() -> ad.AnnData:
        adata = line.copy()
        st.tl.segment(adata, 2, params=quick_unet, key_added="found", **how)
        st.tl.multitask(adata, None, "band", params=quick_net, save_model=tmp_path / "net.stx", **HOW)
        st.tl.attention_fidelity(adata, tmp_path / "net.stx", max_regions=3, of="network", show_progress=False)
        return adata

    expected = run()
    with settings():
        before = _torch_settings()
        assert_same(run(), expected)
        with pytest.raises(ValueError, match="diverged"):
            st.tl.segment(line, 2, params=quick_unet | {"lr": 1e30}, **how)
        assert _torch_settings() == before


def _torch_settings() -> tuple[object, ...]:
    modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
    return *modes, torch.get_default_dtype(), torch.get_default_device()


@pytest.fixture
def one_torch_thread():
    """Sums in one order: how torch and BLAS divide work among threads of their own changes the last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(before)


def test_calls_in_several_threads_equal_calls_in_sequence(one_torch_thread, line, make_section, quick_unet, quick_net):
    sections = [make_section(seed=s) for s in (0, 1)]
    jobs = [
        lambda: st.tl.segment(sections[0], 3, params=quick_unet, random_state=1, copy=True, **HOW),
        lambda: st.tl.embed(line, params=quick_net, copy=True, **HOW),
        lambda: st.tl.segment(sections[1], 4, params=quick_unet, random_state=2, copy=True, **HOW),
    ]
    before = _state()
    serial = [job() for job in jobs]
    with ThreadPoolExecutor(3, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        together = [future.result() for future in [pool.submit(job) for job in jobs]]
    for one, other in zip(serial, together, strict=True):
        assert_same(one, other)
    after = _state()
    # the libraries' `catch_warnings` is not safe in threads (Python says so): it may leave a filter, but lose none
    kept, found = before.pop("warnings"), after.pop("warnings")
    assert [filter_ for filter_ in kept if filter_ not in found] == []
    assert [key for key in before if before[key] != after[key]] == []


def test_raster_cache_written_by_another_thread_changes_no_result(make_section, monkeypatch):
    class WrittenByOthers(dict):
        """What calls remember, into which another thread writes at once."""

        def __setitem__(self, key, made):
            super().__setitem__(key, made)
            super().__setitem__(key, (b"of other coordinates", {"raster": "another"}))

    adata = make_section()
    expected = st.tl.region_graph(adata, "band", copy=True)
    monkeypatch.setattr("stxtools._data.sections._CACHE", WrittenByOthers())
    assert_same(expected, st.tl.region_graph(adata, "band", copy=True))


def _run(script: str, **env: str) -> None:
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | env, check=False)
    assert done.returncode == 0, done.stderr


_NUMBA_BETWEEN = """
import numba, numpy as np, torch
import stxtools as st

adata = st.datasets.synthetic_tissue(200, 12, show_progress=False)
adata.obsm["X_pca"] = np.random.default_rng(0).normal(size=(200, 8))
how = {"params": {"width": 8, "epochs": 1, "pretrain": "none"}, "show_progress": False, "copy": True}
before = torch.get_num_threads()
first = st.tl.segment(adata, 2, **how)
numba.get_num_threads()  # starts its threads, as a parallel function of scanpy does
assert torch.get_num_threads() == before, torch.get_num_threads()
assert (st.tl.segment(adata, 2, **how).obsm["X_unet"] == first.obsm["X_unet"]).all()
"""


def test_numba_threads_started_between_two_calls_change_no_result() -> None:
    _run(_NUMBA_BETWEEN, OMP_NUM_THREADS="1", NUMBA_NUM_THREADS="2")


_FIRST_LIGHTNING = """
import logging, torch
import stxtools as st

def levels():
    loggers = logging.root.manager.loggerDict.items()
    return {name: found.level for name, found in loggers if isinstance(found, logging.Logger) and found.level}

adata = st.datasets.synthetic_tissue(100, 12, show_progress=False)
st.tl.segment(adata, 2, params={"width": 8, "epochs": 1, "pretrain": "none"}, show_progress=False)
before = levels()
try:
    st.tl.segment(adata, 2, accelerator="nope", show_progress=False)
except ValueError as err:
    assert "`accelerator='nope'`" in str(err), err
assert levels() == before, (before, levels())
"""


def test_first_import_of_lightning_keeps_the_levels_of_loggers() -> None:
    _run(_FIRST_LIGHTNING)


_GRAPH_LAYERS = """
import stxtools as st

adata = st.datasets.synthetic_tissue(200, 12, show_progress=False)
st.tl.region_graph(adata, "compartment", max_size=20)
for conv in ("gatv2", "sum"):
    st.tl.embed(adata, params={"conv": conv, "epochs": 1}, show_progress=False)
"""


def test_code_that_pytorch_geometric_generates_is_not_left_behind(tmp_path) -> None:
    _run(_GRAPH_LAYERS, TMPDIR=str(tmp_path))
    assert [path.name for path in tmp_path.glob("*.py")] == []


_FIRST_SCIKIT_LEARN = """
import random, sys
import stxtools as st

adata = st.datasets.synthetic_tissue(200, 12, n_patients=2, show_progress=False)
before = random.getstate()
st.tl.segment(adata, library_key="section", params={"width": 8, "epochs": 1}, show_progress=False)
assert "sklearn.metrics" in sys.modules
assert random.getstate() == before
"""


def test_first_import_of_scikit_learn_keeps_the_state_of_random() -> None:
    _run(_FIRST_SCIKIT_LEARN)


def test_seeding_restores_the_generator_of_an_apple_device(monkeypatch) -> None:
    """On a stand-in for the device's generator."""
    states = [torch.tensor([1])]
    monkeypatch.setattr("torch.mps.get_rng_state", lambda: states[-1])
    monkeypatch.setattr("torch.mps.set_rng_state", states.append)
    monkeypatch.setattr("torch.manual_seed", lambda seed: states.append(torch.tensor([seed])))
    with seeded(7, torch.device("mps")):
        assert states[-1] == 7
    assert [int(state) for state in states] == [1, 7, 1]
    with seeded(7):
        assert len(states) == 3, "on the CPU nothing of the device is touched"


def _blas_threads() -> int:
    return max(found["num_threads"] for found in threadpool_info() if found["user_api"] == "blas")


@pytest.mark.parametrize(("before", "within"), [(16, 4), (2, 2)])
def test_calls_limit_blas_threads_and_restore_them(before: int, within: int) -> None:
    @progress_bar()
    def call() -> int:
        return _blas_threads()

    with threadpool_limits(before, "blas"):
        assert call() == within
        assert _blas_threads() == before
