"""The tutorials run: each notebook's code on small pieces of its sections, without Jupyter.

Takes minutes, so it runs only where STXTOOLS_TUTORIALS is set, as in the weekly run of the continuous integration.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pytest

import stxtools as st

TUTORIALS = sorted((Path(__file__).parents[1] / "tutorials").glob("*.ipynb"))
SECTIONS = Path(os.environ.get("STXTOOLS_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
WIDE = 1000  # observations that are kept


def _small(adata: ad.AnnData) -> ad.AnnData:
    """Keep the observations nearest to the middle."""
    middle = np.median(adata.obsm["spatial"], axis=0)
    near = np.argsort(np.linalg.norm(adata.obsm["spatial"] - middle, axis=1))[:WIDE]
    return adata[np.sort(near)].copy()


@pytest.fixture(scope="module")
def sections(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sections")
    for path in SECTIONS.iterdir():
        if path.suffix == ".h5ad" and path.name.startswith(("dlpfc_15167", "her2st", "xenium_breast")):
            _small(ad.read_h5ad(path)).write_h5ad(folder / path.name)
        elif path.suffix != ".h5ad" and path.is_file():
            (folder / path.name).symlink_to(path)
    return folder


@pytest.fixture
def _as_before(sections: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = st.settings.datasetdir, st.settings.show_progress
    monkeypatch.chdir(tmp_path)
    st.settings.datasetdir = sections
    yield
    st.settings.datasetdir, st.settings.show_progress = before
    plt.close("all")


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("STXTOOLS_TUTORIALS"), reason="set STXTOOLS_TUTORIALS=1 to run the notebooks")
@pytest.mark.skipif(not SECTIONS.is_dir(), reason=f"there are no real sections in {SECTIONS}")
@pytest.mark.usefixtures("_as_before")
@pytest.mark.parametrize("notebook", TUTORIALS, ids=lambda path: path.stem)
def test_tutorial_runs(notebook: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if notebook.stem == "large":
        whole = st.datasets.synthetic_tissue
        monkeypatch.setattr(
            st.datasets, "synthetic_tissue", lambda n, *rest, **kw: whole(min(n, 4 * WIDE), *rest, **kw)
        )
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    names: dict[str, object] = {"__name__": "__main__", "display": print}
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{notebook.name}, cell {number}", "exec"), names)
            plt.close("all")


@pytest.mark.parametrize("notebook", TUTORIALS, ids=lambda path: path.stem)
def test_tutorial_states_needs_time_and_next_step(notebook: Path) -> None:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    text = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    assert "Needs: " in text[0]
    assert "Takes " in text[0]
    assert "**What next.**" in text[-1]
