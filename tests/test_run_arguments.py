"""Arguments, configuration files and input files of the command line that do not fit."""

from __future__ import annotations

import pytest
from test_run import main, run

import stxtools as st


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
def test_wrong_configuration_is_reported(tmp_path, capsys, text, match):
    (tmp_path / "run.toml").write_text(text)
    assert main(["run", "--config", str(tmp_path / "run.toml")]) == 2
    assert match in capsys.readouterr().err


def test_help_version_and_exit_status(capsys):
    printed = []
    for arguments, status in ((["--version"], 0), (["run", "--help"], 0), (["run", "--n-segments", "x"], 2)):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == status
        printed.append(capsys.readouterr().out)
    assert f"stxtools {st.__version__}" in printed[0]
    assert "--resume" in printed[1]
    assert "exit status" in printed[1]


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
def test_files_that_cannot_be_joined_are_reported(make_section, tmp_path, capsys, change, match):
    one, two = make_section(), make_section()
    two.obs["library"] = "lib1"
    change(two)
    one.write_h5ad(tmp_path / "A.h5ad")
    two.write_h5ad(tmp_path / "B.h5ad")
    args = ["--input", tmp_path / "A.h5ad", tmp_path / "B.h5ad", "--library-key", "library"]
    assert run(*args, "--out", tmp_path / "out") == 2
    assert match in capsys.readouterr().err
