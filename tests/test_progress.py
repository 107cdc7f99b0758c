"""One progress bar for each public call, from start to end."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import anndata as ad
import pytest
from conftest import QUICK_NET, QUICK_UNET

import stxtools as st
from stxtools._progress import progress, progress_bar, stage

CPU = {"accelerator": "cpu", "show_progress": True}


class RecordedBar:
    """Stands for tqdm and records its calls."""

    def __init__(self) -> None:
        self.n, self.path, self.names, self.closed = 0.0, [0.0], [], False

    def update(self, n: float) -> None:
        assert not self.closed
        self.n += n
        self.path.append(self.n)

    def set_description_str(self, text: str, refresh: bool = True) -> None:
        self.names.append(text)

    def set_postfix(self, notes: dict[str, Any], refresh: bool = True) -> None: ...

    def refresh(self) -> None: ...

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[RecordedBar]:
    opened: list[RecordedBar] = []

    def open_bar() -> RecordedBar:
        opened.append(RecordedBar())
        return opened[-1]

    monkeypatch.setattr("stxtools._progress._open_bar", open_bar)
    return opened


def test_one_bar_covers_all_stages_of_segment(bars: list[RecordedBar], make_section: Callable[..., ad.AnnData]) -> None:
    adata = make_section()
    st.tl.segment(adata, 3, params=QUICK_UNET, **CPU)
    (bar,) = bars
    assert bar.closed
    assert bar.names[0] == "segment"
    assert {"segment: finding compartments", "segment: pretraining", "segment: training the U-Net"} <= set(bar.names)
    assert bar.path == sorted(bar.path)
    assert bar.path[-1] == pytest.approx(1.0)
    inside = [n for n in bar.path if 0 < n < 1]
    assert len(set(inside)) >= sum(QUICK_UNET[k] for k in ("epochs", "pretrain_epochs"))


def test_nested_call_opens_no_second_bar(bars: list[RecordedBar], make_section: Callable[..., ad.AnnData]) -> None:
    adata = make_section()
    st.tl.segment(adata, 3, params=QUICK_UNET, **CPU)
    bars.clear()
    st.tl.biomarkers(adata, "segment", protect="thinning", n_null=50, show_progress=True)
    (bar,) = bars
    assert "biomarkers: segment: training the U-Net" in bar.names
    assert "biomarkers: testing genes" in bar.names
    assert bar.path[-1] == pytest.approx(1.0)


@pytest.mark.parametrize(
    "call",
    [
        lambda a: st.tl.region_graph(a, "band", library_key="library"),
        lambda a: st.tl.embed(a, params=QUICK_NET, accelerator="cpu"),
        lambda a: st.pp.normalize(a, n_comps=3),
        lambda a: st.pp.align(a, library_key="library"),
    ],
)
def test_call_opens_one_bar_and_closes_it(
    bars: list[RecordedBar], line: ad.AnnData, monkeypatch: pytest.MonkeyPatch, call: Callable[[ad.AnnData], Any]
) -> None:
    monkeypatch.setattr(st.settings, "show_progress", True)
    call(line)
    (bar,) = bars
    assert bar.closed
    assert bar.path[-1] == pytest.approx(1.0)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_error_closes_the_bar(bars: list[RecordedBar], error: type[BaseException]) -> None:
    @progress_bar({"one": 1, "two": 3})
    def fails(*, show_progress: bool | None = None) -> None:
        with progress(2, "two") as inner:
            inner.update(1)
            raise error

    for expected in (1, 2):
        with pytest.raises(error):
            fails(show_progress=True)
        assert len(bars) == expected
        assert bars[-1].closed
        assert bars[-1].n == pytest.approx(0.5)


def test_stages_and_nested_loops_fill_their_shares_of_the_bar() -> None:
    @progress_bar({"one": 1, "two": 3})
    def works(*, show_progress: bool | None = None) -> None:
        stage("one")
        assert bar.n == 0
        with progress(2, "two") as counted:
            assert bar.n == pytest.approx(0.25)
            for step in range(2):
                with progress(4, "inner") as inner:
                    inner.update(2)
                    assert bar.n == pytest.approx(0.25 + 0.375 * step + 0.1875)
                counted.update(1)
        stage("unknown")
        with progress(4, "silent", show_progress=False) as muted:
            muted.update(4)
        assert bar.names[-1] == "works: unknown"

    bar = RecordedBar()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stxtools._progress._open_bar", lambda: bar)
        works(show_progress=True)
    assert bar.path == sorted(bar.path)


def test_bar_opens_before_the_heavy_imports() -> None:
    code = (
        "import sys, numpy as np, anndata as ad, stxtools as st\n"
        "from stxtools import _progress\n"
        "def opened(): sys.exit(10 + ('torch' in sys.modules) + ('scanpy' in sys.modules))\n"
        "_progress._open_bar = opened\n"
        "a = ad.AnnData(np.ones((20, 5), dtype=np.float32)); a.obsm['spatial'] = np.random.rand(20, 2)\n"
        "st.tl.segment(a, show_progress=True)\n"
    )
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=False, timeout=120).returncode == 10


def test_nothing_is_printed_without_a_terminal(
    make_section: Callable[..., ad.AnnData], capfd: pytest.CaptureFixture[str]
) -> None:
    st.tl.segment(make_section(), labels_key="band", params=QUICK_UNET, accelerator="cpu")
    assert capfd.readouterr() == ("", "")


def test_show_progress_of_a_wrong_type_raises() -> None:
    with pytest.raises(TypeError, match="show_progress"):
        st.datasets.synthetic_tissue(200, 20, show_progress="yes")  # type: ignore[arg-type]


def test_calls_with_show_progress_are_wrapped_in_a_bar() -> None:
    for namespace in (st.tl, st.pp):
        for name in namespace.__all__:
            function = getattr(namespace, name)
            if "show_progress" in inspect.signature(function).parameters:
                assert hasattr(function, "__wrapped__"), name


def test_warnings_point_to_the_line_of_the_user(line: ad.AnnData) -> None:
    with pytest.warns(UserWarning, match="optimistic") as found:
        st.tl.biomarkers(line, "segment", n_null=50, protect=None, library_key="library")
    assert [w.filename for w in found if "optimistic" in str(w.message)] == [__file__]
