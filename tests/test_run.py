"""The command line: what `make demo` runs."""

from __future__ import annotations

import anndata as ad
import pandas as pd
import pytest
from conftest import QUICK_NET, QUICK_UNET, assert_same

import stxtools.models as models
from stxtools.__main__ import main


@pytest.fixture
def quick(monkeypatch):
    """Defaults that train in seconds."""
    for module, params in ((models.Segmenter, QUICK_UNET), (models.TissueNet, QUICK_NET)):
        init = module.__init__
        monkeypatch.setattr(
            module, "__init__", lambda self, p=None, init=init, params=params: init(self, {**params, **(p or {})})
        )


def test_run_writes_everything(quick, make_section, tmp_path, capsys):
    adata = make_section(libraries=2)
    adata.write_h5ad(tmp_path / "in.h5ad")
    out = tmp_path / "a folder" / "out"
    args = ["--input", str(tmp_path / "in.h5ad"), "--out", str(out), "--library-key", "library", "--groupby", "band"]
    assert main(["run", *args, "--n-segments", "3", "--quiet", "--accelerator", "cpu"]) == 0
    assert {p.name for p in out.iterdir()} == {
        "adata.h5ad", "biomarkers.csv", "segments.png", "region_graph.png", "attention.png", "biomarkers.png",
        "history.png",
    }  # fmt: skip
    written = ad.read_h5ad(out / "adata.h5ad")
    assert {"segment", "region_id", "attention"} <= set(written.obs)
    table = pd.read_csv(out / "biomarkers.csv")
    assert set(table["group"]) == {"a", "b", "c"}
    assert len(table) == 3 * adata.n_vars
    said = capsys.readouterr().out
    assert "segment" in said
    assert "time" in said
    assert all((p.stat().st_size > 5000) for p in out.glob("*.png"))
    again = tmp_path / "again.h5ad"
    written.write_h5ad(again)
    assert_same(written, ad.read_h5ad(again))


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (["--input", "nowhere.h5ad"], "no file"),
        (["--input", "{here}/x.csv"], "neither .h5ad nor .zarr"),
        (["--input", "{here}/in.h5ad", "--groupby", "nope"], "'band'"),
        (["--input", "{here}/in.h5ad", "--library-key", "nope"], "nope"),
    ],
)
def test_run_says_what_is_wrong(make_section, tmp_path, capsys, args, match):
    make_section().write_h5ad(tmp_path / "in.h5ad")
    (tmp_path / "x.csv").write_text("a,b\n")
    args = [a.format(here=tmp_path) for a in args]
    assert main(["run", *args, "--out", str(tmp_path / "out"), "--quiet"]) == 2
    assert match in capsys.readouterr().err


def test_help_and_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert "stxtools" in capsys.readouterr().out
