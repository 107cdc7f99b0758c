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
from concurrent.futures import ThreadPoolExecutor

import matplotlib as mpl
import numpy as np
import pytest
import torch
from conftest import assert_same
from threadpoolctl import threadpool_info, threadpool_limits

import stxtools as st
from stxtools._progress import progress_bar

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


def _deep_calls(adata, quick_unet, quick_net, folder):
    return {
        "segment": lambda: st.tl.segment(adata, 3, library_key="library", params=quick_unet,
                                         save_model=folder / "m.stx", **HOW),
        "segment with a model": lambda: st.tl.segment(adata, model=folder / "m.stx", library_key="library",
                                                      key_added="again", **HOW),
        "pretrain": lambda: st.tl.pretrain(adata, library_key="library", params=quick_unet,
                                           save_model=folder / "p.stx", **HOW),
        "region_graph": lambda: st.tl.region_graph(adata, "segment", library_key="library", max_size=20),
        "embed": lambda: st.tl.embed(adata, params=quick_net, **HOW),
        "multitask": lambda: st.tl.multitask(adata, "band", "segment", params=quick_net, key_added="joint", **HOW),
    }  # fmt: skip


@pytest.fixture
def two_math_threads():
    """The tests run with one thread of mathematics, and a call that sets one would not show."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_no_deep_call_changes_the_state_of_the_process(
    two_math_threads, line, make_section, quick_unet, quick_net, tmp_path, monkeypatch
):
    seeds_of_cards = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds_of_cards.append)  # it waits for the first use of a card
    adata = make_section(libraries=2)
    quick_unet |= {"epochs": 1, "steps_per_epoch": 1}
    quick_net |= {"epochs": 1}
    adata.obs["half"] = np.where(adata.obsm["spatial"][:, 0] > 600, "left", "right")
    calls = _deep_calls(adata, quick_unet, quick_net, tmp_path)
    net = tmp_path / "n.stx"
    calls["multitask"] = lambda: st.tl.multitask(adata, "half", "band", params=quick_net, save_model=net, **HOW)
    calls["distill"] = lambda: st.tl.distill(
        adata, net, library_key="library", params={"epochs": 1}, save_model=tmp_path / "s.stx", **HOW
    )
    for name, call in calls.items():
        before = _state()
        call()
        after = _state()
        changed = [key for key in before if before[key] != after[key]]
        assert not changed, f"{name} changes {changed}"
        assert not seeds_of_cards, f"{name} seeds all cards"


def test_state_is_given_back_after_an_error(two_math_threads, make_section, quick_unet):
    adata, before = make_section(), _state()
    with pytest.raises(ValueError, match="diverged"):
        st.tl.segment(adata, 3, params={**quick_unet, "lr": 1e30}, **HOW)
    after = _state()
    assert [key for key in before if before[key] != after[key]] == []


@pytest.fixture
def one_math_thread():
    """Sums in one order: how torch and BLAS divide work among threads of their own changes the last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(before)


def test_two_threads_give_the_bits_of_one(one_math_thread, make_section, quick_unet, quick_net):
    line = make_section(libraries=2)
    st.tl.segment(line, 3, library_key="library", params=quick_unet, **HOW)
    st.tl.region_graph(line, library_key="library", max_size=20)
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


def test_a_thread_with_other_coordinates_does_not_change_the_raster_of_this_one(make_section, monkeypatch):
    class Shared(dict):
        """What calls remember, into which another thread writes at once."""

        def __setitem__(self, key, made):
            super().__setitem__(key, made)
            super().__setitem__(key, (b"of other coordinates", {"raster": "another"}))

    adata = make_section()
    expected = st.tl.region_graph(adata, "band", copy=True)
    monkeypatch.setattr("stxtools._data.sections._CACHE", Shared())
    assert_same(expected, st.tl.region_graph(adata, "band", copy=True))


_BETWEEN = """
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


def test_threads_of_numba_between_two_calls_change_no_bit() -> None:
    env = os.environ | {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", _BETWEEN], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr


_FIRST = """
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


def test_first_use_of_lightning_leaves_the_levels_of_loggers() -> None:
    done = subprocess.run([sys.executable, "-c", _FIRST], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _blas_threads() -> int:
    return max(found["num_threads"] for found in threadpool_info() if found["user_api"] == "blas")


@pytest.mark.parametrize(("before", "within"), [(16, 4), (2, 2)])
def test_calls_take_few_blas_threads_and_give_the_others_back(before: int, within: int) -> None:
    @progress_bar()
    def call() -> int:
        return _blas_threads()

    with threadpool_limits(before, "blas"):
        assert call() == within
        assert _blas_threads() == before
