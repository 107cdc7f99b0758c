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
from stxtools._files import atomic_write
from stxtools._run.files import write_h5ad

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


def test_run_writes_everything(quick, make_section, tmp_path, capsys):
    adata = make_section(libraries=2)
    adata.write_h5ad(tmp_path / "in.h5ad")
    out = tmp_path / "a folder" / "out"
    assert run("--input", tmp_path / "in.h5ad", "--out", out, "--library-key", "library", "--groupby", "band") == 0
    assert names(out) == RESULTS
    written = ad.read_h5ad(out / "adata.h5ad")
    assert {"segment", "segment_confidence", "region_id", "attention"} <= set(written.obs)
    table = pd.read_csv(out / "biomarkers.csv")
    assert set(table["group"]) == {"a", "b", "c"}
    assert len(table) == 3 * adata.n_vars
    said = capsys.readouterr()
    assert "segment" in said.out
    assert "time" in said.out
    for group, part in table[table["pvals_adj"] <= 0.05].groupby("group"):
        line = (
            f"{group} against the rest: {len(part)} of {adata.n_vars} genes, {part['beyond_composition'].sum()} beyond"
        )
        assert line in said.out
    steps = ["read", "segment", "region_graph", "embed", "biomarkers", "figures", "write"]
    assert [line.split()[1] for line in said.err.splitlines()] == steps  # a line for each step, with its time
    assert all(" s" in line for line in said.err.splitlines())
    assert all((p.stat().st_size > 5000) for p in out.glob("*.png"))
    again = tmp_path / "again.h5ad"
    written.write_h5ad(again)
    assert_same(written, ad.read_h5ad(again))


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
def test_arguments_are_checked_first(section, tmp_path, capsys, monkeypatch, args, match):
    monkeypatch.setattr("stxtools.models.Segmenter.fit", _interrupt)  # nothing may be started
    (tmp_path / "x.csv").write_text("a,b\n")
    (tmp_path / "cut.h5ad").write_bytes(section.read_bytes()[:5000])
    args = [a.format(here=tmp_path) for a in args]
    source = [] if "--input" in args else ["--input", str(section)]
    assert main(["run", *source, *args, "--out", str(tmp_path / "out"), "--quiet"]) == 2
    assert match in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_interrupted_run_goes_on(quick, section, tmp_path, capsys, monkeypatch):
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
    said = capsys.readouterr().err
    assert "--groupby was 'band', now 'segment'" in said
    assert "--seed was 0, now 3" in said

    with monkeypatch.context() as patch:
        for name in ("segment", "region_graph", "embed"):
            replaced(patch, name, _interrupt)  # not called again
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


def test_one_section_is_said_by_an_option(make_section, tmp_path, capsys, monkeypatch):
    section = make_section(rows=12, cols=10)
    ad.concat([section, section], index_unique="-").write_h5ad(tmp_path / "twice.h5ad")
    how = ("--input", tmp_path / "twice.h5ad", "--out", tmp_path / "out")
    assert run(*how) == 2
    assert "`--one-section`" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    asked = []
    replaced(monkeypatch, "segment", lambda adata, *args, **kwargs: asked.append(kwargs) or _interrupt())
    assert run(*how, "--one-section") == 130
    assert asked[0]["library_key"] is False
    with pytest.raises(SystemExit) as stop:
        run(*how, "--one-section", "--library-key", "band")
    assert stop.value.code == 2
    assert run(*how[:2], *how[1:], "--one-section") == 2


def test_nothing_is_left_where_no_step_was_finished(section, tmp_path, capsys, monkeypatch):
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
def test_a_killed_run_leaves_earlier_results(section, tmp_path, sent, status):
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


def test_existing_results(quick, section, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "history.png").write_text("old")
    (out / "notes.txt").write_text("mine")
    assert run("--input", section, "--out", out) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run("--input", section, "--out", out, "--resume") == 2
    assert names(out) == {"history.png", "notes.txt"}

    def fails(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        replaced(patch, "region_graph", fails)
        assert run("--input", section, "--out", out, "--overwrite", "--protect", "none") == 1
    said = capsys.readouterr().err
    assert "No space left" in said
    assert "stopped in step region_graph; segment: finished and saved" in said
    assert (out / "history.png").read_text() == "old"
    assert run("--input", section, "--out", out, "--resume", "--protect", "none") == 0
    assert "optimistic" in capsys.readouterr().err  # warnings of the calls are shown
    assert names(out) == RESULTS | {"notes.txt"}
    assert (out / "history.png").stat().st_size > 5000


def test_a_model_is_saved_and_applied(quick, no_figures, section, tmp_path):
    model = tmp_path / "m.stx"
    assert run("--input", section, "--out", tmp_path / "one", "--save-model", model, "--quiet") == 0
    args = ["--input", section, "--out", tmp_path / "two", "--model", model, "--groupby", "band", "--quiet"]
    assert main(["run", *map(str, args)]) == 0
    one, two = (ad.read_h5ad(tmp_path / name / "adata.h5ad") for name in ("one", "two"))
    assert (one.obs["segment"].astype(str) == two.obs["segment"].astype(str)).all()
    assert "history" not in two.uns["segment"]


def test_two_runs_do_not_write_to_one_folder(section, tmp_path, capsys, monkeypatch):
    inner = []

    def second(*args: Any, **kwargs: Any) -> None:
        if not inner:
            inner.append(0)
            inner[0] = run("--input", section, "--out", tmp_path / "out", "--overwrite")
        raise KeyboardInterrupt

    replaced(monkeypatch, "segment", second)
    assert run("--input", section, "--out", tmp_path / "out") == 130
    assert inner == [2]
    assert "Another run" in capsys.readouterr().err


def test_what_others_wrote_is_not_replaced(make_section, tmp_path, capsys):
    adata = make_section()
    adata.obs["segment"] = "mine"
    adata.write_h5ad(tmp_path / "in.h5ad")
    assert run("--input", tmp_path / "in.h5ad", "--out", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "`adata.obs['segment']` exists already" in said
    assert "key_added" not in said


# --- configuration ---------------------------------------------------------------------------------------------------


def test_configuration_file(quick, no_figures, section, tmp_path, capsys):
    config = tmp_path / "run.toml"
    config.write_text(
        f'input = "{section}"\nout = "{tmp_path / "out"}"\nn-segments = 7\ngroupby = "band"\n'
        'covariates = ["depth"]\nmax_memory = 1\nquiet = true\naccelerator = "cpu"\n'
    )
    assert main(["run", "--config", str(config), "--n-segments", "3"]) == 0
    assert capsys.readouterr().err == ""
    told = json.loads((tmp_path / "out" / "run.json").read_text())["options"]
    assert told["n_segments"] == 3  # the command line wins
    assert told["covariates"] == "depth"
    written = ad.read_h5ad(tmp_path / "out" / "adata.h5ad")
    assert written.uns["segment"]["params"]["n_segments"] == 3
    assert list(written.uns["biomarkers_params"]["covariates"]) == ["depth"]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("n_segmets = 3", "did you mean 'n_segments'"),
        ("[segment]\nparams = 3", "not an option"),
        ('n_segments = "3"', "an integer"),
        ("n_segments = true", "an integer"),
        ("quiet = 1", "true or false"),
        ("groupby = 3", "a text"),
        ("input = [1]", "list of texts"),
        ('max_memory = "2"', "a number"),
        ('protect = "no"', "one of thinning, none"),
        ("n_segments = 3\nn-segments = 4", "twice"),
        ("seed = 1\nn_segments = \n", "line 2"),
    ],
)
def test_wrong_configuration(tmp_path, capsys, text, match):
    (tmp_path / "run.toml").write_text(text)
    assert main(["run", "--config", str(tmp_path / "run.toml")]) == 2
    assert match in capsys.readouterr().err


def test_help_and_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert "stxtools" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(["run", "--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert "--resume" in said
    assert "exit status" in said
    with pytest.raises(SystemExit) as stop:
        main(["run", "--n-segments", "x"])
    assert stop.value.code == 2


# --- several files ---------------------------------------------------------------------------------------------------


def test_several_files(quick, no_figures, make_section, tmp_path, capsys):
    one, two = make_section(), make_section(seed=1)[:, ::-1].copy()
    two = two[:, :25].copy()
    for part, name in ((one, "A"), (two, "B")):
        del part.obs["library"]
        part.uns["spatial"] = {"img": {"images": {"lowres": np.zeros((40, 40, 3))},
                                       "scalefactors": {"tissue_lowres_scalef": 0.01}}}  # fmt: skip
        part.obsm["X_pca"] = np.ones((part.n_obs, 2))
        part.uns["regions"] = ad.AnnData(np.ones((2, 3)))
        part.write_h5ad(tmp_path / f"{name}.h5ad")
    one.obs["only"] = pd.Categorical(np.where(np.arange(one.n_obs) < 9, "x", "y"))
    one.write_h5ad(tmp_path / "A.h5ad")
    inputs = ["--input", tmp_path / "A.h5ad", tmp_path / "B.h5ad"]
    assert run(*inputs, "--out", tmp_path / "out", "--image-key", "lowres", "--groupby", "band") == 0
    said = capsys.readouterr().out
    assert "2 files joined on the 25 genes" in said
    assert "'X_pca'" in said
    written = ad.read_h5ad(tmp_path / "out" / "adata.h5ad")
    assert written.shape == (one.n_obs + two.n_obs, 25)
    assert list(written.obs["library"].cat.categories) == ["A", "B"]
    assert set(written.uns["spatial"]) == {"A", "B"}
    assert written.obs["only"].isna().sum() == two.n_obs
    assert list(written.uns["biomarkers_params"]["libraries"]) == ["A", "B"]
    genes = written.var_names
    np.testing.assert_array_equal(written.X[one.n_obs :].toarray(), two[:, genes].X.toarray())


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda a: a.obs.drop(columns="library", inplace=True), "is missing from 'B'"),
        (lambda a: a.obs.__setitem__("library", "lib0"), "same name in 'library': 'lib0'"),
        (lambda a: setattr(a, "var_names", [f"x{i}" for i in range(a.n_vars)]), "share no gene"),
        (lambda a: setattr(a, "var_names", ["g"] * a.n_vars), "not unique"),
        (lambda a: setattr(a, "X", a.X.log1p()), "different scales in `X` ('A': counts, 'B': log)"),
    ],
)
def test_files_that_do_not_fit(make_section, tmp_path, capsys, change, match):
    one, two = make_section(), make_section()
    two.obs["library"] = "lib1"
    change(two)
    one.write_h5ad(tmp_path / "A.h5ad")
    two.write_h5ad(tmp_path / "B.h5ad")
    args = ["--input", tmp_path / "A.h5ad", tmp_path / "B.h5ad", "--library-key", "library"]
    assert run(*args, "--out", tmp_path / "out") == 2
    assert match in capsys.readouterr().err


# --- files -----------------------------------------------------------------------------------------------------------


def test_files_are_whole_or_not_there(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")

    def fails() -> None:
        with atomic_write(target) as part:
            part.write_text("new")
            raise OSError

    with pytest.raises(OSError):  # noqa: PT011
        fails()
    assert target.read_text() == "old"
    assert names(tmp_path) == {"a.txt"}
    with atomic_write(target) as part:
        part.write_text("new")
    assert target.read_text() == "new"


def test_h5ad_is_what_anndata_writes(line, tmp_path):
    write_h5ad(line, tmp_path / "a.h5ad")
    line.write_h5ad(tmp_path / "b.h5ad")
    assert_same(ad.read_h5ad(tmp_path / "a.h5ad"), ad.read_h5ad(tmp_path / "b.h5ad"))


_FULL = """
import resource, sys
import anndata as ad
from pathlib import Path
from stxtools._run.files import write_h5ad
adata = ad.read_h5ad(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
try:
    write_h5ad(adata, Path(sys.argv[2]))
except OSError as err:
    sys.exit(40 + (err.errno == 27))
"""


def test_a_full_disk_is_an_error_and_no_crash(section, tmp_path):
    target = tmp_path / "out.h5ad"
    target.write_text("good")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _FULL, str(section), str(target)], check=False, timeout=120
    )
    assert done.returncode == 41
    assert target.read_text() == "good"
    assert names(tmp_path) == {"in.h5ad", "out.h5ad"}
