"""Cost of importing the package, and its import contracts."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from graphlib import TopologicalSorter
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

import stxtools as st

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {
    "lightning",
    "matplotlib",
    "numba",
    "scanpy",
    "seaborn",
    "skimage",
    "sklearn",
    "spatialdata",
    "squidpy",
    "torch",
    "torch_geometric",
}


def _packages_after(statement: str) -> set[str]:
    code = f"{statement}; import json, sys; print(json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(json.loads(done.stdout))


@pytest.fixture(scope="module")
def with_anndata() -> set[str]:
    """Return what ``import anndata`` alone brings: that is not ours to answer for."""
    return _packages_after("import anndata")


@pytest.mark.parametrize(
    "statement",
    [
        "import stxtools",
        "import stxtools as st; dir(st), st.settings, st.__version__",
        "from stxtools import datasets, get, pl, pp, tl; dir(pp), dir(tl), dir(pl), dir(get), dir(datasets)",
    ],
)
def test_import_is_cheap(statement: str, with_anndata: set[str]) -> None:
    assert (_packages_after(statement) - with_anndata) & HEAVY == set()


@pytest.mark.parametrize("how", ["model={model!r}", "n_segments=2, accelerator='cpu'"])
def test_segmenting_imports_neither_lightning_nor_a_compiler(how: str, tmp_path: Path, with_anndata: set[str]) -> None:
    """They take longer to import than a section takes to segment."""
    adata = st.datasets.synthetic_tissue(n_obs=300, random_state=0, show_progress=False)
    adata.write_h5ad(tmp_path / "section.h5ad")
    st.tl.segment(adata, n_segments=2, save_model=tmp_path / "tissue.stx", params={"epochs": 1, "pretrain": "none"})
    section, model = str(tmp_path / "section.h5ad"), str(tmp_path / "tissue.stx")
    new = _packages_after(
        f"import anndata, stxtools as st; adata = anndata.read_h5ad({section!r}); "
        f"st.tl.segment(adata, {how.format(model=model)}, show_progress=False); assert 'segment' in adata.obs"
    )
    assert "torch" in new
    assert (new - with_anndata) & {"lightning", "scanpy", "sklearn", "squidpy", "sympy"} == set()


def test_applying_a_student_imports_nothing_of_its_teacher(tmp_path: Path, with_anndata: set[str]) -> None:
    adata = st.datasets.synthetic_tissue(n_obs=300, random_state=0, show_progress=False)
    adata.write_h5ad(tmp_path / "section.h5ad")
    st.tl.region_graph(adata, "compartment", max_size=20)
    net, model = tmp_path / "net.stx", str(tmp_path / "student.stx")
    st.tl.multitask(
        adata, "disease", save_model=net, ensemble=["network", "linear"], params={"epochs": 1, "pretrain": "none"}
    )
    st.tl.distill(adata, net, save_model=model, params={"epochs": 1})
    section = str(tmp_path / "section.h5ad")
    new = _packages_after(
        f"import anndata, stxtools as st; adata = anndata.read_h5ad({section!r}); "
        f"st.tl.multitask(adata, 'disease', model={model!r}); assert 'disease_pred' in adata.obs"
    )
    assert "torch" in new
    assert (new - with_anndata) & {"lightning", "scanpy", "sklearn", "squidpy", "sympy", "torch_geometric"} == set()


def test_graph_networks_are_imported_without_a_warning() -> None:
    """That of PyTorch Geometric calls what torch names deprecated, in a category by its version."""
    error = "error:`torch.jit.script` is deprecated:"
    options = ["-W", f"{error}DeprecationWarning", "-W", f"{error}FutureWarning"]
    command = [sys.executable, *options, "-c", "from stxtools.nn import RegionGNN"]
    subprocess.run(command, check=True, cwd=ROOT)


def test_unknown_attribute_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = st.nonsense


def test_version_is_the_installed_one() -> None:
    try:
        installed = version("stxtools")
    except PackageNotFoundError:
        pytest.skip("stxtools runs from its source tree and is not installed")
    assert st.__version__ == installed


def test_types_are_shipped() -> None:
    assert (Path(st.__file__).parent / "py.typed").is_file()


def test_import_contracts_hold() -> None:
    lint_imports = shutil.which("lint-imports", path=str(Path(sys.executable).parent))
    if lint_imports is None:
        pytest.skip("import-linter is not installed (dependency group 'lint'); `make contracts` runs it")
    done = subprocess.run([lint_imports, "--no-cache"], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_module_imports_itself_through_others() -> None:
    grimp = pytest.importorskip("grimp", reason="grimp is not installed (dependency group 'lint')")
    graph = grimp.build_graph("stxtools", exclude_type_checking_imports=True, cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    TopologicalSorter(imports).prepare()  # CycleError names the modules of a circle
