"""The command line behind `make demo`."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from conftest import QUICK_NET, QUICK_UNET, assert_same

import stxtools as st
import stxtools.models as models
from stxtools.__main__ import main

RESULTS = {
    "adata.h5ad", "biomarkers.csv", "report.html", "segments.png", "region_graph.png", "attention.png",
    "biomarkers.png", "history.png", "run.json",
}  # fmt: skip


@pytest.fixture
def quick(monkeypatch):
    """Defaults that train in seconds."""
    for module, params in ((models.Segmenter, QUICK_UNET), (models.TissueNet, QUICK_NET)):

        def start(self, given=None, init=module.__init__, params=params):
            init(self, params if given is None else given)

        monkeypatch.setattr(module, "__init__", start)


@pytest.fixture
def section(make_section: Callable[..., ad.AnnData], tmp_path: Path) -> Path:
    adata = make_section(rows=12, cols=10)
    adata.obs["depth"] = np.asarray(adata.X.sum(axis=1)).ravel()
    adata.obs["barcode"] = adata.obs_names
    adata.obsm["X_pca"] = np.asarray(adata.X[:, :5].todense())
    adata.write_h5ad(tmp_path / "in.h5ad")
    return tmp_path / "in.h5ad"


@pytest.fixture
def no_figures(monkeypatch):
    monkeypatch.setattr("stxtools._run.pipeline.draw", lambda adata, folder: None)


def run(*args: object) -> int:
    return main(["run", *map(str, args), "--n-segments", "3", "--accelerator", "cpu"])


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def _interrupt(*args: Any, **kwargs: Any) -> None:
    raise KeyboardInterrupt


def replaced(patch: pytest.MonkeyPatch, name: str, function: Callable[..., Any]) -> None:
    """Put another function in the place of a tool; options are read from the tool's signature."""
    patch.setattr(f"stxtools.tl.{name}", functools.wraps(getattr(st.tl, name))(lambda *a, **k: function(*a, **k)))


def test_run_writes_all_results_and_prints_its_steps(quick, make_section, tmp_path, capsys):
    adata, out = make_section(libraries=2), tmp_path / "a folder" / "out"
    adata.write_h5ad(tmp_path / "in.h5ad")
    assert run("--input", tmp_path / "in.h5ad", "--out", out, "--library-key", "library", "--groupby", "band") == 0
    assert names(out) == RESULTS
    written = ad.read_h5ad(out / "adata.h5ad")
    assert {"segment", "segment_confidence", "region_id", "attention"} <= set(written.obs)
    table = pd.read_csv(out / "biomarkers.csv")
    assert set(table["group"]) == {"a", "b", "c"}
    assert len(table) == 3 * adata.n_vars
    printed = capsys.readouterr()
    assert "segment" in printed.out
    assert "time" in printed.out
    for group, part in table[table["pvals_adj"] <= 0.05].groupby("group"):
        counts = f"{len(part)} of {adata.n_vars} genes, {part['beyond_composition'].sum()} beyond"
        assert f"{group} against the rest: {counts}" in printed.out
    steps = ["read", "segment", "region_graph", "embed", "biomarkers", "figures", "write"]
    assert [line.split()[1] for line in printed.err.splitlines()] == steps  # a line for each step, with its time
    assert all(" s" in line for line in printed.err.splitlines())
    assert all(figure.stat().st_size > 5000 for figure in out.glob("*.png"))


def test_a_fold_change_against_the_direction_of_the_test_is_not_printed(quick, section, tmp_path, capsys, monkeypatch):
    original = st.tl.biomarkers

    def reversed_folds(adata, **options):
        original(adata, **options)
        adata.uns["biomarkers"]["pvals_adj"] = 0.01
        adata.uns["biomarkers"]["logfoldchanges"] = -adata.uns["biomarkers"]["scores"]

    replaced(monkeypatch, "biomarkers", reversed_folds)
    assert run("--input", section, "--out", tmp_path / "out", "--groupby", "band") == 0
    printed = capsys.readouterr().out
    assert "    higher: gene" in printed
    assert "-fold" not in printed


def test_generated_tissue_is_tested_by_patient(monkeypatch, tmp_path):
    passed: dict[str, Any] = {}
    for step in ("segment", "region_graph", "embed"):
        replaced(monkeypatch, step, lambda adata, **options: None)
    replaced(monkeypatch, "biomarkers", lambda adata, **options: _interrupt(passed.update(options)))
    assert run("--out", tmp_path / "out") == 130
    assert [passed[f"{name}_key"] for name in ("library", "subject")] == ["section", "patient"]
    assert passed["groupby"] == "disease"


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (["--input", "nowhere.h5ad"], "no file"),
        (["--input", "{here}/x.csv"], "neither .h5ad nor .zarr"),
        (["--input", "{here}/cut.h5ad"], "complete"),
        (["--groupby", "nope"], "`--groupby='nope'`"),
        (["--groupby", "depth"], "floating-point"),
        (["--groupby", "barcode"], "different values"),
        (["--groupby", "band", "--reference", "z"], "`--reference='z'`"),
        (["--reference", "z"], "--groupby"),
        (["--labels-key", "nope"], "`--labels-key='nope'`"),
        (["--labels-key", "barcode"], "different values"),
        (["--library-key", "nope"], "nope"),
        (["--layer", "nope"], "`--layer='nope'`"),
        (["--use-rep", "nope"], "'X_pca'"),
        (["--spatial-key", "nope"], "'spatial'"),
        (["--image-key", "lowres"], "`--image-key='lowres'`"),
        (["--covariates", "composition", "nope"], "`--covariates` names 'nope'"),
        (["--model", "{here}/none.stx"], "no model file"),
        (["--save-model", "{here}/none/m.stx"], "create it first"),
        (["--seed", "-1"], "`--seed=-1`"),
        (["--max-memory", "0"], "--max-memory"),
        (["--devices", "many"], "`--devices='many'`"),
        (["--overwrite", "--resume"], "one of them"),
        (["--config", "{here}/none.toml"], "no configuration file"),
    ],
)
def test_wrong_arguments_are_reported_before_any_step(section, tmp_path, capsys, monkeypatch, args, match):
    monkeypatch.setattr("stxtools.models.Segmenter.fit", _interrupt)  # nothing may be started
    (tmp_path / "x.csv").write_text("a,b\n")
    (tmp_path / "cut.h5ad").write_bytes(section.read_bytes()[:5000])
    args = [a.format(here=tmp_path) for a in args]
    source = [] if "--input" in args else ["--input", str(section)]
    assert main(["run", *source, *args, "--out", str(tmp_path / "out"), "--quiet"]) == 2
    assert match in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_interrupted_run_resumes_to_the_same_results(quick, section, tmp_path, capsys, monkeypatch):
    straight, out = tmp_path / "straight", tmp_path / "out"
    assert run("--input", section, "--out", straight, "--groupby", "band") == 0
    with monkeypatch.context() as patch:
        replaced(patch, "biomarkers", _interrupt)
        assert run("--input", section, "--out", out, "--groupby", "band") == 130
    assert "segment, region_graph, embed: finished and saved" in capsys.readouterr().err
    assert names(out) == {"unfinished"}

    assert run("--input", section, "--out", out, "--groupby", "band") == 2
    assert "--resume goes on" in capsys.readouterr().err
    assert run("--input", section, "--out", out, "--groupby", "segment", "--seed", 3, "--resume") == 2
    printed = capsys.readouterr().err
    assert "--groupby was 'band', now 'segment'" in printed
    assert "--seed was 0, now 3" in printed

    with monkeypatch.context() as patch:
        for name in ("segment", "region_graph", "embed"):  # not called again
            replaced(patch, name, _interrupt)
        assert run("--input", section, "--out", out, "--groupby", "band", "--resume") == 0
    assert names(out) == RESULTS
    assert_same(ad.read_h5ad(straight / "adata.h5ad"), ad.read_h5ad(out / "adata.h5ad"))
    assert (straight / "biomarkers.csv").read_bytes() == (out / "biomarkers.csv").read_bytes()

    replaced(monkeypatch, "segment", _interrupt)
    assert run("--input", section, "--out", out, "--groupby", "band", "--resume") == 0
    assert "complete" in capsys.readouterr().err
    os.utime(section, (1, 1))
    assert run("--input", section, "--out", out, "--groupby", "band", "--resume") == 2
    assert f"{str(section)!r} was" in capsys.readouterr().err


def test_option_one_section_pools_samples_of_one_slide(make_section, tmp_path, capsys, monkeypatch):
    section = make_section(rows=12, cols=10)
    ad.concat([section, section], index_unique="-").write_h5ad(tmp_path / "twice.h5ad")
    how = ("--input", tmp_path / "twice.h5ad", "--out", tmp_path / "out")
    assert run(*how) == 2
    assert "`--one-section`" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    arguments = []
    replaced(monkeypatch, "segment", lambda adata, *args, **kwargs: arguments.append(kwargs) or _interrupt())
    assert run(*how, "--one-section") == 130
    assert arguments[0]["library_key"] is False
    with pytest.raises(SystemExit) as stop:
        run(*how, "--one-section", "--library-key", "band")
    assert stop.value.code == 2
    assert run(*how[:2], *how[1:], "--one-section") == 2


def test_run_interrupted_in_its_first_step_leaves_no_folder(section, tmp_path, capsys, monkeypatch):
    replaced(monkeypatch, "segment", _interrupt)
    assert run("--input", section, "--out", tmp_path / "out") == 130
    assert "nothing was written" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


_KILLED = """
import os, signal, sys
import stxtools.tl as tl, stxtools.models as models
import runpy
def init(self, p=None, start=models.Segmenter.__init__): start(self, {quick} if p is None else p)
models.Segmenter.__init__ = init
tl.region_graph = lambda *a, **k: os.kill(os.getpid(), {signal})
sys.argv[1:1] = ["run"]
runpy.run_module("stxtools", run_name="__main__")
"""


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 130)])
def test_killed_run_keeps_earlier_results(section, tmp_path, sent, status):
    out = tmp_path / "out"
    out.mkdir()
    (out / "adata.h5ad").write_text("good")
    (out / "notes.txt").write_text("mine")
    code = _KILLED.format(quick=QUICK_UNET, signal=int(sent))
    args = ["--input", section, "--out", out, "--n-segments", "3", "--accelerator", "cpu", "--overwrite"]
    command = [sys.executable, "-W", "ignore", "-c", code, *map(str, args)]
    done = subprocess.run(command, check=False, timeout=120, capture_output=True, text=True)
    assert done.returncode == status
    assert ("interrupted; segment: finished and saved" in done.stderr) == (sent == signal.SIGTERM)
    assert (out / "adata.h5ad").read_text() == "good"
    assert json.loads((out / "unfinished" / "run.json").read_text())["seconds"].keys() == {"segment"}
    assert not list((out / "unfinished").glob("*.part*"))


def test_failed_overwrite_keeps_existing_results_until_resumed(quick, section, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "history.png").write_text("old")
    (out / "notes.txt").write_text("mine")
    assert run("--input", section, "--out", out) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run("--input", section, "--out", out, "--resume") == 2
    assert names(out) == {"history.png", "notes.txt"}

    def disk_full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        replaced(patch, "region_graph", disk_full)
        assert run("--input", section, "--out", out, "--overwrite", "--protect", "none") == 1
    printed = capsys.readouterr().err
    assert "No space left" in printed
    assert "stopped in step region_graph; segment: finished and saved" in printed
    assert (out / "history.png").read_text() == "old"
    assert run("--input", section, "--out", out, "--resume", "--protect", "none") == 0
    assert "optimistic" in capsys.readouterr().err  # warnings of the calls are shown
    assert names(out) == RESULTS | {"notes.txt"}
    assert (out / "history.png").stat().st_size > 5000


def test_saved_model_gives_the_same_segments(quick, no_figures, section, tmp_path):
    model = tmp_path / "m.stx"
    assert run("--input", section, "--out", tmp_path / "one", "--save-model", model, "--quiet") == 0
    args = ["--input", section, "--out", tmp_path / "two", "--model", model, "--groupby", "band", "--quiet"]
    assert main(["run", *map(str, args)]) == 0
    one, two = (ad.read_h5ad(tmp_path / name / "adata.h5ad") for name in ("one", "two"))
    assert (one.obs["segment"].astype(str) == two.obs["segment"].astype(str)).all()
    assert "history" not in two.uns["segment"]


def test_second_run_in_the_same_folder_is_refused(section, tmp_path, capsys, monkeypatch):
    how, second = ("--input", section, "--out", tmp_path / "out"), []

    def run_again(*args: Any, **kwargs: Any) -> None:
        second.append(run(*how, "--overwrite"))
        raise KeyboardInterrupt

    replaced(monkeypatch, "segment", run_again)
    assert run(*how) == 130
    assert second == [2]
    assert "Another run" in capsys.readouterr().err


def test_column_segment_of_the_user_is_not_replaced(make_section, tmp_path, capsys):
    adata = make_section()
    adata.obs["segment"] = "mine"
    adata.write_h5ad(tmp_path / "in.h5ad")
    assert run("--input", tmp_path / "in.h5ad", "--out", tmp_path / "out") == 2
    printed = capsys.readouterr().err
    assert "`adata.obs['segment']` exists already" in printed
    assert "key_added" not in printed


# --- configuration ---------------------------------------------------------------------------------------------------


def test_command_line_overrides_configuration_file(quick, no_figures, section, tmp_path, capsys):
    config = tmp_path / "run.toml"
    config.write_text(
        f'input = "{section}"\nout = "{tmp_path / "out"}"\nn-segments = 7\ngroupby = "band"\n'
        'covariates = ["depth"]\nmax_memory = 1\nquiet = true\naccelerator = "cpu"\n'
    )
    assert main(["run", "--config", str(config), "--n-segments", "3"]) == 0
    # quiet: neither progress nor log, but warnings
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("stxtools: warning: Group(s) 'a', 'b', 'c' of `band`") for line in lines)
    options = json.loads((tmp_path / "out" / "run.json").read_text())["options"]
    assert options["n_segments"] == 3
    assert options["covariates"] == "depth"
    written = ad.read_h5ad(tmp_path / "out" / "adata.h5ad")
    assert written.uns["segment"]["params"]["n_segments"] == 3
    assert list(written.uns["biomarkers_params"]["covariates"]) == ["depth"]


# --- several files ---------------------------------------------------------------------------------------------------


def test_files_are_joined_on_shared_genes(quick, no_figures, make_section, tmp_path, capsys):
    one, two = make_section(), make_section(seed=1)[:, :4:-1].copy()
    for part, name in ((one, "A"), (two, "B")):
        del part.obs["library"]
        part.uns["spatial"] = {"img": {"images": {"lowres": np.zeros((40, 40, 3))},
                                       "scalefactors": {"tissue_lowres_scalef": 0.01}}}  # fmt: skip
        part.obsm["X_pca"] = np.ones((part.n_obs, 2))
        part.uns["regions"] = ad.AnnData(np.ones((2, 3)))
        part.write_h5ad(tmp_path / f"{name}.h5ad")
    one.obs["only"] = pd.Categorical(np.where(np.arange(one.n_obs) < 9, "x", "y"))
    one.obs["drawn"] = pd.array([None, *[True] * (one.n_obs - 1)], dtype="boolean")
    one.write_h5ad(tmp_path / "A.h5ad")
    inputs = ["--input", tmp_path / "A.h5ad", tmp_path / "B.h5ad"]
    assert run(*inputs, "--out", tmp_path / "out", "--image-key", "lowres", "--groupby", "band") == 0
    printed = capsys.readouterr().out
    assert "2 files joined on the 25 genes" in printed
    assert "'X_pca'" in printed
    written = ad.read_h5ad(tmp_path / "out" / "adata.h5ad")
    assert written.shape == (one.n_obs + two.n_obs, 25)
    assert list(written.obs["library"].cat.categories) == ["A", "B"]
    assert set(written.uns["spatial"]) == {"A", "B"}
    assert written.obs["only"].isna().sum() == two.n_obs
    assert written.obs["drawn"].dtype == "boolean"  # which is a column of classes, as numbers are not
    assert list(written.uns["biomarkers_params"]["libraries"]) == ["A", "B"]
    np.testing.assert_array_equal(written.X[one.n_obs :].toarray(), two[:, written.var_names].X.toarray())


# --- files -----------------------------------------------------------------------------------------------------------

_FULL = """
import functools, resource, runpy, sys
import stxtools.tl as tl
full = lambda *a, **k: resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
tl.segment = functools.wraps(tl.segment)(full)
runpy.run_module("stxtools", run_name="__main__")
"""


def test_full_disk_is_an_error_and_leaves_the_earlier_file(section, tmp_path):
    target = tmp_path / "out.h5ad"
    target.write_text("good")
    command = [sys.executable, "-W", "ignore", "-c", _FULL, "segment", str(section), str(target)]
    done = subprocess.run(command, check=False, timeout=120, capture_output=True, text=True)
    assert (done.returncode, "File too large" in done.stderr) == (1, True), done.stderr
    assert target.read_text() == "good"
    assert names(tmp_path) == {"in.h5ad", "out.h5ad"}
