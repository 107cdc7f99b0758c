"""``stxtools segment`` and the other steps: from files to files, through the public functions."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import pandas as pd
import pytest
from conftest import QUICK_NET, QUICK_UNET, assert_same

import stxtools as st
from stxtools.__main__ import main
from stxtools._run.options import STEPS, options_of

CONFIG = f"""
seed = 3
layer = "none"

[segment]
n-segments = 3
accelerator = "cpu"
params = {{ width = 8, epochs = 2, pretrain_epochs = 1, steps_per_epoch = 4, sigmas = [0.0, 1.0] }}

[regions]
max_size = 20

[embed]
accelerator = "cpu"
params = {{ hidden = {QUICK_NET["hidden"]}, out_channels = 8, heads = 2, epochs = 2, unet_width = 4 }}

[biomarkers]
groupby = "segment"
n_null = 100
protect = "none"
"""


@pytest.fixture
def folder(make_section: Callable[..., ad.AnnData], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Go to a folder with a section and a configuration."""
    (tmp_path / "sections").mkdir()
    make_section().write_h5ad(tmp_path / "sections" / "A1.h5ad")
    (tmp_path / "stxtools.toml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rules() -> list[dict[str, str]]:
    """Return the rules of the Snakefile in the documentation."""
    page = (Path(__file__).parents[1] / "docs" / "command_line.md").read_text(encoding="utf-8")
    text = re.search(r"```python\n(SECTIONS.*?)```", page, re.DOTALL)[1]
    parts = re.split(r"^rule (\w+):$", text, flags=re.MULTILINE)
    return [
        {"name": name, **dict(re.findall(r"^    (\w+): (.*)$", body, re.MULTILINE))}
        for name, body in zip(parts[1::2], parts[2::2], strict=True)
    ]


def test_documented_workflow_gives_the_results_of_the_functions(folder, capsys):
    found = rules()
    further = ("describe", "targets", "compare")
    assert [rule["name"] for rule in found] == ["all", *(step for step in STEPS if step not in further)]
    made = {"sections/A1.h5ad"}
    for rule in found[1:]:
        where = {"section": "A1"}
        (source,) = re.findall(r'"(.*?)"', rule["input"])
        outputs = re.findall(r'(?:(\w+)=)?(?:temp\()?"(.*?)"', rule["output"])
        assert source.format(**where) in made  # the rule before it makes what this one reads
        command = rule["shell"].strip('"').split(" 2> ")[0].replace("{input}", source)
        for name, path in outputs:
            Path(path).parent.mkdir(exist_ok=True)
            command = command.replace(f"{{output.{name}}}" if name else "{output}", path)
            made.add(path.format(**where))
        program, *arguments = command.format(**where).split()
        assert program == "stxtools"
        assert main(arguments) == 0
        log = [line.split()[1] for line in capsys.readouterr().err.splitlines() if re.match(r"\d\d:\d\d:\d\d ", line)]
        assert log == ["read", rule["name"], "wrote"]
    (wanted,) = re.findall(r'"(.*?)"', found[0]["input"])
    assert wanted.format(section="A1") in made
    assert all((folder / path).exists() for path in made)

    adata = ad.read_h5ad("sections/A1.h5ad")
    how = {"random_state": 3, "show_progress": False}
    st.tl.segment(adata, 3, params={**QUICK_UNET, "epochs": 2}, accelerator="cpu", **how)
    st.tl.region_graph(adata, max_size=20, **how)
    st.tl.embed(adata, params={**QUICK_NET, "epochs": 2}, accelerator="cpu", **how)
    with pytest.warns(UserWarning, match="optimistic"):
        st.tl.biomarkers(adata, "segment", n_null=100, protect=None, **how)
    adata.write_h5ad("same.h5ad")
    assert_same(ad.read_h5ad("same.h5ad"), ad.read_h5ad("results/A1.h5ad"))
    assert len(pd.read_csv("results/A1.csv")) == 3 * adata.n_vars


def test_command_line_overrides_json_configuration(folder, monkeypatch):
    passed = {}
    call = functools.wraps(st.tl.biomarkers)(lambda adata, **how: passed.update(how))
    monkeypatch.setattr("stxtools.tl.biomarkers", call)
    config = {"biomarkers": {"groupby": "band", "covariates": ["composition"], "protect": None}, "seed": 4}
    Path("c.json").write_text(json.dumps(config))
    arguments = ["biomarkers", "sections/A1.h5ad", "out.h5ad", "--config", "c.json", "--quiet"]
    assert main([*arguments, "--n-null", "7", "--groups", "a", "b", "--seed", "5", "--one-section",
                 "--alternative", "two-sided"]) == 0  # fmt: skip
    assert passed == {
        "groupby": "band", "covariates": "composition", "protect": None, "n_null": 7, "groups": ["a", "b"],
        "library_key": False, "random_state": 5, "alternative": "two-sided", "show_progress": False,
    }  # fmt: skip
    for given, groups in ((["a"], ["a"]), (["all"], "all")):
        assert main([*arguments, "--groups", *given, "--covariates", "none"]) == 0
        assert (passed["groups"], passed["covariates"]) == (groups, None)


def test_targets_and_conditions_from_files(folder, make_section):
    adata = make_section(libraries=2)
    adata.obs["arm"] = adata.obs["library"].astype("category")
    st.tl.biomarkers(adata, "band", library_key="library", n_null=100, show_progress=False)
    adata.write_h5ad("a.h5ad")
    drugs = pd.DataFrame({"gene_name": list(adata.var_names), "drug_name": "x", "approved": True})
    drugs.to_csv("drugs.tsv", sep="\t", index=False)
    assert main(["targets", "a.h5ad", "t.h5ad", "--table", "drugs.tsv", "--csv", "t.csv", "--quiet"]) == 0
    assert (pd.read_csv("t.csv")["n_drugs"] == 1).all()
    how = ["--condition-key", "arm", "--subject-key", "library", "--groupby", "band", "--library-key", "library"]
    assert main(["compare", "t.h5ad", "c.h5ad", *how, "--table", "c.csv", "--quiet"]) == 0
    Path("sets.csv").write_text("source,target\n" + "".join(f"s{i % 2},{g}\n" for i, g in enumerate(adata.var_names)))
    how = ["--groupby", "band", "--library-key", "library", "--n-null", "100", "--table", "d.csv", "--quiet"]
    for net, kinds in (("sets.csv", ["activity"]), ('{"sets": "sets.csv"}', ["sets"])):
        assert main(["describe", "t.h5ad", "d.h5ad", *how, "--net", net]) == 0
        assert list(ad.read_h5ad("d.h5ad").uns["describe_params"]["kinds"]) == kinds
    assert list(pd.read_csv("d.csv", index_col="group").index) == list(adata.obs["band"].cat.categories)
    st.tl.targets(adata, "drugs.tsv")
    st.tl.compare(adata, "arm", "library", groupby="band", library_key="library", show_progress=False)
    adata.write_h5ad("same.h5ad")
    assert_same(ad.read_h5ad("same.h5ad"), ad.read_h5ad("c.h5ad"))
    assert len(pd.read_csv("c.csv")) == len(adata.uns["compare"])
    assert main(["targets", "a.h5ad", "t.h5ad"]) == 2


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["segment", "nowhere.h5ad", "out.h5ad"], "no file"),
        (["segment", "sections/A1.h5ad", "out.csv"], "must end in .h5ad"),
        (["segment", "sections/A1.h5ad", "none/out.h5ad"], "create it first"),
        (["segment", "sections/A1.h5ad", "out.h5ad", "--labels-key", "nope"], "`--labels-key='nope'`"),
        (["segment", "sections/A1.h5ad", "out.h5ad", "--n-segments", "0"], "`--n-segments=0`"),
        (["segment", "sections/A1.h5ad", "out.h5ad", "--seed", "-1"], "`--seed=-1`"),
        (["regions", "sections/A1.h5ad", "out.h5ad"], "Run `stxtools segment` first"),
        (
            ["describe", "sections/A1.h5ad", "out.h5ad", "--groupby", "band"],
            "Run `stxtools biomarkers` first, or name the slot with `--biomarkers-key`.",
        ),
        (["biomarkers", "sections/A1.h5ad", "out.h5ad"], "needs --groupby"),
        (["biomarkers", "sections/A1.h5ad", "out.h5ad", "--groupby", "band", "--table", "none/t.csv"], "create it"),
        (["biomarkers", "sections/A1.h5ad", "o.h5ad", "--groupby", "band", "--table", "./o.h5ad"], "the same file"),
        (["report", "sections/A1.h5ad", "out.h5ad"], "must end in .html"),
        (["report", "sections/A1.h5ad", "out.html", "--genes", "nope"], "names 'nope'"),
        (["embed", "sections/A1.h5ad", "out.h5ad", "--config", "wrong.toml"], "did you mean 'layer'"),
        (["segment", "sections/A1.h5ad", "out.h5ad", "--config", "wrong.toml"], "did you mean"),
        (["report", "sections/A1.h5ad", "out.html", "--config", "list.json"], "an object"),
    ],
)
def test_wrong_arguments_are_reported_and_write_nothing(folder, capsys, arguments, match):
    Path("wrong.toml").write_text('layr = "counts"\n')
    Path("list.json").write_text("[1]")
    before = sorted(folder.rglob("*"))
    assert main(arguments) == 2
    assert match in capsys.readouterr().err
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(("step", "option"), [("segment", "--params"), ("describe", "--net")])
def test_text_that_is_no_json_is_named(step, option, capsys):
    with pytest.raises(SystemExit):
        main([step, "a.h5ad", "b.h5ad", option, "{epochs: 2}"])
    assert f"argument {option}: invalid JSON value: '{{epochs: 2}}'" in capsys.readouterr().err


def test_interrupted_step_leaves_the_earlier_file(folder, capsys, monkeypatch):
    def stopped(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    Path("out.h5ad").write_text("old")
    monkeypatch.setattr("stxtools._run.pipeline.write_h5ad", stopped)
    monkeypatch.setattr("stxtools.tl.embed", lambda adata, *, show_progress=None: None)
    assert main(["embed", "sections/A1.h5ad", "out.h5ad"]) == 130
    assert "nothing was written" in capsys.readouterr().err
    assert Path("out.h5ad").read_text() == "old"


@pytest.mark.parametrize("step", STEPS)
def test_every_parameter_is_an_option(step, capsys):
    with pytest.raises(SystemExit) as stop:
        main([step, "--help"])
    assert stop.value.code == 0
    printed = re.sub(r"\s+", " ", capsys.readouterr().out)
    names = set(options_of(step)) - {"random_state"}
    assert {f"--{name.replace('_', '-')}" for name in names} <= set(re.findall(r"--[a-z-]+", printed))
    # descriptions come from the docstrings
    assert "section of each observation" in printed or step in ("embed", "targets")
    assert "(default: ())" not in printed
