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
    "lightning", "matplotlib", "numba", "scanpy", "seaborn", "skimage", "sklearn", "spatialdata", "squidpy", "torch",
    "torch_geometric",
}  # fmt: skip


def _packages_after(statement: str) -> set[str]:
    code = f"{statement}; import json, sys; print(json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(json.loads(done.stdout))


@pytest.fixture(scope="module")
def with_anndata() -> set[str]:
    """Return the packages that ``import anndata`` alone loads."""
    return _packages_after("import anndata")


@pytest.mark.parametrize(
    "statement",
    [
        "import stxtools",
        "import stxtools as st; dir(st), st.settings, st.__version__",
        "from stxtools import datasets, get, pl, pp, tl; dir(pp), dir(tl), dir(pl), dir(get), dir(datasets)",
    ],
)
def test_import_loads_no_heavy_package(statement: str, with_anndata: set[str]) -> None:
    assert (_packages_after(statement) - with_anndata) & HEAVY == set()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a section, a segmenter and a student."""
    at = tmp_path_factory.mktemp("models")
    adata = st.datasets.synthetic_tissue(n_obs=300, random_state=0, show_progress=False)
    adata.write_h5ad(at / "section.h5ad")
    how = {"params": {"epochs": 1, "pretrain": "none"}, "show_progress": False}
    st.tl.segment(adata, n_segments=2, save_model=at / "tissue.stx", **how)
    st.tl.region_graph(adata, "compartment", max_size=20)
    st.tl.multitask(adata, "disease", save_model=at / "net.stx", ensemble=["network", "linear"], **how)
    st.tl.distill(adata, at / "net.stx", save_model=at / "student.stx", params={"epochs": 1}, show_progress=False)
    return at


@pytest.mark.parametrize(
    ("call", "written"),
    [
        ("segment(adata, model={folder!r} + '/tissue.stx')", "segment"),
        ("segment(adata, n_segments=2, accelerator='cpu')", "segment"),
        ("multitask(adata, 'disease', model={folder!r} + '/student.stx')", "disease_pred"),
    ],
)
def test_segment_and_students_import_no_slow_package(
    call: str, written: str, folder: Path, with_anndata: set[str]
) -> None:
    """Lightning and a compiler take longer to import than a section takes to segment."""
    new = _packages_after(
        f"import anndata, stxtools as st; adata = anndata.read_h5ad({str(folder / 'section.h5ad')!r}); "
        f"st.tl.{call.format(folder=str(folder))}; assert {written!r} in adata.obs"
    )
    assert "torch" in new
    slow = {"lightning", "scanpy", "sklearn", "squidpy", "sympy", "torch_geometric"}
    assert (new - with_anndata) & slow == set()


def test_import_of_graph_networks_emits_no_deprecation_warning() -> None:
    """That of PyTorch Geometric calls what torch names deprecated, in a category by its version."""
    error = "error:`torch.jit.script` is deprecated:"
    options = ["-W", f"{error}DeprecationWarning", "-W", f"{error}FutureWarning"]
    command = [sys.executable, *options, "-c", "from stxtools.nn import RegionGNN"]
    subprocess.run(command, check=True, cwd=ROOT)


def test_unknown_attribute_raises() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = st.nonsense


def test_version_is_the_installed_one() -> None:
    try:
        installed = version("stxtools")
    except PackageNotFoundError:
        pytest.skip("stxtools runs from its source tree and is not installed")
    assert st.__version__ == installed


def test_package_ships_py_typed() -> None:
    assert (Path(st.__file__).parent / "py.typed").is_file()


def test_import_contracts_hold() -> None:
    lint_imports = shutil.which("lint-imports", path=str(Path(sys.executable).parent))
    if lint_imports is None:
        pytest.skip("import-linter is not installed (dependency group 'lint'); `make contracts` runs it")
    done = subprocess.run([lint_imports, "--no-cache"], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_modules_have_no_circular_imports() -> None:
    grimp = pytest.importorskip("grimp", reason="grimp is not installed (dependency group 'lint')")
    graph = grimp.build_graph("stxtools", exclude_type_checking_imports=True, cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    TopologicalSorter(imports).prepare()  # CycleError names the modules of a circle
